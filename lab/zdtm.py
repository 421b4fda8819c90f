# SPDX-License-Identifier: GPL-2.0-only
"""make criu-zdtm: CRIU's own test suite, each test with three pre-dumps before the dump.

The suite is that of Debian's source of CRIU, cross-built, and runs in guests by its own
zdtm.py: all of it as each of the flavours that it has (h on the host, ns in namespaces, uns in a
user namespace), tests of memory that "all" leaves out, one with the freezer, and tests of memory
with a page server and pages that come when they are touched.

A test that tests/criu/known-failures lists and that fails runs again without pre-dumps. If it
fails then too, soft-dirty is not why, and it counts as skipped.

It takes hours, so it goes on where it was stopped: what a guest said is kept, as by make
test-all, if nothing failed in it that is not listed.
"""

import fnmatch
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

from lab import bases, boot, criu, kernel, ktap, packages, qemu, report, rootfs, stored
from lab.kernel import Kernel
from lab.util import (BUILD, LabError, Parser, locked, main, output, relative, run_logged, say,
                      sha256, step)

FOLDER = BUILD / "zdtm"
TOOLS = {"protoc": "protobuf-compiler", "protoc-c": "protobuf-c-compiler",
         "pkg-config": "pkg-config"}
# What the tests are linked with, and what they and zdtm.py want in the guest.
LIBRARIES = ("libaio-dev", "libcap-dev", "libnl-3-dev", "libnl-route-3-dev", "libprotobuf-c-dev")
PACKAGES = (*criu.PACKAGES, "acl", "attr", "diffutils", "libaio1t64", "libcap2-bin",
            "libnl-route-3-200", "libprotobuf-c1", "make", "psmisc", "python3-protobuf",
            "python3-yaml")
# Of the suite's folders, what zdtm.py does not run.
LEFT_OUT = ("exhaustive", "javaTests", "jenkins", "others")
# Of each file that does not fit the guests, what is in it, and instead:
ADAPTED = (
    # How long zdtm.py waits for CRIU, in seconds: a minute is too little under emulation for the
    # 20,000 mappings of maps06.
    ("zdtm.py", "timeout=60)", "timeout=600)"),
    # And for a test to begin, with a thousand threads, or to end, when its memory comes a
    # page at a time.
    ("zdtm.py", "self.__desc.get('timeout') or 30)", "self.__desc.get('timeout') or 300)"),
    # glibc's smallest stack of a thread is larger on arm64.
    ("zdtm/transition/thread-bomb.c", "stack_size = 64 * 1024", "stack_size = 128 * 1024"),
)
DRIVER = criu.FOLDER / "zdtm.sh"
KNOWN = criu.FOLDER / "known-failures"
CPU = "neoverse-n1"
LIMIT = 4 * 3600        # seconds of the host for a boot
PRE = ("--pre", "3")
# Of each run the options, and over how many guests it is spread.
RUNS = {
    **{flavour: (("-a", "-f", flavour, *PRE), 16) for flavour in ("h", "ns", "uns")},
    "memory": (("-t", "zdtm/static/mem-touch", "-t", "zdtm/static/maps03", *PRE), 1),
    "freezer": (("-t", "zdtm/transition/thread-bomb", "--freezecg", "zdtm:t", *PRE), 1),
    "lazy": (("-T", "zdtm/.*(maps0|mem-touch|mprotect|shm).*", "--page-server",
              "--remote-lazy-pages"), 1),
}


def build():
    """Cross-build the suite; the directory with it."""
    packages.need({**packages.BUILD_TOOLS, **TOOLS}, packages.BUILD_FILES)
    tarball = packages.fetch_source("criu", criu.SUITE)
    debs = [packages.fetch(name, "arm64") for name in LIBRARIES]
    with locked("zdtm"):
        stamp, folder = FOLDER / "stamp", FOLDER / "test"
        state = sha256(tarball, str(ADAPTED), *[deb.name for deb in debs]) + "\n"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return folder
        with step(f"building the tests of {tarball.name}"):
            shutil.rmtree(FOLDER, ignore_errors=True)
            FOLDER.mkdir(parents=True)
            sysroot = FOLDER / "sysroot"
            for deb in debs:
                packages.extract(deb, ["."], sysroot)
            output(["tar", "-x", "-C", FOLDER, "--strip-components=1", "-f", tarball])
            for name, before, after in ADAPTED:
                text = (folder / name).read_text(encoding="utf-8")
                if before not in text:
                    raise LabError(f"{relative(folder / name)} has no {before!r} any more")
                (folder / name).write_text(text.replace(before, after), encoding="utf-8")
            libraries = sysroot / "usr/lib/aarch64-linux-gnu"
            make = ["make", f"-j{os.cpu_count()}", "SUBARCH=aarch64",
                    "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc",
                    f"USERCFLAGS=-isystem {sysroot / 'usr/include'}",
                    f"LDFLAGS=-L{libraries} -L{sysroot / 'lib/aarch64-linux-gnu'}", "-C"]
            env = {**os.environ, "PKG_CONFIG_LIBDIR": str(libraries / "pkgconfig"),
                   "PKG_CONFIG_SYSROOT_DIR": str(sysroot)}
            run_logged([*make, folder / "zdtm", "all"], "zdtm", env=env)
            run_logged([*make, folder, "zdtm_ct", "umount2"], "zdtm-helpers", env=env)
            for name in LEFT_OUT:
                shutil.rmtree(folder / name)
            for path in folder.rglob("*.o"):
                path.unlink()
            stamp.write_text(state, encoding="utf-8")
    return folder


def run(built, part, name, *options):
    """Run zdtm.py with OPTIONS in a guest with the kernel BUILT: the test NAME of its report.

    PART is that of RUNS that it belongs to, by whose known failures it is good or not.
    """
    machine = qemu.VirtArm64(CPU, smp=2, mem="4G")
    image = root()
    build()
    key = stored.key(built, machine, {}, DRIVER, sha256(
        " ".join(options), FOLDER / "stamp", image.with_suffix(".stamp")))
    result = stored.load(key)
    if result:
        say(f"*** NOT BOOTED: {name} (stored result of {result.date}) ***")
        return judge(name, result)
    result = start(built, machine, name, *options)
    top = judge(name, result)
    reasons = known(part)
    if all(leaf.passed or leaf.name in reasons for _, leaf in top.leaves()):
        stored.save(key, result)
    return top


def root():
    """The root file system for the suite."""
    return rootfs.build("zdtm", PACKAGES, criu.SETUP, criu.SUITE)


def start(built, machine, name, *options):
    """Run the driver with OPTIONS on MACHINE with the kernel BUILT; its result."""
    with step(name):
        return qemu.run(machine, built, [DRIVER, *options], [(build(), "/root/zdtm/test")],
                        timeout=LIMIT, quiet=True,
                        options=qemu.disk(root(), machine.bus, 1))


def judge(name, result):
    """The test NAME in what a guest left, its RESULT."""
    text = result.output.partition("\nreport:\n")[2]
    # zdtm.py exits with 1 if a test failed, which its report tells.
    top = ktap.from_tap(name, text, 0 if "\nnot ok " in text else result.status)
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    if not top.ok():
        top.log.append(f"what zdtm.py said: {relative(result.console.with_suffix('.out'))}")
    return top


def known(flavour):
    """Why tests of FLAVOUR fail without pre-dumps too: a reason for each."""
    return {test: reason for where, test, reason in ktap.read_list(KNOWN)
            if fnmatch.fnmatchcase(flavour, where)}


def excuse(built, flavour, tests):
    """Make skipped ones of those of TESTS that are known to fail, if they do without pre-dumps."""
    reasons = known(flavour)
    failed = [leaf for leaf in tests if not leaf.passed and leaf.name in reasons]
    if not failed:
        return
    chosen = [word for leaf in failed for word in ("-t", leaf.name)]
    alone = run(built, flavour, f"{built} {flavour} without pre-dumps", "-f", flavour, *chosen)
    passed = {leaf.name: leaf.passed for _, leaf in alone.leaves()}
    for leaf in failed:
        if passed.get(leaf.name, True):
            leaf.log.append("without pre-dumps it passes, or did not run")
        else:
            leaf.passed = True
            leaf.skip = f"fails without pre-dumps too: {reasons[leaf.name]}"


def examine(base):
    """The test of the whole suite on BASE, a test each run of it."""
    built, top = Kernel(base, extra="criu"), ktap.Test(f"CRIU's tests on {base}")
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        kernel.build(built)
        root()
        build()
        running = {name: [pool.submit(run, built, name, f"{built} {name} {shard + 1} of {shards}",
                                      *options, *slice_of(shard, shards))
                          for shard in range(shards)]
                   for name, (options, shards) in RUNS.items()}
        for name, futures in running.items():
            tests = [leaf for future in futures for leaf in future.result().tests]
            excuse(built, name, tests)
            top.tests.append(ktap.Test(name, tests=sorted(tests, key=lambda leaf: leaf.name)))
    except LabError as err:
        top.fail("the suite can be run", str(err))
    finally:
        pool.shutdown(cancel_futures=True)
    return top


def slice_of(shard, shards):
    """The options of zdtm.py for one of SHARDS."""
    return ("--test-shard-index", str(shard), "--test-shard-count", str(shards)) * (shards > 1)


def table(top):
    """The tests of TOP as lines: what each run of the suite made of them, and why not."""
    found, notes = {}, {}
    for part in top.tests:
        for _, leaf in part.leaves():
            name = leaf.name.removeprefix("zdtm/")
            text = "FAIL" if not leaf.passed else "skip" if leaf.skip else "pass"
            found.setdefault(name, {})[part.name] = text
            if leaf.skip:
                notes.setdefault(name, leaf.skip)
    names = [part.name for part in top.tests]
    return report.aligned([("test", *names, "why it was skipped")]
                          + [(name, *[cells.get(part, "-") for part in names],
                              notes.get(name, "")) for name, cells in found.items()])


def cli():
    """Command line: the suite on a base, and a table of its tests; 1 if one failed."""
    parser = Parser(prog="lab.zdtm", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="BASE")
    base = parser.parse_args().base
    bases.load(base)
    packages.need(packages.QEMU_TOOLS)
    top = examine(base)
    print(f"{table(top)}\n")
    return report.end(top.tests)


if __name__ == "__main__":
    main(cli)

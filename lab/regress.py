# SPDX-License-Identifier: GPL-2.0-only
"""make regress: do the kernel's mm and arm64 selftests pass with the series as without it?

For each base the plain kernel and the one with the series run the whole of them, each
kernel those of its own tree, in a Debian root file system: the mm suite by its own
run_vmtests.sh, a category at a time, and the arm64 suites gcs, mte, pauth, fp and signal.
A single test that passes on the plain base has to pass with the series, and one that only
the series has must not fail.

It takes hours, so it goes on where it was stopped: what a guest said is kept as by
make test-all, if it came to its end and the series did not do worse.
"""

import fnmatch
import re
from functools import partial

from lab import bases, boot, kernel, ktap, newqemu, packages, qemu, report, rootfs, selftests
from lab import stored, trees
from lab.kernel import Kernel
from lab.util import ROOT, Parser, main, relative, say, sha256, step

DRIVER = ROOT / "tests/suites.sh"
RACES = ROOT / "tests/known-races"
CPU = "max"             # for the tests of MTE, pointer authentication, SVE and SME
PART_LIMIT = 1200       # seconds of the guest for a category of mm, or a program of arm64
BOOT_LIMIT = 6 * 3600   # seconds of the host for all of a boot
PACKAGES = ("psmisc", "sudo", "xfsprogs")
# As Debian's scripts would have written it; root changes to nobody, who runs a test.
SETUP = r"""
for kind in auth account session session-noninteractive; do
    echo "${kind%-noninteractive} required pam_permit.so" > "$1/etc/pam.d/common-$kind"
done
"""
_CATEGORY = re.compile(r'^\s*CATEGORY="([\w-]+)" run_test', re.M)
# One program in the output of run_vmtests.sh: what ran, what it printed, the verdict.
_PROGRAM = re.compile(r"^# -+\n# running ([^\n]*)\n# -+\n(.*?)"
                      r"^(?:# \[\w+\]\n)?(?:ok|not ok) \d+ [^\n]*?(?:# (SKIP|exit=\d+))?$",
                      re.M | re.S)
_RUNNING = re.compile(r"^# running (.*)$", re.M)


def parts(folder):
    """The names of what can be run by itself of the selftests installed in FOLDER."""
    script = (folder / "mm/run_vmtests.sh").read_text(encoding="utf-8")
    listed = (folder / "kselftest-list.txt").read_text(encoding="utf-8").split()
    return ([f"mm/{name}" for name in dict.fromkeys(_CATEGORY.findall(script))]
            + [line.replace(":", "/") for line in listed if line.startswith("arm64:")])


def program(name, text, status):
    """The test NAME of a program that printed TEXT and exited with STATUS.

    What prints no TAP has its status alone.
    """
    if re.search(r"^1\.\.\d", text, re.M):
        return ktap.from_tap(name, text, status)
    last = (text.strip().splitlines() or ["no reason given"])[-1]
    return ktap.Test(name, passed=status in (0, ktap.KSFT_SKIP), log=text.splitlines()[-20:],
                     skip=last if status == ktap.KSFT_SKIP else "")


def category(name, text, status):
    """The test NAME, a category of run_vmtests.sh, which printed TEXT and exited with STATUS."""
    top, end = ktap.Test(name), 0
    for found in _PROGRAM.finditer(text):
        verdict, end = found[3] or "exit=0", found.end()
        inner = re.sub(r"^# ", "", found[2], flags=re.M)
        code = ktap.KSFT_SKIP if verdict.upper() == "SKIP" else int(verdict[len("exit="):])
        name = re.sub(r"^(?:bash )?\./", "", found[1])
        top.tests.append(program(re.sub(r"/tmp/\w+", "DIR", name), inner, code))
    running = _RUNNING.search(text, end)
    if running:
        top.fail(running[1], f"it did not end in time: status {status}", *text.splitlines()[-20:])
    if not top.tests:
        top.skip = "nothing to run"
    return top


def judge(name, names, result):
    """The test NAME of the parts NAMES in what a guest left, its RESULT."""
    top = ktap.Test(name)
    for part in names:
        found = boot.said(part, result.output)
        if not found:
            top.fail(part, "it did not run, or did not end")
        else:
            read = category if part.startswith("mm/") else program
            top.tests.append(read(part, *found))
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    if result.status not in (0, qemu.EXIT_SPLAT):
        top.fail("the guest runs to its end", f"status {result.status}; "
                 f"console: {result.console}", f"again: {result.command}")
    return top


def run(built, good):
    """Build the kernel BUILT and its selftests, run them in a guest, and return their test.

    GOOD says of that test whether it need not be run again.
    """
    kernel.build(built)
    loadable, suites = kernel.modules(built), selftests.install(built)
    names = parts(suites)
    root = rootfs.build("selftests", PACKAGES, SETUP)
    machine = qemu.VirtArm64(CPU, smp=4, nodes=2, mem="6G")
    machine.binary = str(newqemu.path() or machine.binary)
    state = sha256(trees.state(built.tree(), "tools/testing/selftests"), " ".join(names),
                   root.with_suffix(".stamp"), str(PART_LIMIT))
    key = stored.key(built, machine, {}, DRIVER, state)
    result = stored.load(key)
    if result:
        top = judge(str(built), names, result)
        if good(top):
            say(f"*** NOT BOOTED: {built} (stored result of {result.date}) ***")
            return top
    with step(f"booting {built}"):
        result = qemu.run(machine, built, [DRIVER, str(PART_LIMIT), *names],
                          [(loadable, "/root/modules"), (suites, "/root/kselftest")],
                          timeout=BOOT_LIMIT, quiet=True,
                          options=qemu.disk(root, machine.bus, 1))
    top = judge(str(built), names, result)
    if result.status in (0, qemu.EXIT_SPLAT) and good(top):
        stored.save(key, result)
    return top


def compare(plain, patched):
    """The test of what the series changes, from the tests PLAIN and PATCHED.

    What RACES has is left out of both.
    """
    races = [pattern for where, pattern, _ in ktap.read_list(RACES)
             if fnmatch.fnmatchcase(patched.name, where)]

    def steady(found):
        return {path: leaf for path, leaf in found.items()
                if not any(fnmatch.fnmatchcase(path, pattern) for pattern in races)}

    before, after = steady(ktap.by_path(plain)), steady(ktap.by_path(patched))
    left_out = len(ktap.by_path(plain)) - len(before)
    top = ktap.Test(f"{patched.name} beside {plain.name}")
    good = ktap.passing(before)
    for path in sorted(set(good).difference(ktap.passing(after))):
        if path not in after:
            top.fail(path, "it passes without the series, and does not run with it")
        else:
            top.fail(path, "it passes without the series", *after[path].log, after[path].skip)
    for path, leaf in after.items():
        if path not in before and not leaf.passed:
            top.fail(path, "it fails, and without the series it does not run", *leaf.log)
    if not good:
        top.fail("something passes without the series")
    top.tests.append(ktap.Test(f"what passes without the series: {len(good)} tests compared; "
                               f"{left_out} left out, see {relative(RACES)}"))
    return top


def _not_worse(plain, patched):
    """Whether nothing is worse in PATCHED than in PLAIN."""
    return compare(plain, patched).ok()


def rows(plain, patched):
    """A line a program or, if there are no programs in it, a part: the counts of both kernels."""
    found = {}
    for column, top in enumerate((plain, patched)):
        for part in top.tests:
            inner = part.tests if part.name.startswith("mm/") and part.tests else [part]
            for test in inner:
                name = part.name if test is part else f"{part.name}: {test.name}"
                found.setdefault(name, ["-", "-"])[column] = "/".join(map(str, test.counts()))
    return [(name, *cells) for name, cells in found.items()]


def cli():
    """Command line: compare each base; print the table of every test; 1 if one is worse."""
    Parser(prog="lab.regress", description=__doc__.splitlines()[0]).parse_args()
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    good = True
    for base in bases.names():
        plain = run(Kernel(base, plain=True, extra="selftests"), lambda _: True)
        patched = run(Kernel(base, extra="selftests"), partial(_not_worse, plain))
        verdict = compare(plain, patched)
        print(report.aligned([("passed/failed/skipped", plain.name, patched.name),
                              *rows(plain, patched)]))
        print(f"\n{verdict.tests[-1].name}")
        print(report.failures([verdict]))
        good = good and verdict.ok()
    return 0 if good else 1


if __name__ == "__main__":
    main(cli)

# SPDX-License-Identifier: GPL-2.0-only
"""make test: everything that is checked, as one KTAP stream and a table."""

import re
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import bases, check, demo, ktap, packages, qemu, selftests, trees
from lab.kernel import Kernel, build
from lab.util import BUILD, EXIT_TIMEOUT, ROOT, BaseGone, LabError, Parser, main, say

RESULTS = BUILD / "results"
DRIVER = ROOT / "tests/mm-selftests.sh"
MAP = "softdirty-map"
# The mm selftests that meet soft-dirty or the code around it; each base has some.
SELFTESTS = ("soft-dirty", "madv_populate", "pagemap_ioctl", "mkdirty", "merge",
             "guard-regions", "ksm_functional_tests", "split_huge_page_test",
             "uffd-wp-mremap")
LEAD_TEST = "soft-dirty"            # the lead's also runs on the other bases
# What make test leaves to make test-all, by base and page size; the README says why.
LEFT_OUT = {
    ("6.12", "4k"): ("split_huge_page_test",),
    ("7.3", "16k"): ("split_huge_page_test",),
    ("7.3", "64k"): ("split_huge_page_test", "pagemap_ioctl", "uffd-wp-mremap"),
}
COMPLAINT = "no complaint of the kernel"
TEST_LIMIT = 900                    # seconds of the guest for one selftest
BOOT_LIMIT = 2400                   # seconds of the host for all of a boot
VALIDATED = ("PTE soft dirty", "PTE swap soft dirty", "PMD soft dirty", "PMD swap soft dirty")
# Debug messages onto the console, and those of debug_vm_pgtable among them.
APPEND = 'loglevel=8 dyndbg="file mm/debug_vm_pgtable.c +p"'


@dataclass(frozen=True)
class Boot:
    """One guest of the matrix: a kernel on a CPU."""

    kernel: Kernel
    cpu: str

    def __str__(self):
        return f"{self.kernel} {self.cpu}"

    def plain(self):
        """The same without the series: the yardstick."""
        return Boot(Kernel(self.kernel.base, self.kernel.page, debug=self.kernel.debug,
                           plain=True), self.cpu)


def matrix(everything):
    """The boots of make test, or with EVERYTHING those of make test-all."""
    def boots(base, page, *cpus, debug=True):
        return [Boot(Kernel(base, page, debug=debug), cpu) for cpu in cpus]

    chosen = [*boots("7.3", "4k", "cortex-a57", "neoverse-n1", "max"),
              *boots("6.12", "4k", "cortex-a57", "neoverse-n1"),
              *boots("7.3", "16k", "neoverse-n1"),
              *boots("7.3", "64k", "neoverse-n1")]
    plain = [boot.plain() for boot in chosen
             if boot.kernel.page == "4k" and boot.cpu == "neoverse-n1"]
    if everything:
        chosen += [*boots("6.12", "4k", "max"),
                   *boots("6.12", "16k", "neoverse-n1"), *boots("6.12", "64k", "neoverse-n1"),
                   *boots("7.3", "16k", "max"), *boots("7.3", "64k", "max", "cortex-a57"),
                   *boots("7.3", "4k", "cortex-a57", "neoverse-n1", "max", debug=False),
                   *boots("6.12", "4k", "cortex-a57", "neoverse-n1", "max", debug=False)]
        plain = [boot.plain() for boot in chosen]
        chosen += [Boot(Kernel(base, soft_dirty=False), "neoverse-n1")
                   for base in bases.names()]
    by_kernel = {}
    for boot in chosen + plain:
        by_kernel.setdefault(boot.kernel, []).append(boot)
    return by_kernel


def programs(base):
    """The map program and the selftests of BASE, by name."""
    source = trees.make(base) / "tools/testing/selftests/mm"
    names = [name for name in SELFTESTS if (source / f"{name}.c").exists()]
    folder = selftests.build(base, names)
    found = {MAP: demo.build()}
    found.update({name: folder / name for name in names})
    return found


def run_boot(boot, tests):
    """Run TESTS (name: path) in a guest, and return the test made of them."""
    say(f"boot {boot}")
    top = ktap.Test(str(boot))
    files = [(path, f"/root/mm/{name}") for name, path in tests.items()]
    try:
        # A huge page takes 32 MB with 16K pages, 512 MB with 64K pages.
        mem = "8G" if boot.kernel.page == "64k" else "4G"
        result = qemu.run(qemu.VirtArm64(boot.cpu, smp=4, mem=mem, nodes=2), boot.kernel,
                          [DRIVER, str(TEST_LIMIT), *tests], files, APPEND, BOOT_LIMIT,
                          quiet=True)
    except (LabError, OSError) as err:
        top.fail("boots", str(err))
        return top
    log = result.console.read_text(encoding="utf-8", errors="replace")
    if boot.kernel.debug and not boot.kernel.plain:
        top.tests.append(_validated(log))
    for name in tests:
        top.tests.append(_selftest(name, result.output))
    _blame(top, log)
    if result.status == EXIT_TIMEOUT:
        top.fail("ends in time", f"killed after {BOOT_LIMIT}s; console: {result.console}")
    elif result.status not in (0, qemu.EXIT_SPLAT):
        top.fail("the guest runs to its end", f"status {result.status}; "
                 f"console: {result.console}", f"again: {result.command}")
    passed, failed, skipped = top.counts()
    say(f"boot {boot}: {passed} passed, {failed} failed, {skipped} skipped")
    return top


def _selftest(name, output):
    """The test NAME out of what the driver printed."""
    found = re.search(rf"^lab: begin {re.escape(name)}\n(.*?)^lab: end {re.escape(name)} (\d+)$",
                      output, re.S | re.M)
    if not found:
        return ktap.Test(name, passed=False, log=["it did not run, or did not end"])
    text, status = found[1], int(found[2])
    if name != MAP:
        return ktap.from_tap(name, text, status)
    if status == demo.UNSUPPORTED:
        return ktap.Test(name, skip="soft-dirty is not supported by this kernel")
    return ktap.Test(name, passed=status == 0, log=text.splitlines())


def _validated(log):
    """Whether debug_vm_pgtable checked the soft-dirty helpers; that it complained is a splat."""
    missing = [what for what in VALIDATED if f"Validating {what}" not in log]
    return ktap.Test("debug_vm_pgtable validates soft-dirty", passed=not missing,
                     log=[f"did not run: {what}" for what in missing])


def _blame(top, log):
    """Fail each test of TOP during which the kernel complained in its LOG."""
    lines = log.splitlines()
    for number, line in qemu.splats(log):
        begins = [text.split("lab: begin ", 1)[1] for text in lines[:number]
                  if "lab: begin " in text]
        culprit = next((test for test in top.tests if begins and test.name == begins[-1]), top)
        if not culprit.tests:       # a leaf: its own verdict becomes the first of two
            culprit.tests = [ktap.Test("result", culprit.passed, culprit.skip, culprit.log)]
            culprit.passed, culprit.skip = True, ""
        culprit.fail(COMPLAINT, line, *lines[number:number + 30])


def judge_plain(plain, patched):
    """The verdict over the run PLAIN of a plain kernel, the yardstick for PATCHED.

    Nothing that passes there may fail with the series, and soft-dirty must not
    pass there. What else fails there is the base's own.
    """
    top = ktap.Test(plain.name)
    names = [test.name for test in plain.tests]
    trackers = [test for test in plain.tests if test.name.startswith((MAP, LEAD_TEST))]
    for test in trackers:
        top.tests.append(ktap.Test(f"{test.name} finds no soft-dirty support",
                                   passed=bool(test.skip) and test.passed, log=test.log))
    if not trackers:
        top.fail("the programs that look for soft-dirty ran")
    before, after = dict(_paths(plain)), dict(_paths(patched))
    for name in [name for name in SELFTESTS if name in names and name != LEAD_TEST]:
        good = [path for path, leaf in before.items() if path.startswith(f"{name}: ")
                and leaf.passed and not leaf.skip]
        worse = [path for path in good if path not in after or not after[path].passed
                 or after[path].skip]
        top.tests.append(ktap.Test(f"{name}: what passes here passes with the series",
                                   passed=bool(good) and not worse,
                                   log=[f"{len(good)} pass here",
                                        *[f"worse: {path}" for path in worse]]))
    for test in plain.tests:        # what is no selftest, or the kernel's complaint about one
        if test in trackers or test.name in SELFTESTS:
            top.tests += [leaf for _, leaf in test.leaves() if leaf.name == COMPLAINT]
        else:
            top.tests.append(test)
    return top


def _paths(boot):
    """The single tests of BOOT as pairs of a unique path and the test.

    A name with a percentage in it tells what was measured: its numbers are left out.
    """
    seen = {}
    for test in boot.tests:
        for path, leaf in test.leaves():
            if "%" in path:
                path = re.sub(r"\d+(?:\.\d+)?", "N", path)
            seen[path] = seen.get(path, 0) + 1
            yield (path if seen[path] == 1 else f"{path} ({seen[path]})"), leaf


def lab_tests():
    """The lab's own tests in tests/test_*.py, as one test."""
    top = ktap.Test("lab")

    class Collector(unittest.TestResult):
        """Turns unittest's results into ours."""

        def addSuccess(self, test):
            top.tests.append(ktap.Test(test.shortDescription() or test.id()))

        def addFailure(self, test, err):
            top.fail(test.shortDescription() or test.id(),
                     *self._exc_info_to_string(err, test).splitlines())

        addError = addFailure

        def addSkip(self, test, reason):
            top.tests.append(ktap.Test(test.shortDescription() or test.id(), skip=reason))

    suite = unittest.defaultTestLoader.discover(str(ROOT / "tests"), top_level_dir=str(ROOT))
    suite.run(Collector())
    if not top.tests:
        top.fail("there are tests of the lab")
    return top


def prepare():
    """The programs to run for each base that can be had, and the tests of those that cannot."""
    found, tests = {}, []
    for base in bases.names():
        try:
            found[base] = programs(base)
        except BaseGone as err:
            say(f"*** SKIPPED: {err}; last tested: {bases.load(base).tested} ***")
            tests.append(ktap.Test(f"base {base}", skip=str(err)))
        except LabError as err:
            tests.append(ktap.Test(f"base {base}", passed=False, log=[str(err)]))
    extra = f"{LEAD_TEST}-{bases.LEAD}"
    for base, tools in found.items():
        if base == bases.LEAD:
            continue
        if bases.LEAD in found:
            tools[extra] = found[bases.LEAD][LEAD_TEST]
        else:
            tests.append(ktap.Test(f"{extra} on {base}", skip=f"no {bases.LEAD} to build it"))
    return found, tests


def run(everything):
    """Run all of it; returns the tests and the tree whose parser reads them."""
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS, **packages.CHECK_TOOLS},
                  packages.BUILD_FILES)
    found, tests = prepare()
    if not found:
        raise LabError("no base to test: "
                       + "; ".join(leaf.skip or leaf.log[0] for leaf in tests))
    entries, done, running = ktap.allowed_skips(), {}, {}
    tests.append(check.run(list(found)))
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        for kernel, boots in matrix(everything).items():
            if kernel.base not in found:
                continue
            try:
                build(kernel)
            except LabError as err:
                tests.append(ktap.Test(f"kernel {kernel}", passed=False, log=[str(err)]))
                continue
            left_out = () if everything else LEFT_OUT.get((kernel.base, kernel.page), ())
            tools = {name: path for name, path in found[kernel.base].items()
                     if name not in left_out}
            for boot in boots:
                running[boot] = pool.submit(run_boot, boot, tools)
        tests.append(lab_tests())
        done = {boot: future.result() for boot, future in running.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for test in tests:
        ktap.enforce_skips(test.name, test, entries)
    for boot, test in done.items():
        patched = next((other for other in done if boot.kernel.plain
                        and not other.kernel.plain and other.plain() == boot), None)
        if patched:
            tests.append(judge_plain(test, done[patched]))
        else:
            ktap.enforce_skips(str(boot), test, entries)
            tests.append(test)
    return tests, trees.make(bases.LEAD if bases.LEAD in found else next(iter(found)))


def table(tests):
    """The results as a table, a line a top-level test."""
    rows = [("test", "passed", "failed", "skipped")]
    rows += [(test.name, *map(str, test.counts())) for test in tests]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:{width}}  " + "  ".join(f"{cell:>7}" for cell in row[1:])
                     for row in rows)


def cli():
    """Command line: run, write the stream to build/results, print and count."""
    parser = Parser(prog="lab.test", description=__doc__)
    parser.add_argument("--all", action="store_true", help="the whole matrix")
    tests, tree = run(parser.parse_args().all)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = ktap.stream(tests)
    (RESULTS / "test.ktap").write_text(text, encoding="utf-8")
    sys.stdout.flush()
    passed, failed, skipped = ktap.read(text, tree)
    own = [sum(column) for column in zip(*(test.counts() for test in tests))]
    if [passed, failed, skipped] != own:
        print(f"the parser counts {passed}, {failed}, {skipped}, the lab {own}: one is wrong")
        failed += 1
    for base in bases.names():
        print(f"base {base}: {trees.source_version(base)}")
    print(f"\n{table(tests)}\n")
    print(f"KTAP: {Path(RESULTS / 'test.ktap').relative_to(ROOT)}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    main(cli)

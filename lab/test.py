# SPDX-License-Identifier: GPL-2.0-only
"""make test: everything that is checked, as one KTAP stream and a table."""

import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import (bases, check, control, criu, demo, ktap, matrix, mutants, newqemu, packages,
                 report, selftests, trees, zdtm)
from lab.boot import COMPLAINT, run_boot
from lab.kernel import build
from lab.matrix import FROM_LEAD, GROUP_TESTS, LEAD_TEST, MAP, OWN_TEST, SELFTESTS
from lab.util import BUILD, ROOT, BaseGone, LabError, Parser, main, say

RESULTS = BUILD / "results"


def programs(base, arch):
    """The selftests of BASE for ARCH, and for arm64 the map program, by name."""
    source = trees.make(base) / "tools/testing/selftests/mm"
    names = [name for name in ((*SELFTESTS, OWN_TEST, *GROUP_TESTS) if arch == "arm64"
                               else matrix.ON_X86)
             if (source / f"{name}.c").exists()]
    folder = selftests.build(base, names, arch)
    found = {MAP: demo.build()} if arch == "arm64" else {}
    found.update({name: folder / name for name in names})
    return found


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
    before, after = ktap.by_path(plain), ktap.by_path(patched)
    tracking = [test.name for test in trackers]
    for name in [name for name in SELFTESTS if name in names and name not in tracking]:
        good = [path for path in ktap.passing(before) if path.startswith(f"{name}: ")]
        worse = sorted(set(good).difference(ktap.passing(after)))
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


def prepare(everything):
    """The programs for each base and architecture that can be had, and tests of the others."""
    found, tests = {}, []
    wanted = [(base, "arm64") for base in bases.names()]
    for base, arch in wanted + [(bases.LEAD, "x86_64")] * everything:
        try:
            found[base, arch] = programs(base, arch)
        except BaseGone as err:
            say(f"*** SKIPPED: {err}; last tested: {bases.load(base).tested} ***")
            tests.append(ktap.Test(f"base {base} on {arch}", skip=str(err)))
        except LabError as err:
            tests.append(ktap.Test(f"base {base} on {arch}", passed=False, log=[str(err)]))
    lead = found.get((bases.LEAD, "arm64"))
    for (base, _), tools in found.items():
        if base == bases.LEAD:
            continue
        if lead:
            tools[FROM_LEAD] = lead[LEAD_TEST]
        else:
            tests.append(ktap.Test(f"{FROM_LEAD} on {base}", skip=f"no {bases.LEAD} to build it"))
    return found, tests


def boot_all(boots, found, tests, everything):
    """Build the kernels of BOOTS and boot them; CRIU's and the lab's own tests run meanwhile.

    FOUND has the programs for each base and architecture. Adds to TESTS, and returns
    the test of each boot.
    """
    newer = newqemu.path() if everything else None
    wide = set(matrix.wide())
    running = {}
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        for kernel, guests in matrix.by_kernel(boots).items():
            tools = found.get((kernel.base, kernel.arch))
            if not tools:
                continue
            try:
                build(kernel)
            except LabError as err:
                tests.append(ktap.Test(f"kernel {kernel}", passed=False, log=[str(err)]))
                continue
            for boot in guests:
                chosen = {name: tools[name] for name in boot.tests if name in tools}
                running[boot] = pool.submit(run_boot, boot, chosen,
                                            newer if boot in wide else None, everything)
        short = [pool.submit(criu.short)] * ((bases.LEAD, "arm64") in found)
        tests.append(lab_tests())
        tests += [future.result() for future in short]
        return {boot: future.result() for boot, future in running.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run(everything):
    """Run all of it; returns the tests, the tree whose parser reads them, and the wide ones."""
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS, **packages.CHECK_TOOLS,
                   **(packages.X86_TOOLS if everything else {})}, packages.BUILD_FILES)
    found, tests = prepare(everything)
    if not found:
        raise LabError("no base to test: "
                       + "; ".join(leaf.skip or leaf.log[0] for leaf in tests))
    names = list(dict.fromkeys(base for base, _ in found))
    tests.append(check.run(names, everything))
    narrow, wide = matrix.narrow(everything), matrix.wide() if everything else []
    done = boot_all(narrow + wide, found, tests, everything)
    for test in tests:
        ktap.enforce_skips(test.name, test, ktap.allowed_skips())
    for boot in [boot for boot in narrow if boot in done]:
        patched = next((other for other in narrow if boot.kernel.plain and other in done
                        and not other.kernel.plain and other.plain() == boot), None)
        tests.append(judge_plain(done[boot], done[patched]) if patched else done[boot])
    wide = {boot: done[boot] for boot in wide if boot in done}
    if wide:
        tests.append(ktap.Test("wide matrix", tests=list(wide.values())))
    if everything and bases.LEAD in names:
        tests += [mutants.run(), control.run()]
    if everything:
        tests += [zdtm.examine(base) for base in names]
    return tests, trees.make(bases.LEAD if bases.LEAD in names else names[0]), wide


def cli():
    """Command line: run, write the stream to build/results, print and count."""
    parser = Parser(prog="lab.test", description=__doc__)
    parser.add_argument("--all", action="store_true", help="the whole matrix")
    tests, tree, wide = run(parser.parse_args().all)
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
    print(f"\n{report.table(tests)}\n")
    if wide:
        print(f"wide matrix:\n{report.wide_table(wide)}\n")
    if failed:
        print(f"{report.failures(tests)}\n")
    print(f"KTAP: {Path(RESULTS / 'test.ktap').relative_to(ROOT)}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    main(cli)

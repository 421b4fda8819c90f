# SPDX-License-Identifier: GPL-2.0-only
"""make groups: does each further group of the series apply and pass with the other left out?

After the core each series has two groups of patches, PM_SCAN_SOFT_CLEAN_MATCHING and
UFFDIO_COPY_MODE_DONTSOFTDIRTY. For each base and each group a debug kernel is built without
the other one: the group's selftest has to pass, and that of the other has to find nothing.
"""

from dataclasses import dataclass

from lab import bases, boot, kernel, ktap, packages, qemu, report, trees
from lab.matrix import GROUP_TESTS
from lab.test import programs
from lab.util import LabError, Parser, locked, main, step

# Each group by its selftest, and what the files of its patches are called.
GROUPS = dict(zip(GROUP_TESTS, ("PAGEMAP_SCAN-ended PAGEMAP_SCAN-make pagemap-soft-clean".split(),
                                "UFFDIO_COPY-leave uffd-soft-clean".split())))
CPU = "neoverse-n1"


@dataclass(frozen=True)
class Kernel(kernel.Kernel):
    """The kernel of the series without one of the groups."""

    def __str__(self):
        return f"{self.base}-group"

    def tree(self):
        return trees.TREES / f"{self.base}-group"


def members(patches, group):
    """Those of PATCHES that are of GROUP; LabError if a part of it is not there."""
    found = {word: [patch for patch in patches if word in patch.name] for word in GROUPS[group]}
    for word, some in found.items():
        if len(some) != 1:
            raise LabError(f"{len(some)} patches instead of one are called *{word}*")
    return [some[0] for some in found.values()]


def start(built, tools, group):
    """Boot BUILT, which has GROUP alone, with the selftests TOOLS: the test of what they said."""
    machine = qemu.VirtArm64(CPU, smp=4, mem="4G", nodes=2)
    with step(f"booting {built} with {group} by itself"):
        result = qemu.run(machine, built, [boot.DRIVER, str(boot.TEST_LIMIT), *GROUP_TESTS],
                          [(tools[name], f"/root/mm/{name}") for name in GROUP_TESTS],
                          boot.APPEND, boot.BOOT_LIMIT, quiet=True)
    top = judge([boot.selftest(name, result.output) for name in GROUP_TESTS], group)
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    return top


def judge(said, group):
    """The tests of what was SAID by the selftests, of which that of GROUP has to have passed.

    The others find nothing to test, so that most of their cases are skipped.
    """
    top = ktap.Test(f"{group} by itself")
    for test in said:
        passed, failed, skipped = test.counts()
        top.tests.append(ktap.Test(
            f"{test.name}: {passed} passed, {failed} failed, {skipped} skipped",
            passed=not failed and (passed > skipped) == (test.name == group),
            log=[path for path, leaf in test.leaves() if not leaf.passed]))
    return top


def examine(base):
    """The test of both groups on BASE."""
    tools, top = programs(base, "arm64"), ktap.Test(f"groups of {base}")
    trees.make(base)
    patches = trees.series(base)
    with locked(f"groups-{base}"):
        for group in GROUPS:
            other, = set(GROUPS) - {group}
            out = members(patches, other)
            path = trees.check_out(base, "group", "base^{commit}")
            trees.am(path, [patch for patch in patches if patch not in out])
            built = Kernel(base, debug=True)
            kernel.build(built)
            top.tests.append(start(built, tools, group))
    return top


def cli():
    """Command line: both groups on each base; 1 if one failed."""
    Parser(prog="lab.groups", description=__doc__.splitlines()[0]).parse_args()
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    tops = [examine(base) for base in bases.names()]
    for top in tops:
        for path, leaf in top.leaves():
            print(f"{'ok' if leaf.passed else 'FAILED'}  {path}")
    return report.end(tops)


if __name__ == "__main__":
    main(cli)

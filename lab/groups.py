# SPDX-License-Identifier: GPL-2.0-only
"""make groups: does each further group of the series apply and pass with the other left out?

After the core each series has two groups of patches, PM_SCAN_SOFT_CLEAN_MATCHING and
UFFDIO_COPY_MODE_DONTSOFTDIRTY. For each base and each group a debug kernel is built without
the other one, and the group's selftest has to pass. A third group, by which soft-clean pages
stay writable, is on top of both, and stays out here.
"""

import re
from dataclasses import dataclass

from lab import bases, boot, kernel, ktap, mutants, packages, qemu, report, trees
from lab.matrix import GROUP_TESTS
from lab.test import programs
from lab.util import LabError, Parser, locked, main, step

# Each group by its selftest, and what the files of its patches are called.
GROUPS = dict(zip(GROUP_TESTS, ("PAGEMAP_SCAN-ended PAGEMAP_SCAN-make pagemap-soft-clean".split(),
                                "UFFDIO_COPY-leave uffd-soft-clean".split())))
THIRD = re.sub(r"\W+", "-", mutants.GROUP_BEGINS)  # what its first patch is called
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


def below_third(patches):
    """Those of PATCHES that come before the third group; LabError if it is not there."""
    numbers = [number for number, patch in enumerate(patches) if THIRD in patch.name]
    if len(numbers) != 1:
        raise LabError(f"{len(numbers)} patches instead of one are called *{THIRD}*")
    return patches[:numbers[0]]


def start(built, program, group):
    """Boot BUILT, which has GROUP alone, with the group's PROGRAM: the test of what it said."""
    machine = qemu.VirtArm64(CPU, smp=4, mem="4G", nodes=2)
    with step(f"booting {built} with {group} by itself"):
        result = qemu.run(machine, built, [boot.DRIVER, str(boot.TEST_LIMIT), group],
                          [(program, f"/root/mm/{group}")], boot.APPEND, boot.BOOT_LIMIT,
                          quiet=True)
    top = ktap.Test(f"{group} by itself", tests=[boot.selftest(group, result.output)])
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    ktap.enforce_skips(str(built), top, ktap.allowed_skips())
    return top


def examine(base):
    """The test of both groups on BASE."""
    top = ktap.Test(f"groups of {base}")
    trees.make(base)
    patches = below_third(trees.series(base))
    with locked(f"groups-{base}"):
        for group in GROUPS:
            other, = set(GROUPS) - {group}
            out = members(patches, other)
            path = trees.check_out(base, "group", "base^{commit}")
            trees.am(path, [patch for patch in patches if patch not in out])
            built = Kernel(base, debug=True)
            kernel.build(built)
            top.tests.append(start(built, programs(base, "arm64")[group], group))
    return top


def cli():
    """Command line: both groups on each base; 1 if one failed."""
    Parser(prog="lab.groups", description=__doc__.splitlines()[0]).parse_args()
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    tops = [examine(base) for base in bases.names()]
    return report.end(tops)


if __name__ == "__main__":
    main(cli)

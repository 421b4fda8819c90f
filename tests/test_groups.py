# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.groups: what belongs to a group, and whether it has passed by itself."""

import unittest

from lab import bases, groups, ktap, trees
from lab.util import LabError


def said(name, passed, skipped, failed=0):
    """What a selftest called NAME said."""
    return ktap.Test(name, tests=[*[ktap.Test(f"p{i}") for i in range(passed)],
                                  *[ktap.Test(f"s{i}", skip="no") for i in range(skipped)],
                                  *[ktap.Test(f"f{i}", passed=False) for i in range(failed)]])


class Groups(unittest.TestCase):
    """Groups of patches."""

    def test_members(self):
        """each group has its patches in each series, and they are the last ones"""
        for base in bases.names():
            patches = trees.series(base)
            found = [patch for group in groups.GROUPS for patch in groups.members(patches, group)]
            self.assertEqual(found, patches[-len(found):])
            with self.assertRaises(LabError):
                groups.members(patches[:-1], list(groups.GROUPS)[-1])

    def test_judge(self):
        """a group passes if its test does and the other finds nothing"""
        own, other = groups.GROUP_TESTS
        for numbers, good in ((((9, 1), (1, 9)), True), (((9, 1, 1), (1, 9)), False),
                              (((9, 1), (1, 9, 1)), False), (((0, 9), (1, 9)), False),
                              (((9, 1), (9, 1)), False)):
            tests = [said(name, *counts) for name, counts in zip((own, other), numbers)]
            self.assertEqual(groups.judge(tests, own).ok(), good, numbers)


if __name__ == "__main__":
    unittest.main(verbosity=2)

# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.groups: what belongs to a group."""

import unittest

from lab import bases, groups, trees
from lab.util import LabError


class Groups(unittest.TestCase):
    """Groups of patches."""

    def test_members(self):
        """each group has its patches in each series, the last ones below the third group"""
        for base in bases.names():
            patches = groups.below_third(trees.series(base))
            found = [patch for group in groups.GROUPS for patch in groups.members(patches, group)]
            self.assertEqual(found, patches[-len(found):])
            with self.assertRaises(LabError):
                groups.members(patches[:-1], list(groups.GROUPS)[-1])
            with self.assertRaises(LabError):
                groups.below_third(patches)


if __name__ == "__main__":
    unittest.main(verbosity=2)

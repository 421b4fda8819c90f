# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.commits: which kernels are built of a commit, and what is kept of them."""

import tempfile
import unittest
from collections import Counter
from pathlib import Path
from unittest import mock

from lab import commits, ktap, trees


class Commits(unittest.TestCase):
    """With trees and results in a directory of the test."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for target, name, value in ((trees, "TREES", self.folder),
                                    (commits, "STORED", self.folder / "stored"),
                                    (commits, "machine", mock.Mock()),
                                    (commits, "output", mock.Mock(return_value="compiler 1"))):
            patch = mock.patch.object(target, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        commits.machine().version.return_value = "QEMU 1"
        kconfig = self.folder / "7.3-commits/arch/arm64/Kconfig"
        kconfig.parent.mkdir(parents=True)
        kconfig.write_text("config ARM64\n", encoding="utf-8")
        self.kconfig = kconfig

    def test_variants(self):
        """the option is on only where a commit has it, with both compilers"""
        self.assertEqual(list(map(str, commits.variants("7.3"))),
                         ["7.3-commits-gcc-off", "7.3-commits-clang-off"])
        self.kconfig.write_text(f"config ARM64\n\t{commits.SWITCH}\n", encoding="utf-8")
        self.assertEqual(list(map(str, commits.variants("7.3"))),
                         ["7.3-commits-gcc-off", "7.3-commits-gcc-on",
                          "7.3-commits-clang-off", "7.3-commits-clang-on"])

    def looks(self, built, state, *boots):
        """What look says of BUILT in a tree of STATE whose boots pass or not as BOOTS say."""
        started = [[ktap.Test("boots", passed=passed)] for passed in boots]
        with mock.patch.object(trees, "state", return_value=state), \
                mock.patch.object(commits, "warnings", return_value=Counter({("a.c", "w"): 2})), \
                mock.patch.object(commits, "start", side_effect=started) as start:
            found, tests = commits.look(built, "program")
            return found, [test.name for test in tests], start.call_count

    def test_kept(self):
        """a good boot is kept with its warnings until the tree changes, a bad one is not"""
        built, clang = commits.variants("7.3")
        said = Counter({("a.c", "w"): 2})
        self.assertEqual(self.looks(built, "one", False), (said, ["boots"], 1))
        self.assertEqual(self.looks(built, "one", True), (said, ["boots"], 1))
        self.assertEqual(self.looks(built, "one"), (said, ["boots (stored result)"], 0))
        self.assertEqual(self.looks(built, "two", True), (said, ["boots"], 1))
        self.assertEqual(self.looks(clang, "one"), (said, [], 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)

# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.regress: what the selftests said, and what is worse with the series."""

import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

from lab import ktap, regress

SAID = """\
TAP version 13
# -----------------
# running ./mkdirty
# -----------------
# TAP version 13
# 1..2
# ok 1 one
# not ok 2 two
# [FAIL]
not ok 1 mkdirty # exit=1
# ------------------------------
# running bash ./test_hmm.sh smoke
# ------------------------------
# no such module
# [SKIP]
ok 2 test_hmm.sh smoke # SKIP
# ------------------------
# running ./uffd-stress 20
# ------------------------
# nr_pages: 5120
# [PASS]
ok 3 uffd-stress 20
# SUMMARY: PASS=1 SKIP=1 FAIL=1
1..3
"""


def boot(**verdicts):
    """A boot of tests with VERDICTS: True, False, or the reason of a skip."""
    return ktap.Test("boot", tests=[
        ktap.Test(name, passed=verdict is not False, skip=verdict if verdict not in (True, False)
                  else "") for name, verdict in verdicts.items()])


class Regressions(unittest.TestCase):
    """How the suites are read and compared."""

    def test_category(self):
        """run_vmtests.sh is read program by program, those with TAP test by test"""
        top = regress.category("mm/x", SAID, 1)
        self.assertEqual([(test.name, test.counts()) for test in top.tests],
                         [("mkdirty", (1, 1, 0)), ("test_hmm.sh smoke", (0, 0, 1)),
                          ("uffd-stress 20", (1, 0, 0))])
        self.assertEqual(top.tests[1].skip, "no such module")

    def test_cut_short(self):
        """a program that was killed is a failure by its name"""
        top = regress.category("mm/x", SAID.partition("# nr_pages")[0], 137)
        self.assertEqual(top.tests[-1].name, "./uffd-stress 20")
        self.assertFalse(top.tests[-1].passed)

    def test_compare(self):
        """what passes without the series has to pass with it, and what is new must not fail"""
        plain = boot(a=True, b=False, c="no c")
        for good in (boot(a=True, b=False, c="no c"), boot(a=True, b=True, c=True, d="no d")):
            self.assertTrue(regress.compare(plain, good).ok())
        for bad in (boot(b=False, c="no c"), boot(a=False), boot(a="no a"), boot(a=True, d=False)):
            self.assertFalse(regress.compare(plain, bad).ok())
        self.assertFalse(regress.compare(boot(b=False), boot(b=False)).ok())

    def test_races(self):
        """what is known to fail now and then anywhere is left out, of its kernel alone"""
        plain, bad = boot(a=True, b=True), boot(a=True, b=False)
        with tempfile.TemporaryDirectory() as scratch:
            races = Path(scratch, "races")
            for where, good in ((bad.name, True), ("other", False)):
                races.write_text(f"{where} | *b | a race\n", encoding="utf-8")
                with patch.object(regress, "RACES", races):
                    self.assertEqual(regress.compare(plain, bad).ok(), good)

    def test_rows(self):
        """each program has a line with the counts of both kernels"""
        top = ktap.Test("boot", tests=[regress.category("mm/x", SAID, 1), ktap.Test("arm64/y")])
        self.assertEqual(regress.rows(boot(**{"arm64/y": False}), top),
                         [("arm64/y", "0/1/0", "1/0/0"), ("mm/x: mkdirty", "-", "1/1/0"),
                          ("mm/x: test_hmm.sh smoke", "-", "0/0/1"),
                          ("mm/x: uffd-stress 20", "-", "1/0/0")])


if __name__ == "__main__":
    unittest.main(verbosity=2)

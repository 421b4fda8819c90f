# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.static: what counts as a finding."""

import tempfile
import unittest
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from lab import static
from lab.util import LabError

SAID = """\
make: Entering directory '/somewhere/tree/7.3'
  CC      mm/mremap.o
In file included from ../../tree/7.3/include/linux/mm.h:12,
../../tree/7.3/mm/mremap.c: In function 'one':
../../tree/7.3/mm/mremap.c:99:7: warning: unused variable 'x' [-Wunused-variable]
../../tree/7.3/mm/mremap.c:99:7: note: declared here
/somewhere/tree/7.3/mm/mremap.c:1700:1: warning: unused variable 'x' [-Wunused-variable]
/somewhere/tree/7.3/mm/ksm.c:6:2-7: WARNING: NULL check before some freeing functions
Warning: /somewhere/tree/7.3/mm/memory.c:12 function parameter 'a2' not described in 'two'
/somewhere/tree/7.3/Documentation/mm/a.rst:8: WARNING: undefined label: 'b'
    8 | a line of source.c:9: shown
"""


class Findings(unittest.TestCase):
    """What the tools say."""

    def test_findings(self):
        """findings of all tools are told by file, without line numbers, and notes are not"""
        unused = "mm/mremap.c", "warning: unused variable 'x' [-Wunused-variable]"
        self.assertEqual(static.findings(SAID, "7.3"), Counter({
            unused: 2,
            ("mm/ksm.c", "WARNING: NULL check before some freeing functions"): 1,
            ("mm/memory.c", "function parameter 'aN' not described in 'two'"): 1,
            ("Documentation/mm/a.rst", "WARNING: undefined label: 'b'"): 1}))

    def test_files(self):
        """what is said of other files than those asked about does not count"""
        self.assertEqual(list(static.findings(SAID, "7.3", [Path("mm/ksm.c")])),
                         [("mm/ksm.c", "WARNING: NULL check before some freeing functions")])

    def test_one_more(self):
        """one more of the same kind is new, at another line it is not"""
        more = f"{SAID}x/7.3/mm/ksm.c:7:1-2: WARNING: NULL check before some freeing functions\n"
        moved = SAID.replace("ksm.c:6:", "ksm.c:66:")
        before = static.findings(SAID, "7.3")
        self.assertEqual(static.findings(moved, "7.3") - before, Counter())
        self.assertEqual(list((static.findings(more, "7.3") - before).values()), [1])

    def test_base_where_needed(self):
        """a tool that sees each file alone is run on the base's files with a finding only"""
        asked = []

        def tool(built, files):
            asked.append([str(file) for file in files])
            return f"{built.tree()}/mm/ksm.c:6:2-7: WARNING: x\n"

        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch, "7.3")
            files = [Path("mm/ksm.c"), Path("mm/mremap.c")]
            for file in files:
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                (tree / file).touch()
            with mock.patch.object(static, "touched", lambda *_: files), \
                    mock.patch.object(static, "Kernel",
                                      lambda *_, **__: SimpleNamespace(tree=lambda: tree)):
                for name in (*static.EACH_ALONE, "gcc W=1"):
                    self.assertTrue(static.check_tool(name, tool, "7.3").passed)
        both = [str(file) for file in files]
        self.assertEqual(asked, [both, ["mm/ksm.c"], both, both])


class VmaTests(unittest.TestCase):
    """The kernel's tests of mm/vma.c in user space."""

    def check(self, **run_logged):
        """The test that comes of it if running a command is what RUN_LOGGED says."""
        with mock.patch.object(static, "run_logged", **run_logged), \
                mock.patch.object(static.trees, "git") as git:
            top = static.check_vma_tests(Path("/tree/7.3"))
        git.assert_called_once_with(Path("/tree/7.3"), "clean", "-qfdx", static.VMA_TESTS)
        return top

    def test_vma_tests(self):
        """they have to build and to pass, and leave nothing in the tree"""
        self.assertTrue(self.check(return_value="").ok())
        failed = self.check(side_effect=[None, LabError("status 1")])
        self.assertEqual([(leaf.passed, leaf.log) for _, leaf in failed.leaves()],
                         [(False, ["status 1"])])


if __name__ == "__main__":
    unittest.main(verbosity=2)

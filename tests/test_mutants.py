# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.mutants: how mutants are read, applied and judged. No kernel is built."""

import contextlib
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from lab import mutants, qemu, trees
from lab.util import EXIT_TIMEOUT, LabError

DIFF = """diff --git a/file b/file
--- a/file
+++ b/file
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""


class Patches(unittest.TestCase):
    """Reading and applying the patches."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name, text):
        """Write the file NAME with TEXT, and return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def test_load(self):
        """mutants come in the order of their names, with the reason that they give"""
        self.write("02-b.patch", f"Wrong.\n\nEquivalent: nobody\ncan tell\n\n{DIFF}")
        self.write("01-a.patch", f"Wrong.\n\n{DIFF}")
        self.assertEqual([(mutant.name, mutant.equivalent)
                          for mutant in mutants.load(self.folder)],
                         [("01-a", ""), ("02-b", "nobody can tell")])

    def test_bad_files(self):
        """a patch that does not say what is wrong, has no diff or no reason is named"""
        with self.assertRaises(LabError):
            mutants.load(self.folder)
        for text in (DIFF, "Wrong.\n", f"Wrong.\n\nEquivalent:\n\n{DIFF}"):
            self.write("01-a.patch", text)
            with self.assertRaisesRegex(LabError, "01-a.patch"):
                mutants.load(self.folder)

    def test_repository(self):
        """the mutants of the repository can be read, and there are enough of them"""
        self.assertGreaterEqual(len(mutants.load()), 14)

    def test_stale_patch(self):
        """a patch that does not apply: its name, the file and the hunk in one line"""
        tree = self.folder / "tree"
        tree.mkdir()
        trees.git(tree, "init", "-q")
        file = tree / "file"
        patch = self.write("01-a.patch", f"Wrong.\n\n{DIFF}")
        file.write_text("one\nTWO\nthree\n", encoding="utf-8")
        with self.assertRaises(LabError) as caught:
            trees.apply_diff(tree, patch)
        self.assertRegex(str(caught.exception), r"01-a.patch does not apply: file, hunk 1 \(.*\)$")
        file.write_text("one\ntwo\nthree\n", encoding="utf-8")
        trees.apply_diff(tree, patch)
        self.assertEqual(file.read_text(encoding="utf-8"), "one\n2\nthree\n")

    def test_snapshot(self):
        """a snapshot has the tree's edits and new files, and leaves the tree as it is"""
        tree = self.folder
        trees.git(tree, "init", "-q")
        self.write("file", "one\n")
        trees.git(tree, "add", "-A")
        trees.git(tree, "commit", "-qm", "first")
        self.assertEqual(mutants.snapshot(tree), trees.git(tree, "rev-parse", "HEAD").strip())
        self.write("file", "two\n")
        self.write("new", "new\n")
        before = trees.state(tree)
        commit = mutants.snapshot(tree)
        self.assertEqual(trees.state(tree), before)
        self.assertEqual(trees.git(tree, "show", f"{commit}:file"), "two\n")
        self.assertEqual(trees.git(tree, "show", f"{commit}:new"), "new\n")


class Verdicts(unittest.TestCase):
    """What is a success, and what is not."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def examine(self, fate, control=None):
        """The verdicts when FATE (name: equivalent, refusal, failure) is what happens."""
        chosen = [mutants.Mutant(self.folder / f"{name}.patch", equivalent)
                  for name, (equivalent, _, _) in fate.items()]
        for mutant in chosen:
            mutant.path.write_text(mutant.name, encoding="utf-8")

        def build(mutant, _):
            built = mutants.Kernel("7.3", name=mutant.name if mutant else mutants.CONTROL)
            return built, fate[mutant.name][1] if mutant else None

        def hunt(built, _):
            return control if built.name == mutants.CONTROL else fate[built.name][2]

        with mock.patch.multiple(mutants, prepare=lambda: ({}, "", "state"), build=build,
                                 hunt=hunt, check_patches=lambda *_: None, load=lambda: chosen,
                                 locked=contextlib.nullcontext, STORED=self.folder):
            return mutants.run()

    def test_caught(self):
        """what a test or the build catches passes, and so does what is equivalent"""
        top = self.examine({"a": ("", None, "soft-dirty: swap"), "b": ("", "error: x", None),
                            "c": ("nobody can tell", None, None)})
        self.assertTrue(top.ok())
        self.assertEqual([test.log for test in top.tests],
                         [["caught: soft-dirty: swap"], ["caught: error: x"],
                          ["equivalent: nobody can tell"]])

    def test_survivor(self):
        """a mutant that nothing catches is a failure, and the others are judged"""
        top = self.examine({"a": ("", None, None), "b": ("", None, "soft-dirty: swap")})
        self.assertEqual(top.counts(), (1, 1, 0))
        self.assertIn("SURVIVED", top.tests[0].log[0])

    def test_not_equivalent(self):
        """a mutant that is caught though it is said to be equivalent is a failure"""
        top = self.examine({"a": ("nobody can tell", None, "soft-dirty: swap")})
        self.assertFalse(top.ok())
        self.assertIn("soft-dirty: swap", top.tests[0].log[0])

    def test_control(self):
        """when the tests fail without a mutant, nothing is judged"""
        top = self.examine({"a": ("", None, "soft-dirty: swap")}, control="soft-dirty: fork")
        self.assertEqual(top.counts(), (0, 1, 0))
        self.assertIn("without a mutant too: soft-dirty: fork", top.tests[0].log[0])

    def test_resume(self):
        """a verdict is kept if it is as it should be, and until the mutant changes"""
        self.examine({"a": ("", None, "soft-dirty: swap"), "b": ("", None, None)})
        top = self.examine({"a": ("", None, None), "b": ("", "error: x", None)})
        self.assertEqual([test.log for test in top.tests],
                         [["caught: soft-dirty: swap"], ["caught: error: x"]])
        with mock.patch.object(mutants, "stored", lambda mutant, _: self.folder / "none"):
            self.assertFalse(self.examine({"a": ("", None, None)}).ok())

    def test_refused(self):
        """the build refuses by an assertion or by Kconfig; what it cannot compile is neither"""
        assertion = "x.h:1:2: error: static assertion failed: \"x\""
        self.assertEqual(mutants.refused(f"failed\nCC x.o\n{mutants.TREE}/{assertion}\n"),
                         assertion)
        self.assertTrue(mutants.refused("x asks for 'CONFIG_X=y', which Kconfig dropped"))
        self.assertIsNone(mutants.refused("failed\nx.h:1:2: error: expected ';'\n"))

    def test_failure(self):
        """a failure, a skip that is not allowed, a hang, a complaint and a death are caught"""
        def failure(text, status=0, splats=()):
            return mutants.failure("soft-dirty",
                                   qemu.Result(status, text, Path(), "", list(splats)))

        def driver(tap, status=0):
            return f"lab: begin soft-dirty\n{tap}lab: end soft-dirty {status}\n"

        self.assertIsNone(failure(driver("1..2\nok 1 a\nok 2 b\n")))
        self.assertEqual(failure(driver("1..2\nok 1 a\nnot ok 2 b\n", 1)), "soft-dirty: b")
        self.assertEqual(failure("lab: begin soft-dirty\n1..2\nok 1 a\nnot ok 2 b\n"),
                         "soft-dirty: b")
        self.assertEqual(failure(driver("1..1\n# a: Test terminated by timeout\nnot ok 1 a\n")),
                         "soft-dirty: a: hangs")
        self.assertTrue(failure(driver("1..2\nok 1 a\n", 137)))
        self.assertTrue(failure(driver("1..0 # SKIP not supported\n", 4)))
        self.assertTrue(failure(""))
        self.assertIn("hangs", failure("", EXIT_TIMEOUT))
        self.assertIn("died", failure("", qemu.EXIT_DIED))
        self.assertIn("BUG: x", failure(driver("1..1\nok 1 a\n"), qemu.EXIT_SPLAT,
                                        [(1, "BUG: x")]))


if __name__ == "__main__":
    unittest.main(verbosity=2)

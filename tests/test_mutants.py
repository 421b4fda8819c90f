# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.mutants: how mutants are read, applied and judged. No kernel is built."""

import contextlib
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from lab import mutants, qemu, selftests, trees
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

    def make_tree(self, *subjects):
        """A git tree with a commit for each of SUBJECTS, in which the file "file" says it."""
        tree = self.folder / "tree"
        tree.mkdir()
        trees.git(tree, "init", "-q")
        for subject in subjects:
            self.write("tree/file", f"{subject}\n")
            trees.git(tree, "add", "-A")
            trees.git(tree, "commit", "-qm", subject)
        return tree

    def test_load(self):
        """mutants come in the order of their names, with the reason or CPU that they give"""
        self.write("02-b.patch", f"Wrong.\n\nEquivalent: nobody\ncan tell\n\n{DIFF}")
        self.write("01-a.patch", f"Wrong.\n\n{DIFF}")
        self.write("03-c.patch", f"Wrong.\nCPU: cortex-a57\n\n{DIFF}")
        self.assertEqual([(mutant.name, mutant.equivalent, mutant.cpu)
                          for mutant in mutants.load(self.folder)],
                         [("01-a", "", mutants.CPU), ("02-b", "nobody can tell", mutants.CPU),
                          ("03-c", "", "cortex-a57")])

    def test_load_group(self):
        """those of the group know that they are, and come last whatever their names"""
        (self.folder / mutants.GROUP).mkdir()
        self.write(f"{mutants.GROUP}/01-b.patch", f"Wrong.\n\n{DIFF}")
        self.write("02-a.patch", f"Wrong.\n\n{DIFF}")
        self.assertEqual([(mutant.name, mutant.in_group)
                          for mutant in mutants.load(self.folder)],
                         [("02-a", False), ("01-b", True)])

    def test_bad_files(self):
        """a patch that does not say what is wrong, has no diff or no reason is named"""
        with self.assertRaises(LabError):
            mutants.load(self.folder)
        for text in (DIFF, "Wrong.\n", f"Wrong.\n\nEquivalent:\n\n{DIFF}"):
            self.write("01-a.patch", text)
            with self.assertRaisesRegex(LabError, "01-a.patch"):
                mutants.load(self.folder)

    def test_repository(self):
        """the mutants of the repository can be read, and there are enough of each kind"""
        in_group = [mutant.in_group for mutant in mutants.load()]
        self.assertGreaterEqual(in_group.count(False), 14)
        self.assertGreaterEqual(in_group.count(True), 14)

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
        tree = self.make_tree("one")
        self.assertEqual(mutants.snapshot(tree), trees.git(tree, "rev-parse", "HEAD").strip())
        self.write("tree/file", "two\n")
        self.write("tree/new", "new\n")
        before = trees.state(tree)
        commit = mutants.snapshot(tree)
        self.assertEqual(trees.state(tree), before)
        self.assertEqual(trees.git(tree, "show", f"{commit}:file"), "two\n")
        self.assertEqual(trees.git(tree, "show", f"{commit}:new"), "new\n")

    def test_core(self):
        """the series without the group ends where that begins; without one there is no end"""
        tree = self.make_tree("base", "core", mutants.GROUP_BEGINS, "more")
        self.write("tree/file", "edit\n")
        self.assertEqual(trees.git(tree, "show", f"{mutants.core(tree)}:file"), "core\n")
        trees.git(tree, "checkout", "-qf", "HEAD~2")
        with self.assertRaisesRegex(LabError, f"no commit '{mutants.GROUP_BEGINS}'$"):
            mutants.core(tree)

    def test_sources(self):
        """what kernels are built from does not change with the documentation"""
        tree = self.make_tree("one")
        (tree / "Documentation").mkdir()
        before = mutants.sources(tree, "HEAD")
        self.write("tree/Documentation/file", "two\n")
        self.assertEqual(mutants.sources(tree, mutants.snapshot(tree)), before)
        self.write("tree/file", "two\n")
        self.assertNotEqual(mutants.sources(tree, mutants.snapshot(tree)), before)

    def test_prepare(self):
        """the mutants of the group are hunted by the tree's tests, the others by older ones"""
        tree = self.make_tree("core", mutants.GROUP_BEGINS)
        self.write("tree/file", "edit\n")
        older = self.folder / "older"
        with mock.patch.multiple(trees, make=lambda _: tree, check_out=lambda *_: older), \
                mock.patch.object(selftests, "build", return_value=self.folder) as build, \
                mock.patch.multiple(mutants, SELFTESTS=("file",), output=lambda _: "",
                                    machine=mock.Mock()), \
                mock.patch("lab.packages.need"), \
                mock.patch("lab.demo.build", return_value=self.write("file", "")):
            mutants.machine().version.return_value = ""
            found = [mutants.prepare(in_group) for in_group in (False, True)]
        self.assertEqual([trees.git(tree, "show", f"{commit}:file") for _, commit, _ in found],
                         ["core\n", "edit\n"])
        self.assertEqual([call.args[-1] for call in build.call_args_list], [older, tree])
        self.assertNotEqual(found[0][2], found[1][2])

    def test_spare(self):
        """a header of a mutant has only what handles page tables compiled again"""
        (self.folder / "mutants").mkdir()
        self.write("mutants/01-a.patch",
                   "Wrong.\n\n" + DIFF.replace("a/file b/file", "a/a.h b/a.h")
                   .replace("+++ b/file", "+++ b/a.h"))
        found = mutants.load(self.folder / "mutants")
        built = mock.Mock(out=self.folder)
        header = self.write("a.h", "one\n")
        (self.folder / "mm").mkdir()

        def objects(text, commit):
            """Which of two objects are left for TEXT in the header of COMMIT, and its age."""
            for name in ("mm/one.o", "other.o"):
                self.write(name, "")
            header.write_text(text, encoding="utf-8")
            with mock.patch.multiple(mutants, TREE=self.folder, load=lambda: found):
                note, state = mutants.spare(built, commit)
            note.write_text(state, encoding="utf-8")
            return ([path.name for path in (self.folder / "mm/one.o", self.folder / "other.o")
                     if path.exists()], header.stat().st_mtime == mutants.OLD)

        self.assertEqual(objects("one\n", "1" * 40), (["one.o", "other.o"], False))
        self.assertEqual(objects("two\n", "1" * 40), (["other.o"], True))
        self.assertEqual(objects("two\n", "1" * 40), (["one.o", "other.o"], True))
        self.assertEqual(objects("one\n", "1" * 40), (["other.o"], True))
        self.assertEqual(objects("one\n", "2" * 40), (["one.o", "other.o"], False))

    def test_selftests_of_another_tree(self):
        """what is built from another tree does not take the place of what the base's has"""
        self.make_tree("base")
        source = self.folder / "tree/tools/testing/selftests/mm"
        source.mkdir(parents=True)
        (source / "a.c").touch()
        with mock.patch.multiple(selftests, SELFTESTS=self.folder, make_headers=mock.Mock(),
                                 locked=contextlib.nullcontext), \
                mock.patch.object(selftests, "run_logged", return_value="") as run, \
                mock.patch("lab.packages.need"), mock.patch("lab.trees.make") as make:
            trees.git(self.folder / "tree", "tag", "base")
            programs = selftests.build("7.3", ["a"], "arm64", self.folder / "tree")
        make.assert_not_called()
        self.assertEqual(programs, self.folder / "tree-arm64/mm")
        self.assertIn(source, run.call_args.args[0])


class Verdicts(unittest.TestCase):
    """What is a success, and what is not."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.did = []

    def examine(self, fate, control=None, cpu=mutants.CPU):
        """The verdicts when FATE (name: equivalent, refusal, failure) is what happens on CPU."""
        chosen = [mutants.Mutant(self.folder / f"{name}.patch", equivalent, cpu)
                  for name, (equivalent, _, _) in fate.items()]
        fate = {Path(name).name: what for name, what in fate.items()}
        for mutant in chosen:
            mutant.path.parent.mkdir(exist_ok=True)
            mutant.path.write_text(mutant.name, encoding="utf-8")

        def prepare(in_group):
            part = "whole" if in_group else "core"
            return {"programs of": part}, part, f"state of {part}"

        def build(mutant, commit):
            built = mutants.Kernel("7.3", name=mutant.name if mutant else mutants.CONTROL)
            self.did.append((built.name, commit))
            return built, fate[mutant.name][1] if mutant else None

        def hunt(built, programs, model=mutants.CPU):
            self.did.append((built.name, *programs.values()))
            if built.name == mutants.CONTROL:
                return control
            return fate[built.name][2] if model == cpu else None

        with mock.patch.multiple(mutants, prepare=prepare, build=build,
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

    def test_cpu(self):
        """a mutant is hunted on the CPU that it names"""
        self.assertTrue(self.examine({"a": ("", None, "soft-dirty: swap")},
                                     cpu="cortex-a57").ok())

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

    def test_two_parts(self):
        """what is of the group is tried on all of the series, each part after its control"""
        top = self.examine({"a": ("", None, "soft-dirty: swap"),
                            f"{mutants.GROUP}/b": ("", None, "soft-dirty: fork")})
        self.assertEqual([test.name for test in top.tests], ["a", "b"])
        self.assertTrue(top.ok())
        # Each of them is built, and then hunted in.
        self.assertEqual(self.did, [(name, part) for name, part in (
            (mutants.CONTROL, "core"), ("a", "core"), (mutants.CONTROL, "whole"), ("b", "whole"))
                                    for _ in ("built", "hunted")])

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

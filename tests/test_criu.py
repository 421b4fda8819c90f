# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.criu and of what it runs in guests."""

import importlib.util
import io
import os
import sys
import tempfile
import unittest
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from lab import boot, control, criu, kernel, ktap, packages, qemu, rootfs, zdtm
from lab.kernel import Kernel

SAID = "TAP version 13\nok 1 a\n# table\tround\tpages\n# table\tdump\t5\nok 2 b\n1..2\n"


def load(name):
    """The module NAME of tests/criu, without what only a guest has."""
    spec = importlib.util.spec_from_file_location(name, criu.FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    absent = SimpleNamespace(RedisError=OSError, images=None)
    with patch.dict(sys.modules, {"redis": absent, "pycriu": absent}), \
            patch.object(sys, "path", [str(criu.FOLDER), *sys.path]):
        spec.loader.exec_module(module)
    return module


class Run(unittest.TestCase):
    """One guest."""

    def boot(self, console, said=SAID, status=0):
        """What run() makes of a guest that printed SAID and CONSOLE."""
        with tempfile.TemporaryDirectory() as scratch, \
                patch.object(kernel, "build"), patch.object(rootfs, "build", return_value="x"):
            log = Path(scratch, "console")
            log.write_text(console, encoding="utf-8")
            result = qemu.Result(status, said, log, "qemu", qemu.splats(console))
            with patch.object(qemu, "run", return_value=result):
                return criu.run(Kernel("7.3", extra="criu"), "max", criu.CYCLE, "--thp")

    def test_good(self):
        """a guest's results and its table are told"""
        top, rows = self.boot("")
        self.assertEqual(top.counts(), (2, 0, 0))
        self.assertEqual(rows, [("round", "pages"), ("dump", "5")])

    def test_bad(self):
        """a complaint of the kernel fails, and so does a guest that ends early"""
        top, _ = self.boot("BUG: bad", status=qemu.EXIT_SPLAT)
        self.assertIn(boot.COMPLAINT, [leaf.name for _, leaf in top.leaves() if not leaf.passed])
        self.assertFalse(self.boot("", said="ok 1 a\n", status=qemu.EXIT_DIED)[0].ok())

    def test_suite(self):
        """the sources of a suite are that suite alone, however old its lists are"""
        for line in packages.suite_sources(criu.SUITE).splitlines():
            self.assertRegex(line, rf"^deb \[.*check-valid-until=no\] \S+ {criu.SUITE} main$")
            self.assertEqual(f"signed-by={packages.KEYRING}" in line, packages.KEYRING.exists())


class Suite(unittest.TestCase):
    """CRIU's own tests."""

    def judge(self, said, status):
        """What is made of a guest in which zdtm.py printed SAID and had STATUS."""
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch, "console")
            log.touch()
            return zdtm.judge("x", qemu.Result(status, said, log, "qemu"))

    def test_report(self):
        """the report says what passed; without one, or with a bad status, the run fails"""
        good = "noise\nreport:\nTAP version 13\n1..2\nok 1 - a\nok 2 - b # SKIP not here\n"
        self.assertEqual(self.judge(good, 0).counts(), (1, 0, 1))
        bad = good.replace("ok 1", "not ok 1")
        self.assertEqual([path for path, leaf in self.judge(bad, 1).leaves() if not leaf.passed],
                         ["x: a"])
        self.assertFalse(self.judge(good, 1).ok())
        self.assertFalse(self.judge("noise\n", 0).ok())

    def excuse(self, alone):
        """What becomes of the failures a and b, of which a is listed, and ran ALONE, too."""
        tests = [ktap.Test("a", passed=False), ktap.Test("b", passed=False), ktap.Test("c")]
        with tempfile.TemporaryDirectory() as scratch:
            listed = Path(scratch, "known")
            listed.write_text("# why\n[hn]* | a | no room\nns | b | other\n", encoding="utf-8")
            with patch.object(zdtm, "KNOWN", listed), \
                    patch.object(zdtm, "run", return_value=alone) as run:
                zdtm.excuse("kernel", "h", tests)
        self.assertEqual(run.call_args.args[3:], ("-f", "h", "-t", "a"))
        self.assertEqual([leaf.passed for leaf in tests[1:]], [False, True])
        return tests[0]

    def test_known(self):
        """a known failure is skipped if it fails without pre-dumps, and only then"""
        leaf = self.excuse(ktap.Test("x", tests=[ktap.Test("a", passed=False)]))
        self.assertTrue(leaf.passed)
        self.assertIn("no room", leaf.skip)
        self.assertFalse(self.excuse(ktap.Test("x", tests=[ktap.Test("a")])).passed)
        self.assertFalse(self.excuse(ktap.Test("x", tests=[ktap.Test("b")])).passed)

    def test_kept(self):
        """what a guest said is kept if nothing failed but what its own flavour is known for"""
        said = "report:\nTAP version 13\n1..1\nnot ok 1 - a\n"
        with tempfile.TemporaryDirectory() as scratch:
            listed, log = Path(scratch, "known"), Path(scratch, "console")
            listed.write_text("ns | a | no room\n", encoding="utf-8")
            log.touch()
            result = qemu.Result(1, f"\n{said}", log, "qemu")
            with patch.object(zdtm, "KNOWN", listed), patch.object(zdtm, "build"), \
                    patch.object(zdtm, "root", return_value=log), \
                    patch.object(zdtm, "sha256"), patch.object(zdtm.stored, "key"), \
                    patch.object(zdtm.stored, "load", return_value=None), \
                    patch.object(zdtm, "start", return_value=result), \
                    patch.object(zdtm.stored, "save") as save:
                zdtm.run("kernel", "h", "x")
                save.assert_not_called()
                zdtm.run("kernel", "ns", "x")
                save.assert_called_once()

    def test_table(self):
        """the table has a cell for each run, and tells why a test was skipped"""
        text = zdtm.table(ktap.Test("suite", tests=[
            ktap.Test("h", tests=[ktap.Test("zdtm/a"), ktap.Test("zdtm/b", passed=False)]),
            ktap.Test("ns", tests=[ktap.Test("zdtm/a", skip="not here")])]))
        self.assertEqual([line.split() for line in text.splitlines()[1:]],
                         [["a", "pass", "skip", "not", "here"], ["b", "FAIL", "-"]])

    def test_noticed(self):
        """a mutant is noticed by what comes after the dump, not by what fails before"""
        def noticed(*failed):
            return control.noticed("x", ktap.Test("cycle", tests=[
                ktap.Test("b: dump"), *[ktap.Test(name, passed=False) for name in failed]])).passed

        self.assertTrue(noticed("every key has its value"))
        self.assertFalse(noticed())
        self.assertFalse(noticed("criu check", "every key has its value"))


class Drivers(unittest.TestCase):
    """What runs in the guests."""

    def test_keys(self):
        """a key with the value of another version, or without one, is found"""
        cycle = load("cycle")
        store = {key: cycle.value(key, 1).encode() for key in range(300)}
        store[7], store[299] = cycle.value(7, 0).encode(), None
        versions = {key: 1 for key in store}
        server = SimpleNamespace(mget=lambda keys: [store[key] for key in keys])
        with patch.object(cycle, "client", return_value=server):
            self.assertEqual(cycle.wrong_keys(versions), [7, 299])

    def test_warnings(self):
        """a warning of CRIU that is not known fails, and so does one that is not there"""
        cycle = load("cycle")
        known = [line for line in cycle.WARNINGS.read_text("utf-8").splitlines()
                 if not line.startswith("#")]
        for lines, off, good in ((known, False, True), (known[1:], False, False),
                                 ([*known, "more"], False, False), (known, True, False),
                                 ([*known[1:], "other"], False, False),
                                 ([*known, "Dirty tracking is OFF."], True, True)):
            said = "Looks good.\n" + "".join(f"Warn  (x): {line}\n" for line in lines)
            with patch.object(cycle, "criu", return_value=(0, said)), \
                    redirect_stdout(io.StringIO()):
                tap = cycle.Tap()
                cycle.check(tap, off)
            self.assertEqual(not tap.failed, good, lines)

    def test_writer(self):
        """the container's program notices a page that is not as it was written"""
        writer = load("writer")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "rounds")

            def lose(_):
                """Forget what was written, after the third round."""
                if path.read_text("ascii") == "2":
                    sys._getframe(1).f_locals["table"][:] = bytes(    # pylint: disable=W0212
                        writer.PAGES * writer.SIZE)

            with patch.object(writer.time, "sleep", lose), \
                    patch.object(sys, "argv", ["writer", os.fspath(path)]):
                writer.main()
            self.assertRegex(path.read_text("ascii"), r"^wrong: \d+$")


if __name__ == "__main__":
    unittest.main(verbosity=2)

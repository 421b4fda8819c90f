# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.bench and lab.compare."""

import io
import tempfile
import textwrap
import unittest
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from lab import bases, bench, benchtable, compare, kernel, packages
from lab.bench import Figure, Guest
from lab.kernel import Kernel
from lab.util import ROOT, LabError

ROW = "track\tsoft-dirty\tanonymous\t1\t{}\twrite first\t4096\t{}\t4096\n"
FIGURE = Figure("7.3 x", "track", "soft-dirty", "anonymous", 1, "write first", 4096, 10000,
                100, 0)


class Read(unittest.TestCase):
    """What a guest printed."""

    def test_least(self):
        """of the rounds the one with the fewest instructions counts, with its invalidations"""
        text = ROW.format(0, 300) + ROW.format(1, 200) + ROW.format(2, 250)
        found = bench.read("x", text, "1\n2\n3\n")
        self.assertEqual([(one.instructions, one.invalidations) for one in found], [(200, 2)])

    def test_bad(self):
        """a program or a plugin that lacks lines fails"""
        for text, counts in ((ROW.format(0, 1), ""), ("", ""), ("x\n", "1\n"),
                             (ROW.format(0, 1), "1\n2\n")):
            with self.assertRaises(LabError):
                bench.read("x", text, counts)


class Compare(unittest.TestCase):
    """Two stored results."""

    def status(self, **changes):
        """The status of bench-compare of FIGURE and the same with CHANGES."""
        with tempfile.TemporaryDirectory() as scratch, patch.object(bench, "STORED",
                                                                    Path(scratch)), \
                patch.object(bench, "output", return_value="x\n"):
            before = bench.store(bases.LEAD, [FIGURE]).rename(Path(scratch, "a"))
            after = bench.store(bases.LEAD, [FIGURE._replace(**changes)])
            self.assertEqual(bench.load(before), [FIGURE])
            with patch("sys.argv", ["x", str(before), str(after)]), \
                    redirect_stdout(io.StringIO()):
                return compare.cli()

    def test_rises(self):
        """a rise above 1 % fails, of instructions, faults or invalidations; others do not"""
        self.assertEqual([self.status(**changes) for changes in (
            {}, {"instructions": 10100}, {"instructions": 5000}, {"instructions": 10101},
            {"faults": 102}, {"invalidations": 1})], [0, 0, 0, 1, 1, 1])

    def test_nothing_in_common(self):
        """tables of different things are not compared"""
        with self.assertRaises(LabError):
            self.status(stride=2)

    def test_bad(self):
        """what is not a table of make bench is refused in one line"""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "x")
            for text in (None, "", "a\tb\n", "\t".join(Figure._fields) + "\na\tb\n",
                         "\t".join(Figure._fields) + "\n" + "a\t" * 9 + "x\n"):
                if text is not None:
                    path.write_text(text, encoding="utf-8")
                with self.assertRaises(LabError):
                    bench.load(path)


class Tables(unittest.TestCase):
    """What is printed."""

    def test_untracked(self):
        """the change with the series is that from the plain kernel's figure"""
        def one(machine, instructions):
            return FIGURE._replace(machine=machine, program="untracked",
                                   instructions=instructions)

        figures = [one("7.3-4k-plain max", 1000), one("7.3-4k-off max", 1000),
                   one("7.3-4k-soft-dirty max", 1010)]
        changed = [percents for _, *percents in benchtable.changes(figures).values()]
        self.assertEqual([[round(one, 6) for one in percents] for percents in changed], [[0, 1]])


class Documents(unittest.TestCase):
    """What is shown of the stored figures."""

    def test_shown(self):
        """the tables in the documents are those of the figures"""
        figures = bench.load(ROOT / f"bench/figures-{bases.LEAD}.tsv")
        shown = {"docs/bench.md": benchtable.tables(figures).values(),
                 "README.md": [benchtable.tracking(figures, "anonymous")],
                 f"patches/{bases.LEAD}/cover-letter.txt": [textwrap.indent(
                     benchtable.mail(figures, "anonymous"), "  ")]}
        for name, tables in shown.items():
            text = (ROOT / name).read_text(encoding="utf-8")
            for table in tables:
                self.assertIn(table, text, name)


class Guests(unittest.TestCase):
    """Guests that count instructions."""

    def test_same(self):
        """two runs of a guest give the same figures, to the instruction"""
        packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
        built = Kernel(bases.LEAD, debug=True)
        kernel.build(built)
        guest = Guest(built, bench.CPUS[1], ("track", "soft-dirty", "anonymous"))
        first, second = bench.run(guest), bench.run(guest)
        self.assertEqual(first, second)
        write = next(one for one in first if one.what == "write first" and one.stride == 1)
        self.assertEqual(write.faults, write.pages)


if __name__ == "__main__":
    unittest.main(verbosity=2)

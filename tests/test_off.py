# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.off: what counts as a difference between two kernels, on small programs."""

import subprocess
import tempfile
import unittest
from pathlib import Path

from lab import off, packages

SOURCE = """
__asm__(".section .rodata\\n.balign 8\\ntable: .space %d\\n.text");
int counter = 1;
static const char *const words[] = { "one", "two" };
int grow(int x) { %s return x; }
const char *word(int i) { counter++; return words[i]; }
int (*hook)(int) = grow;
const char *(*other)(int) = word;
int value = %d;
const char *say(void) { return "%s"; }
const char *empty = "";
long pick(int i) { const long one[] = { -1, -2, -3, -4, -5, -6, -7, -8 }; return one[i]; }
void _start(void) { hook(counter); other(value); say(); pick(counter); }
"""


class Off(unittest.TestCase):
    """Small arm64 programs in place of kernels."""

    def setUp(self):
        packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def image(self, name, growth="", value=7, table=64, word="say"):
        """The Image of the program with GROWTH and WORD in functions, a VALUE, and a TABLE."""
        source, program = self.folder / f"{name}.c", self.folder / name
        source.write_text(SOURCE % (table, growth, value, word), encoding="utf-8")
        subprocess.run([f"{off.PREFIX}gcc", "-O2", "-fno-inline", "-fno-toplevel-reorder",
                        "-c", "-o", program.with_suffix(".o"), source], check=True)
        subprocess.run([f"{off.PREFIX}ld", "-o", program, program.with_suffix(".o")], check=True)
        return off.read(program)

    def differences(self, before, after):
        """What differs, functions and objects."""
        return {**off.differences(before.functions, after.functions),
                **off.differences(before.objects, after.objects)}

    def test_same(self):
        """the same source twice differs in nothing, and something was compared"""
        first, second = self.image("a"), self.image("b")
        self.assertEqual(self.differences(first, second), {})
        self.assertLessEqual({"grow", "word", "_start"}, first.functions.keys())
        self.assertLessEqual({"counter", "hook", "value", "words"}, first.objects.keys())

    def test_grown(self):
        """a function that has grown differs, and not those that it has moved"""
        grown = "".join(f"x = x * {number} ^ counter;" for number in range(3, 4000))
        self.assertEqual(self.differences(self.image("a"), self.image("b", grown)),
                         {"grow": "differs"})

    def test_data(self):
        """an object with another value differs"""
        self.assertEqual(self.differences(self.image("a"), self.image("b", value=8)),
                         {"value": "differs"})

    def test_literal(self):
        """a function that refers to another string literal differs"""
        self.assertEqual(self.differences(self.image("a"), self.image("b", word="sad")),
                         {"say": "differs"})

    def test_table(self):
        """what has no name, and moves with a table of another size, differs in nothing"""
        self.assertEqual(self.differences(self.image("a"), self.image("b", table=72)), {})

    def test_new(self):
        """what only one of them has is named"""
        self.assertEqual(off.differences({"a": "x"}, {"b": "x"}), {"a": "gone", "b": "new"})


if __name__ == "__main__":
    unittest.main(verbosity=2)

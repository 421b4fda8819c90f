# SPDX-License-Identifier: GPL-2.0-only
"""One tree of test results out of many programs, written as KTAP.

The kernel's kunit_parser.py reads the stream, prints it and counts.
"""

import fnmatch
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, field

from lab.util import ROOT, LabError

ALLOWED = ROOT / "tests/allowed-skips"
DIFFERENCES = ROOT / "tests/known-differences"
_RESULT = re.compile(r"^(ok|not ok) (\d+)(?: -)?(?: (.*?))??"
                     r"(?: # (SKIP|XFAIL|TODO)\b ?(.*))?$", re.I)
_PLAN = re.compile(r"^1\.\.(\d+)(?: # SKIP ?(.*))?", re.I)
KSFT_SKIP = 4           # the status of a selftest that skipped


@dataclass
class Test:
    """A test: its verdict, or the tests it consists of. skip is the reason, if skipped."""

    name: str
    passed: bool = True
    skip: str = ""
    log: list = field(default_factory=list)
    tests: list = field(default_factory=list)

    def ok(self):
        """Whether nothing failed in it."""
        return self.passed and all(test.ok() for test in self.tests)

    def fail(self, name, *log):
        """Add a failed test NAME with the lines LOG."""
        self.tests.append(Test(name, passed=False, log=list(log)))

    def leaves(self):
        """All single tests in it, as pairs of a path of names and the test."""
        for test in self.tests or [self]:
            if test is self:
                yield self.name, self
            else:
                for path, leaf in test.leaves():
                    yield f"{self.name}: {path}", leaf

    def counts(self):
        """The numbers of single tests that passed, failed and were skipped."""
        leaves = [leaf for _, leaf in self.leaves()]
        skipped = sum(bool(leaf.skip) and leaf.passed for leaf in leaves)
        failed = sum(not leaf.passed for leaf in leaves)
        return len(leaves) - skipped - failed, failed, skipped

    def lines(self, number, depth=0):
        """The KTAP lines of this test as number NUMBER of its parent."""
        pad = "    " * depth
        name = self.name.replace("#", "")
        for line in self.log:
            yield f"{pad}# | {line}"
        if self.tests:
            inner = pad + "    "
            yield f"{inner}KTAP version 1"
            yield f"{inner}# Subtest: {name}"
            yield f"{inner}1..{len(self.tests)}"
            for index, test in enumerate(self.tests, 1):
                yield from test.lines(index, depth + 1)
        skip = f" # SKIP {self.skip}" if self.skip and self.passed else ""
        yield f"{pad}{'ok' if self.ok() else 'not ok'} {number} {name}{skip}"


def by_path(boot):
    """The single tests of BOOT by a unique path, that without BOOT's own name.

    A name with a percentage in it tells what was measured: its numbers are left out.
    """
    found, seen = {}, {}
    for test in boot.tests:
        for path, leaf in test.leaves():
            if "%" in path:
                path = re.sub(r"\d+(?:\.\d+)?", "N", path)
            seen[path] = seen.get(path, 0) + 1
            found[path if seen[path] == 1 else f"{path} ({seen[path]})"] = leaf
    return found


def passing(found):
    """The paths of what passes, and is not skipped, in FOUND as by_path() gives it."""
    return [path for path, leaf in found.items() if leaf.passed and not leaf.skip]


def from_tap(name, text, status):
    """The test NAME from the TAP that a program printed and the STATUS it exited with.

    Any directive, an expected failure too, counts as a skip: the list has to allow it.
    """
    test, log, plan, numbers, reason = Test(name), [], None, [], ""
    for line in text.splitlines():
        result, planned = _RESULT.match(line), _PLAN.match(line)
        if result:
            numbers.append(int(result[2]))
            why = f"{result[4]}: {result[5]}" if result[4] else ""
            if result[4] and result[4].upper() == "SKIP":
                why = result[5] or "no reason given"
            passed = result[1] == "ok" or bool(why)
            test.tests.append(Test(result[3] or why or "unnamed", passed, why, log))
            log = []
        elif planned:
            plan, reason = int(planned[1]), planned[2] or "no reason given"
        else:
            log.append(line)
    if plan == 0 and not test.tests and status in (0, KSFT_SKIP):
        return Test(name, skip=reason)
    if plan is None:
        test.fail("prints a plan", *log[-20:])
    elif set(numbers) != set(range(1, plan + 1)):    # a child may repeat a number
        test.fail("runs to its end", f"{plan} tests planned, {len(test.tests)} ran",
                  *log[-20:])
    skipped = any(leaf.skip for _, leaf in test.leaves())
    if test.ok() and (status not in (0, KSFT_SKIP if skipped else 0) or "Bail out!" in text):
        test.fail("exits with 0", f"exit status {status}", *log[-20:])
    return test


def allowed_skips():
    """The entries of tests/allowed-skips: triples of boot, pattern and reason."""
    return read_list(ALLOWED)


def known_differences():
    """The entries of tests/known-differences: triples of boot, pattern and reason."""
    return read_list(DIFFERENCES)


def read_list(path):
    """The lines of the list PATH, each split into its three fields."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        fields = [part.strip() for part in line.split("|")]
        if len(fields) != 3 or not all(fields):
            raise LabError(f"{path.relative_to(ROOT)}:{number}: not 'boot | test | reason'")
        found.append(fields)
    return found


def enforce_skips(boot, test, entries):
    """Turn each skip in TEST, run in BOOT, into a failure unless ENTRIES allow it."""
    for path, leaf in [pair for child in test.tests for pair in child.leaves()]:
        if not leaf.skip:
            continue
        shown = f"{path}: {leaf.skip}" if leaf.skip != leaf.name else path
        if not any(fnmatch.fnmatchcase(boot, where) and fnmatch.fnmatchcase(shown, pattern)
                   for where, pattern, _ in entries):
            leaf.passed = False
            leaf.log.append(f"skipped, which tests/allowed-skips does not list: {shown}")


def expect_differences(boot, test, entries):
    """Turn each failure in TEST, run in BOOT, that ENTRIES know into a skip with its reason.

    What they know to fail and does not is a failure: the list is out of date.
    """
    for path, leaf in [pair for child in test.tests for pair in child.leaves()]:
        reason = next((reason for where, pattern, reason in entries
                       if fnmatch.fnmatchcase(boot, where)
                       and fnmatch.fnmatchcase(path, pattern)), None)
        if reason and leaf.passed:
            leaf.passed = False
            leaf.log.append(f"passed, but tests/known-differences has it: {reason}")
        elif reason:
            leaf.passed, leaf.skip = True, f"differs: {reason}"


def stream(tests):
    """The whole KTAP stream of TESTS as text."""
    lines = ["KTAP version 1", f"1..{len(tests)}"]
    for number, test in enumerate(tests, 1):
        lines += test.lines(number)
    return "\n".join(lines) + "\n"


def read(text, tree):
    """Print the KTAP stream TEXT with the kunit_parser.py of the kernel TREE.

    Returns its counts of passed, failed and skipped single tests; crashes and
    errors in the stream count as failed.
    """
    sys.path.insert(0, str(tree / "tools/testing/kunit"))
    parser = importlib.import_module("kunit_parser")
    arguments = [text.splitlines()]
    if len(inspect.signature(parser.parse_run_tests).parameters) > 1:
        arguments.append(importlib.import_module("kunit_printer").stdout)
    counts = parser.parse_run_tests(*arguments).counts
    return counts.passed, counts.failed + counts.crashed + counts.errors, counts.skipped

# SPDX-License-Identifier: GPL-2.0-only
"""make check: what can be checked of the repository without booting anything."""

import subprocess
import tempfile
from pathlib import Path

from lab import bases, ktap, packages, static, trees
from lab.util import PATCHES, ROOT, BaseGone, Parser, main, output, say

# Not MISSING_SIGN_OFF: the submitter's is added when the series is mailed. Not
# UNKNOWN_COMMIT_ID: the tree has no upstream history to look commits up in.
CHECKPATCH = ("--strict", "--no-signoff", "--ignore=UNKNOWN_COMMIT_ID,FILE_PATH_CHANGES", "--quiet")


def _command(name, argv):
    """A test that passes if ARGV exits with 0; its output explains a failure."""
    proc = subprocess.run([str(arg) for arg in argv], cwd=ROOT, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return ktap.Test(name, passed=proc.returncode == 0, log=proc.stdout.splitlines())


def _tracked(*patterns):
    """The files that git tracks, or would, and that match PATTERNS."""
    listing = output(["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
                     cwd=ROOT)
    return sorted(file for file in set(listing.split()) if (ROOT / file).exists())


def _same_as_tree(base):
    """Whether the patches and exported files are what their tree gives, to the byte."""
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        for patch in [*trees.export(base, scratch), "series"]:
            path = PATCHES / base / patch
            if not path.exists() or path.read_bytes() != Path(scratch, patch).read_bytes():
                wrong.append(f"patches/{base}/{patch} differs from build/tree/{base}")
    if base == bases.LEAD:
        for file in trees.exported_files(base):
            path = ROOT / file
            if not path.exists() or path.read_bytes() != (trees.TREES / base / file).read_bytes():
                wrong.append(f"{file} differs from build/tree/{base}")
        stray = set(_tracked(*trees.EXPORTED)).difference(trees.exported_files(base))
        wrong += [f"{file} is not in the series" for file in sorted(stray)]
    return ktap.Test("patches and exported files are the tree's, to the byte",
                     passed=not wrong, log=wrong)


def _series(base, everything):
    """The checks of one base's series; the slow ones with EVERYTHING."""
    tree = trees.make(base)
    top = ktap.Test(f"series {base}")
    patches = trees.series(base)
    wrong = trees.applies(base)
    top.tests.append(ktap.Test(f"git am takes {len(patches)} patches on "
                               f"{trees.source_version(base)}", passed=not wrong,
                               log=[wrong] if wrong else []))
    top.tests.append(_same_as_tree(base))
    for patch in patches:
        top.tests.append(_command(f"checkpatch {patch.name}",
                                  ["perl", tree / "scripts/checkpatch.pl",
                                   f"--root={tree}", *CHECKPATCH, patch]))
        signed = "Signed-off-by:" in patch.read_text(encoding="utf-8")
        top.tests.append(ktap.Test(f"signed by nobody yet: {patch.name}", passed=not signed))
    top.tests.append(static.check(base, everything))
    return top


def run(names, everything):
    """The checks, with those of the series of the bases NAMES, as one test.

    Without EVERYTHING, the slow ones are left out.
    """
    packages.need(packages.CHECK_TOOLS)
    python = [*_tracked("*.py"), "lab/vm"]
    top = ktap.Test("check")
    top.tests.append(_command("shellcheck", ["shellcheck", *_tracked("*.sh", ".ci/run")]))
    top.tests.append(_command("shellcheck of the guest's init",
                              ["shellcheck", "-s", "dash", "lab/guest/init", "lab/guest/finish"]))
    top.tests.append(_command("flake8", ["flake8", *python]))
    top.tests.append(_command("pylint", ["pylint", "--score=n", *python]))
    for name in names:
        top.tests.append(_series(name, everything))
    return top


def cli():
    """Command line: check all bases, print what failed and the counts."""
    Parser(prog="lab.check", description=__doc__).parse_args()
    names = []
    for name in bases.names():
        try:
            trees.make(name)
            names.append(name)
        except BaseGone as err:
            say(f"*** SKIPPED: {err} ***")
    top = run(names, True)
    for path, leaf in top.leaves():
        print(f"{'ok' if leaf.passed else 'FAILED'}  {path}")
        if not leaf.passed:
            print("\n".join(f"    {line}" for line in leaf.log))
    passed, failed, skipped = top.counts()
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    main(cli)

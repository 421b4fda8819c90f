# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own static checks over what a series touches.

A finding counts if the series has more of its kind than the base, line numbers aside.
So the base is looked at only where the series has findings at all.
"""

import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from lab import bases, kernel, ktap, packages, trees
from lab.kernel import Kernel
from lab.util import LabError, run_logged, step

# A place in a file, as gcc, sparse, kernel-doc, coccicheck and Sphinx give it, and the finding.
_FINDING = re.compile(r"^(?:Warning: )?([\w./+-]+\.(?:[chS]|rst)):\d+(?::[\d-]+)*:?\s+(.*)$", re.M)


# Debian 12's sparse does not know the keyword, and the kernel then does without sparse.
SPARSE = "CHECK=sparse -D__typeof_unqual__=__typeof__"


def touched(base, *suffixes):
    """The files with SUFFIXES that the series of BASE changes or adds, tests and tools aside."""
    names = trees.git(trees.make(base), "diff", "--name-only", "--diff-filter=AM", "base", "HEAD",
                      "--", ":!tools")
    return [Path(name) for name in names.split() if name.endswith(suffixes)]


def findings(text, root, files=None):
    """What a tool says in TEXT of the files below a directory ROOT: counts by file and finding.

    With FILES only of these: make may bring up to date what they need, too.
    """
    found = Counter()
    for path, finding in _FINDING.findall(text):
        path = path.split(f"{root}/")[-1]
        if not finding.startswith("note:") and (files is None or Path(path) in files):
            found[path, re.sub(r"\d+", "N", finding)] += 1
    return found


def _objects(built, files, what, *arguments):
    """Make the objects of the C in FILES; each has to show up as a line that begins WHAT."""
    kernel.configure(built)
    sources = [file for file in files if file.suffix == ".c"]
    objects = [file.with_suffix(".o") for file in sources]
    for name in objects:
        (built.out / name).unlink(missing_ok=True)
    text = run_logged(built.make(*arguments, *objects), f"static-{what}-{built}",
                      env={**os.environ, **kernel.REPRODUCIBLE})
    for file in sources:
        if not re.search(rf"^ +{what} .*{re.escape(str(file.with_suffix('')))}\.[co]$", text, re.M):
            raise LabError(f"{what} was not run on {file} for {built}")
    return text


def _gcc(built, files):
    return _objects(built, files, "CC", "W=1")


def _sparse(built, files):
    return _objects(built, files, "CHECK", "C=1", SPARSE)


def _kernel_doc(built, files):
    tree = built.tree()
    return run_logged([tree / "scripts/kernel-doc", "-none", "-Wall",
                       *[tree / file for file in files if file.suffix in (".c", ".h")]],
                      f"static-kernel-doc-{built}")


def _coccicheck(built, files):
    """All semantic patches of the tree, over a directory that holds FILES and nothing else."""
    tree = built.tree().resolve()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, tree.name)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tree / file, root / file)
        include = [f"-I{tree}/arch/{built.arch}/include", f"-I{tree}/include"]
        said = {"MODE": "report", "J": str(os.cpu_count()), "LINUXINCLUDE": " ".join(include),
                "srctree": str(tree), "srcroot": str(root), "KBUILD_EXTMOD": str(root)}
        text = run_logged(["bash", tree / "scripts/coccicheck"], f"static-coccicheck-{built}",
                          cwd=scratch, env={**os.environ, **said})
    patches = len(list((tree / "scripts/coccinelle").rglob("*.cocci")))
    run = len(re.findall(r"^(?:\S*/spatch |(?:warning: )?Skipping )", text, re.M))
    if run < patches:
        raise LabError(f"coccicheck ran {run} of {patches} semantic patches on {built}")
    return text


def _sphinx(built, files):
    """The directories of the documents in FILES."""
    folders = sorted({str(file.parent.relative_to("Documentation")) for file in files
                      if file.suffix == ".rst"})
    built.out.mkdir(parents=True, exist_ok=True)
    # It says only once what it has to say of a file.
    shutil.rmtree(built.out / "Documentation/output", ignore_errors=True)
    return run_logged(built.make("htmldocs", f"SPHINXDIRS={' '.join(folders)}"),
                      f"static-sphinx-{built}")


# What sees each file alone: of the base it need not see those without a finding.
EACH_ALONE = ("coccicheck",)
# What takes as long as all the others, and is left to make check and make test-all.
SLOW = ("coccicheck",)
VMA_TESTS = "tools/testing/vma"
TOOLS = {"gcc W=1": _gcc, "sparse": _sparse, "kernel-doc": _kernel_doc,
         "coccicheck": _coccicheck, "Sphinx": _sphinx}


def check_tool(name, tool, base):
    """The test that TOOL, called NAME, finds nothing new in the series of BASE."""
    files = touched(base, ".c", ".h", ".rst")
    patched, plain = [Kernel(base, debug=True, plain=without, extra="static")
                      for without in (False, True)]
    with step(f"static checks of {base}: {name}"):
        found = findings(tool(patched, files), patched.tree().name, files)
        before = Counter()
        if found:
            named = {path for path, _ in found}
            old = [file for file in files if (plain.tree() / file).exists()
                   and (name not in EACH_ALONE or str(file) in named)]
            before = findings(tool(plain, old), plain.tree().name, old)
    new = found - before
    return ktap.Test(f"{name}: nothing new", passed=not new,
                     log=[f"{path}: {text}" for path, text in sorted(new.elements())])


def check_vma_tests(tree):
    """The test that the kernel's tests of mm/vma.c in user space build in TREE and pass."""
    top = ktap.Test(VMA_TESTS)
    try:
        with step(f"static checks of {tree.name}: {VMA_TESTS}"):
            run_logged(["make", "-C", tree / VMA_TESTS], f"static-vma-{tree.name}")
            run_logged(["./vma"], f"static-vma-run-{tree.name}", cwd=tree / VMA_TESTS)
        top.tests.append(ktap.Test("builds and passes"))
    except LabError as err:
        top.fail("builds and passes", str(err))
    finally:
        trees.git(tree, "clean", "-qfdx", VMA_TESTS)
    return top


def check(base, everything):
    """The test of the series of BASE, by those of TOOLS that are SLOW only with EVERYTHING."""
    packages.need({**packages.BUILD_TOOLS, **packages.STATIC_TOOLS},
                  {**packages.BUILD_FILES, **packages.STATIC_FILES})
    top = ktap.Test("static checks")
    if base == bases.LEAD:      # that of 6.12 does not link by itself
        top.tests.append(check_vma_tests(trees.make(base)))
    for name, tool in TOOLS.items():
        if name in SLOW and not everything:
            continue
        try:
            top.tests.append(check_tool(name, tool, base))
        except LabError as err:
            top.fail(name, str(err))
    return top

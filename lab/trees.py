# SPDX-License-Identifier: GPL-2.0-only
"""Git trees of the bases under build/tree, and the series in patches/.

build/tree/BASE is the base as one commit (tag "base") and one commit a patch;
build/tree/BASE-plain is a work tree of the same repository at the base. Kernels
are built from these, with whatever edits they hold.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab import bases, packages
from lab.util import (BUILD, PATCHES, ROOT, LabError, Parser, locked, main, output, relative,
                      say, sha256, step, write_if_changed)

TREES = BUILD / "tree"
EXPORTED = ("Documentation", "tools/testing/selftests/mm")
# What git says of a hunk that does not apply: the file, and the line it starts at.
_FAILED = re.compile(r"^error: patch failed: (\S+):(\d+)$", re.M)

# Git as if nobody had configured it: the same patches come out for everyone.
GIT_ENV = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_COMMITTER_NAME": "arm64 soft-dirty lab",
    "GIT_COMMITTER_EMAIL": "lab@example.invalid",
    "GIT_AUTHOR_NAME": "arm64 soft-dirty lab",
    "GIT_AUTHOR_EMAIL": "lab@example.invalid",
}


def git(tree, *args, env=None):
    """Run git in TREE, with the lab's environment or ENV, and return its output."""
    return output(["git", "-C", tree, *args], env=env or GIT_ENV)


def series(name):
    """The patches of the series of base NAME in order, checked against the files."""
    folder = PATCHES / name
    listing = folder / "series"
    if not listing.exists():
        raise LabError(f"{relative(listing)}: no such file")
    listed = [line for line in listing.read_text(encoding="utf-8").splitlines()
              if line and not line.startswith("#")]
    present = {path.name for path in folder.glob("*.patch")
               if not path.name.startswith("0000-")}
    for patch in listed:
        if patch not in present:
            raise LabError(f"{relative(listing)} names {patch}, which does not exist")
    for patch in sorted(present.difference(listed)):
        raise LabError(f"{relative(folder / patch)} is not in {relative(listing)}")
    return [folder / patch for patch in listed]


def am(tree, patches, env=None):
    """Apply PATCHES to the git tree TREE with git am, all or none.

    ENV is the environment with the committer's identity, the lab's by default.
    Raises LabError with the patch, the file and the hunk that failed.
    """
    env = env or GIT_ENV
    head = git(tree, "rev-parse", "HEAD", env=env).strip()
    unfinished = git(tree, "rev-parse", "--git-path", "rebase-apply", env=env).strip()
    if Path(tree, unfinished).exists():
        raise LabError(f"{tree} has an unfinished git am or rebase")
    for patch in patches:
        proc = subprocess.run(["git", "-C", str(tree), "am", "-q", "--keep-cr", str(patch)],
                              env=env, text=True, check=False, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if proc.returncode:
            subprocess.run(["git", "-C", str(tree), "am", "--abort"], env=env, check=False,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            git(tree, "reset", "-q", "--hard", head, env=env)
            raise LabError(_am_failure(patch, proc.stdout))


def apply_diff(tree, path, *options):
    """Apply the diff in the file PATH to the git tree TREE, all or none, with git's OPTIONS.

    Raises LabError with the patch, the file and the hunk that failed.
    """
    proc = subprocess.run(["git", "-C", str(tree), "apply", *options, str(path)], env=GIT_ENV,
                          text=True, check=False, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if proc.returncode:
        raise LabError(_am_failure(path, proc.stdout))


def _am_failure(patch, complaint):
    """One line that says why git refused PATCH, from its output COMPLAINT."""
    name = f"{patch.parent.name}/{patch.name}"
    failed = _FAILED.search(complaint)
    if failed:
        return f"{name} does not apply: {failed[1]}, {_hunk(patch, failed[1], failed[2])}"
    reason = re.search(r"^(?:error|fatal): (.+)$", complaint, re.M)
    return f"{name} does not apply: {reason[1] if reason else complaint.strip()}"


def _hunk(patch, file, line):
    """The hunk of PATCH that starts at LINE of FILE, as its number and header."""
    number, current = 0, None
    for text in patch.read_text(encoding="utf-8", errors="replace").splitlines():
        if text.startswith("--- a/"):
            number, current = 0, text[len("--- a/"):]
        elif text.startswith("@@ ") and current == file:
            number += 1
            if text.startswith(f"@@ -{line},"):
                return f"hunk {number} ({text})"
    return f"the hunk at line {line}"


def _stamp_path(name):
    return TREES / f".{name}.json"


def _stamp(name):
    """What build/tree/NAME was made from."""
    path = _stamp_path(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _series_hash(patches):
    return sha256(*(path.name for path in patches), *patches)


def _write_stamp(name, source, patches):
    head = git(TREES / name, "rev-parse", "HEAD").strip()
    write_if_changed(_stamp_path(name), json.dumps(
        {"source": source, "series": _series_hash(patches), "head": head}) + "\n")


def edits(name):
    """What build/tree/NAME holds that patches/NAME does not: a phrase, or None."""
    tree = TREES / name
    if git(tree, "status", "--porcelain").strip():
        return "uncommitted changes"
    if git(tree, "rev-parse", "HEAD").strip() != _stamp(name).get("head"):
        return "commits of its own"
    return None


def make(name):
    """Make build/tree/NAME, or bring it up to date with the source and the series.

    A tree that holds edits is never overwritten: it keeps its base when a newer one
    comes, and is an error when the series changes. Returns its path.
    """
    base = bases.load(name)
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    patches = series(name)
    with locked(f"tree-{name}"):
        source = bases.fetch(base)
        tree, stamp = TREES / name, _stamp(name)
        same_base = tree.exists() and stamp.get("source") == source.version
        if tree.exists() and stamp.get("series") == _series_hash(patches):
            if same_base:
                return tree
            if edits(name):
                say(f"{relative(tree)} has {edits(name)}: it stays on {stamp['source']}, "
                    f"though there is {source.version}")
                return tree
        if tree.exists() and edits(name):
            raise LabError(f"patches/{name} changed, but {relative(tree)} has {edits(name)}: "
                           f"keep them with 'make refresh BASE={name}', or drop them with "
                           f"'rm -r {relative(tree)}'")
        if same_base:
            head = git(tree, "rev-parse", "HEAD").strip()
            try:
                git(tree, "reset", "-q", "--hard", "base")
                am(tree, patches)
            except BaseException:
                git(tree, "reset", "-q", "--hard", head)
                raise
        else:
            bases.verify(base, source)
            with step(f"making {relative(tree)} from {source.version}"):
                aside = _build_aside(name, source, patches)
                for other in TREES.glob(f"{name}-*"):     # its work trees
                    shutil.rmtree(other)
                shutil.rmtree(tree, ignore_errors=True)
                aside.rename(tree)
        _write_stamp(name, source.version, patches)
    return tree


def _build_aside(name, source, patches):
    """A new tree of SOURCE with PATCHES, not yet in its place."""
    TREES.mkdir(parents=True, exist_ok=True)
    for old in TREES.glob(f".new-{name}-*"):
        shutil.rmtree(old)
    aside = Path(tempfile.mkdtemp(prefix=f".new-{name}-", dir=TREES))
    try:
        # With the time of now, so that what was built from an older base is older.
        if source.path.is_dir():
            output(["rsync", "-a", "--no-times", "--exclude=.git", f"{source.path}/", aside])
        else:
            output(["tar", "-x", "-m", "--strip-components=1", "-f", source.path,
                    "-C", aside])
        git(aside, "init", "-q", "-b", "series")
        git(aside, "config", "core.abbrev", "12")
        git(aside, "config", "gc.auto", "0")
        git(aside, "config", "core.compression", "0")     # speed over size
        _see_new_files(aside)
        git(aside, "add", "-A", "-f")
        dates = {"GIT_AUTHOR_DATE": "@0 +0000", "GIT_COMMITTER_DATE": "@0 +0000"}
        output(["git", "-C", aside, "commit", "-q", "-m", source.version],
               env={**GIT_ENV, **dates})
        git(aside, "tag", "base")
        am(aside, patches)
    except BaseException:
        shutil.rmtree(aside)
        raise
    return aside


def _see_new_files(tree):
    """Take out of .gitignore in TREE the line by which Debian's source ignores all that is new."""
    ignores = tree / ".gitignore"
    if ignores.exists():
        lines = ignores.read_text(encoding="utf-8").splitlines(keepends=True)
        ignores.write_text("".join(line for line in lines if line != "/*\n"), encoding="utf-8")


def make_plain(name):
    """Make build/tree/NAME-plain, the base without the series. Returns its path."""
    tree = make(name)
    plain = TREES / f"{name}-plain"
    with locked(f"tree-{name}"):
        if not plain.exists():
            _add_work_tree(tree, plain, "base")
        elif git(plain, "rev-parse", "HEAD") != git(plain, "rev-parse", "base^{commit}") \
                or git(plain, "status", "--porcelain").strip():
            raise LabError(f"{relative(plain)} is not the plain base any more: "
                           f"'rm -r {relative(plain)}'")
    return plain


def _add_work_tree(tree, path, commit):
    """Make the work tree PATH of the repository of TREE, at COMMIT."""
    with step(f"making {relative(path)}"):
        git(tree, "worktree", "prune")
        git(tree, "worktree", "add", "-q", "--detach", path.resolve(), commit)


def check_out(name, suffix, commit):
    """Bring the work tree build/tree/NAME-SUFFIX to COMMIT of build/tree/NAME. Returns its path.

    Edits in it are lost. What does not change is not touched, so that make builds only
    what does.
    """
    tree, path = TREES / name, TREES / f"{name}-{suffix}"
    with locked(f"tree-{name}"):
        if not path.exists():
            _add_work_tree(tree, path, commit)
        git(path, "checkout", "-q", "--force", "--detach", commit)
        git(path, "clean", "-qfd")
    return path


def source_version(name):
    """The source that build/tree/NAME was made from, for example a package and version."""
    return _stamp(name).get("source", "unknown")


def state(tree, *pathspecs):
    """A hash that changes when a file of TREE that git knows, or would add, does.

    With PATHSPECS (see gitglossary), when a file does that they match.
    """
    status = git(tree, "status", "--porcelain", "-uall", "-z", "--", *pathspecs)
    parts = [git(tree, "ls-files", "--stage", "--", *pathspecs), status]
    if status:
        parts += [git(tree, "diff", "HEAD", "--binary", "--", *pathspecs)]
        untracked = [Path(tree, entry[3:]) for entry in status.split("\0")
                     if entry.startswith("?? ")]
        parts += [path for path in untracked if path.is_file()]
    return sha256(*parts)


def export(name, folder):
    """Write the series of build/tree/NAME as mails, with its series file, to FOLDER."""
    git(TREES / name, "format-patch", "-q", "-o", Path(folder).resolve(), "--no-numbered",
        "--zero-commit", "--no-signature", "--no-renames", "--abbrev=12",
        "--diff-algorithm=myers", "base..HEAD")
    patches = sorted(path.name for path in Path(folder).glob("*.patch"))
    (Path(folder) / "series").write_text("".join(f"{patch}\n" for patch in patches),
                                         encoding="utf-8")
    return patches


def applies(name):
    """Whether git am takes the files of patches/NAME on the base and gives build/tree/NAME.

    Returns None, or what is wrong.
    """
    tree = TREES / name
    with tempfile.TemporaryDirectory(dir=TREES) as scratch:
        plain = Path(scratch, "plain")
        git(tree, "worktree", "add", "-q", "--detach", "--no-checkout", plain.resolve(), "base")
        try:
            # Of the 90,000 files only those that the series touches.
            touched = git(tree, "diff", "--name-only", "--no-renames", "base", "HEAD")
            git(plain, "sparse-checkout", "set", "--no-cone",
                *[f"/{path}" for path in touched.splitlines()])
            git(plain, "checkout", "-q", "--detach", "base")
            am(plain, series(name))
            if git(plain, "rev-parse", "HEAD^{tree}") != git(tree, "rev-parse", "HEAD^{tree}"):
                return f"the result differs from {relative(tree)}"
        except LabError as err:
            return str(err)
        finally:
            git(tree, "worktree", "remove", "--force", plain.resolve())
    return None


def exported_files(name):
    """The files that the series of NAME adds where the repository shows them."""
    added = git(TREES / name, "diff", "--name-only", "--diff-filter=A", "--no-renames",
                "base", "HEAD", "--", *EXPORTED)
    return added.split()


def refresh(name):
    """Write build/tree/NAME back to patches/NAME and, for the lead, the exported files."""
    bases.load(name)
    tree = TREES / name
    if not tree.exists():
        raise LabError(f"{relative(tree)} does not exist: 'make tree BASE={name}'")
    with locked(f"tree-{name}"):
        if git(tree, "status", "--porcelain").strip():
            raise LabError(f"{relative(tree)} has uncommitted changes: commit them first, "
                           "a patch is a commit")
        stamp, listed = _stamp(name), series(name)
        if _series_hash(listed) != stamp.get("series") and edits(name):
            raise LabError(f"both patches/{name} and {relative(tree)} changed since "
                           "'make tree'")
        with tempfile.TemporaryDirectory(dir=TREES) as scratch:
            patches = export(name, scratch)
            changed = [patch for patch in [*patches, "series"]
                       if write_if_changed(PATCHES / name / patch,
                                           Path(scratch, patch).read_text(encoding="utf-8"))]
            for old in listed:
                if old.name not in patches:
                    old.unlink()
                    changed.append(f"{old.name} (removed)")
        if name == bases.LEAD:
            changed += refresh_exported(name)
        _write_stamp(name, stamp["source"], series(name))
    say(f"patches/{name}: " + (f"changed {', '.join(changed)}" if changed else "no change"))


def refresh_exported(name):
    """Copy the files that the series of NAME adds to the repository; those that changed."""
    wanted = exported_files(name)
    changed = [file for file in wanted
               if write_if_changed(ROOT / file, git(TREES / name, "show", f"HEAD:{file}"))]
    for folder in EXPORTED:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and str(path.relative_to(ROOT)) not in wanted:
                path.unlink()
                changed.append(f"{path.relative_to(ROOT)} (removed)")
    return changed


def apply(kdir):
    """Apply the series for the kernel tree KDIR to it, as commits if it is a git tree."""
    tree = Path(kdir).expanduser()
    if not (tree / "Kbuild").exists():
        raise LabError(f"KDIR={kdir}: not a kernel tree")
    version = _kernel_version(tree)
    exact = [name for name in bases.names() if version.split(".")[:2] == name.split(".")]
    name = exact[0] if exact else min(bases.names(), key=lambda base: _distance(base, version))
    if not exact:
        say(f"there is no series for {version}; the nearest base is {name}: trying that")
    patches = series(name)
    packages.need({"git": "git"})
    try:
        if (tree / ".git").exists():
            if git(tree, "status", "--porcelain", "-uno", env=os.environ).strip():
                raise LabError("the tree has uncommitted changes")
            am(tree, patches, os.environ)
        else:
            _apply_plain(tree, patches)
    except LabError as err:
        raise LabError(f"{kdir} is {version}, the nearest base is {name}, and nothing was "
                       f"changed: {err}") from err
    say(f"applied the {len(patches)} patches of {name} to {kdir} ({version})")


def _apply_plain(tree, patches):
    """Apply PATCHES to a directory that is no git tree, all or none."""
    env = {**GIT_ENV, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    text = "".join(path.read_text(encoding="utf-8") for path in patches)
    proc = subprocess.run(["git", "apply"], input=text, cwd=tree, env=env, text=True,
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if proc.returncode:
        failed = _FAILED.search(proc.stdout)
        for patch in patches:
            hunk = failed and _hunk(patch, failed[1], failed[2])
            if hunk and hunk.startswith("hunk "):
                raise LabError(_am_failure(patch, proc.stdout))
        raise LabError(proc.stdout.strip().splitlines()[0])


def _kernel_version(tree):
    """The version that the Makefile of the kernel TREE gives, for example 6.12.117."""
    text = (tree / "Makefile").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$",
                             text, re.M))
    numbers = [fields[key] for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    return ".".join(numbers) + fields.get("EXTRAVERSION", "")


def _distance(base, version):
    """How far the kernel VERSION is from BASE, for choosing the nearest."""
    major, minor = bases.version_key(version)[:2]
    base_major, base_minor = bases.version_key(base)
    # From 3.x on, a major version has had about 20 minor ones.
    return abs((major - base_major) * 20 + minor - base_minor)


def cli():
    """Command line: make, refresh or apply."""
    parser = Parser(prog="lab.trees", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["tree", "refresh", "apply"])
    parser.add_argument("what", help="the base, or for apply the kernel tree")
    args = parser.parse_args()
    if args.action == "tree":
        tree = make(args.what)
        say(f"{relative(tree)}: {source_version(args.what)}, {len(series(args.what))} patches")
        print(tree)
    elif args.action == "refresh":
        refresh(args.what)
    else:
        apply(args.what)
    return 0


if __name__ == "__main__":
    main(cli)

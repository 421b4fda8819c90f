# SPDX-License-Identifier: GPL-2.0-only
"""make series: the series of a base as mails, ready for git send-email.

The author of each patch becomes the submitter, who is taken from the git
configuration with a Signed-off-by; the recipients are those that the kernel's
get_maintainer.pl names. patches/BASE/cover-letter.txt is the text of the cover
letter: the subject, an empty line, and the rest.
"""

import subprocess
import tempfile
from pathlib import Path

from lab import bases, trees
from lab.util import PATCHES, LabError, Parser, main, output, relative, say

# Whose names the words of a patch match is chance: only the files that it touches count.
GET_MAINTAINER = ("scripts/get_maintainer.pl", "--nogit", "--nogit-fallback", "--roles",
                  "--nokeywords")


def submitter():
    """The name and address in the user's git configuration, as a pair."""
    found = []
    for key in ("user.name", "user.email"):
        proc = subprocess.run(["git", "config", "--get", key], text=True, check=False,
                              stdout=subprocess.PIPE)
        if not proc.stdout.strip():
            raise LabError(f"git does not know who sends the series: git config --global {key}")
        found.append(proc.stdout.strip())
    return tuple(found)


def cover_letter(base):
    """The subject and the text of the cover letter of BASE."""
    path = PATCHES / base / "cover-letter.txt"
    if not path.exists():
        raise LabError(f"{relative(path)}: no such file")
    subject, empty, text = path.read_text(encoding="utf-8").partition("\n\n")
    if not empty or not text.strip() or "\n" in subject:
        raise LabError(f"{relative(path)}: not a subject, an empty line and a text")
    return subject, text.rstrip()


def sign(tree, sender):
    """Commits like those of TREE, but by SENDER and signed off; the last of them."""
    name, address = sender
    parent = trees.git(tree, "rev-parse", "base^{commit}").strip()
    for commit in trees.git(tree, "rev-list", "--reverse", "base..HEAD").split():
        env = {**trees.GIT_ENV, "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": address,
               "GIT_AUTHOR_DATE": trees.git(tree, "show", "-s", "--format=%aD", commit).strip()}
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as message:
            message.write(trees.git(tree, "show", "-s", "--format=%B", commit).strip() + "\n")
            message.flush()
            trees.git(tree, "interpret-trailers", "--in-place", "--trailer",
                      f"Signed-off-by: {name} <{address}>", message.name)
            parent = trees.git(tree, "commit-tree", f"{commit}^{{tree}}", "-p", parent, "-F",
                               message.name, env=env).strip()
    return parent


def recipients(tree, patches):
    """Those who are to get PATCHES: the maintainers if there are any, and the others."""
    found = output([*GET_MAINTAINER, *[patch.resolve() for patch in patches]], cwd=tree)
    people = [line.partition(" (") for line in found.splitlines() if line]
    to = [name for name, _, role in people if role.startswith(("maintainer", "supporter"))]
    copy = [name for name, _, _ in people if name not in to]
    return (to, copy) if to else (copy, [])


def address_mail(path, to, copy):
    """Add the headers To and Cc to the mail in the file PATH."""
    headers, text = path.read_text(encoding="utf-8").split("\n\n", 1)
    lines = [f"{name}: " + ",\n ".join(people) for name, people in (("To", to), ("Cc", copy))
             if people]
    path.write_text("\n".join([headers, *lines]) + f"\n\n{text}", encoding="utf-8")


def write(base, folder):
    """Write the mails of the series of BASE to the directory FOLDER, which must be new."""
    folder = Path(folder).expanduser()
    if folder.exists():
        raise LabError(f"TO={folder} exists: the mails go to a directory of their own")
    sender, (subject, text) = submitter(), cover_letter(base)
    tree = trees.make(base)
    if trees.edits(base):
        raise LabError(f"{relative(tree)} has {trees.edits(base)}: 'make refresh BASE={base}' "
                       "first")
    prefix = "PATCH" if base == bases.LEAD else f"PATCH {base}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        aside = Path(scratch, "mails")
        env = {**trees.GIT_ENV, "GIT_COMMITTER_NAME": sender[0],
               "GIT_COMMITTER_EMAIL": sender[1]}
        trees.git(tree, "format-patch", "-o", aside.resolve(), "--cover-letter",
                  "--numbered", f"--subject-prefix={prefix}", "--base=base", "--no-renames",
                  f"base..{sign(tree, sender)}", env=env)
        mails = sorted(aside.glob("*.patch"))
        cover = mails[0].read_text(encoding="utf-8")
        for blank, filled in (("*** SUBJECT HERE ***", subject), ("*** BLURB HERE ***", text)):
            cover = cover.replace(blank, filled)
        mails[0].write_text(cover, encoding="utf-8")
        for mail in mails:
            address_mail(mail, *recipients(tree, mails[1:] if mail == mails[0] else [mail]))
        aside.rename(folder)
    say(f"{folder}: {len(mails)} mails from {sender[0]} <{sender[1]}>; "
        f"next: git send-email {folder}/*.patch")


def cli():
    """Command line: write the mails."""
    parser = Parser(prog="lab.mails", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="BASE")
    parser.add_argument("folder", help="the directory to make")
    args = parser.parse_args()
    bases.load(args.base)
    write(args.base, args.folder)
    return 0


if __name__ == "__main__":
    main(cli)

# SPDX-License-Identifier: GPL-2.0-only
"""The base kernels: what bases/ says of them, and where their source comes from."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lab import packages
from lab.util import BUILD, ROOT, BaseGone, LabError, output, say, step

BASES = ROOT / "bases"
SOURCES = BUILD / "source"
LEAD = "7.3"            # the base whose series leads; the others are backports of it
DEFAULT = "6.12"        # the base that people run


@dataclass(frozen=True)
class Base:
    """One file of bases/: a Debian package that holds a kernel's source."""

    name: str
    package: str
    tested: str         # the package version that the README's figures are for
    sha256: str         # of that version's tarball
    suite: str = ""     # a suite outside the system's own, if it is needed


@dataclass(frozen=True)
class Source:
    """A kernel source at hand: a tarball or a directory, and what it is."""

    path: Path
    version: str


def names():
    """The names of all bases, oldest first."""
    found = [path.name for path in BASES.iterdir() if not path.name.startswith(".")]
    return sorted(found, key=version_key)


def version_key(name):
    """A sort key for kernel versions: "6.12" comes after "6.9"."""
    return [int(number) for number in re.findall(r"\d+", name)]


def load(name):
    """The base called NAME; LabError if there is none."""
    if name not in names():
        raise LabError(f"unknown base {name!r}; bases/ has {', '.join(names())}")
    fields = {}
    for line in (BASES / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            fields[key.strip()] = value.strip()
    try:
        return Base(name=name, **fields)
    except TypeError as err:
        raise LabError(f"bases/{name}: {err}") from err


def newest(path):
    """The time of the last change to the file PATH or to a file below it, in seconds."""
    files = [path] + [Path(top, name) for top, folders, names_ in os.walk(path)
                      for name in names_ if ".git" not in Path(top).parts]
    return int(max(file.lstat().st_mtime for file in files))


def fetch(base):
    """The source of BASE: from KSRC if that is set, else from Debian's archive.

    Raises BaseGone if the archive has no such package.
    """
    ksrc = os.environ.get("KSRC")
    if ksrc:
        path = Path(ksrc).expanduser().resolve()
        if not path.exists():
            raise LabError(f"KSRC={ksrc}: no such file or directory")
        if path.is_dir():
            if not (path / "Kbuild").exists():
                raise LabError(f"KSRC={ksrc}: not a kernel tree")
            if (path / ".config").exists():
                raise LabError(f"KSRC={ksrc}: a kernel was built in it: 'make mrproper' first")
        return Source(path, f"KSRC {path.name} {newest(path)}")
    found = packages.download(base.package)
    if not found:
        raise BaseGone(f"the archive no longer offers {base.package}, the base {base.name}")
    deb, version = found
    tarball = SOURCES / version / f"{base.package}.tar.xz"
    if not tarball.exists():
        with step(f"unpacking {deb.name}"):
            aside = SOURCES / f".{version}.new"
            member = f"./usr/src/{tarball.name}"
            packages.extract(deb, [member], aside)
            tarball.parent.mkdir(parents=True, exist_ok=True)
            (aside / member).rename(tarball)
    if version != base.tested:
        say(f"base {base.name} is {version}; last tested: {base.tested}")
    return Source(tarball, f"{base.package} {version}")


def verify(base, source):
    """LabError if SOURCE is the version that BASE has the hash of, but not that file."""
    if source.version == f"{base.package} {base.tested}" \
            and output(["sha256sum", source.path]).split()[0] != base.sha256:
        raise LabError(f"{source.path.name} of {base.tested} is not the file that "
                       f"bases/{base.name} has the hash of")

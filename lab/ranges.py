# SPDX-License-Identifier: GPL-2.0-only
"""make applies: which kernels of Debian's archive the series apply to.

Of each point release that the archive offers of the bases, and of the kernel before
the lead, only the files that the series touches are unpacked, and the patches are
applied by patch(1), which tells offsets and fuzz.
"""

import subprocess
import tempfile
from pathlib import Path

from lab import bases, packages, trees
from lab.util import BUILD, LabError, Parser, main, output, say

# Where Debian keeps kernels: releases that are supported, their backports, and what is next.
SUITES = ("bookworm-backports", "bookworm-security", "trixie", "trixie-security",
          "trixie-backports", "forky", "sid", "experimental")
# The series for each: that of the nearest base.
PACKAGES = {"linux-source-6.12": "6.12", "linux-source-7.2": "7.3", "linux-source-7.3": "7.3"}
VERDICTS = ("applies cleanly", "applies with offsets", "applies with fuzz: not by git am",
            "does not apply")


def releases(name):
    """The upstream versions of the package NAME in the archive, oldest first.

    Of each the Debian version: the newest revision.
    """
    found = {}
    for version in packages.versions(name, SUITES):
        found.setdefault(version.rsplit("-", 1)[0], version)
    return dict(reversed(found.items()))


def unpack(name, version, series, to):
    """Unpack the files that the patches of SERIES change, as in VERSION of NAME, to the folder TO.

    A file that the kernel does not have is left out: that is for patch to complain about.
    """
    touched = set(output(["git", "apply", "--numstat", *series]).split()[2::3])
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        deb = packages.fetch_version(name, version, SUITES, scratch)
        packages.extract(deb, [f"./usr/src/{name}.tar.xz"], scratch)
        deb.unlink()
        listing = Path(scratch, "files")
        listing.write_text("".join(f"{name}/{file}\n" for file in sorted(touched)),
                           encoding="utf-8")
        # Its status says no more than that some are new in the series.
        subprocess.run(["tar", "-x", "-C", to, "--strip-components=1", "-f",
                        f"{scratch}/usr/src/{name}.tar.xz", "-T", listing], check=False,
                       stderr=subprocess.DEVNULL)
    if not any(Path(to).iterdir()):
        raise LabError(f"{name} {version} has none of the files that the series changes")


def try_series(tree, series):
    """Apply the patches of SERIES to the folder TREE: the verdict, and what patch said of it."""
    verdict, said = 0, []
    for patch in series:
        with open(patch, encoding="utf-8") as text:
            proc = subprocess.run(["patch", "-p1", "--batch", "--forward", "-d", tree],
                                  stdin=text, text=True, check=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = [line for line in proc.stdout.splitlines()
                 if line.startswith("Hunk") or "can't find" in line]
        said += [f"{patch.name}: {line}" for line in lines]
        if proc.returncode:
            return VERDICTS[3], said
        verdict = max([verdict, *(2 if "with fuzz" in line else 1 for line in lines)])
    return VERDICTS[verdict], said


def run():
    """The rows of the table: Debian package and version, series, verdict."""
    packages.need({"patch": "patch", "git": "git", "xz": "xz-utils"})
    rows = []
    for name, base in PACKAGES.items():
        series = trees.series(base)
        for version in releases(name).values():
            with tempfile.TemporaryDirectory(dir=BUILD) as tree:
                unpack(name, version, series, tree)
                verdict, said = try_series(tree, series)
            rows.append((f"{name} {version}", f"patches/{base}", verdict))
            say(f"{name} {version}: {verdict}")
            for line in said:
                say(f"  {line}")
    return rows


def cli():
    """Command line: print the table; 1 if the newest kernel of a base refuses its series."""
    Parser(prog="lab.ranges", description=__doc__.splitlines()[0]).parse_args()
    rows = run()
    print("\n| kernel | series | |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    newest = {kernel.split()[0]: verdict for kernel, _, verdict in rows}
    return 0 if all(newest.get(bases.load(base).package) in VERDICTS[:2]
                    for base in bases.names()) else 1


if __name__ == "__main__":
    main(cli)

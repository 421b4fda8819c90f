# SPDX-License-Identifier: GPL-2.0-only
"""The mm selftests: built static by the kernel's own Makefile."""

import os

from lab import packages, trees
from lab.kernel import make
from lab.util import BUILD, LabError, locked, run_logged, sha256, step

SELFTESTS = BUILD / "selftests"


def build(base, names, arch):
    """Build the mm selftests NAMES of BASE with its series for ARCH; the directory they are in.

    A name that the base does not have is an error.
    """
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    tree = trees.make(base)
    out = SELFTESTS / f"{base}-{arch}"
    programs = out / "mm"
    source = tree / "tools/testing/selftests/mm"
    for name in names:
        if not (source / f"{name}.c").exists():
            raise LabError(f"{base} has no mm selftest {name}")
    with locked(f"selftests-{out.name}"):
        stamp = out / "lab.stamp"
        state = sha256(trees.state(tree), " ".join(names)) + "\n"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return programs
        with step(f"building the mm selftests of {base} for {arch}"):
            programs.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            headers = out / "headers"
            run_logged([*make(arch), "-C", tree, f"O={headers.resolve()}", "headers"],
                       f"headers-{out.name}")
            env = {**os.environ, "USERCFLAGS": "-static", "USERLDFLAGS": "-static"}
            targets = [f"{programs.resolve()}/{name}" for name in names]
            # The Makefile lists the series' own test for arm64 alone.
            listed = [] if arch == "arm64" else [f"TEST_GEN_FILES={' '.join(targets)}"]
            said = run_logged([*make(arch), "-C", source, f"-j{os.cpu_count()}",
                               f"OUTPUT={programs.resolve()}",
                               f"KHDR_INCLUDES=-isystem {headers.resolve()}/usr/include",
                               *listed, *targets],
                              f"selftests-{out.name}", env=env)
            added = trees.git(tree, "diff", "--name-only", "--diff-filter=A", "base", "HEAD")
            for line in said.splitlines():
                if ": warning: " in line and f"mm/{line.split(':')[0]}\n" in added:
                    raise LabError(f"the compiler warns of what the series adds: {line}")
            stamp.write_text(state, encoding="utf-8")
    return programs

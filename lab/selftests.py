# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's selftests: some of mm built static, or whole suites installed as it does that."""

import os
import shutil

from lab import packages, trees
from lab.kernel import make
from lab.util import BUILD, LabError, locked, run_logged, sha256, step

SELFTESTS = BUILD / "selftests"
SYSROOT = SELFTESTS / "sysroot"
# Debian packages with the static libraries that the whole suites are linked with.
LIBRARIES = ("libcap-dev", "libnuma-dev", "liburing-dev")
# What 6.12.117's khugepaged.c uses and does not include; elsewhere it is defined the same.
MISSING = "-DKSFT_SKIP=4"
SUITES = ("TARGETS=mm arm64", "ARM64_SUBTARGETS=gcs mte pauth fp signal")


def build(base, names, arch, tree=None):
    """Build the mm selftests NAMES of BASE with its series for ARCH; the directory they are in.

    TREE is the work tree of BASE that has them, if it is another one: what is built from it
    is apart. A name that it does not have is an error.
    """
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    tree = tree or trees.make(base)
    out = SELFTESTS / f"{tree.name}-{arch}"
    programs = out / "mm"
    source = tree / "tools/testing/selftests/mm"
    for name in names:
        if not (source / f"{name}.c").exists():
            raise LabError(f"{tree.name} has no mm selftest {name}")
    with locked(f"selftests-{out.name}"):
        stamp = out / "lab.stamp"
        state = sha256(trees.state(tree), " ".join(names)) + "\n"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return programs
        with step(f"building the mm selftests of {tree.name} for {arch}"):
            programs.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            headers = make_headers(tree, arch, out)
            env = {**os.environ, "USERCFLAGS": "-static", "USERLDFLAGS": "-static"}
            targets = [f"{programs.resolve()}/{name}" for name in names]
            # The Makefile lists the series' own test for arm64 alone.
            listed = [] if arch == "arm64" else [f"TEST_GEN_FILES={' '.join(targets)}"]
            said = run_logged([*make(arch), "-C", source, f"-j{os.cpu_count()}",
                               f"OUTPUT={programs.resolve()}",
                               f"KHDR_INCLUDES=-isystem {headers}",
                               *listed, *targets],
                              f"selftests-{out.name}", env=env)
            added = trees.git(tree, "diff", "--name-only", "--diff-filter=A", "base", "HEAD")
            for line in said.splitlines():
                if ": warning: " in line and f"mm/{line.split(':')[0]}\n" in added:
                    raise LabError(f"the compiler warns of what the series adds: {line}")
            stamp.write_text(state, encoding="utf-8")
    return programs


def make_headers(tree, arch, out):
    """Make what the kernel of TREE gives user space on ARCH; the headers' directory, below OUT."""
    headers = (out / "headers").resolve()
    run_logged([*make(arch), "-C", tree, f"O={headers}", "headers"], f"headers-{out.name}")
    return headers / "usr/include"


def install(built):
    """Build and install SUITES as the tree of the kernel BUILT has them; the directory.

    BUILT has to have its modules built: a test is one.
    """
    (headers, libraries), tree = _libraries(), built.tree()
    folder, source = built.out / "kselftest-installed", "tools/testing/selftests/mm"
    with locked(f"kernel-{built}"), step(f"building the mm and arm64 selftests of {built}"):
        # The tree remembers what libraries were there when it was last asked.
        for path in (tree / source).glob("local_config.*"):
            path.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run_logged(built.make("kselftest-install", *SUITES, "FORCE_TARGETS=1",
                                  f"INSTALL_PATH={folder.resolve()}",
                                  f"USERCFLAGS=-isystem {headers} {MISSING}",
                                  f"USERLDFLAGS=-L{libraries}"),
                       f"selftests-{built}")
        finally:    # a module is built where its source is
            trees.git(tree, "clean", "-qfdx", f"{source}/page_frag")
    return folder


def _libraries():
    """The directories of the headers and of the libraries of LIBRARIES for arm64."""
    folder = SYSROOT.resolve()
    with locked("sysroot"):
        for name in LIBRARIES:
            deb = packages.fetch(name, "arm64")
            if not (folder / deb.stem).exists():
                packages.extract(deb, ["--wildcards", "./usr/include", "./usr/lib/*/*.a"], folder)
                (folder / deb.stem).touch()
    return folder / "usr/include", folder / "usr/lib/aarch64-linux-gnu"

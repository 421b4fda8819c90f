# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages: tools for this machine, and files out of packages for the guests.

Tools are installed with the system's apt. Everything else (kernel source, arm64
packages) is downloaded through an apt configuration of the lab's own under
build/apt, which takes the mirror from the system's and adds the suites that the
bases name. The system's configuration is never changed. Whoever wants a package of
another suite that may go away gets a configuration for it alone, build/apt-SUITE.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from lab.util import (BUILD, ROOT, LabError, locked, output, run_logged, say, step,
                      write_if_changed)

DOWNLOADS = BUILD / "download"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_MAX_AGE = 12 * 3600       # seconds after which package lists are fetched again

# A command that shows a package is there, and the package.
BUILD_TOOLS = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "bc": "bc",
    "bison": "bison",
    "ccache": "ccache",
    "cpio": "cpio",
    "flex": "flex",
    "gcc": "gcc",
    "git": "git",
    "make": "make",
    "mke2fs": "e2fsprogs",
    "rsync": "rsync",
    "xz": "xz-utils",
}
QEMU_TOOLS = {"qemu-system-aarch64": "qemu-system-arm"}
X86_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "x86_64-linux-gnu-gcc": "gcc-x86-64-linux-gnu",
}
CHECK_TOOLS = {
    "flake8": "flake8",
    "pylint": "pylint",
    "shellcheck": "shellcheck",
}
STATIC_TOOLS = {
    "ocamlfind": "ocaml-findlib",
    "ocamlopt": "ocaml",            # some of the semantic patches have scripts in it
    "sparse": "sparse",
    "spatch": "coccinelle",
    "sphinx-build": "python3-sphinx",
}
# The same for packages without a command: a file that they install.
BUILD_FILES = {
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/openssl/opensslv.h": "libssl-dev",
    "/usr/aarch64-linux-gnu/include/stdio.h": "libc6-dev-arm64-cross",
}
STATIC_FILES = {"/usr/include/urcu.h": "liburcu-dev"}


def need(tools, files=()):
    """Make sure that TOOLS (command: package) and FILES (path: package) are there.

    Installs what is missing, as root or through sudo. Raises LabError naming
    the packages if that is not possible.
    """
    missing = {pkg for tool, pkg in tools.items() if not shutil.which(tool)}
    missing |= {files[path] for path in files if not Path(path).exists()}
    if not missing:
        return
    names = " ".join(sorted(missing))
    if not shutil.which("apt-get"):
        raise LabError(f"missing tools; install the packages: {names}")
    sudo = _as_root(f"apt-get install {names}")
    install = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y",
               "--no-install-recommends", *sorted(missing)]
    with locked("apt"), step(f"installing {names}"):
        try:
            run_logged([*sudo, "apt-get", "update"], "apt-get-update")
        except LabError as err:         # one broken third-party source fails the update
            say(f"  {err}; trying the lists at hand")
        run_logged(install, "apt-get-install")


def _sources(suites, alone=False):
    """The text of a sources.list: the system's Debian suites, plus SUITES.

    Those of security fixes are on the mirror that the system has for such. With ALONE
    only SUITES, also if their lists are out of date.
    """
    listing = _index_targets()
    if not listing:                 # apt knows its sources by the lists it has fetched
        run_logged([*_as_root("apt-get update"), "apt-get", "update"], "apt-get-update")
        listing = _index_targets()
    entries = [(uri, release, component)
               for origin, label, uri, release, component in listing if origin == "Debian"]
    mirrors = [uri for origin, label, uri, release, component in listing
               if (origin, label) == ("Debian", "Debian") and "-" not in release]
    if not mirrors:
        raise LabError("apt has no source of a Debian release: nowhere to fetch kernels from")
    option = f"signed-by={KEYRING} " if KEYRING.exists() else ""
    if alone:
        return "".join(f"deb [{option}check-valid-until=no] {mirrors[0]} {suite} main\n"
                       for suite in suites)
    security = [uri for origin, label, uri, release, component in listing
                if (origin, label) == ("Debian", "Debian-Security")]
    for suite in suites:
        places = security if suite.endswith("-security") else mirrors
        entries += [(uri, suite, "main") for uri in places[:1]]
    option = f"[{option.strip()}] " if option else ""
    return "".join(f"deb {option}{uri} {release} {component}\n"
                   for uri, release, component in dict.fromkeys(entries))


def release_sources():
    """The text of a sources.list with nothing but the system's Debian release."""
    return _sources(())


def suite_sources(suite):
    """The text of a sources.list with nothing but SUITE, also if its lists are out of date."""
    return _sources((suite,), alone=True)


def _index_targets():
    """The system's package sources: origin, label, URI, release and component of each."""
    listing = output(["apt-get", "indextargets", "--format",
                      "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
                      "Identifier: Packages"])
    return [line.split("|") for line in listing.splitlines()]


def _as_root(what):
    """What to put before a command that needs root; LabError naming WHAT if it cannot be."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        raise LabError(f"not root and no sudo; as root: {what}")
    return ["sudo"]


def _extra_suites():
    """The suites outside the system's own that the files of bases/ name."""
    lines = [line for path in (ROOT / "bases").iterdir()
             for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted({line.split("=", 1)[1].strip() for line in lines
                   if line.startswith("suite")})


def _folder(suite):
    """The directory of the lab's apt configuration, or of the one for SUITE."""
    return BUILD / (f"apt-{suite}" if suite else "apt")


def _private_apt(suite):
    """Set up the configuration for SUITE (or None) with fresh lists; the environment to use it."""
    options = 'APT::Update::Error-Mode "any";\n'
    if suite:
        options += f'APT::Default-Release "{suite}";\n'
    return _configuration(_folder(suite), _sources([suite] if suite else _extra_suites()),
                          options)


def _configuration(apt, text, options):
    """Set up the configuration in the directory APT with OPTIONS, with fresh lists.

    TEXT is its sources.list.

    Returns the environment to use it.
    """
    sources = apt / "sources.list"
    conf = apt / "apt.conf"
    for sub in ("lists/partial", "cache/archives/partial"):
        (apt / sub).mkdir(parents=True, exist_ok=True)
    conf.write_text(
        f'Dir::Etc::sourcelist "{sources}";\n'
        'Dir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{apt}/lists";\n'
        f'Dir::Cache "{apt}/cache";\n'
        'APT::Architectures { "amd64"; "arm64"; };\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        + options, encoding="utf-8")
    env = {**os.environ, "APT_CONFIG": str(conf)}
    stamp = apt / "updated"
    fresh = (stamp.exists() and stamp.read_text(encoding="utf-8") == text
             and time.time() - stamp.stat().st_mtime < LISTS_MAX_AGE)
    if not fresh:
        sources.write_text(text, encoding="utf-8")
        try:
            with step("fetching package lists"):
                run_logged(["apt-get", "update"], "apt-get-update-private", env=env)
        except LabError as err:
            if not stamp.exists() or stamp.read_text(encoding="utf-8") != text:
                raise
            say(f"{err}; going on with the package lists at hand")
            return env
        stamp.write_text(text, encoding="utf-8")
        (apt / "answers.json").unlink(missing_ok=True)
    return env


def _locate(name, suite):
    """The file name and size in bytes of the newest package NAME, or None.

    apt takes seconds to answer, so its answers are kept as long as its lists are.
    """
    kept, updated = _folder(suite) / "answers.json", _folder(suite) / "updated"
    answers = {}
    if kept.exists() and time.time() - updated.stat().st_mtime < LISTS_MAX_AGE:
        answers = json.loads(kept.read_text(encoding="utf-8"))
    if name not in answers:
        env = _private_apt(suite)
        known = output(["apt-cache", "policy", name], env=env)
        answers[name] = None
        if "Candidate:" in known and "Candidate: (none)" not in known:
            line = output(["apt-get", "download", "--print-uris", name], env=env).split()
            answers[name] = [line[1], int(line[2])]
        write_if_changed(kept, json.dumps(answers) + "\n")
    return answers[name]


def download(package, arch=None, suite=None):
    """Download the newest PACKAGE (for ARCH) that the system's suites and the bases' offer.

    With SUITE: as SUITE has it, where that has the package. Returns the path of the
    .deb and its version, or None if no suite has the package.
    """
    name = f"{package}:{arch}" if arch else package
    with locked("apt"):
        found = _locate(name, suite)
        if not found:
            return None
        filename, size = found
        deb = DOWNLOADS / filename
        if not deb.exists() or deb.stat().st_size != size:
            DOWNLOADS.mkdir(parents=True, exist_ok=True)
            try:
                with step(f"downloading {filename} ({size / 1e6:.1f} MB)"):
                    run_logged(["apt-get", "download", name], f"download-{package}",
                               cwd=DOWNLOADS, env=_private_apt(suite))
            except LabError:
                for kept in ("answers.json", "updated"):    # a newer one may have replaced it
                    (_folder(suite) / kept).unlink(missing_ok=True)
                raise
    return deb, filename.split("_")[1].replace("%3a", ":")


def fetch(package, arch):
    """The path of the .deb of the newest PACKAGE for ARCH; LabError if no suite has it."""
    found = download(package, arch=arch)
    if not found:
        raise LabError(f"the archive does not offer {package} for {arch}")
    return found[0]


def fetch_source(name, suite):
    """The path of the upstream tarball of the newest source package NAME in SUITE."""
    with locked("apt"):
        text = suite_sources(suite).replace("deb ", "deb-src ")
        env = _configuration(BUILD / f"apt-source-{suite}", text, "")
        command = ["apt-get", "source", "--download-only", "--tar-only"]
        found = re.search(r"^'\S+' (\S+\.orig\.tar\.\w+) (\d+) ",
                          output([*command, "--print-uris", name], env=env), re.M)
        if not found:
            raise LabError(f"{suite} does not offer the source of {name}")
        path = DOWNLOADS / found[1]
        if not path.exists() or path.stat().st_size != int(found[2]):
            DOWNLOADS.mkdir(parents=True, exist_ok=True)
            with step(f"downloading {found[1]}"):
                run_logged([*command, name], f"download-{name}", cwd=DOWNLOADS, env=env)
    return path


def versions(name, suites):
    """The versions of the package NAME that the system's suites and SUITES offer, newest first.

    Also those of suites whose lists are out of date; a suite that is gone is left out.
    """
    env = _archive(suites)
    lines = output(["apt-cache", "madison", name], env=env).splitlines()
    return list(dict.fromkeys(line.split("|")[1].strip() for line in lines))


def fetch_version(name, version, suites, to):
    """Download VERSION of the package NAME to the directory TO; the path of the .deb."""
    with step(f"downloading {name} {version}"):
        run_logged(["apt-get", "download", f"{name}={version}"], f"download-{name}", cwd=to,
                   env=_archive(suites))
    return next(Path(to).glob(f"{name}_*.deb"))


def _archive(suites):
    """The environment to use a configuration for all of SUITES."""
    with locked("apt"):
        return _configuration(BUILD / "apt-archive", _sources(suites),
                              'Acquire::Check-Valid-Until "false";\n')


def extract(deb, members, to):
    """Extract the files MEMBERS (./usr/...) of the package file DEB below the directory TO."""
    Path(to).mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)],
                          stdout=subprocess.PIPE) as source:
        output(["tar", "-x", "-C", to, *members], stdin=source.stdout)

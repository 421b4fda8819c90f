# SPDX-License-Identifier: GPL-2.0-only
"""Root file systems of Debian for arm64 guests, made without running arm64 programs.

The packages are unpacked and none of their scripts runs, so what these would set up is
not there: whoever needs it writes it.
"""

import platform

from lab import packages
from lab.util import BUILD, locked, output, relative, run_logged, sha256, show, step

FOLDER = BUILD / "rootfs"
TOOLS = {"mmdebstrap": "mmdebstrap", "fakeroot": "fakeroot", "mke2fs": "e2fsprogs"}
SIZE = "4G"             # sparse, so it costs what is written
# What each has: a shell and the tools that scripts count on.
COMMON = ("bash", "coreutils", "debianutils", "findutils", "gawk", "grep", "gzip", "hostname",
          "kmod", "libc-bin", "mount", "procps", "sed", "sudo", "tar", "util-linux")
# What the packages' scripts would have written, and what a guest of the lab has.
SETUP = r"""
ln -sf bash "$1/bin/sh"
ln -sf gawk "$1/usr/bin/awk"
ln -sf which.debianutils "$1/usr/bin/which"
rmdir "$1/var/run"
ln -s ../run "$1/var/run"
printf '%s\n' root:x:0:0:root:/root:/bin/bash nobody:x:65534:65534:nobody:/:/bin/sh \
    > "$1/etc/passwd"
printf '%s\n' root:x:0: nogroup:x:65534: > "$1/etc/group"
echo '127.0.0.1 localhost lab' > "$1/etc/hosts"
"""


def build(name, include, setup="", suite=None):
    """The image NAME: ext4 with COMMON and the packages INCLUDE of the system's release.

    With SUITE they are those of that suite. SETUP is a shell script to run at the end, as
    SETUP above; $1 is the file system's top.
    """
    packages.need(TOOLS)
    sources = packages.suite_sources(suite) if suite else packages.release_sources()
    chosen, script = sorted({*COMMON, *include}), SETUP + setup
    image = FOLDER / f"{name}.ext4"
    with locked(f"rootfs-{name}"):
        stamp = FOLDER / f"{name}.stamp"
        make = ["mmdebstrap", "--variant=extract", "--architectures=arm64",
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                f"--include={','.join(chosen)}",
                suite or platform.freedesktop_os_release()["VERSION_CODENAME"]]
        state = sha256(show(make), sources, script) + "\n"
        if image.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return image
        FOLDER.mkdir(parents=True, exist_ok=True)
        with step(f"making {relative(image)} of {len(chosen)} packages and what they need"):
            stamp.unlink(missing_ok=True)
            listing, tarball = FOLDER / f"{name}.list", FOLDER / f"{name}.tar"
            aside = FOLDER / f".{name}.new"
            listing.write_text(sources, encoding="utf-8")
            run_logged([*make, tarball, listing], f"rootfs-{name}")
            # In one fakeroot, so that the files' owners are in the image.
            output(["fakeroot", "sh", "-ec", f"""
                top=$(mktemp -d "$2.XXXXXX")
                trap 'rm -rf "$top"' EXIT
                tar -x -f "$1" -C "$top"
                set -- "$top" "$2"
                {script}
                truncate -s {SIZE} "$2"
                mke2fs -q -t ext4 -F -d "$top" "$2"
            """, "sh", tarball, aside])
            tarball.unlink()
            aside.rename(image)
            stamp.write_text(state, encoding="utf-8")
    return image

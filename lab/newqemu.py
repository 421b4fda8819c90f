# SPDX-License-Identifier: GPL-2.0-only
"""A newer QEMU than the system's, from its backports, unpacked aside and run by its path."""

import platform

from lab import packages
from lab.util import BUILD, LabError, output, say

MEMBER = "./usr/bin/qemu-system-aarch64"


def path():
    """The newer qemu-system-aarch64; None, loudly, if the archive has none that runs here.

    Of the package only the program is needed: the libraries are those of the
    system's QEMU, and the virt machine with a kernel takes no firmware.
    """
    suite = f"{platform.freedesktop_os_release().get('VERSION_CODENAME')}-backports"
    try:
        found = packages.download("qemu-system-arm", suite=suite)
        if not found:
            raise LabError(f"{suite} has no qemu-system-arm")
        program = BUILD / "qemu" / found[0].stem / MEMBER
        if not program.exists():
            aside = program.with_suffix(".new")
            packages.extract(found[0], [MEMBER], aside)
            (aside / MEMBER).rename(program)
        output([program, "--version"])
    except LabError as err:
        say(f"*** NO NEWER QEMU, the system's it is: {err} ***")
        return None
    return program

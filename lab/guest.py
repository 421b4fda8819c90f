# SPDX-License-Identifier: GPL-2.0-only
"""What a guest boots with: a busybox initramfs, and a disk to write on."""

import os
import shlex
import shutil
import stat
import tempfile
from pathlib import Path

from lab import packages
from lab.util import BUILD, ROOT, LabError, locked, output, step

GUEST = BUILD / "guest"
INIT = ROOT / "lab/guest/init"
FINISH = ROOT / "lab/guest/finish"
SCRATCH_SIZE = "1G"     # sparse, so it costs what is written
UUID = "12345678-1234-4321-8765-123456789abc"       # not chance's, so that boots are the same
SMALL_SIZE = "64M"
SMALL_DISK = "/lab/scratch.ext4"        # where init looks for one
# Debian's name of each architecture, and the e_machine of its ELF files.
ARCHES = {"arm64": ("arm64", b"\xb7\0"), "x86_64": ("amd64", b"\x3e\0")}


def _archive(folder, cpio):
    """Write the directory FOLDER as the newc archive CPIO, all owned by root."""
    Path(folder).chmod(0o755)       # it becomes the guest's root directory
    names = sorted(output(["find", ".", "-print0"], cwd=folder).split("\0")[:-1])
    aside = cpio.with_suffix(".new")
    output(["cpio", "-o", "-0", "-H", "newc", "-R", "+0:+0", "--quiet",
            "-F", aside.resolve()], cwd=folder, input="".join(f"{name}\0" for name in names))
    aside.rename(cpio)


def base(arch):
    """The part of the initramfs that is the same for all guests of the architecture ARCH."""
    GUEST.mkdir(parents=True, exist_ok=True)
    cpio = GUEST / f"base-{arch}.cpio"
    with locked("guest"):
        if cpio.exists() and cpio.stat().st_mtime > max(path.stat().st_mtime
                                                        for path in (INIT, FINISH)):
            return cpio
        deb = packages.fetch("busybox-static", ARCHES[arch][0])
        with step("making the guest's initramfs"), \
                tempfile.TemporaryDirectory(dir=GUEST) as scratch:
            packages.extract(deb, ["./bin/busybox"], scratch)
            Path(scratch, "bin").rename(Path(scratch, "lab"))
            shutil.copy(INIT, Path(scratch, "init"))
            shutil.copy(FINISH, Path(scratch, "lab/finish"))
            _archive(scratch, cpio)
    return cpio


def scratch_disk():
    """An empty ext4 file system for the guest to mount; boots use it as a snapshot."""
    return _file_system("scratch", SCRATCH_SIZE)


def small_disk():
    """The same for a guest that is to have it in its memory."""
    return _file_system("small", SMALL_SIZE)


def _file_system(name, size):
    """The file NAME with an empty ext4 file system of SIZE."""
    GUEST.mkdir(parents=True, exist_ok=True)
    disk = GUEST / f"{name}.ext4"
    with locked("guest"):
        if not disk.exists():
            aside = GUEST / f".{name}.new"
            output(["truncate", "-s", size, aside])
            output(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-U", UUID, "-E",
                    f"hash_seed={UUID}", "-F", aside],
                   env={**os.environ, "E2FSPROGS_FAKE_TIME": "1"})
            aside.rename(disk)
    return disk


def initramfs(to, arch, command=None, files=()):
    """Write to TO an initramfs for ARCH that runs COMMAND, or a shell if it is None.

    COMMAND is a list whose first element is a program on the host, copied to
    /root. FILES are pairs of a host path (file or directory) and a guest path.
    """
    common = base(arch)
    with tempfile.TemporaryDirectory(dir=GUEST) as scratch:
        top = Path(scratch)
        if command:
            program = Path(command[0])
            _check_program(program, arch)
            files = [*files, (program, f"/root/{program.name}")]
        for host, guest in files:
            _copy(Path(host), top / guest.lstrip("/"))
        if command:
            run = top / "lab/run"
            run.parent.mkdir(exist_ok=True)
            (top / "root" / program.name).chmod(0o755)
            run.write_text("#!/bin/sh\nexec "
                           + shlex.join([f"/root/{program.name}", *command[1:]]) + "\n",
                           encoding="utf-8")
            run.chmod(0o755)
        extra = to.with_suffix(".extra")
        _archive(top, extra)
        with open(to, "wb") as out:
            for part in (common, extra):
                out.write(part.read_bytes())
        extra.unlink()


def _check_program(path, arch):
    """LabError unless the file PATH is something that a guest of ARCH can run."""
    if not path.is_file():
        raise LabError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(20)
    if head[:4] == b"\x7fELF" and head[18:20] != ARCHES[arch][1]:
        raise LabError(f"{path}: not an {arch} executable")


def _copy(host, to):
    """Copy the file or directory HOST to the path TO; LabError if there is none."""
    if not host.exists():
        raise LabError(f"{host}: no such file or directory")
    to.parent.mkdir(parents=True, exist_ok=True)
    if host.is_dir():
        shutil.copytree(host, to, dirs_exist_ok=True, symlinks=True)
    elif stat.S_ISREG(host.stat().st_mode):
        shutil.copy(host, to)
    else:
        raise LabError(f"{host}: neither a file nor a directory")

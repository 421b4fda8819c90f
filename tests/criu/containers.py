#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""In a guest: incremental checkpoints of a container by runc, crun and podman.

The container writes a table in memory and looks whether all of it is right (writer.py). It
is pre-dumped, goes on writing, is dumped and restored, and has to go on. Prints TAP.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from driver import Tap, begin

TOP = Path("/var/tmp/containers")
STORAGE = Path("/var/lib/containers/storage")
ROUNDS = TOP / "rounds"         # the same path in the container: its root is the guest's
WRITER = ["/usr/bin/python3", "/root/writer.py", str(ROUNDS)]


def run(*args):
    """Run the command ARGS; whether it succeeded, and the lines that it printed."""
    proc = subprocess.run(args, text=True, check=False, stdin=subprocess.DEVNULL, cwd=TOP,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return proc.returncode == 0, proc.stdout.splitlines()


def run_quietly(*args):
    """The same for a command whose child goes on with its output, which CRIU could not restore."""
    status = subprocess.run(args, check=False, stdin=subprocess.DEVNULL, cwd=TOP,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    return status == 0, []


def said():
    """What the container said last: the number of a round that was right, or what is wrong."""
    return ROUNDS.read_text(encoding="ascii") if ROUNDS.exists() else "0"


def rounds(more):
    """Wait until the container has written MORE rounds; whether all were right, and the last."""
    before, limit = said(), time.monotonic() + 120
    text = before
    while text.isdigit() and int(text) < int(before) + more and time.monotonic() < limit:
        time.sleep(0.1)
        text = said()
    return text.isdigit() and int(text) >= int(before) + more, text


@contextlib.contextmanager
def bundle():
    """A new directory for a container, whose rootfs is the guest's own root file system."""
    shutil.rmtree(TOP, ignore_errors=True)
    folder = TOP / "bundle"
    (folder / "rootfs").mkdir(parents=True)
    subprocess.run(["mount", "--bind", "/", folder / "rootfs"], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder / "rootfs"], check=True)


def configure(folder, runtime):
    """Write the configuration with which RUNTIME runs the writer in the bundle FOLDER."""
    subprocess.run([runtime, "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["process"]["terminal"] = False
    config["process"]["args"] = WRITER
    config["root"]["readonly"] = False
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def compare(tap, runtime, *folders):
    """The images of pre-dump and dump by RUNTIME are in FOLDERS: the second one is to be small."""
    before, after = (sum(file.stat().st_size for file in folder.glob("pages-*.img"))
                     for folder in folders)
    tap.say(f"table\t{runtime}\t{before}\t{after}")
    tap.result(0 < after < before / 4, f"{runtime}: the dump holds what was written since")


def through(tap, name, steps):
    """Take the container of NAME through STEPS; whether it came to the end.

    A step is what becomes of the container, and how: run or run_quietly, and a command.
    """
    for what, how, *command in steps:
        good, lines = how(*command)
        if not tap.result(good, f"{name}: the container {what}", *lines[-20:], *logs()):
            return False
        if what != "is dumped":
            good, text = rounds(5)
            tap.result(good, f"{name}: and writes on", text)
    return True


def logs():
    """The ends of CRIU's logs."""
    return [line for path in sorted(TOP.glob("*/*.log")) for line in
            [f"{path}:", *path.read_text(errors="replace").splitlines()[-12:]]]


def by_runtime(tap, runtime, folder):
    """runc or crun, whose commands are the same, with the bundle FOLDER."""
    configure(folder, runtime)
    command = [runtime, f"--log={folder / 'runtime.log'}"]
    parent, image = TOP / "parent", TOP / "image"
    if through(tap, runtime, [
            ("starts", run_quietly, *command, "run", "-d", "--bundle", folder, "test"),
            ("is pre-dumped", run, *command, "checkpoint", "--pre-dump", "--image-path", parent,
             "test"),
            ("is dumped", run, *command, "checkpoint", "--parent-path", "../parent",
             "--image-path", image, "test"),
            ("is restored", run_quietly, *command, "restore", "-d", "--image-path", image,
             "--bundle", folder, "test")]):
        compare(tap, runtime, parent, image)
    run(runtime, "delete", "--force", "test")


def by_podman(tap, folder):
    """podman with the rootfs of the bundle FOLDER. It knows where its images are."""
    podman = ["podman", "--cgroup-manager=cgroupfs"]
    if through(tap, "podman", [
            ("starts", run, *podman, "run", "-d", "--name=test", "--network=none",
             "--runtime=runc", "--rootfs", folder / "rootfs", *WRITER),
            ("is pre-dumped", run, *podman, "container", "checkpoint", "--pre-checkpoint", "test"),
            ("is dumped", run, *podman, "container", "checkpoint", "--with-previous", "test"),
            ("is restored", run, *podman, "container", "restore", "--keep", "test")]):
        compare(tap, "podman", *(next(STORAGE.rglob(f"{name}/pages-1.img")).parent
                                 for name in ("pre-checkpoint", "checkpoint")))
    run(*podman, "rm", "-f", "test")


def main():
    """Each in turn."""
    begin()
    tap = Tap()
    tap.say("table\truntime\tbytes of pages in the pre-dump\tin the dump")
    for runtime in ("runc", "crun"):
        with bundle() as folder:
            by_runtime(tap, runtime, folder)
    with bundle() as folder:
        by_podman(tap, folder)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""In a guest: checkpoint a Redis server that serves on meanwhile, and restore it.

Three pre-dumps, a dump, a restore: then every key has to have the value that was last
written, over the connection that was there before. The same follows without pre-dumps, to
compare. With --swap, the server's memory is swapped out before each round; with --short, there
is no cycle without pre-dumps. With --off, what CRIU says where the kernel does not track
writes. Prints TAP, and a table of what each round wrote and for how long it stopped the server.
"""

import argparse
import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

# They are there in the guest.
import redis                        # pylint: disable=import-error
from pycriu import images           # pylint: disable=import-error
from driver import Tap, begin

VALUE = 4096            # bytes of a value
KEYS = 65536            # 256 MiB of values
BETWEEN = 2000          # writes between two rounds
PRE_DUMPS = 3
HOT = 0.05              # the part of the keys that most of the writes go to
PORT = 6379
# What is told of each round; with -icount a microsecond is 1000 instructions.
COLUMNS = ("round", "pages", "written", "clean in parent", "bytes", "stopped, in us")
IMAGES = Path("/var/tmp/criu")
THP = Path("/sys/kernel/mm/transparent_hugepage")
MADV_PAGEOUT = 21
PROCESS_MADVISE = 440   # the number of the system call
OFF, REFUSAL = "Dirty tracking is OFF", "Tracking memory is not available"
# What a kernel can lack on arm64, by the words of criu check --all.
WARNINGS = Path(__file__).with_name("warnings")


def criu(*args):
    """Run criu with ARGS; its status and all that it printed."""
    proc = subprocess.run(["criu", *args], text=True, check=False, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return proc.returncode, proc.stdout


def value(key, version):
    """The value of KEY in VERSION: its own on every page."""
    return (f"{key}:{version};" * (VALUE // 4))[:VALUE]


class Writer(threading.Thread):
    """Writes keys over one connection, and remembers what the server has acknowledged."""

    def __init__(self, keys, versions):
        super().__init__(daemon=True)
        self.keys, self.versions = keys, versions
        self.count, self.stop, self.error = 0, False, None
        self.random = random.Random(1)
        self.connection = client()

    def run(self):
        try:
            while not self.stop:
                hot = self.random.random() < 0.9
                key = self.random.randrange(int(self.keys * HOT) if hot else self.keys)
                version = self.versions[key] + 1
                self.connection.set(key, value(key, version))
                self.versions[key] = version
                self.count += 1
        except redis.RedisError as err:
            self.error = err

    def wait(self, more):
        """Wait until MORE writes were made; whether they were."""
        goal, limit = self.count + more, time.monotonic() + 300
        while self.count < goal and not self.error and time.monotonic() < limit:
            time.sleep(0.01)
        return self.count >= goal


def client():
    """A connection that is not made anew when it breaks."""
    return redis.Redis(port=PORT, retry=None, socket_timeout=300, single_connection_client=True)


def serve(thp):
    """Start a server, with huge pages if THP, and fill it; the process, and the keys' versions."""
    server = subprocess.Popen(["redis-server", "--port", str(PORT), "--save", "",
                               "--appendonly", "no", "--disable-thp", "no" if thp else "yes",
                               "--dir", "/tmp"], stdin=subprocess.DEVNULL,
                              stdout=open("/tmp/redis.log", "w", encoding="utf-8"),
                              stderr=subprocess.STDOUT, start_new_session=True)
    for _ in range(600):
        try:
            if client().ping():
                break
        except redis.RedisError:
            time.sleep(0.1)
    connection = client()
    for first in range(0, KEYS, 256):
        connection.mset({key: value(key, 0) for key in range(first, first + 256)})
    return server, {key: 0 for key in range(KEYS)}


def huge(pid):
    """Whether process PID has huge pages, and the system 64K mTHPs that were faulted in."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return {"PMD": int(re.search(r"AnonHugePages: +(\d+)", rollup)[1]),
            "64K": int((THP / "hugepages-64kB/stats/anon_fault_alloc").read_text("ascii"))}


class Range(ctypes.Structure):
    """A struct iovec."""

    _fields_ = [("start", ctypes.c_size_t), ("size", ctypes.c_size_t)]


def swap_out(pid):
    """Have the anonymous memory of process PID swapped out; how many MiB of it then are."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    ranges = [(int(start, 16), int(end, 16)) for start, end in re.findall(
        r"^(\w+)-(\w+) rw-p \w+ 00:00 0 *(?:\[heap\])?$", maps, re.M)]
    libc, file = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    for start, end in ranges:
        one = Range(start, end - start)
        if libc.syscall(PROCESS_MADVISE, file, ctypes.byref(one), ctypes.c_size_t(1),
                        MADV_PAGEOUT, ctypes.c_ulong(0)) < 0:
            raise OSError(ctypes.get_errno(), "process_madvise")
    os.close(file)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"^VmSwap:\s+(\d+) kB$", status, re.M)[1]) // 1024


def wrong_keys(versions):
    """The keys of which the server does not have the value in the version that VERSIONS says."""
    connection, wrong = client(), []
    for first in range(0, len(versions), 256):
        block = range(first, min(first + 256, len(versions)))
        for key, found in zip(block, connection.mget(block)):
            if not found or found.decode() != value(key, versions[key]):
                wrong.append(key)
    return wrong


def folder(number):
    """A new directory for the images of round NUMBER."""
    path = IMAGES / str(number)
    path.mkdir(parents=True)
    return path


def stats(path):
    """What CRIU counted in the round with the images in PATH, and their bytes of pages."""
    with open(path / "stats-dump", "rb") as file:
        found = images.load(file)["entries"][0]["dump"]
    size = sum(file.stat().st_size for file in path.glob("pages-*.img"))
    return found, size


def dump(action, pid, number, *options):
    """Do ACTION, dump or pre-dump, with process PID as round NUMBER; whether, and the log."""
    path = folder(number)
    before = IMAGES / str(number - 1)
    previous = ["--prev-images-dir", f"../{before.name}"] if before.exists() else []
    status, said = criu(action, "-t", str(pid), "-D", str(path), "-v4", "-o", "log",
                        *previous, *options)
    return status == 0, said.splitlines() + log_of(path / "log")


def log_of(path):
    """The lines of CRIU's log at PATH, if it came to one."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def checkpoint(tap, name, server, pre_dumps, rows, between):
    """Checkpoint the process SERVER with PRE_DUMPS; whether it went.

    BETWEEN is called with the number of each round before it. Adds what each round wrote to ROWS.
    """
    shutil.rmtree(IMAGES, ignore_errors=True)
    for number in range(pre_dumps + 1):
        last = number == pre_dumps
        between(number)
        options = ["--tcp-established"] * last + ["--track-mem"] * bool(pre_dumps)
        good, log = dump("dump" if last else "pre-dump", server, number, *options)
        what = "dump" if last else f"pre-dump {number + 1}"
        if not tap.result(good, f"{name}: {what}", *log[-20:]):
            return False
        found, size = stats(IMAGES / str(number))
        rows.append((f"{name}: {what}", found["pages_scanned"], found["pages_written"],
                     found["pages_skipped_parent"], size,
                     found["freezing_time"] + found["frozen_time"]))
    return True


def cycle(tap, name, versions, server, pre_dumps, rows, swap=False):
    """Checkpoint the process SERVER with PRE_DUMPS, and restore it; whether it went.

    VERSIONS has that of each key. Adds what each round wrote to ROWS. With SWAP, the server's
    memory is swapped out before each round.
    """
    keys = len(versions)
    writer = Writer(keys, versions)
    writer.start()
    tap.result(writer.wait(BETWEEN), f"{name}: the server serves", writer.error)

    def between(number):
        if number:
            writer.wait(BETWEEN)
        if swap:
            swapped = swap_out(server)
            tap.result(swapped >= KEYS * VALUE >> 21, f"{name}: half of the values are swapped out",
                       f"{swapped} MiB are")

    if not checkpoint(tap, name, server, pre_dumps, rows, between):
        return False
    reap(server)
    status, said = criu("restore", "-D", str(IMAGES / str(pre_dumps)), "-v4", "-o", "restore.log",
                        "--tcp-established", "-d")
    lines = said.splitlines() + log_of(IMAGES / str(pre_dumps) / "restore.log")
    if not tap.result(status == 0, f"{name}: restore", *lines[-20:]):
        return False
    tap.result(writer.wait(BETWEEN), f"{name}: the server serves on over the same connection",
               writer.error)
    writer.stop = True
    writer.join(300)
    try:
        wrong = wrong_keys(versions)
    except redis.RedisError as err:
        wrong = [err]
    return tap.result(not wrong, f"{name}: all of {keys} keys have their right value",
                      f"wrong: {len(wrong)}, the first of them {wrong[:5]}")


def reap(pid):
    """Let go of the killed process PID, whose number is wanted again, if it is a child."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def check(tap, off):
    """What CRIU says of the kernel, which with OFF does not track writes."""
    status, said = criu("check")
    tap.result(status == 0 and "Looks good." in said, "criu check", *said.splitlines())
    _, said = criu("check", "--all")
    known = [line for line in WARNINGS.read_text(encoding="utf-8").splitlines()
             if not line.startswith("#")] + [OFF] * off
    found = [line for line in said.splitlines() if line.startswith(("Warn", "Error"))]
    tap.result(len(found) == len(known) and all(any(words in line for line in found)
                                                for words in known),
               "criu check --all: the warnings that there are on arm64, and no other",
               "wanted:", *known, "found:", *found)


def main():
    """Command line: see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thp", action="store_true", help="64K and PMD-mapped THP for the heap")
    parser.add_argument("--swap", action="store_true", help="swap the server out meanwhile")
    parser.add_argument("--short", action="store_true", help="with pre-dumps alone")
    parser.add_argument("--off", action="store_true", help="the kernel does not track writes")
    args = parser.parse_args()
    begin()
    tap, rows = Tap(), []
    if args.thp:
        for path in ("hugepages-64kB/enabled", "enabled"):
            (THP / path).write_text("always", encoding="ascii")
    check(tap, args.off)
    status, said = criu("check", "--feature", "mem_dirty_track")
    tap.result((status == 0) != args.off, "criu check --feature mem_dirty_track: "
               + ("refused" if args.off else "is there"), *said.splitlines())
    server, versions = serve(args.thp)
    if args.thp:
        found = huge(server.pid)
        tap.result(all(found.values()), "the server's memory has huge pages and 64K mTHPs", found)
    if args.off:
        good, log = dump("pre-dump", server.pid, 0, "--track-mem")
        tap.result(not good and any(REFUSAL in line for line in log),
                   f"pre-dump is refused: {REFUSAL}", *log[-20:])
    elif cycle(tap, "three pre-dumps", versions, server.pid, PRE_DUMPS, rows, args.swap) \
            and not args.short:
        cycle(tap, "no pre-dump", versions, server.pid, 0, rows)
    for row in [COLUMNS, *rows] if rows else ():
        tap.say("table\t" + "\t".join(map(str, row)))
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())

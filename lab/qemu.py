# SPDX-License-Identifier: GPL-2.0-only
"""Machines that QEMU emulates, and one run of a guest on them.

A run has three channels: the console, which is logged whole and searched for
splats; the output of the program, passed on as it comes; and its status.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab import guest
from lab.util import EXIT_TIMEOUT, LOGS, LabError, child, output, relative, say, show, tail

EXIT_SPLAT = 122        # the kernel complained, whatever the program returned
EXIT_DIED = 123         # the guest ended without reporting a status
POLL = 0.2              # seconds between two looks at what a guest has written

# How a kernel begins to say that something is wrong with it. Lockdep and RCU
# reports begin with "WARNING: " too.
SPLAT = re.compile(
    r"(?:^|\] )(?:"
    r"WARNING: |BUG: |(?:rcu: )?INFO: (?:task |rcu|trying to register|inconsistent)"
    r"|[kK]ernel BUG at |Kernel panic|Internal error: |Unable to handle kernel |Oops"
    r"|SError Interrupt|Bad page |(?:list_add|list_del) corruption|watchdog: BUG|UBSAN: "
    r"|\S+ bad p(?:te|md|ud|4d|gd) |\S+ (?:Bad|Unused) swap )")

_BEGINS = re.compile(rb"^lab: begin (.*)\n", re.M)


# What keeps the host out of a machine that counts instructions as time: a guest that waits
# does so for its own timers alone, and date and randomness are the same each time.
ISOLATED = ("-seed", "1", "-rtc", "base=2026-01-01,clock=vm")


class Machine:
    """A machine: which QEMU, and its part of the command line."""

    binary = ""
    console = ""        # the kernel's name of the console
    bus = ""            # how QEMU's names of its virtio devices end
    at_once = ""        # has one answer before the guest's next instruction, not by a thread

    def __init__(self, cpu, smp=None, mem="1G", icount=False, nodes=1):
        if icount and smp not in (None, 1):
            raise LabError("--icount counts the instructions of one CPU: --smp 1")
        self.cpu = cpu
        self.smp = smp or (1 if icount else 2)
        self.icount = icount
        self.isolated = False
        self.sizes = ["-smp", str(self.smp), "-m", mem]
        if nodes != 1:
            self.sizes = self._nodes(mem, nodes)

    def isolate(self):
        """Make all runs of a guest the same to the instruction, and return the machine.

        It has to have one CPU and icount. A disk of the host's would answer when the host
        likes, so run() gives such a guest a small one in its own memory.
        """
        self.isolated = True
        return self

    def _nodes(self, mem, nodes):
        """The options for NODES NUMA nodes, each a socket, with even parts of CPUs and MEM."""
        size = re.fullmatch(r"(\d+)([MG])", mem)
        if not size:
            raise LabError(f"--nodes divides the memory: --mem in M or G, not {mem!r}")
        if nodes < 1 or self.smp % nodes:
            raise LabError(f"--nodes {nodes}: each has the same number of the {self.smp} CPUs")
        share, cpus = int(size[1]) * {"M": 1, "G": 1024}[size[2]] // nodes, self.smp // nodes
        options = ["-smp", f"{self.smp},sockets={nodes}", "-m", f"{share * nodes}M"]
        for node in range(nodes):
            options += ["-object", f"memory-backend-ram,id=node{node},size={share}M", "-numa",
                        f"node,nodeid={node},memdev=node{node},"
                        f"cpus={node * cpus}-{node * cpus + cpus - 1}"]
        return options

    def options(self):
        """The options that describe the machine itself."""
        raise NotImplementedError

    def version(self):
        """Which QEMU this is, in its own words."""
        return output([self.binary, "--version"]).splitlines()[0]

    def command(self, image, initrd, append):
        """The whole command but for the channels."""
        return [self.binary, *self.options(), *self.sizes,
                *(["-icount", "shift=0" + ",sleep=off" * self.isolated] if self.icount else []),
                *(ISOLATED if self.isolated else ()),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-kernel", str(image), "-initrd", str(initrd), "-append",
                f"console={self.console} panic=-1 oops=panic {append}".strip()]


class VirtArm64(Machine):
    """QEMU's virt board with an arm64 CPU."""

    binary = "qemu-system-aarch64"
    console = "ttyAMA0"
    bus = "device"

    def options(self):
        machine, cpu = "virt,gic-version=3", self.cpu
        if cpu == "max":
            machine += ",mte=on"
            cpu += ",pauth-impdef=on"       # the architected algorithm is slow to emulate
        return ["-machine", machine, "-cpu", cpu]


class PcX86(Machine):
    """QEMU's PC with an x86-64 CPU."""

    binary = "qemu-system-x86_64"
    console = "ttyS0"
    bus = "pci"
    at_once = ",ioeventfd=off"

    def options(self):
        return ["-machine", "q35", "-cpu", self.cpu]


MACHINES = {"arm64": VirtArm64, "x86_64": PcX86}        # the one for each architecture


@dataclass
class Result:
    """How a run ended. The status is the program's, or one of the EXIT_ values."""

    status: int
    output: str
    console: Path
    command: str
    splats: list = field(default_factory=list)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))


def splats(text):
    """The lines of the console log TEXT that report a defect, as (line number, line)."""
    return [(number, line) for number, line in enumerate(text.splitlines())
            if SPLAT.search(line)]


def run(machine, kernel, command, files=(), append="", timeout=300, quiet=False, options=()):
    """Boot KERNEL's image on MACHINE, run COMMAND in it, and return the Result.

    FILES are (host, guest) pairs to copy in; TIMEOUT is in seconds of the host. OPTIONS are
    more of QEMU's: those for a disk number 1 give a root file system to run in; by default
    there is busybox. QUIET as for boot().
    """
    options = list(options)
    if machine.isolated:
        files = [*files, (guest.small_disk(), guest.SMALL_DISK)]
    else:       # a board with virtio-mmio finds the last one that it was given first
        options += disk(guest.scratch_disk(), machine.bus)
    with tempfile.TemporaryDirectory(dir=guest.GUEST) as scratch:
        initrd = Path(scratch, "initrd")
        guest.initramfs(initrd, kernel.arch, command, files)
        return boot(machine, str(kernel), kernel.image, initrd, options, append, timeout, quiet)


def boot(machine, title, image, initrd, options, append="", timeout=300, quiet=False):
    """Boot IMAGE with INITRD and more OPTIONS on MACHINE, and return the Result.

    TITLE is for names and messages; TIMEOUT is in seconds of the host.
    The program's output goes to standard output, or with QUIET only to the
    result; what the lab has to say of the run goes to standard error, and with QUIET
    the lines there by which a driver says what it begins with.
    """
    logs = LOGS / "guest"
    logs.mkdir(parents=True, exist_ok=True)
    console = _unused(logs / f"{title}-{machine.cpu}-{time.strftime('%H%M%S')}-{os.getpid()}.log")
    with tempfile.TemporaryDirectory(dir=guest.GUEST) as scratch:
        status, said = Path(scratch, "status"), Path(scratch, "output")
        said.touch()
        argv = [*machine.command(image, initrd, append), *options,
                "-serial", f"file:{console}",
                "-device", f"virtio-serial-{machine.bus}" + machine.at_once * machine.isolated,
                # Not a pipe: QEMU drops what a console says while a pipe is full.
                "-chardev", f"file,id=output,path={said}",
                "-device", "virtconsole,chardev=output",
                "-chardev", f"file,id=status,path={status}",
                "-device", "virtserialport,chardev=status,name=lab.status"]
        say(show(argv))
        text, ended = _follow(argv, said, timeout, f"{title} {machine.cpu}" if quiet else None)
        if quiet:
            console.with_suffix(".out").write_text(text, encoding="utf-8")
        reported = status.read_text(encoding="utf-8").strip() if status.exists() else ""
    log = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    result = Result(EXIT_DIED, text, console, show(argv), splats(log))
    if ended == "timeout":
        result.status = EXIT_TIMEOUT
    elif reported:
        result.status = int(reported)
    if result.splats and ended != "timeout":
        result.status = EXIT_SPLAT
    _explain(result, ended, log, timeout)
    return result


def _unused(path):
    """PATH, or a variant of it that no file has."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    candidate.touch()
    return candidate


def _follow(argv, said, timeout, title):
    """Run QEMU, pass on what it writes to the file SAID, and return that and how it ended.

    With a TITLE only what a driver in the guest begins with is told, under that title.
    The second value is "timeout", "exit", or a phrase for any other end.
    """
    with child(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as proc:
        text, complaints, in_time = _pump(proc, said, time.monotonic() + timeout, title)
        if in_time:
            proc.wait()
    if not in_time:
        return text, "timeout"
    if proc.returncode < 0:
        return text, f"QEMU was killed by {signal.Signals(-proc.returncode).name}"
    if proc.returncode > 0:
        raise LabError(f"QEMU: {(complaints.strip().splitlines() or ['no message'])[-1]}")
    return text, "exit"


def _pump(proc, said, deadline, title):
    """Read the file SAID and the standard error of PROC until that ends, or until DEADLINE.

    Returns both as text, and whether it ended before the deadline.
    """
    text, complaints, left, told = b"", b"", 1, 0
    with open(said, "rb") as written, selectors.DefaultSelector() as selector:
        selector.register(proc.stderr, selectors.EVENT_READ)
        while selector.get_map() and left > 0:
            left = deadline - time.monotonic()
            if selector.select(max(0, min(left, POLL))):
                complaint = os.read(proc.stderr.fileno(), 65536)
                complaints += complaint
                if not complaint:
                    selector.unregister(proc.stderr)
            data = written.read()
            text += data
            if title is None:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            else:
                for begun in _BEGINS.finditer(text, told):
                    say(f"  {title}: {begun[1].decode('utf-8', 'replace')}")
                    told = begun.end()
    return text.decode("utf-8", "replace"), complaints.decode("utf-8", "replace"), left > 0


def shell(machine, kernel, files=(), append=""):
    """Boot KERNEL on MACHINE with a shell on the terminal, and return QEMU's status."""
    scratch_disk = disk(guest.scratch_disk(), machine.bus)
    with tempfile.TemporaryDirectory(dir=guest.GUEST) as scratch:
        initrd = Path(scratch, "initrd")
        guest.initramfs(initrd, kernel.arch, files=files)
        argv = [*machine.command(kernel.image, initrd, append), *scratch_disk,
                "-serial", "mon:stdio"]
        say(show(argv))
        say("leave with 'exit', or kill the guest with Ctrl-A X")
        return subprocess.run(argv, check=False).returncode


def disk(path, bus, number=0, write=False):
    """QEMU's options for the guest's disk at PATH on BUS, changed only with WRITE."""
    return ["-drive", f"if=none,id=disk{number},format=raw,file={path}"
            + ",snapshot=on" * (not write),
            "-device", f"virtio-blk-{bus},drive=disk{number}"]


def _explain(result, ended, log, timeout):
    """Say on standard error what went wrong in a run, if anything did."""
    place = f"whole console: {relative(result.console)}"
    if result.splats:
        first = result.splats[0][0]
        excerpt = "\n".join(log.splitlines()[first:first + 40])
        print(excerpt, file=sys.stderr)
        say(f"the kernel complained, {len(result.splats)} lines; {place}")
    if ended == "timeout":
        print(tail(result.console, 15), file=sys.stderr)
        silent = "" if log else ", and the kernel printed nothing: has the CPU its page size?"
        say(f"no end after {timeout}s{silent}: killed; {place}")
    elif result.status == EXIT_DIED:
        print(tail(result.console, 15), file=sys.stderr)
        why = "it ended without reporting a status" if ended == "exit" else ended
        say(f"the guest died: {why}; {place}")
    elif not result.splats:
        say(f"status {result.status}; {place}")

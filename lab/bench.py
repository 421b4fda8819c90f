# SPDX-License-Identifier: GPL-2.0-only
"""make bench: what tracking costs, in instructions, faults and TLB invalidations.

The programs of bench/ run in guests that count instructions as time and have nothing of
the host in them, so that a figure of arm64 is the same on every machine and in every run: with
the same compiler and the same kernel source. (On x86-64 some differ by a few instructions.)
All is stored as a table of tab-separated values in build/results/bench, a line a figure, for
make bench-compare and for what is printed.
"""

import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lab import bases, kernel, mutants, packages, qemu, selftests, trees
from lab.benchplot import plots
from lab.benchtable import report
from lab.kernel import ARCHES, Kernel
from lab.util import (BUILD, ROOT, LabError, Parser, locked, main, output, relative, say, sha256,
                      step, write_if_changed)

SOURCE = ROOT / "bench"
PROGRAMS = BUILD / "bench"
STORED = BUILD / "results/bench"
COMMON = ("area.c", "meter.c")          # what each program is linked with
HEADER = "include/qemu/qemu-plugin.h"   # in QEMU's source
# The TSC counts instructions. Measured at boot it comes out a little different now and then.
APPEND = {"arm64": "norandmaps",
          "x86_64": "norandmaps tsc_early_khz=1000000 tsc=reliable"}
CPUS = ("neoverse-n1", "cortex-a57")    # with and without hardware dirty management
X86_CPU = "max"
TOOLS = {"gnuplot": "gnuplot-nox"}
LIMIT = 1200            # seconds of the host for a guest


class Figure(NamedTuple):
    """A line of the table: what was done where, to how many pages, and what it took of each.

    The instructions are the least of some rounds, since a timer tick falls into some.
    """

    machine: str        # the kernel and the CPU
    program: str
    method: str         # the way to track
    memory: str
    stride: int         # a page in so many is written
    what: str
    pages: int
    instructions: int
    faults: int
    invalidations: int

    def key(self):
        """What it is a figure of."""
        return (self.machine, self.program, self.method, self.memory, self.stride, self.what)


@dataclass(frozen=True)
class Core(Kernel):
    """The kernel of the series without the group that keeps soft-clean pages writable.

    It write-protects them, as the RFC of 2024 and every other architecture.
    """

    def __str__(self):
        return f"{super().__str__()}-core"

    def tree(self):
        return trees.check_out(self.base, "core", mutants.core(trees.make(self.base)))


@dataclass(frozen=True)
class Guest:
    """A guest of the benchmark: a kernel on a CPU, and a program with its arguments."""

    kernel: Kernel
    cpu: str
    program: tuple
    mem: str = "1G"

    def __str__(self):
        return f"{self.kernel} {self.cpu} {' '.join(self.program)}"


def guests(base):
    """What make bench boots: the lead's x86-64 kernel is the comparison, whatever BASE is."""
    ours, other = Kernel(base), Kernel(bases.LEAD, arch="x86_64")
    return [*[Guest(built, cpu, (program,), "6G") for program in ("growth", "range")
              for built, cpu in ((ours, CPUS[0]), (other, X86_CPU))],
            *[Guest(ours, cpu, ("track",)) for cpu in CPUS], Guest(other, X86_CPU, ("track",)),
            *[Guest(Core(base), cpu, ("track", "soft-dirty")) for cpu in CPUS],
            *[Guest(built, cpu, ("untracked",)) for cpu in CPUS
              for built in (Kernel(base, plain=True), Kernel(base, soft_dirty=False), ours)]]


def plugin():
    """Build the plugin that counts TLB invalidations; its path.

    Its header is not in Debian's packages of QEMU but in their source.
    """
    release = platform.freedesktop_os_release().get("VERSION_CODENAME")
    tarball = packages.fetch_source("qemu", release)
    with locked("bench"):
        built, header = PROGRAMS / "tlb-plugin.so", PROGRAMS / "include" / Path(HEADER).name
        state = sha256(tarball.name, SOURCE / "tlb-plugin.c")
        stamp = PROGRAMS / "plugin.stamp"
        if built.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return built
        header.parent.mkdir(parents=True, exist_ok=True)
        output(["tar", "-xf", tarball, "-C", header.parent, "--wildcards", f"*/{HEADER}",
                "--transform=s,.*/,,"])
        aside = built.with_suffix(".new")
        output(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                f"-I{header.parent}", "-o", aside, SOURCE / "tlb-plugin.c"])
        aside.rename(built)
        stamp.write_text(state, encoding="utf-8")
    return built


def build(name, arch):
    """Build the program NAME of bench/ for ARCH; its path."""
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    tree, out = trees.make(bases.LEAD), PROGRAMS / arch
    sources = [SOURCE / f"{name}.c", *[SOURCE / common for common in COMMON]]
    with locked("bench"):
        built, stamp = out / name, out / f"{name}.stamp"
        state = sha256(trees.state(tree, "include/uapi", "mm/gup_test.h"), *sources,
                       *sorted(SOURCE.glob("*.h")))
        if built.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return built
        out.mkdir(parents=True, exist_ok=True)
        headers = selftests.make_headers(tree, arch, out)
        aside = built.with_suffix(".new")
        output([f"{ARCHES[arch][0]}gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static",
                "-pthread", "-isystem", headers, f"-I{tree / 'mm'}", "-o", aside, *sources])
        aside.rename(built)
        stamp.write_text(state, encoding="utf-8")
    return built


def run(guest):
    """Boot GUEST and return its figures."""
    name, *arguments = guest.program
    program, counter = build(name, guest.kernel.arch), plugin()
    machine = qemu.MACHINES[guest.kernel.arch](guest.cpu, mem=guest.mem, icount=True).isolate()
    with step(f"measuring {guest}"), tempfile.TemporaryDirectory(dir=PROGRAMS) as scratch:
        counts = Path(scratch, "invalidations")
        result = qemu.run(machine, guest.kernel, [program, *arguments], (),
                          APPEND[guest.kernel.arch], LIMIT, quiet=True,
                          options=["-plugin", f"{counter},out={counts}"])
        if result.status:
            raise LabError(f"{guest}: status {result.status}; console: "
                           f"{relative(result.console)}; again: {result.command}")
        return read(f"{guest.kernel} {guest.cpu}", result.output,
                    counts.read_text(encoding="utf-8"))


def read(machine, text, counts):
    """The figures of MACHINE in the TEXT of a program and the COUNTS of the plugin.

    Both have a line for each window, in the same order.
    """
    rows, counts = [line.split("\t") for line in text.splitlines()], counts.split()
    if not rows or len(rows) != len(counts) or any(len(row) != 9 for row in rows):
        raise LabError(f"{machine}: the program has {len(rows)} lines and the plugin "
                       f"{len(counts)}, or a line is not whole")
    least = {}
    for row, count in zip(rows, counts):
        program, method, memory, stride, _, what, pages, instructions, faults = row
        figure = Figure(machine, program, method, memory, int(stride), what, int(pages),
                        int(instructions), int(faults), int(count))
        known = least.setdefault(figure.key(), figure)
        if figure.instructions < known.instructions:
            least[figure.key()] = figure
    return list(least.values())


def measure(base):
    """The figures of all guests for BASE, with two of them at work at a time."""
    chosen = guests(base)
    for built in dict.fromkeys(guest.kernel for guest in chosen):
        kernel.build(built)
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [figure for found in pool.map(run, chosen) for figure in found]


def store(base, figures):
    """Keep FIGURES of BASE as a table; its path."""
    versions = [f"# {trees.source_version(base)} with patches/{base}",
                f"# x86-64: {trees.source_version(bases.LEAD)} with patches/{bases.LEAD}",
                *[f"# {output([program, '--version']).splitlines()[0]}"
                  for program in ("aarch64-linux-gnu-gcc", "x86_64-linux-gnu-gcc",
                                  qemu.VirtArm64.binary)]]
    lines = [*versions, "\t".join(Figure._fields),
             *["\t".join(map(str, figure)) for figure in figures]]
    path = STORED / f"{base}-{time.strftime('%Y%m%d-%H%M%S')}.tsv"
    write_if_changed(path, "\n".join(lines) + "\n")
    return path


def load(path):
    """The figures in the table PATH."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines()
                 if not line.startswith("#")]
    except OSError as err:
        raise LabError(f"{path}: {err.strerror}") from err
    if not lines or lines[0].split("\t") != list(Figure._fields):
        raise LabError(f"{path}: not a table of make bench")
    kinds = Figure.__annotations__.values()
    try:
        return [Figure(*[kind(cell) for kind, cell in zip(kinds, line.split("\t"), strict=True)])
                for line in lines[1:]]
    except ValueError as err:
        raise LabError(f"{path}: a line that is not a figure: {err}") from err


def cli():
    """Command line: measure, store, print the tables."""
    parser = Parser(prog="lab.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="BASE")
    base = parser.parse_args().base
    bases.load(base)
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS, **packages.X86_TOOLS, **TOOLS},
                  packages.BUILD_FILES)
    figures = measure(base)
    path = store(base, figures)
    print(report(figures))
    for done in (path, *plots(figures, path.parent, path.stem)):
        say(f"stored: {relative(done)}")
    return 0


if __name__ == "__main__":
    main(cli)

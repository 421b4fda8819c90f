# SPDX-License-Identifier: GPL-2.0-only
"""make criu: incremental checkpoints by CRIU, of a server and of containers, with the series.

In a Debian root file system a guest checkpoints a Redis server that serves on meanwhile, as
tests/criu/cycle.py says, on a CPU without and on one with hardware dirty bit management, with
base pages and with huge ones; then a container with runc, crun and podman. On the plain base
CRIU has to refuse.

CRIU and what is checkpointed are those of Debian sid: older ones cannot dump sockets on 7.3.
The guests count instructions as time, so that what stands in the tables does not depend on
the host.
"""

import re

from lab import bases, boot, kernel, ktap, packages, qemu, report, rootfs
from lab.kernel import Kernel
from lab.util import ROOT, LabError, Parser, main, step

SUITE = "sid"
PACKAGES = ("criu", "crun", "iproute2", "iptables", "libcriu2", "nftables", "podman",
            "python3-pycriu", "python3-redis", "redis-server", "runc")
# Links that Debian's scripts would have made.
SETUP = r"""
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf xtables-nft-multi "$1/usr/sbin/$name"
done
"""
FOLDER = ROOT / "tests/criu"
CYCLE, CONTAINERS = FOLDER / "cycle.py", FOLDER / "containers.py"
CPUS = ("cortex-a57", "neoverse-n1")
LIMIT = 1800            # seconds of the host for a boot


def run(built, cpu, driver, *options, quiet=False):
    """Build the kernel BUILT and run DRIVER with OPTIONS in a guest with it on CPU.

    Returns the test of it, and the rows of its table. QUIET as for qemu.boot().
    """
    kernel.build(built)
    return start(built, cpu, driver, *options, quiet=quiet)


def start(built, cpu, driver, *options, quiet=False):
    """The same with a kernel BUILT before."""
    image = rootfs.build("criu", PACKAGES, SETUP, SUITE)
    machine = qemu.VirtArm64(cpu, mem="3G", icount=True)
    name = " ".join([str(built), cpu, driver.stem, *options])
    files = [(path, f"/root/{path.name}") for path in sorted(FOLDER.iterdir()) if path.is_file()]
    with step(name):
        result = qemu.run(machine, built, [driver, *options], files, timeout=LIMIT, quiet=quiet,
                          options=qemu.disk(image, machine.bus, 1))
    top = ktap.from_tap(name, result.output, result.status)
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    rows = [tuple(line.split("\t")) for line in re.findall(r"^# table\t(.*)$", result.output, re.M)]
    return top, rows


def short():
    """The test that make test has of it: one cycle with the lead's kernel."""
    name = "CRIU"
    try:
        top, _ = run(Kernel(bases.LEAD, extra="criu"), CPUS[0], CYCLE, "--short", quiet=True)
        return ktap.Test(name, tests=[top])
    except LabError as err:
        return ktap.Test(name, passed=False, log=[str(err)])


def cli():
    """Command line: all of it on a base; prints the tables; 1 if a test failed."""
    parser = Parser(prog="lab.criu", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="BASE")
    base = parser.parse_args().base
    bases.load(base)
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    series, plain = [Kernel(base, plain=without, extra="criu") for without in (False, True)]
    tests = []
    for built, cpu, *how in [
            *((series, cpu, CYCLE, *options) for cpu in CPUS for options in ((), ("--thp",))),
            (series, CPUS[-1], CYCLE, "--swap"),
            (plain, CPUS[0], CYCLE, "--off"),
            (series, CPUS[0], CONTAINERS)]:
        top, rows = run(built, cpu, *how)
        tests.append(top)
        print(f"\n{top.name}\n{report.aligned(rows)}\n" if rows else "")
    return report.end(tests)


if __name__ == "__main__":
    main(cli)

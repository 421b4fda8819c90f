# SPDX-License-Identifier: GPL-2.0-only
"""make run: watch an arm64 kernel track writes."""


from lab import kernel, packages, qemu, trees
from lab.util import BUILD, ROOT, Parser, locked, main, output, say, step

SOURCE = ROOT / "tests/softdirty-map.c"
CPUS = ("cortex-a57", "neoverse-n1")    # without and with hardware dirty bit management

UNSUPPORTED = 4     # the program's status where soft-dirty is not supported


def build():
    """Build the map program, and return the path of the executable."""
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    program = BUILD / "programs/softdirty-map"
    with locked("programs"):
        if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
            program.parent.mkdir(parents=True, exist_ok=True)
            aside = program.with_suffix(".new")
            output(["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static",
                    "-o", aside, SOURCE])
            aside.rename(program)
    return program


def cli():
    """Command line: build a kernel, and print the map on each CPU model."""
    parser = Parser(prog="lab.demo", description=__doc__)
    kernel.arguments(parser)
    which = kernel.from_arguments(parser.parse_args())
    packages.need(packages.QEMU_TOOLS)
    program = build()
    kernel.build(which)
    status = 0
    for cpu in CPUS:
        with step(f"booting {which} on {cpu}"):
            print(f"\n=== {trees.source_version(which.base)}, "
                  f"{'without' if which.plain else 'with'} the series, {cpu} ===", flush=True)
            result = qemu.run(qemu.VirtArm64(cpu), which, [program])
        expected = UNSUPPORTED if which.plain or not which.soft_dirty else 0
        if result.status != expected:
            status = result.status or 1
    say("all done")
    return status


if __name__ == "__main__":
    main(cli)

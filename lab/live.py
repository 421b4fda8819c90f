# SPDX-License-Identifier: GPL-2.0-only
"""make run-live: copy the memory of a process that is not stopped until the last round."""

from lab import kernel, packages, qemu, selftests, trees
from lab.kernel import ARCHES
from lab.util import BUILD, ROOT, Parser, locked, main, output, say, step

SOURCE = ROOT / "tests/live-snapshot.c"
CPU = "neoverse-n1"
UNSUPPORTED = 4     # the program's status where the kernel cannot do it


def build(base):
    """Build the program with the headers of BASE's series; the executable."""
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    tree, folder = trees.make(base), BUILD / f"programs/{base}"
    with locked("programs"):
        folder.mkdir(parents=True, exist_ok=True)
        headers = selftests.make_headers(tree, "arm64", folder)
        aside = folder / ".live-snapshot.new"
        output([f"{ARCHES['arm64'][0]}gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static",
                "-isystem", headers, "-o", aside, SOURCE])
        return aside.rename(folder / "live-snapshot")


def cli():
    """Command line: build a kernel, and run the program in a guest that counts instructions."""
    parser = Parser(prog="lab.live", description=__doc__)
    kernel.arguments(parser)
    which = kernel.from_arguments(parser.parse_args())
    packages.need(packages.QEMU_TOOLS)
    program = build(which.base)
    kernel.build(which)
    with step(f"booting {which} on {CPU}"):
        result = qemu.run(qemu.VirtArm64(CPU, icount=True), which, [program])
    expected = UNSUPPORTED if which.plain or not which.soft_dirty else 0
    say("all done")
    return 0 if result.status == expected else result.status or 1


if __name__ == "__main__":
    main(cli)

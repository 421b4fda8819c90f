# SPDX-License-Identifier: GPL-2.0-only
"""Kernels: configured from the fragments in configs/ and built out of tree."""

import os
import shutil
from dataclasses import dataclass

from lab import packages, trees
from lab.util import (BUILD, ROOT, LabError, Parser, locked, main, output, relative,
                      run_logged, say, sha256, step, write_if_changed)

CONFIGS = ROOT / "configs"
KERNELS = BUILD / "kernel"
PAGES = ("4k", "16k", "64k")
VA_BITS = (39, 48, 52)
# Of each architecture the compiler's prefix, and the bootable image.
ARCHES = {"arm64": ("aarch64-linux-gnu-", "arch/arm64/boot/Image"),
          "x86_64": ("x86_64-linux-gnu-", "arch/x86/boot/bzImage")}
# What a kernel is made of, in its tree.
SOURCES = (".", ":!Documentation", ":!tools/testing")
# Nothing of the machine, the day or this directory in the image, so that ccache finds it again.
REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "lab",
    "KBUILD_BUILD_HOST": "lab",
    # Or else it counts the builds, and the kernel mixes that into its random numbers.
    "KBUILD_BUILD_VERSION": "1",
    "CCACHE_DEPEND": "1",
    "CCACHE_NOHASHDIR": "1",
    # Paths below it become relative ones, so the kernel's own map, an absolute one, says nothing.
    "CCACHE_BASEDIR": str(ROOT.resolve()),
    "CCACHE_IGNOREOPTIONS": "-fmacro-prefix-map=*",
}


@dataclass(frozen=True)
class Kernel:
    """Which kernel to build: base, page size, options; plain is without the series.

    va is the size of the address space in bits; Kconfig's default is 52, too.
    x86-64 has neither a choice of that nor of the page size. extra is one more
    fragment, by name.
    """

    base: str
    page: str = "4k"
    soft_dirty: bool = True
    debug: bool = False
    plain: bool = False
    va: int = 52
    arch: str = "arm64"
    extra: str = ""

    def __post_init__(self):
        if self.page not in PAGES:
            raise LabError(f"unknown page size {self.page!r}; there are {', '.join(PAGES)}")

    def __str__(self):
        kind = "plain" if self.plain else "soft-dirty" if self.soft_dirty else "off"
        size = self.page if self.arch == "arm64" else self.arch
        return "-".join([self.base, size] + [f"va{self.va}"] * (self.va != 52) + [kind]
                        + ["debug"] * self.debug + [self.extra] * bool(self.extra))

    @property
    def out(self):
        """The directory that it is built in."""
        return KERNELS / str(self)

    @property
    def image(self):
        """The bootable image."""
        return self.out / ARCHES[self.arch][1]

    def fragments(self):
        """The configuration fragments, in the order in which they apply."""
        names = ["base", f"arch-{self.arch}", f"base-{self.base}"]
        if self.arch == "arm64":
            names += [f"page-{self.page}", f"va-{self.va}"]
        if not self.plain:
            names.append(f"soft-dirty-{'on' if self.soft_dirty else 'off'}")
        if self.debug:
            names.append("debug")
        if self.extra:
            names += [self.extra, f"{self.extra}-{self.base}"]
        paths = [CONFIGS / f"{name}.config" for name in names]
        # Only what a single base needs is optional.
        return [path for path in paths
                if path.exists() or not path.stem.endswith(f"-{self.base}")]

    def tree(self):
        """The source tree, made if need be."""
        return (trees.make_plain if self.plain else trees.make)(self.base)

    @property
    def compiler(self):
        """The command that compiles it."""
        return f"{ARCHES[self.arch][0]}gcc"

    def make(self, *targets):
        """The command that makes TARGETS of it in its directory."""
        tree, out = self.tree(), self.out.resolve()
        # What __FILE__ says is to be the same with the relative paths that ccache makes.
        prefix = os.path.relpath(tree.resolve(), out)
        return [*make(self.arch), "-C", tree, f"O={out}", f"-j{os.cpu_count()}",
                f"CC=ccache {self.compiler}", f"KCPPFLAGS=-fmacro-prefix-map={prefix}/=",
                *targets]


def make(arch):
    """The make command for the kernel and its selftests on the architecture ARCH."""
    return ["make", f"ARCH={arch}", f"CROSS_COMPILE={ARCHES[arch][0]}"]


def configure(kernel):
    """Write the .config; LabError if Kconfig drops something that a fragment asks for."""
    wanted = "".join(path.read_text(encoding="utf-8") for path in kernel.fragments())
    allconfig = kernel.out / "lab.config"
    write_if_changed(allconfig, wanted)
    run_logged(kernel.make(f"KCONFIG_ALLCONFIG={allconfig.resolve()}", "allnoconfig"),
               f"config-{kernel}")
    check_config(kernel)


def check_config(kernel):
    """LabError if the .config does not have what a fragment of KERNEL asks for."""
    got = set((kernel.out / ".config").read_text(encoding="utf-8").splitlines())
    for path in kernel.fragments():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("CONFIG_", "# CONFIG_")) and line not in got \
                    and not _off_by_absence(line, got):
                raise LabError(f"{relative(path)} asks for {line!r}, which Kconfig dropped "
                               f"for {kernel}; see {relative(kernel.out / '.config')}")


def _off_by_absence(line, got):
    """Whether LINE asks for an option to be off, and it does not appear at all."""
    if not line.startswith("# "):
        return False
    option = line.split()[1]
    return not any(other.startswith((f"{option}=", f"# {option} ")) for other in got)


def build(kernel):
    """Build KERNEL unless its image is up to date, and return the image's path."""
    packages.need(packages.BUILD_TOOLS, packages.BUILD_FILES)
    tree = kernel.tree()
    with locked(f"kernel-{kernel}"):
        stamp = kernel.out / "lab.stamp"
        state = sha256(trees.state(tree, *SOURCES), *kernel.fragments(),
                       output([kernel.compiler, "--version"])) + "\n"
        if kernel.image.exists() and stamp.exists() \
                and stamp.read_text(encoding="utf-8") == state:
            return kernel.image
        with step(f"building kernel {kernel} ({trees.source_version(kernel.base)})"):
            kernel.out.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            configure(kernel)
            run_logged(kernel.make(kernel.image.name), f"kernel-{kernel}",
                       env={**os.environ, **REPRODUCIBLE})
            stamp.write_text(state, encoding="utf-8")
    return kernel.image


def modules(kernel):
    """Build KERNEL with its modules, and return the directory with their lib/modules."""
    build(kernel)
    packages.need({"depmod": "kmod"})
    with locked(f"kernel-{kernel}"), step(f"building the modules of {kernel}"):
        run_logged(kernel.make("modules"), f"modules-{kernel}",
                   env={**os.environ, **REPRODUCIBLE})
        folder = kernel.out / "installed"
        shutil.rmtree(folder, ignore_errors=True)
        run_logged(kernel.make("modules_install", f"INSTALL_MOD_PATH={folder.resolve()}"),
                   f"modules-install-{kernel}")
    return folder


def arguments(parser):
    """Add the options that choose a kernel to the argument parser PARSER."""
    parser.add_argument("--base", required=True, metavar="BASE",
                        help="the base kernel, a file of bases/")
    parser.add_argument("--page", choices=PAGES, default="4k", help="the page size")
    parser.add_argument("--va", type=int, choices=VA_BITS, default=52,
                        help="bits of virtual address; 39 with 4k pages only")
    parser.add_argument("--soft-dirty", choices=("on", "off"), default="on",
                        help="CONFIG_MEM_SOFT_DIRTY")
    parser.add_argument("--plain", action="store_true",
                        help="the base as it is, without the series")
    parser.add_argument("--debug", action="store_true",
                        help="DEBUG_VM, page table checks, lockdep, ...")
    parser.add_argument("--kasan", action="store_true", help="the address sanitizer")


def from_arguments(args):
    """The kernel that the parsed options ARGS choose."""
    return Kernel(args.base, args.page, args.soft_dirty == "on", args.debug, args.plain,
                  args.va, extra="kasan" if args.kasan else "")


def cli():
    """Command line: build one kernel and print its path."""
    parser = Parser(prog="lab.kernel", description=__doc__.splitlines()[0])
    arguments(parser)
    image = build(from_arguments(parser.parse_args()))
    say(f"{relative(image)}: {image.stat().st_size / 1e6:.1f} MB")
    print(image)
    return 0


if __name__ == "__main__":
    main(cli)

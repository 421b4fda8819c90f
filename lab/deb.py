# SPDX-License-Identifier: GPL-2.0-only
"""make deb: Debian packages for arm64 of Debian's own kernel configuration with soft-dirty.

The kernel's own bindeb-pkg makes them, cross-compiled. make deb-boot then installs the
image's package with dpkg in a Debian root file system, in a guest with a kernel of the lab,
so that its scripts make an initramfs; boots that with what the package brought; and runs
the soft-dirty selftests there.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import bases, boot, kernel, ktap, packages, qemu, report, rootfs
from lab.matrix import LEAD_TEST, MAP, OWN_TEST
from lab.test import programs
from lab.util import (BUILD, ROOT, LabError, Parser, locked, main, output, relative, run_logged,
                      say, step, write_if_changed)

PACKAGES = BUILD / "deb"
TOOLS = {"dh": "debhelper", "dpkg-buildpackage": "dpkg-dev", "depmod": "kmod"}
CONFIGS = ("arm64", "cloud")    # Debian's flavours
INSTALLER = ROOT / "tests/install-deb.sh"
CPU = "neoverse-n1"
TESTS = (MAP, LEAD_TEST, OWN_TEST)
INSTALL_LIMIT, BOOT_LIMIT = 1800, 2400      # seconds of the host
# A system that can install a kernel; dpkg knows of no other package there.
SYSTEM = ("diffutils", "dpkg", "initramfs-tools", "udev", "zstd")
SETUP = 'mkdir -p "$1/var/lib/dpkg/info" "$1/var/lib/dpkg/updates"; : > "$1/var/lib/dpkg/status"\n'


@dataclass(frozen=True)
class Kernel(kernel.Kernel):
    """The kernel of BASE with its series in Debian's configuration called FLAVOUR."""

    flavour: str = "arm64"

    def __str__(self):
        return f"{self.base}-deb-{self.flavour}"

    @property
    def out(self):
        """The directory that it is built in: packages are put beside it."""
        return super().out / "build"

    def fragments(self):
        """What is changed of Debian's configuration."""
        return [kernel.CONFIGS / "deb.config"]

    @property
    def release(self):
        """The end of its version, as uname shows it."""
        return f"-soft-dirty-{self.flavour}"


def config(built):
    """The text of BUILT's configuration: Debian's, and at its end what is changed."""
    name = bases.load(built.base).package.replace("linux-source", "linux-config")
    member = f"./usr/src/{name}/config.arm64_none_{'cloud-' * (built.flavour == 'cloud')}arm64.xz"
    with tempfile.TemporaryDirectory() as scratch:
        packages.extract(packages.fetch(name, "arm64"), [member], scratch)
        text = output(["xz", "-dc", Path(scratch, member)])
    return text + "".join(path.read_text(encoding="utf-8") for path in built.fragments())


def configure(built):
    """Write the .config of BUILT."""
    wanted = config(built)
    if write_if_changed(built.out / "lab.config", wanted):
        (built.out / ".config").write_text(wanted, encoding="utf-8")
    run_logged(built.make("olddefconfig"), f"config-{built}")
    kernel.check_config(built)


def build(built):
    """The packages of the kernel BUILT, as paths, the image's first."""
    packages.need({**packages.BUILD_TOOLS, **TOOLS}, packages.BUILD_FILES)
    built.tree()
    version = bases.fetch(bases.load(built.base)).version.split()[-1]
    folder = PACKAGES / str(built)
    with locked(f"kernel-{built}"), step(f"building the packages of {built}"):
        built.out.mkdir(parents=True, exist_ok=True)
        for old in built.out.parent.glob("*.deb"):
            old.unlink()
        configure(built)
        # Without the package of headers: to cross-compile its tools takes arm64 libraries.
        run_logged(built.make("bindeb-pkg", f"LOCALVERSION={built.release}", "DPKG_FLAGS=-d"),
                   f"deb-{built}",
                   env={**os.environ, **kernel.REPRODUCIBLE,
                        "KDEB_PKGVERSION": f"{version}+softdirty1",
                        "DEB_BUILD_PROFILES": "pkg.linux-upstream.nokernelheaders"})
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in built.out.parent.glob("*.deb"):
            path.rename(folder / path.name)
    return sorted(folder.glob("*.deb"), key=lambda path: not path.name.startswith("linux-image"))


def installed(built, image):
    """A root file system with the package IMAGE of BUILT installed, and its boot files."""
    host = kernel.Kernel(built.base)
    kernel.build(host)
    folder = PACKAGES / f"{built}-boot"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    disk = folder / "root.ext4"
    output(["cp", "--sparse=always", rootfs.build("kernel", SYSTEM, SETUP), disk])
    machine, tools = qemu.VirtArm64(CPU, mem="2G"), programs(built.base, "arm64")
    files = [(image, "/root/linux-image.deb"), (boot.DRIVER, f"/root/{boot.DRIVER.name}"),
             *[(tools[name], f"/root/mm/{name}") for name in TESTS]]
    with step(f"installing {image.name} in a guest"):
        result = qemu.run(machine, host,
                          [INSTALLER, f"./{boot.DRIVER.name}", str(boot.TEST_LIMIT), *TESTS],
                          files, timeout=INSTALL_LIMIT,
                          options=qemu.disk(disk, machine.bus, 1, write=True))
    if result.status:
        raise LabError(f"{image.name} does not install; whole console: "
                       f"{relative(result.console)}; again: {result.command}")
    for name in ("vmlinuz", "initrd.img"):
        output(["debugfs", "-R", f"dump /lab/{name} {folder / name}", disk])
    return disk, folder / "vmlinuz", folder / "initrd.img"


def start(built, image):
    """Boot the system that the package IMAGE of BUILT is installed in: the test of it."""
    disk, linux, initrd = installed(built, image)
    machine = qemu.VirtArm64(CPU, smp=4, nodes=2, mem="4G")
    with step(f"booting {image.name}"):
        result = qemu.boot(machine, str(built), linux, initrd, qemu.disk(disk, machine.bus),
                           "root=/dev/vda rw init=/lab/finish", BOOT_LIMIT, quiet=True)
    top = ktap.Test(str(built))
    for name in TESTS:
        top.tests.append(boot.selftest(name, result.output))
    boot.blame(top, result.console.read_text(encoding="utf-8", errors="replace"))
    if result.status:
        top.fail("the guest runs to its end", f"status {result.status}; "
                 f"console: {result.console}", f"again: {result.command}")
    ktap.enforce_skips(f"{kernel.Kernel(built.base)} {CPU}", top, ktap.allowed_skips())
    return top


def cli():
    """Command line: build the packages, and with --boot see that they work."""
    parser = Parser(prog="lab.deb", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="BASE")
    parser.add_argument("--config", choices=CONFIGS, default="arm64")
    parser.add_argument("--boot", action="store_true",
                        help="install the package in a guest, boot it, run the selftests")
    args = parser.parse_args()
    bases.load(args.base)
    built = Kernel(args.base, flavour=args.config)
    found = build(built)
    for path in found:
        say(f"{relative(path)}: {path.stat().st_size / 1e6:.1f} MB")
        print(path)
    if not args.boot:
        return 0
    packages.need(packages.QEMU_TOOLS)
    return report.end([start(built, found[0])])


if __name__ == "__main__":
    main(cli)

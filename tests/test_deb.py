# SPDX-License-Identifier: GPL-2.0-only
"""Tests of lab.deb and lab.rootfs: Debian's configuration, and Debian's user space."""

import tempfile
import unittest
from pathlib import Path

from lab import deb, kernel, packages, qemu, rootfs
from tests.test_lab import base_at_hand

SCRIPT = """\
#!/bin/bash
[[ $(id -un 65534) == nobody ]] || exit 1   # its own user space, not busybox
[[ -e /kept ]] && exit 2
touch /kept /scratch/x && grep -q debian /etc/os-release && echo "as $0 $*"
"""


class Deb(unittest.TestCase):
    """Packages of the kernel."""

    def test_config(self):
        """the configuration is Debian's, and at its end what the package changes"""
        packages.need(packages.BUILD_TOOLS)
        built = deb.Kernel(base_at_hand(), flavour="cloud")
        text = deb.config(built)
        self.assertIn("CONFIG_VIRTIO_BLK=m\n", text)
        self.assertTrue(text.endswith((kernel.CONFIGS / "deb.config").read_text("utf-8")))

    def test_name(self):
        """each flavour is built in a directory of its own, and says in uname what it is"""
        built = deb.Kernel("6.12", flavour="cloud")
        self.assertEqual((str(built), built.release),
                         ("6.12-deb-cloud", "-soft-dirty-cloud"))
        self.assertNotEqual(built.out, deb.Kernel("6.12").out)


class Root(unittest.TestCase):
    """Root file systems."""

    def test_run(self):
        """a program runs in a Debian root file system, which is the same for the next one"""
        packages.need(packages.QEMU_TOOLS)
        built = kernel.Kernel(base_at_hand(), debug=True)
        kernel.build(built)
        machine, image = qemu.VirtArm64("neoverse-n1"), rootfs.build("test", ())
        with tempfile.TemporaryDirectory() as scratch:
            script = Path(scratch, "script")
            script.write_text(SCRIPT, encoding="utf-8")
            for _ in range(2):
                result = qemu.run(machine, built, [script, "one", "two"], quiet=True,
                                  options=qemu.disk(image, machine.bus, 1))
                self.assertEqual((result.status, result.output),
                                 (0, "as /root/script one two\n"))


if __name__ == "__main__":
    unittest.main(verbosity=2)

# SPDX-License-Identifier: GPL-2.0-only
"""What guests said, kept so that make test-all can go on where it was stopped.

A file holds what the guest said, not the verdict: that is found anew each time.
"""

import json
from pathlib import Path

from lab import guest, qemu
from lab.util import BUILD, sha256, show, write_if_changed

STORED = BUILD / "results/boots"


def key(kernel, machine, tests, driver, arguments):
    """A hash of all that goes into the boot of KERNEL on MACHINE with TESTS (name: path)."""
    return sha256((kernel.out / "lab.stamp"), machine.version(),
                  show(machine.command("", "", "")), guest.base(kernel.arch), driver, arguments,
                  *[part for pair in tests.items() for part in pair])


def save(name, result):
    """Keep RESULT under the key NAME."""
    text = json.dumps({"date": result.date, "status": result.status, "output": result.output,
                       "console": str(result.console), "command": result.command})
    write_if_changed(STORED / f"{name}.json", f"{text}\n")


def load(name):
    """The result kept under the key NAME, or None; its console log has to be there still."""
    path = STORED / f"{name}.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    console = Path(fields.pop("console"))
    if not console.exists():
        return None
    log = console.read_text(encoding="utf-8", errors="replace")
    return qemu.Result(console=console, splats=qemu.splats(log), **fields)

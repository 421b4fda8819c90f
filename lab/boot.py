# SPDX-License-Identifier: GPL-2.0-only
"""One guest of the matrix: boot it, run its programs, and judge what they and it said."""

import re

from lab import demo, ktap, qemu, stored
from lab.matrix import MAP
from lab.util import EXIT_TIMEOUT, ROOT, LabError, say

DRIVER = ROOT / "tests/mm-selftests.sh"
COMPLAINT = "no complaint of the kernel"
TEST_LIMIT = 1800                   # seconds of the guest for one selftest
BOOT_LIMIT = 4800                   # seconds of the host for all of a boot
VALIDATED = ("PTE soft dirty", "PTE swap soft dirty", "PMD soft dirty", "PMD swap soft dirty")
# Debug messages onto the console, and those of debug_vm_pgtable among them.
APPEND = 'loglevel=8 dyndbg="file mm/debug_vm_pgtable.c +p"'
# What a CPU can have that touches page tables, and how the kernel says that it uses it.
FEATURES = {
    "hafdbs": "Hardware dirty bit management",
    "lva": "52-bit Virtual Addressing (LVA)",
    "lpa2": "52-bit Virtual Addressing (LPA2)",
    "lse": "LSE atomic instructions",
    "sve": "Scalable Vector Extension",
    "mte": "Memory Tagging Extension",
    "bti": "Branch Target Identification",
    "poe": "Stage-1 Permission Overlay Extension (S1POE)",
}


def run_boot(boot, tests, emulator=None, resume=False):
    """Run TESTS (name: path) in the guest BOOT, and return the test made of them.

    EMULATOR is the QEMU to take instead of the system's. With RESUME, a stored
    result that is good is judged instead of a new one, and a good one is stored.
    """
    try:
        # A huge page takes 32 MB with 16K pages, 512 MB with 64K pages.
        mem = "8G" if boot.kernel.page == "64k" else "4G"
        cpus, nodes = (4, 2) if boot.is_wide else (2, 1)
        machine = qemu.MACHINES[boot.kernel.arch](boot.cpu, smp=cpus, mem=mem, nodes=nodes)
        machine.binary = str(emulator or machine.binary)
        version = machine.version()
        if resume:
            key = stored.key(boot.kernel, machine, tests, DRIVER, f"{TEST_LIMIT} {APPEND}")
            result = stored.load(key)
            if result:
                top = _judge(boot, tests, result, version)
                if _good(boot, top, result):
                    top.name += f" (stored result of {result.date})"
                    say(f"*** NOT BOOTED: {top.name} ***")
                    return top
        say(f"boot {boot}")
        files = [(path, f"/root/mm/{name}") for name, path in tests.items()]
        result = qemu.run(machine, boot.kernel, [DRIVER, str(TEST_LIMIT), *tests], files, APPEND,
                          BOOT_LIMIT, quiet=True)
    except (LabError, OSError) as err:
        top = ktap.Test(str(boot))
        top.fail("boots", str(err))
        return top
    top = _judge(boot, tests, result, version)
    if resume and _good(boot, top, result):
        stored.save(key, result)
    passed, failed, skipped = top.counts()
    say(f"boot {boot}: {passed} passed, {failed} failed, {skipped} skipped")
    return top


def _good(boot, top, result):
    """Whether RESULT of BOOT, judged to be TOP, need not be tried again."""
    return result.status == 0 and (boot.kernel.plain or top.ok())


def _judge(boot, tests, result, version):
    """The test of what the guest BOOT with TESTS left behind, its RESULT."""
    log = result.console.read_text(encoding="utf-8", errors="replace")
    found = [name for name, words in FEATURES.items()
             if f"CPU features: detected: {words}" in log]
    top = ktap.Test(str(boot), log=[version, f"features: {' '.join(found) or 'none'}"])
    if boot.kernel.debug and not boot.kernel.plain:
        top.tests.append(_validated(log))
    for name in tests:
        top.tests.append(selftest(name, result.output))
    blame(top, log)
    if result.status == EXIT_TIMEOUT:
        top.fail("ends in time", f"killed after {BOOT_LIMIT}s; console: {result.console}")
    elif result.status not in (0, qemu.EXIT_SPLAT):
        top.fail("the guest runs to its end", f"status {result.status}; "
                 f"console: {result.console}", f"again: {result.command}")
    if not boot.kernel.plain:       # which skips are the base's own, the yardstick says
        ktap.enforce_skips(str(boot), top, ktap.allowed_skips())
        ktap.expect_differences(str(boot), top, ktap.known_differences())
    return top


def said(name, output):
    """What the program NAME said in the OUTPUT of a driver, and its status; None if it has none."""
    found = re.search(rf"^lab: begin {re.escape(name)}\n(.*?)^lab: end {re.escape(name)} (\d+)$",
                      output, re.S | re.M)
    return found and (found[1], int(found[2]))


def selftest(name, output):
    """The test NAME out of what the driver printed."""
    found = said(name, output)
    if not found:
        return ktap.Test(name, passed=False, log=["it did not run, or did not end"])
    text, status = found
    if name != MAP:
        return ktap.from_tap(name, text, status)
    if status == demo.UNSUPPORTED:
        return ktap.Test(name, skip="soft-dirty is not supported by this kernel")
    return ktap.Test(name, passed=status == 0, log=text.splitlines())


def _validated(log):
    """Whether debug_vm_pgtable checked the soft-dirty helpers; that it complained is a splat."""
    missing = [what for what in VALIDATED if f"Validating {what}" not in log]
    return ktap.Test("debug_vm_pgtable validates soft-dirty", passed=not missing,
                     log=[f"did not run: {what}" for what in missing])


def blame(top, log):
    """Fail each test of TOP during which the kernel complained in its LOG."""
    lines = log.splitlines()
    for number, line in qemu.splats(log):
        begins = [text.split("lab: begin ", 1)[1] for text in lines[:number]
                  if "lab: begin " in text]
        culprit = next((test for test in top.tests if begins and test.name == begins[-1]), top)
        if not culprit.tests:       # a leaf: its own verdict becomes the first of two
            culprit.tests = [ktap.Test("result", culprit.passed, culprit.skip, culprit.log)]
            culprit.passed, culprit.skip, culprit.log = True, "", []
        culprit.fail(COMPLAINT, line, *lines[number:number + 30])

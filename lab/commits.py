# SPDX-License-Identifier: GPL-2.0-only
"""make commits: does each commit of the series build without a new warning, boot and pass?

Each is built with gcc and with clang, with CONFIG_MEM_SOFT_DIRTY off and, where it can
be, on, all with W=1; a warning counts if the base does not have it. What gcc built is
booted: the kernel may complain of nothing, debug_vm_pgtable has to pass, and the upstream
soft-dirty selftest has to pass with the option on, and to find no support everywhere else.

It takes hours, so it goes on where it was stopped: what a build and a boot said is kept in
build/results/commits under a hash of all that went in, if the boot was good.
"""

import json
from collections import Counter
from dataclasses import dataclass

from lab import bases, boot, kernel, ktap, packages, qemu, static, trees
from lab.matrix import LEAD_TEST
from lab.test import programs
from lab.util import BUILD, LOGS, Parser, locked, main, output, say, sha256, write_if_changed

STORED = BUILD / "results/commits"
CLANG = "clang-19"                          # 7.3 wants 17 at least
CPU = "neoverse-n1"
SWITCH = "select HAVE_ARCH_SOFT_DIRTY"      # where arch/arm64/Kconfig has it, it can be on


@dataclass(frozen=True)
class Kernel(kernel.Kernel):
    """The kernel of the commit that is checked out in the work tree for that."""

    clang: bool = False

    def __str__(self):
        return (f"{self.base}-commits-{'clang' if self.clang else 'gcc'}-"
                f"{'on' if self.soft_dirty else 'off'}")

    def tree(self):
        return trees.TREES / f"{self.base}-commits"

    @property
    def compiler(self):
        return CLANG if self.clang else super().compiler

    def make(self, *targets):
        return super().make("W=1", *targets)


def variants(base):
    """The kernels to build of the commit of BASE that is checked out."""
    off = Kernel(base, debug=True, soft_dirty=False)
    can = SWITCH in (off.tree() / "arch/arm64/Kconfig").read_text(encoding="utf-8")
    return [Kernel(base, debug=True, soft_dirty=on, clang=clang)
            for clang in (False, True) for on in ((False, True) if can else (False,))]


def machine():
    """The machine that the kernels are booted on."""
    return qemu.VirtArm64(CPU, smp=2, mem="4G")


def warnings(built):
    """Build the kernel BUILT; what the compiler warned of in what it compiled for that."""
    log = LOGS / f"kernel-{built}.log"
    log.unlink(missing_ok=True)
    kernel.build(built)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return static.findings(text, built.tree().name)


def start(built, program):
    """Boot BUILT with the selftest PROGRAM: the tests of what it and the kernel said."""
    result = qemu.run(machine(), built, [boot.DRIVER, str(boot.TEST_LIMIT), LEAD_TEST],
                      [(program, f"/root/mm/{LEAD_TEST}")], boot.APPEND, boot.BOOT_LIMIT,
                      quiet=True)
    log = result.console.read_text(encoding="utf-8", errors="replace")
    wanted = boot.VALIDATED if built.soft_dirty else ("architecture page table helpers",)
    missing = [what for what in wanted if f"Validating {what}" not in log]
    said = [leaf for _, leaf in boot.selftest(LEAD_TEST, result.output).leaves()]
    return [ktap.Test("boots, and the kernel complains of nothing",
                      passed=result.status == 0 and not result.splats,
                      log=[f"status {result.status}; console: {result.console}",
                           *[line for _, line in result.splats]]),
            ktap.Test("debug_vm_pgtable passes", passed=not missing,
                      log=[f"did not run: {what}" for what in missing]),
            ktap.Test(f"{LEAD_TEST} {'passes' if built.soft_dirty else 'finds no support'}",
                      passed=bool(said) and all(leaf.passed and bool(leaf.skip) != built.soft_dirty
                                                for leaf in said),
                      log=[f"{leaf.name}: {leaf.skip or leaf.log}" for leaf in said])]


def look(built, program):
    """The warnings of the build of BUILT, and the tests of its boot; stored ones if it is known."""
    key = sha256(str(built), trees.state(built.tree(), *kernel.SOURCES), *built.fragments(),
                 output([built.compiler, "--version"]), program, machine().version())
    path = STORED / f"{key}.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        return (Counter({(file, text): count for file, text, count in stored["warnings"]}),
                [ktap.Test(f"{name} (stored result)") for name in stored["passed"]])
    found = warnings(built)
    tests = [] if built.clang else start(built, program)
    if all(test.passed for test in tests):
        write_if_changed(path, json.dumps({
            "warnings": [[*where, count] for where, count in sorted(found.items())],
            "passed": [test.name for test in tests]}) + "\n")
    return found, tests


def examine(base):
    """The test of all commits of BASE, a test each."""
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS, CLANG: CLANG},
                  packages.BUILD_FILES)
    program = programs(base, "arm64")[LEAD_TEST]
    tree, top, known = trees.make(base), ktap.Test(f"commits of {base}"), {}
    with locked(f"commits-{base}"):
        for commit in ["base^{commit}", *trees.git(tree, "rev-list", "--reverse",
                                                   "base..HEAD").split()]:
            path = trees.check_out(base, "commits", commit)
            one = ktap.Test(trees.git(path, "show", "-s", "--format=%s").strip())
            for built in variants(base):
                found, tests = look(built, program)
                new = found - known.setdefault(built.clang, found)
                one.tests.append(ktap.Test(str(built), tests=[
                    ktap.Test("builds without a new warning", passed=not new,
                              log=[f"{file}: {text}" for file, text in sorted(new.elements())]),
                    *tests]))
            top.tests.append(one)
            say(f"{base}: {one.name}: {'ok' if one.ok() else 'FAILED'}")
    return top


def cli():
    """Command line: examine the commits of each base, print a line each; 1 if one failed."""
    Parser(prog="lab.commits", description=__doc__.splitlines()[0]).parse_args()
    good = True
    for base in bases.names():
        top = examine(base)
        print(f"\n{top.name}")
        for one in top.tests:
            print(f"  {'ok' if one.ok() else 'FAILED'}  {one.name}: "
                  f"{', '.join(built.name.split('-', 2)[2] for built in one.tests)}")
            for path, leaf in one.leaves():
                if not leaf.passed:
                    print("\n".join(f"      {line}" for line in [path, *leaf.log]))
        good = good and top.ok()
    return 0 if good else 1


if __name__ == "__main__":
    main(cli)

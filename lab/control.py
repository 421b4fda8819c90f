# SPDX-License-Identifier: GPL-2.0-only
"""make criu-control: break soft-dirty on purpose, and see that CRIU's restored memory shows it.

One mutant of the lead's series loses the bit when a page is written, one when a page is swapped
in. With each of them the incremental checkpoint of tests/criu/cycle.py has to come to a dump and
then to be wrong, and a test of CRIU's own suite has to fail; with neither, both have to pass.
All are of the series up to the group that lab.mutants keeps apart: the first has no place in it.
"""

from lab import criu, ktap, mutants, packages, qemu, report, trees, zdtm
from lab.bases import LEAD
from lab.mutants import MUTANTS, Booted, Mutant
from lab.util import LabError, Parser, main

# What breaks what, and with which options the cycle and the suite notice it.
CONTROLS = {None: ("--swap",), "40-pte-mkdirty-silent": (),
            "49-pte-swp-soft-dirty-false": ("--swap",)}
CPU = "neoverse-n1"
# What the cycle does before there is anything to notice.
SPARED = ("criu check", ": pre-dump ", ": dump", "swapped out")
SUITE = (*zdtm.RUNS["memory"][0],)


def noticed(name, top):
    """The test NAME: something fails in TOP, and none of what has to work first."""
    failed = [path for path, leaf in top.leaves() if not leaf.passed]
    good = failed and not any(word in path for path in failed for word in SPARED)
    return ktap.Test(f"{name}: {', '.join(failed) or 'nothing fails'}", passed=bool(good),
                     log=[top.name, *failed])


def examine(name, commit):
    """The tests of the mutant NAME, or with None of COMMIT as it is."""
    mutant = Mutant(MUTANTS / f"{name}.patch") if name else None
    built, refusal = mutants.build(mutant, commit, "criu")
    if refusal:
        raise LabError(f"{built.name} does not build: {refusal}")
    booted, options = Booted(LEAD, extra="criu", name=built.name), CONTROLS[name]
    try:
        cycle, _ = criu.start(booted, CPU, criu.CYCLE, "--short", *options)
        title = f"CRIU's tests with {built.name}"
        suite = zdtm.judge(title, zdtm.start(booted, qemu.VirtArm64(CPU, smp=2, mem="4G"), title,
                                             *options, *SUITE))
    finally:
        built.kept.unlink()
    if not mutant:
        return ktap.Test(built.name, tests=[cycle, suite])
    return ktap.Test(built.name, tests=[noticed("the cycle notices", cycle),
                                        noticed("CRIU's tests notice", suite)])


def run():
    """All of it as one test, for make test-all."""
    top = ktap.Test("CRIU on mutants")
    try:
        commit = mutants.core(trees.make(LEAD))
        for name in CONTROLS:
            top.tests.append(examine(name, commit))
    except LabError as err:
        top.fail("the mutants can be tried", str(err))
    return top


def cli():
    """Command line: all of it; the table, what was noticed by what; 1 if a mutant passed."""
    Parser(prog="lab.control", description=__doc__.splitlines()[0]).parse_args()
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    top = run()
    for path, leaf in top.leaves():
        print(f"{'ok' if leaf.passed else 'FAILED'}  {path}")
    return report.end(top.tests)


if __name__ == "__main__":
    main(cli)

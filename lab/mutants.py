# SPDX-License-Identifier: GPL-2.0-only
"""make mutants: break the lead's series on purpose, and see that the tests notice.

Each tests/mutants/*.patch makes one thing wrong in build/tree/7.3 without the group of
patches that keeps soft-clean pages writable, as somebody has it who leaves that out, and
each tests/mutants/rearm/*.patch in all of it. The kernel with it is built and booted, and
the build has to refuse it, or a test to fail. A mutant that nobody can tell from the
original says so in a line "Equivalent: REASON", and passes. One that another CPU
than the usual one shows names it in a line "CPU: MODEL"; make test runs the same there.

It takes hours, so it goes on where it was stopped: a verdict that is as it should be is
kept in build/results/mutants under a hash of all that went in.
"""

import json
import os
import re
import shutil
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from lab import boot, demo, kernel, ktap, packages, qemu, selftests, trees
from lab.bases import LEAD
from lab.matrix import GROUP_TESTS, LEAD_TEST, MAP, OWN_TEST
from lab.util import (BUILD, EXIT_TIMEOUT, LOGS, ROOT, LabError, Parser, locked, main, output,
                      relative, say, sha256, write_if_changed)

MUTANTS = ROOT / "tests/mutants"
GROUP = "rearm"         # the folder in it for those of the group
GROUP_BEGINS = "mm: read pagemap without the access and dirty flags"    # its first commit
DRIVER = ROOT / "tests/first-failure.sh"
TREE = trees.TREES / f"{LEAD}-mutant"
IMAGES = BUILD / "mutants"
STORED = BUILD / "results/mutants"
CPU = "neoverse-n1"
# In the order in which they run: the first that fails ends the hunt.
SELFTESTS = (OWN_TEST, LEAD_TEST, *GROUP_TESTS)
LIMIT = boot.TEST_LIMIT     # seconds of the host for a boot with one program
# The objects that page tables are handled in.
HANDLERS = ("mm/*.o", "arch/arm64/mm/*.o", "fs/proc/task_mmu.o", "kernel/events/*.o")
OLD = 1     # a time before any object was made, in seconds since 1970
CONTROL = "control"     # the name of the kernel that nothing was done to
_HEADER = re.compile(r"^\+\+\+ b/(\S+\.h)$", re.M)
# How the build says that it refuses a mutant, rather than cannot compile it.
_REFUSED = re.compile(r"error: (?:static assertion failed|call to '__compiletime_assert_)"
                      r"|which Kconfig dropped")


@dataclass(frozen=True)
class Mutant:
    """A patch of tests/mutants; why nobody can tell, if it says so; the CPU to boot it on."""

    path: Path
    equivalent: str = ""
    cpu: str = CPU

    @property
    def name(self):
        """Its name: that of the file."""
        return self.path.stem

    @property
    def in_group(self):
        """Whether it is one of the group, and tried on the whole series."""
        return self.path.parent.name == GROUP


@dataclass(frozen=True)
class Kernel(kernel.Kernel):
    """The lead's kernel, built in the tree of the mutants, and kept in an image of its own."""

    name: str = CONTROL

    def __str__(self):
        return f"{self.base}-mutant" + f"-{self.extra}" * bool(self.extra)

    def tree(self):
        """The source tree, with what was last done to it."""
        return TREE

    @property
    def kept(self):
        """Where the image is while the next one is built."""
        return IMAGES / self.name


@dataclass(frozen=True)
class Booted(Kernel):
    """The same, for booting the image that was kept."""

    def __str__(self):
        return f"mutant-{self.name}"

    @property
    def image(self):
        """The bootable image."""
        return self.kept


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, and what caught it or why nothing could."""

    name: str
    verdict: str
    reason: str
    passed: bool


def load(folder=MUTANTS):
    """The mutants in FOLDER, those of the group last, each in the order of their names.

    LabError if there are none.
    """
    found = []
    for path in [*sorted(folder.glob("*.patch")), *sorted(folder.glob(f"{GROUP}/*.patch"))]:
        header, diff, _ = path.read_text(encoding="utf-8").partition("\ndiff --git ")
        if not header.strip() or not diff:
            raise LabError(f"{path.name}: not a text that says what is wrong, and a diff")
        equivalent = re.search(r"^Equivalent:(.*?)(?:\n\n|\Z)", header, re.M | re.S)
        reason = " ".join(equivalent[1].split()) if equivalent else ""
        if equivalent and not reason:
            raise LabError(f"{path.name}: Equivalent without a reason")
        cpu = re.search(r"^CPU: (\S+)$", header, re.M)
        found.append(Mutant(path, reason, cpu[1] if cpu else CPU))
    if not found:
        raise LabError(f"{relative(folder)} has no *.patch")
    return found


def snapshot(tree):
    """A commit of what the git tree TREE holds, edits and all, made without touching it."""
    if not trees.git(tree, "status", "--porcelain").strip():
        return trees.git(tree, "rev-parse", "HEAD").strip()
    with tempfile.TemporaryDirectory() as scratch:
        env = {**trees.GIT_ENV, "GIT_INDEX_FILE": f"{scratch}/index"}
        shutil.copy(tree / ".git/index", env["GIT_INDEX_FILE"])
        trees.git(tree, "add", "-A", env=env)
        written = trees.git(tree, "write-tree", env=env).strip()
        return trees.git(tree, "commit-tree", "-p", "HEAD", "-m", "edits", written,
                         env=env).strip()


def core(tree):
    """The last commit of the git tree TREE before the group; LabError without one."""
    for line in trees.git(tree, "log", "--format=%P %s").splitlines():
        parent, _, subject = line.partition(" ")
        if subject == GROUP_BEGINS:
            return parent
    raise LabError(f"{relative(tree)} has no commit '{GROUP_BEGINS}'")


def sources(tree, commit):
    """What kernels are built from in COMMIT of the git tree TREE: a line a file, with its hash."""
    besides = tuple(f"{path.removeprefix(':!')}/" for path in kernel.SOURCES[1:])
    return [line for line in trees.git(tree, "ls-tree", "-r", commit).splitlines()
            if not line.partition("\t")[2].startswith(besides)]


def check_patches(mutants, commit):
    """LabError that names the first of MUTANTS that does not apply on COMMIT."""
    trees.check_out(LEAD, "mutant", commit)
    for mutant in mutants:
        trees.apply_diff(TREE, mutant.path, "--check")


def spare(built, commit):
    """See to it that of what includes a header of a mutant only HANDLERS are compiled again.

    Nearly all of the kernel includes it, and little of it changes with it. An object that is
    left as it was can but let the mutant survive. Returns a file and the text to write to it
    once BUILT is built of COMMIT, so that this holds for the next mutant.
    """
    names = {name for mutant in load()
             for name in _HEADER.findall(mutant.path.read_text(encoding="utf-8"))}
    headers = [TREE / name for name in sorted(names) if (TREE / name).exists()]
    note, state = built.out / "lab.headers", f"{commit} {sha256(*headers)}\n"
    known = note.read_text(encoding="utf-8") if note.exists() else ""
    if not known.startswith(f"{commit} "):
        note.unlink(missing_ok=True)
        for path in headers:
            path.touch()
        return note, state
    for path in headers:
        os.utime(path, (OLD, OLD))
    if known != state:
        for path in [path for pattern in HANDLERS for path in built.out.glob(pattern)]:
            path.unlink()
        write_if_changed(note, state)
    return note, state


def build(mutant, commit, extra=""):
    """Build COMMIT with MUTANT, or as it is if that is None, with the fragment EXTRA.

    Returns the kernel, and how the build refused it, if it did. LabError if it does
    not build for another reason: then it shows nothing.
    """
    trees.check_out(LEAD, "mutant", commit)
    if mutant:
        trees.apply_diff(TREE, mutant.path)
    built = Kernel(LEAD, extra=extra, name=mutant.name if mutant else CONTROL)
    log = LOGS / f"kernel-{built}.log"
    log.unlink(missing_ok=True)
    note, state = spare(built, commit)
    try:
        image = kernel.build(built)
        write_if_changed(note, state)
    except LabError as err:
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        refusal = refused(f"{err}\n{text}")
        if not mutant or not refusal:
            raise LabError(f"{built.name} does not build: {err}") from err
        return built, refusal
    IMAGES.mkdir(parents=True, exist_ok=True)
    shutil.copy(image, built.kept)
    return built, None


def refused(text):
    """The line of TEXT that says that the build refused a mutant, or None."""
    line = next((line for line in text.splitlines() if _REFUSED.search(line)), None)
    return line and line.replace(f"{TREE.resolve()}/", "")


def hunt(built, programs, cpu=CPU):
    """Boot the kernel BUILT on CPU for each of PROGRAMS (name: path); what failed, or None."""
    try:
        for name, path in programs.items():
            caught = run_program(Booted(LEAD, name=built.name), name, path, cpu)
            if caught:
                return caught
        return None
    finally:
        built.kept.unlink()


def run_program(booted, name, path, cpu):
    """Boot BOOTED on CPU with the program NAME at PATH; what failed in it, or None."""
    files = [(path, f"/root/mm/{name}"), (boot.DRIVER, "/root/mm-selftests.sh")]
    result = qemu.run(machine(cpu), booted, [DRIVER, str(LIMIT), name], files,
                      timeout=LIMIT, quiet=True)
    return failure(name, result, cpu)


def machine(cpu=CPU):
    """The machine that the hunt on CPU is on."""
    return qemu.VirtArm64(cpu, smp=4, nodes=2, mem="4G")


def failure(name, result, cpu=CPU):
    """What failed in the run RESULT of the program NAME on CPU, or None."""
    if result.splats:
        return f"{name}: the kernel complained: {result.splats[0][1].strip()}"
    found = re.search(r"^not ok \d+ (?:- )?(.*)$", result.output, re.M)
    if found:
        late = ": hangs" if "Test terminated by timeout" in result.output else ""
        return f"{name}: {found[1]}{late}"
    if result.status == EXIT_TIMEOUT:
        return f"{name}: hangs, no end after {LIMIT}s"
    if result.status == qemu.EXIT_DIED:
        return f"{name}: the guest died"
    top = ktap.Test(name, tests=[boot.selftest(name, result.output)])
    # A skip that make test would not have passed is no pass here.
    ktap.enforce_skips(f"{kernel.Kernel(LEAD)} {cpu}", top, ktap.allowed_skips())
    return next((path for path, leaf in top.tests[0].leaves() if not leaf.passed), None)


def judge(mutant, caught):
    """The verdict over MUTANT, of which CAUGHT says what failed, or is None."""
    if mutant.equivalent and caught:
        return Verdict(mutant.name, "NOT EQUIVALENT", caught, False)
    if mutant.equivalent:
        return Verdict(mutant.name, "equivalent", mutant.equivalent, True)
    if caught:
        return Verdict(mutant.name, "caught", caught, True)
    return Verdict(mutant.name, "SURVIVED", "nothing failed", False)


def prepare(in_group):
    """The programs that hunt, by name, and the commit that they hunt in mutants of.

    And a hash of both and of all else that goes into a verdict, but for the mutant. With
    IN_GROUP of the whole series, with what edits the tree holds, or else without the group.
    """
    packages.need({**packages.BUILD_TOOLS, **packages.QEMU_TOOLS}, packages.BUILD_FILES)
    tree = trees.make(LEAD)
    commit = snapshot(tree) if in_group else core(tree)
    # Those of the group test what a kernel without it does not do.
    source = tree if in_group else trees.check_out(LEAD, "mutant", commit)
    programs = selftests.build(LEAD, SELFTESTS, "arm64", source)
    found = {name: programs / name for name in SELFTESTS}
    found[MAP] = demo.build()
    state = sha256(*sources(tree, commit), *[part for pair in found.items() for part in pair],
                   *Kernel(LEAD).fragments(), DRIVER, boot.DRIVER, ktap.ALLOWED,
                   output([f"{kernel.ARCHES['arm64'][0]}gcc", "--version"]),
                   machine().version())
    return found, commit, state


def stored(mutant, state):
    """Where the verdict over MUTANT is kept if it is as it should be."""
    return STORED / f"{sha256(state, mutant.path)}.json"


def load_verdict(mutant, state):
    """The verdict over MUTANT that is kept, or None."""
    path = stored(mutant, state)
    if not path.exists():
        return None
    found = Verdict(**json.loads(path.read_text(encoding="utf-8")))
    say(f"*** NOT BOOTED: {found.name}: {found.verdict}: {found.reason} (stored result) ***")
    return found


def examine(mutants):
    """The verdicts over MUTANTS; LabError if the tests fail without any of them."""
    with locked("mutants"):
        parts = [(list(some), *prepare(in_group))
                 for in_group, some in groupby(mutants, attrgetter("in_group"))]
        for some, _, commit, _ in parts:
            check_patches(some, commit)
        return [verdict for part in parts for verdict in examine_part(*part)]


def examine_part(mutants, programs, commit, state):
    """The verdicts over MUTANTS, which are all of COMMIT, by what else prepare() said of it."""
    known = {mutant: load_verdict(mutant, state) for mutant in mutants}
    rest = [mutant for mutant in mutants if not known[mutant]]
    if rest:
        failed = hunt(build(None, commit)[0], programs)
        if failed:
            raise LabError(f"on {commit[:12]} the tests fail without a mutant too: {failed}")
        say(f"{CONTROL}, {commit[:12]}: passes")

    def verdict(mutant, built, refusal):
        found = judge(mutant, refusal or hunt(built, programs, mutant.cpu))
        say(f"{found.name}: {found.verdict}: {found.reason}")
        if found.passed:
            write_if_changed(stored(mutant, state), json.dumps(asdict(found)) + "\n")
        return found

    # A guest runs while the next kernel is built.
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        running = {mutant: pool.submit(verdict, mutant, *build(mutant, commit))
                   for mutant in rest}
        return [known[mutant] or running[mutant].result() for mutant in mutants]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run():
    """All mutants as one test, for make test-all."""
    top = ktap.Test("mutants")
    try:
        for verdict in examine(load()):
            top.tests.append(ktap.Test(verdict.name, passed=verdict.passed,
                                       log=[f"{verdict.verdict}: {verdict.reason}"]))
    except LabError as err:
        top.fail("the mutants can be tried", str(err))
    return top


def table(verdicts):
    """VERDICTS as a table, a line a mutant."""
    rows = [("mutant", "verdict", "caught by, or why not"),
            *[(verdict.name, verdict.verdict, verdict.reason) for verdict in verdicts]]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {verdict:{widths[1]}}  "
                     + textwrap.shorten(reason, 120, placeholder=" ...")
                     for name, verdict, reason in rows)


def cli():
    """Command line: try all mutants, print the table; 1 if one was not judged right."""
    Parser(prog="lab.mutants", description=__doc__.splitlines()[0]).parse_args()
    verdicts = examine(load())
    print(f"\n{table(verdicts)}")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


if __name__ == "__main__":
    main(cli)

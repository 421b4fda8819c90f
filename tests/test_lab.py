# SPDX-License-Identifier: GPL-2.0-only
"""The lab's own tests: what it does with bad input, and with guests that break."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import textwrap
import unittest
from pathlib import Path
from unittest import mock

from lab import bases, ktap, matrix, packages, qemu, report, trees
from lab.boot import run_boot
from lab.kernel import Kernel
from lab.test import judge_plain
from lab.util import BUILD, EXIT_LAB, EXIT_TIMEOUT, ROOT, BaseGone, LabError

IDENTITY = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.invalid",
            "GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.invalid"}


def run(*argv, cwd=ROOT, **env):
    """Run ARGV with ENV added to the environment; its output is in stdout."""
    inherited = {key: value for key, value in os.environ.items()
                 if key not in ("MAKEFLAGS", "MAKELEVEL", "KSRC", "BASE")}
    return subprocess.run([str(arg) for arg in argv], cwd=cwd, text=True, check=False,
                          env={**inherited, **env}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def base_at_hand():
    """A base that the archive offers, the lead if it does; the tests skip if there is none."""
    for name in reversed(bases.names()):
        try:
            trees.make(name)
            return name
        except BaseGone:
            continue
    raise unittest.SkipTest("the archive offers no base")


def readme(words):
    """The commands of the block of the README with WORDS; the base whose series is in $series."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    block = next(block for block in blocks if words in block)
    return re.sub(r"~/this/repository/patches/[\d.]+", "$series",
                  "".join(line[4:] for line in block.splitlines(keepends=True)))


class BadInput(unittest.TestCase):
    """Each ends with one clear line and status 125, and leaves nothing behind."""

    def refused(self, proc, *words):
        """PROC ended with the lab's status and an error line that has all WORDS."""
        self.assertEqual(proc.returncode, EXIT_LAB, proc.stdout)
        lines = [line for line in proc.stdout.splitlines() if "lab: error: " in line]
        self.assertEqual(len(lines), 1, proc.stdout)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertNotIn("Traceback", proc.stdout)

    def test_unknown_base(self):
        """an unknown base is named, beside those there are"""
        self.refused(run("lab/vm", "--base", "9.9", "--", "/bin/true"), "'9.9'",
                     *bases.names())

    def test_missing_program(self):
        """a program that does not exist is named"""
        self.refused(run("lab/vm", "--base", base_at_hand(), "--debug", "--", "/no/such"),
                     "/no/such")

    def test_unknown_cpu(self):
        """a CPU model that QEMU does not know is an error in QEMU's words"""
        self.refused(run("lab/vm", "--base", base_at_hand(), "--debug", "--cpu", "z80",
                         "--", "tests/mm-selftests.sh"), "QEMU", "z80")

    def test_foreign_program(self):
        """a program for another architecture is refused"""
        self.refused(run("lab/vm", "--base", base_at_hand(), "--debug", "--",
                         sys.executable), "not an arm64 executable")

    def test_usage(self):
        """wrong options are the lab's error, not a status of the program"""
        self.refused(run("lab/vm", "--base", bases.LEAD), "PROGRAM")
        self.refused(run("lab/vm", "--base", bases.LEAD, "--page", "8k", "--", "x"), "8k")
        for path in ("x:/root", "x:/lab/run", "x:relative", "x:/a/../../b", ":/x"):
            self.refused(run("lab/vm", "--base", bases.LEAD, "--file", path, "--", "x"),
                         "HOST:GUEST")

    def test_icount_smp(self):
        """--icount with several CPUs is refused"""
        self.refused(run("lab/vm", "--base", base_at_hand(), "--icount", "--smp", "2",
                         "--", "/bin/true"), "--icount")

    def test_nodes(self):
        """--nodes that cannot divide the CPUs is refused, or memory that has no unit"""
        self.refused(run("lab/vm", "--base", bases.LEAD, "--nodes", "3", "--", "x"), "--nodes 3")
        self.refused(run("lab/vm", "--base", bases.LEAD, "--nodes", "2", "--mem", "1024",
                         "--", "x"), "'1024'")

    def test_missing_tool(self):
        """a missing tool that cannot be installed is named by its package"""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "python3").symlink_to(sys.executable)
            self.refused(run("lab/vm", "--base", bases.LEAD, "--", "/bin/true", PATH=folder),
                         "qemu-system-arm")

    def test_dropped_option(self):
        """an option that Kconfig drops is named with its fragment"""
        base = base_at_hand()
        with Copy() as copy:
            (copy / "build").symlink_to(BUILD)
            with open(copy / "configs/base.config", "a", encoding="utf-8") as file:
                file.write("CONFIG_NO_SUCH_OPTION=y\n")
            shutil.rmtree(BUILD / f"kernel/{base}-16k-off", ignore_errors=True)
            self.refused(run("python3", "-m", "lab.kernel", "--base", base, "--page", "16k",
                             "--soft-dirty", "off", cwd=copy),
                         "base.config", "CONFIG_NO_SUCH_OPTION=y")
            shutil.rmtree(BUILD / f"kernel/{base}-16k-off")


class Kernels(unittest.TestCase):
    """What kernels are called, and what they are configured from."""

    def test_names(self):
        """a kernel's name has its choices, and nothing for what it leaves to the base"""
        for kernel, name in ((Kernel("7.3", debug=True), "7.3-4k-soft-dirty-debug"),
                             (Kernel("6.12", "16k", plain=True), "6.12-16k-plain"),
                             (Kernel("7.3", va=39, extra="kasan"),
                              "7.3-4k-va39-soft-dirty-kasan"),
                             (Kernel("7.3", arch="x86_64"), "7.3-x86_64-soft-dirty")):
            self.assertEqual(str(kernel), name)

    def test_fragments(self):
        """each choice adds its fragment"""
        chosen = Kernel("7.3", "64k", soft_dirty=False, debug=True, va=52, extra="kasan")
        self.assertEqual([path.stem for path in chosen.fragments()],
                         ["base", "arch-arm64", "base-7.3", "page-64k", "va-52",
                          "soft-dirty-off", "debug", "kasan"])


class Matrix(unittest.TestCase):
    """Which guests are booted, and which need not be again."""

    def test_wide(self):
        """the wide matrix has every combination once, and a fragment for each choice"""
        boots = matrix.wide()
        self.assertEqual(len(set(boots)), len(boots))
        self.assertEqual([sum(boot.kernel.base == base for boot in boots)
                          for base in ("7.3", "6.12")], [7 * 3 * 4, (3 + 1 + 1) * 2])
        for boot in boots:
            for path in boot.kernel.fragments():
                self.assertTrue(path.exists(), path)

    def test_left_out(self):
        """make test leaves out what make test-all runs"""
        some, everything = [{str(boot): boot.tests for boot in matrix.narrow(choice)
                             if not boot.is_wide} for choice in (False, True)]
        boot = "6.12-4k-soft-dirty-debug neoverse-n1"
        self.assertNotIn(matrix.FROM_LEAD, some[boot])
        self.assertIn(matrix.FROM_LEAD, everything[boot])
        self.assertLess(some.keys(), everything.keys())
        for boot in ("7.3-16k-soft-dirty-debug", "7.3-64k-soft-dirty-debug",
                     "7.3-4k-plain-debug", "6.12-4k-plain-debug"):
            self.assertNotIn(f"{boot} neoverse-n1", some)
            self.assertIn(f"{boot} neoverse-n1", everything)

    def test_table(self):
        """the table has a cell for each boot, the stored ones marked, and each CPU's features"""
        done = {boot: ktap.Test(str(boot), log=["QEMU 1", "features: lse"])
                for boot in matrix.wide()}
        stored = matrix.Boot(Kernel("7.3", va=39), "max", matrix.WIDE)
        done[stored].name += " (stored result of some day)"
        done[stored].fail("x")
        text = report.wide_table(done)
        self.assertRegex(text, r"7\.3 +4k +39 +no debugging +1/0/0 +1/0/0 +1/0/0 +0/1/0\*")
        self.assertRegex(text, r"6\.12 +64k +52 +debug +1/0/0 +- +- +1/0/0")
        self.assertIn("max: QEMU 1, features: lse: 26 boots", text)

    def test_resume(self):
        """a stored result is taken if it is good and nothing that went in has changed"""
        packages.need(packages.QEMU_TOOLS)
        boot = matrix.Boot(Kernel("7.3"), "max", (matrix.MAP,))
        with tempfile.TemporaryDirectory() as name, \
                mock.patch("lab.kernel.KERNELS", Path(name)), \
                mock.patch("lab.stored.STORED", Path(name)), \
                mock.patch("lab.qemu.run") as booted:
            stamp, program, console = [Path(name, file) for file in
                                       ("7.3-4k-soft-dirty/lab.stamp", "program", "console")]
            stamp.parent.mkdir()
            for path in (stamp, program, console):
                path.write_text("as it was", encoding="utf-8")

            def boots(status=0, resume=True):
                """Whether it boots, its program exiting with STATUS if it does."""
                booted.reset_mock()
                booted.return_value = qemu.Result(
                    0, f"lab: begin {matrix.MAP}\nlab: end {matrix.MAP} {status}\n", console, "")
                test = run_boot(boot, {matrix.MAP: program}, resume=resume)
                self.assertEqual("stored result of" in test.name, not booted.called)
                return booted.called

            self.assertTrue(boots(status=1))        # a failure is not taken
            self.assertTrue(boots())
            self.assertFalse(boots())
            self.assertTrue(boots(resume=False))    # nor is anything by make test
            for path in (program, stamp):
                path.write_text("changed", encoding="utf-8")
                self.assertTrue(boots())
                self.assertFalse(boots())
            console.write_text("[    1.0] BUG: x", encoding="utf-8")    # judged anew
            self.assertTrue(boots())


class Copy(tempfile.TemporaryDirectory):
    """A temporary directory with the parts of the repository that the lab reads."""

    def __enter__(self):
        top = Path(super().__enter__())
        for name in ("lab", "bases", "configs", "patches", "tests", "Makefile",
                     *trees.EXPORTED):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, top / name)
            else:
                shutil.copy(source, top / name)
        return top


class Trees(unittest.TestCase):
    """Trees and patches, on a small excerpt of a kernel tree."""

    @classmethod
    def setUpClass(cls):
        cls.base = base_at_hand()
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.kernel = Path(cls.folder.name, "linux")
        cls.kernel.mkdir()
        # What the series touches, as it is in the base, and what makes it a kernel tree.
        tree = trees.TREES / cls.base
        touched = trees.git(tree, "diff", "--name-only", "--diff-filter=M", "base", "HEAD")
        for file in [*touched.split(), "Makefile", "Kbuild", ".gitattributes"]:
            path = cls.kernel / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(trees.git(tree, "show", f"base:{file}"), encoding="utf-8")
            if trees.git(tree, "ls-tree", "base", file).startswith("100755"):
                path.chmod(0o755)

    def make_tree(self, copy):
        """Run make tree for the excerpt in the copy COPY of the repository."""
        return run("make", "tree", f"BASE={self.base}", cwd=copy, KSRC=str(self.kernel))

    def test_refresh(self):
        """refresh writes the same bytes when nothing changed, and a new patch when one came"""
        with Copy() as copy:
            made = self.make_tree(copy)
            self.assertEqual(made.returncode, 0, made.stdout)
            folder = copy / "patches" / self.base
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            self.assertIn("no change",
                          run("make", "refresh", f"BASE={self.base}", cwd=copy).stdout)
            self.assertEqual(before,
                             {path.name: path.read_bytes() for path in folder.iterdir()})
            tree = copy / "build/tree" / self.base
            with open(tree / "Kbuild", "a", encoding="utf-8") as file:
                file.write("# one more line\n")
            self.assertIn("uncommitted",
                          run("make", "refresh", f"BASE={self.base}", cwd=copy).stdout)
            run("git", "-C", tree, "commit", "-qam", "mm: one more", **IDENTITY)
            run("make", "refresh", f"BASE={self.base}", cwd=copy)
            names = (folder / "series").read_text(encoding="utf-8").splitlines()
            self.assertEqual(names[:-1], before["series"].decode().split())
            self.assertIn("+# one more line", (folder / names[-1]).read_text(encoding="utf-8"))

    def test_edits_are_kept(self):
        """a tree with edits is not overwritten when the patches change"""
        with Copy() as copy:
            self.make_tree(copy)
            kbuild = copy / "build/tree" / self.base / "Kbuild"
            kbuild.write_text("# mine\n", encoding="utf-8")
            first = trees.series(self.base)[-1].name
            series = copy / "patches" / self.base / "series"
            series.write_text(series.read_text(encoding="utf-8").replace(f"{first}\n", ""),
                              encoding="utf-8")
            (series.parent / first).unlink()
            proc = self.make_tree(copy)
            self.assertNotEqual(proc.returncode, 0)
            self.assertIn("uncommitted changes", proc.stdout)
            self.assertEqual(kbuild.read_text(encoding="utf-8"), "# mine\n")

    def test_patch_that_fails(self):
        """a patch that does not apply: the patch, the file and the hunk, and no tree"""
        with Copy() as copy:
            name = next(path.name for path in trees.series(self.base)
                        if "arm64-mm-add-soft-dirty" in path.name)
            patch = copy / "patches" / self.base / name
            text = patch.read_text(encoding="utf-8")
            old = " \tselect HAVE_ARCH_SECCOMP_FILTER\n"
            self.assertIn(old, text)
            patch.write_text(text.replace(old, " \tselect HAVE_SOMETHING_ELSE\n"),
                             encoding="utf-8")
            proc = self.make_tree(copy)
            self.assertNotEqual(proc.returncode, 0)
            error = [line for line in proc.stdout.splitlines() if "lab: error" in line][0]
            self.assertIn(patch.name, error)
            self.assertIn("arch/arm64/Kconfig, hunk 1 (@@", error)
            left = [path for path in (copy / "build/tree").iterdir()
                    if path.name.startswith((".new", self.base))]
            self.assertEqual(left, [])

    def test_series_file(self):
        """a patch that the series file does not list is named, and one that does not exist"""
        with Copy() as copy:
            folder = copy / "patches" / self.base
            (folder / "0099-stray.patch").write_text("", encoding="utf-8")
            self.assertIn("0099-stray.patch is not in", self.make_tree(copy).stdout)
            (folder / "0099-stray.patch").unlink()
            with open(folder / "series", "a", encoding="utf-8") as file:
                file.write("0098-gone.patch\n")
            self.assertIn("names 0098-gone.patch", self.make_tree(copy).stdout)

    def excerpt(self):
        """A new copy of the excerpt."""
        target = Path(tempfile.mkdtemp(dir=self.folder.name), "linux")
        shutil.copytree(self.kernel, target)
        return target

    def apply_to(self, prepare):
        """Run make apply on a copy of the excerpt after PREPARE; the result and the tree."""
        target = self.excerpt()
        prepare(target)
        return run("make", "apply", f"KDIR={target}", **IDENTITY), target

    @staticmethod
    def commit(target):
        """Make the directory TARGET a git tree."""
        for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "kernel"]):
            run("git", "-C", target, *args, **IDENTITY)

    def test_apply_git(self):
        """apply makes a commit of each patch in a git tree"""
        proc, target = self.apply_to(self.commit)
        self.assertEqual(proc.returncode, 0, proc.stdout)
        count = run("git", "-C", target, "rev-list", "--count", "HEAD").stdout
        self.assertEqual(int(count), 1 + len(trees.series(self.base)))

    def test_apply_plain(self):
        """apply patches a directory that is no git tree, to the same result"""
        proc, target = self.apply_to(lambda target: None)
        self.assertEqual(proc.returncode, 0, proc.stdout)
        self.assert_patched(target)

    def assert_patched(self, target):
        """That the directory TARGET holds the files of the series as its tree has them."""
        tree = trees.TREES / self.base
        for file in trees.git(tree, "diff", "--name-only", "base", "HEAD").split():
            self.assertEqual((target / file).read_text(encoding="utf-8"),
                             trees.git(tree, "show", f"HEAD:{file}"), file)

    def follow(self, script, target):
        """Run the shell SCRIPT in the directory TARGET, the series in $series."""
        proc = run("sh", "-ec", script, cwd=target, series=str(ROOT / "patches" / self.base))
        self.assertEqual(proc.returncode, 0, proc.stdout)

    def test_quilt(self):
        """the README's way into debian/patches: quilt pushes all without fuzz, and pops all"""
        packages.need({"quilt": "quilt"})
        target = self.excerpt()
        self.follow(readme("debian/patches"), target)
        self.follow("QUILT_PATCHES=debian/patches quilt push -a --fuzz=0", target)
        self.assert_patched(target)
        self.follow("QUILT_PATCHES=debian/patches quilt pop -a", target)
        touched = "mm/ksm.c"
        self.assertEqual((target / touched).read_bytes(), (self.kernel / touched).read_bytes())

    def test_patch(self):
        """the README's way with nothing but patch gives the tree's files"""
        target = self.excerpt()
        self.follow(readme("patch -p1"), target)
        self.assert_patched(target)

    def test_apply_elsewhere(self):
        """apply says which base is nearest and what failed, and changes nothing"""
        def spoil(target):
            makefile = target / "Makefile"
            text = makefile.read_text(encoding="utf-8")
            makefile.write_text(re.sub(r"^VERSION = .*", "VERSION = 9", text, flags=re.M),
                                encoding="utf-8")
            kconfig = target / "arch/arm64/Kconfig"
            kconfig.write_text(kconfig.read_text(encoding="utf-8").replace(
                "HAVE_ARCH_SECCOMP_FILTER", "HAVE_SOMETHING_ELSE"), encoding="utf-8")
        for prepare in (spoil, lambda target: (spoil(target), self.commit(target))):
            proc, target = self.apply_to(prepare)
            self.assertNotEqual(proc.returncode, 0)
            self.assertIn(f"the nearest base is {bases.names()[-1]}", proc.stdout)
            self.assertIn("arch/arm64/Kconfig, hunk 1", proc.stdout)
            self.assertNotIn("PTE_SOFT_DIRTY",
                             (target / "arch/arm64/mm/fault.c").read_text(encoding="utf-8"))


class Guests(unittest.TestCase):
    """Guests that work, and guests that break."""

    @classmethod
    def setUpClass(cls):
        cls.base = base_at_hand()
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def command(self, script, *options):
        """The lab/vm command that runs the shell text SCRIPT in a debug guest."""
        path = Path(self.folder.name, "script")
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}", encoding="utf-8")
        return ["lab/vm", "--base", self.base, "--debug", *options, "--", path,
                "one", "two words"]

    def guest(self, script, *options):
        """Run the shell text SCRIPT in a debug guest."""
        return run(*self.command(script, *options))

    def test_status_and_surroundings(self):
        """the program's output, arguments and status, its files, and what a guest offers"""
        proc = self.guest("""
            echo "got <$1> <$2>"; cat /root/extra
            grep -q zram0 /proc/swaps && grep -q cgroup2 /proc/mounts \\
                && [ -d /sys/kernel/mm ] && [ -c /dev/null ] && touch /tmp/x /scratch/x \\
                && echo "all there"
            exit 7
            """, "--file", f"{ROOT}/bases/{self.base}:/root/extra")
        self.assertEqual(proc.returncode, 7, proc.stdout)
        self.assertIn("got <one> <two words>", proc.stdout)
        self.assertIn(f"package = linux-source-{self.base}", proc.stdout)
        self.assertIn("all there", proc.stdout)
        self.assertIn("qemu-system-aarch64 -machine virt", proc.stdout)

    def test_slow_reader(self):
        """nothing of what a program prints is lost on a reader that takes its time"""
        with subprocess.Popen([str(arg) for arg in self.command("echo up; seq 1 60000")],
                              cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as proc:
            while proc.stdout.readline() not in ("up\n", ""):
                pass
            time.sleep(5)
            lines = [line for line in proc.stdout.read().splitlines() if line.isdecimal()]
        self.assertEqual(lines, [str(number) for number in range(1, 60001)])

    def test_nodes(self):
        """with --nodes, the guest's memory and CPUs are spread over as many NUMA nodes"""
        proc = self.guest("""
            cd /sys/devices/system/node && cat online node1/cpulist node1/meminfo
            """, "--smp", "4", "--nodes", "2", "--mem", "2G")
        self.assertIn("0-1\n2-3\n", proc.stdout)
        self.assertRegex(proc.stdout, r"Node 1 MemTotal: +\d{6,7} kB")

    def provoke(self, what, message):
        """The kernel, provoked to WHAT by LKDTM, shows MESSAGE and fails the run."""
        proc = self.guest(f"echo {what} > /sys/kernel/debug/provoke-crash/DIRECT; exit 0")
        self.assertEqual(proc.returncode, qemu.EXIT_SPLAT, proc.stdout)
        self.assertIn(message, proc.stdout)

    def test_panic(self):
        """a panic is shown and fails the run"""
        self.provoke("PANIC", "Kernel panic - not syncing")

    def test_warning(self):
        """a WARN is shown and fails the run, though the program returned 0"""
        self.provoke("WARNING", "WARNING: ")

    def test_list_corruption(self):
        """a corrupted list is shown and fails the run"""
        self.provoke("CORRUPT_LIST_ADD", "list_add corruption")

    def test_hang(self):
        """a hang ends at the timeout with 124 and the last console lines"""
        proc = self.guest("echo 'still here' > /dev/kmsg; sleep 1000", "--timeout", "60")
        self.assertEqual(proc.returncode, EXIT_TIMEOUT, proc.stdout)
        self.assertIn("still here", proc.stdout)
        self.assertRegex(proc.stdout, r"whole console: \S+\.log")

    def test_killed(self):
        """a guest that is killed from outside is said to have died"""
        with subprocess.Popen([str(arg) for arg in self.command("echo up; sleep 1000")],
                              cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as proc:
            text = ""
            while "up\n" not in text:
                line = proc.stdout.readline()
                self.assertTrue(line, f"it ended before it was up: {text}")
                text += line
            children = Path(f"/proc/{proc.pid}/task/{proc.pid}/children").read_text("utf-8")
            os.kill(int(children.split()[-1]), signal.SIGKILL)
            text += proc.stdout.read()
        self.assertEqual(proc.returncode, qemu.EXIT_DIED, text)
        self.assertIn("QEMU was killed by SIGKILL", text)

    def test_icount(self):
        """under --icount, a loop takes the same guest time in two runs, to 2 %"""
        script = """
            read before x < /proc/uptime
            i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done
            read after x < /proc/uptime
            echo "from $before to $after"
            """
        times = []
        for text in (self.guest(script, "--icount").stdout for _ in range(2)):
            found = re.search(r"^from (\S+) to (\S+)$", text, re.M)
            self.assertTrue(found, text)
            times.append(float(found[2]) - float(found[1]))
        self.assertGreater(times[0], 0.5)
        self.assertAlmostEqual(times[0], times[1], delta=0.02 * times[0])


class Results(unittest.TestCase):
    """How results are judged: nothing may pass that did not."""

    def test_incomplete(self):
        """a test that stops before its plan is done fails"""
        test = ktap.from_tap("x", "TAP version 13\n1..3\nok 1 a\nok 2 b\n", 0)
        self.assertEqual(test.counts(), (2, 1, 0))

    def test_status(self):
        """a test that exits with an error fails, whatever it printed"""
        self.assertFalse(ktap.from_tap("x", "1..1\nok 1 a\n", 1).ok())
        self.assertFalse(ktap.from_tap("x", "", 0).ok())

    def test_holes(self):
        """a crash, a bail-out, a duplicate and a failure before a skip all fail"""
        for text, status in (("1..0 # SKIP no\n", 139), ("not ok 1 a\n1..0 # SKIP no\n", 4),
                             ("1..1\nok 1 a\nBail out! x\n", 0),
                             ("1..2\nok 1 a\nok 1 a\n", 0), ("1..1\nnot ok 1 a\n", 1)):
            self.assertFalse(ktap.from_tap("x", text, status).ok(), text)
        for text in ("1..1\nok 1 a # skip x\n", "1..1\nnot ok 1 a # TODO x\n",
                     "1..1\nok 1 a # XFAIL x\n", "1..0 # SKIP x\n"):
            self.assertEqual(ktap.from_tap("x", text, 0).counts(), (0, 0, 1), text)

    def test_yardstick(self):
        """a plain run that is incomplete, passes soft-dirty or passes more is a failure"""
        def boot(*texts):
            return ktap.Test("boot", tests=[ktap.from_tap(name, text, 0)
                                            for name, text in texts])
        skip, good, bad = "1..0 # SKIP no\n", "1..1\nok 1 a\n", "1..1\nnot ok 1 a\n"
        patched = boot(("soft-dirty", good), ("merge", good))
        self.assertTrue(judge_plain(boot(("soft-dirty", skip), ("merge", good)), patched).ok())
        timed = [boot(("soft-dirty", skip), ("merge", f"1..1\nok 1 {n} (0.{n}%) extra {n}.\n"))
                 for n in (1, 25)]
        self.assertTrue(judge_plain(*timed).ok())
        for plain, other in ((boot(("soft-dirty", good), ("merge", good)), patched),
                             (boot(("soft-dirty", skip), ("merge", "")), patched),
                             (boot(("merge", good)), patched), (boot(), patched),
                             (boot(("soft-dirty", skip), ("merge", good)),
                              boot(("soft-dirty", good), ("merge", bad)))):
            self.assertFalse(judge_plain(plain, other).ok())

    def test_skips(self):
        """a skip fails unless it is listed"""
        text = "1..2\nok 1 a\nok 2 b # SKIP no b here\n"
        for entries, counts in (([], (1, 1, 0)),
                                ([("7.3 *", "x: b: no b*", "reason")], (1, 0, 1)),
                                ([("6.12 *", "x: b: no b*", "reason")], (1, 1, 0))):
            top = ktap.Test("boot", tests=[ktap.from_tap("x", text, 0)])
            ktap.enforce_skips("7.3 cpu", top, entries)
            self.assertEqual(top.counts(), counts)

    def test_differences(self):
        """a known difference is shown as skipped, and one that is gone is a failure"""
        text = "1..2\nok 1 a\nnot ok 2 b\n"
        for pattern, counts in (("x: b", (1, 0, 1)), ("x: ?", (0, 1, 1)), ("y: *", (1, 1, 0))):
            top = ktap.Test("boot", tests=[ktap.from_tap("x", text, 1)])
            ktap.expect_differences("7.3-x86_64 max", top, [("7.3-x86*", pattern, "reason")])
            self.assertEqual(top.counts(), counts)

    def test_splats(self):
        """complaints of the kernel are found, and its other messages are not taken for one"""
        bad = ["WARNING: CPU: 0 PID: 1 at mm/memory.c:1", "BUG: sleeping function called",
               "kernel BUG at mm/page_table_check.c:1!", "Internal error: Oops - BUG",
               "Kernel panic - not syncing: x", "BUG: Bad page map in process x",
               "WARNING: possible circular locking dependency detected",
               "INFO: task x:1 blocked for more than 122 seconds."]
        bad += ["mm/pgtable-generic.c:1: bad pmd 00000000deadbeef.",
                "_swap_info_get: Bad swap file entry 2000000000001",
                "get_swap_device: Unused swap offset entry 00000001",
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "SError Interrupt on CPU0, code 0xbf000002 -- SError"]
        good = ["Warning: unable to open an initial console.", "rcu: Hierarchical RCU",
                "debug_vm_pgtable: Validating architecture page table helpers",
                "lab: begin soft-dirty", "Kernel command line: oops=panic panic=-1"]
        for line in bad:
            self.assertTrue(qemu.splats(f"[    1.234567] {line}"), line)
            self.assertTrue(qemu.splats(f"[    1.234567][  T1] {line}"), line)
        for line in good:
            self.assertFalse(qemu.splats(f"[    1.234567] {line}"), line)

    def test_lists(self):
        """every entry of the lists of skips and differences has a boot, a test and a reason"""
        self.assertTrue(ktap.allowed_skips())
        self.assertTrue(ktap.known_differences())

    def test_base_files(self):
        """every base has a series, and the lead and the default exist"""
        for name in bases.names():
            self.assertTrue(bases.load(name).package)
            self.assertTrue(trees.series(name))
        self.assertIn(bases.LEAD, bases.names())
        self.assertIn(bases.DEFAULT, bases.names())
        with self.assertRaises(LabError):
            bases.load("no-such")


if __name__ == "__main__":
    unittest.main(verbosity=2)

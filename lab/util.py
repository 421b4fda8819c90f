# SPDX-License-Identifier: GPL-2.0-only
"""Paths, errors, progress and the running of commands."""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

# The lab reads what apt and git say, so they have to say it in one language.
os.environ.update(LC_ALL="C.UTF-8", LANGUAGE="")
# Where Debian keeps mke2fs and its like is not in every user's PATH.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
PATCHES = ROOT / "patches"
LOGS = BUILD / "log"

EXIT_TIMEOUT = 124      # as timeout(1)
EXIT_LAB = 125          # the lab itself failed: bad input, missing tool, ...

_START = time.monotonic()
_CHILDREN = set()       # processes to stop when the lab stops


class LabError(Exception):
    """Something the user can act on; its text is one clear line."""


class BaseGone(LabError):
    """The archive no longer offers a base kernel."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are the lab's errors."""

    def error(self, message):
        raise LabError(f"{message}; see --help")


def say(text):
    """Print a progress line on stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - _START:6.1f}s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(title):
    """Announce a step, and its duration when it has succeeded."""
    say(title)
    begin = time.monotonic()
    yield
    say(f"{title}: done in {time.monotonic() - begin:.1f}s")


def show(argv):
    """The command line ARGV as one can paste it into a shell."""
    return shlex.join(str(arg) for arg in argv)


def relative(path):
    """PATH as seen from the repository, where it is inside it."""
    path = Path(path)
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def output(argv, **kwargs):
    """Run ARGV and return its standard output; LabError with its complaint if it fails."""
    try:
        proc = subprocess.run([str(arg) for arg in argv], text=True, check=False,
                              errors="surrogateescape", stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, **kwargs)
    except FileNotFoundError as err:
        raise LabError(f"missing tool: {err.filename}") from err
    if proc.returncode:
        lines = (proc.stderr.strip() or proc.stdout.strip() or "no output").splitlines()
        raise LabError(f"failed: {show(argv)}: {lines[-1]}")
    return proc.stdout


@contextlib.contextmanager
def child(argv, **kwargs):
    """A process that runs ARGV, killed at the end of the block if it still runs."""
    try:
        proc = subprocess.Popen([str(arg) for arg in argv], stdin=subprocess.DEVNULL, **kwargs)
    except FileNotFoundError as err:
        raise LabError(f"missing tool: {err.filename}") from err
    _CHILDREN.add(proc)
    try:
        with proc:
            try:
                yield proc
            finally:
                if proc.poll() is None:
                    proc.kill()
    finally:
        _CHILDREN.discard(proc)


def run_logged(argv, name, cwd=None, env=None):
    """Run a long command ARGV with its output in the log NAME, and show that it moves.

    Returns what it printed. Raises LabError with the command and the log's place if it
    fails.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    begin = shown = time.monotonic()
    tty = sys.stderr.isatty()
    with open(log, "w", encoding="utf-8", errors="replace") as out:
        print(f"$ {show(argv)}", file=out, flush=True)
        with child(argv, cwd=cwd, env=env, stdout=out, stderr=subprocess.STDOUT) as proc:
            while proc.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if now - shown < (1 if tty else 30):
                    continue
                shown = now
                text = f"  {name}: {now - begin:.0f}s, {tail(log, 1).strip()[:60]}"
                if tty:
                    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
                else:
                    say(text)
        if tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    if proc.returncode:
        print(tail(log, 15), file=sys.stderr)
        raise LabError(f"{name} failed with status {proc.returncode}; whole log: "
                       f"{relative(log)}; again: {show(argv)}")
    return log.read_text(encoding="utf-8", errors="replace").partition("\n")[2]


def tail(path, lines):
    """The last LINES lines of the text file PATH."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 400 * lines))
        text = file.read().decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-lines:])


def sha256(*parts):
    """The hex SHA-256 of the texts and of the contents of the files PARTS."""
    digest = hashlib.sha256()
    for part in parts:
        data = (part.read_bytes() if isinstance(part, Path)
                else part.encode(errors="surrogateescape"))
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def write_if_changed(path, text):
    """Write TEXT to PATH unless it holds it already; True if it was written."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)
    return True


@contextlib.contextmanager
def locked(name):
    """Let one process at a time work on the part of build/ called NAME."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f".lock-{name}", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works on {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(function):
    """Run FUNCTION as a program: its return value is the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if re.search(r"[\s:,]", str(ROOT)):
            raise LabError(f"neither make nor QEMU take a path like {ROOT!r}: move the "
                           "repository to one without space, colon and comma")
        sys.exit(function())
    except (LabError, OSError) as err:
        print(f"lab: error: {err}", file=sys.stderr)
        sys.exit(EXIT_LAB)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        for proc in list(_CHILDREN):
            proc.kill()

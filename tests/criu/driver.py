# SPDX-License-Identifier: GPL-2.0-only
"""What the drivers in a guest have in common: how they begin, and results as they come, in TAP."""

import os
import subprocess


def begin():
    """Be what a program is that a shell starts, on a machine with a network."""
    os.setsid()         # a child of init is in process group 0, which autofs refuses
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Tap:
    """One stream of results, on standard output."""

    def __init__(self):
        self.number, self.failed = 0, 0
        print("TAP version 13")

    def result(self, good, name, *log):
        """Print one result, and before a bad one the lines LOG; GOOD as it is."""
        self.number += 1
        self.failed += not good
        for line in log if not good else ():
            self.say(line)
        print(f"{'ok' if good else 'not ok'} {self.number} {name}", flush=True)
        return good

    @staticmethod
    def say(text):
        """Print TEXT as a diagnostic line."""
        print(f"# {text}", flush=True)

    def end(self):
        """Print the plan; the exit status."""
        print(f"1..{self.number}")
        return 1 if self.failed else 0

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""In a container: write some of a table's pages round by round, and look whether all are right.

Prints the number of each round that was right to the file of the first argument.
"""

import os
import random
import sys
import time

PAGES, SIZE = 16384, 4096
# In a part of it, as most programs: it may consist of huge pages, each of which counts as one.
HOT, EACH_ROUND = PAGES // 16, 200


def main():
    """Go on until a page is wrong; never end well."""
    table, versions, chance = bytearray(PAGES * SIZE), [0] * PAGES, random.Random(1)
    for number in range(1 << 30):
        for _ in range(EACH_ROUND):
            page = chance.randrange(HOT)
            versions[page] = number
            table[page * SIZE:page * SIZE + 8] = number.to_bytes(8, "little")
        wrong = sum(int.from_bytes(table[page * SIZE:page * SIZE + 8], "little") != versions[page]
                    for page in range(PAGES))
        with open(f"{sys.argv[1]}.new", "w", encoding="ascii") as file:
            file.write(f"wrong: {wrong}" if wrong else f"{number}")
        os.replace(f"{sys.argv[1]}.new", sys.argv[1])
        if wrong:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()

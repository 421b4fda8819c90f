# SPDX-License-Identifier: GPL-2.0-only
"""make bench-compare: what changed between two stored results of make bench."""

from lab import bench
from lab.benchtable import markdown
from lab.util import LabError, Parser, main

LIMIT = 1               # percent that a figure may rise
MEASURED = ("instructions", "faults", "invalidations")


def compare(before, after):
    """What differs between the figures BEFORE and AFTER: key, field, both values of each.

    What only one of them has is not compared; LabError if they have nothing in common.
    """
    known = {figure.key(): figure for figure in before}
    pairs = [(known[figure.key()], figure) for figure in after if figure.key() in known]
    if not pairs:
        raise LabError("the two tables have no figure in common")
    return len(pairs), [(new.key(), field, getattr(old, field), getattr(new, field))
                        for old, new in pairs for field in MEASURED
                        if getattr(old, field) != getattr(new, field)]


def percent(old, new):
    """The rise from OLD to NEW in percent; that from nothing has no bound."""
    return 100 * (new - old) / old if old else float("inf")


def cli():
    """Command line: print what changed; 1 if a figure rose by more than LIMIT percent."""
    parser = Parser(prog="lab.compare", description=__doc__)
    parser.add_argument("before", metavar="A", help="a table that make bench stored")
    parser.add_argument("after", metavar="B", help="a later one")
    args = parser.parse_args()
    compared, changed = compare(bench.load(args.before), bench.load(args.after))
    rises = [change for change in changed if percent(*change[2:]) > LIMIT]
    if changed:
        print(markdown(["figure", "of", "before", "after", "change"],
                       [[" ".join(map(str, key)), field, str(old), str(new),
                         f"{percent(old, new):+.2f} %"] for key, field, old, new in changed]))
    print(f"{compared} figures compared, {len(changed)} values differ, "
          f"{len(rises)} rose by more than {LIMIT} %")
    return 1 if rises else 0


if __name__ == "__main__":
    main(cli)

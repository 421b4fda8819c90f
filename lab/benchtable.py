# SPDX-License-Identifier: GPL-2.0-only
"""The figures of make bench as tables, in Markdown and for a mail."""

from lab.report import aligned

GOAL = 0.5              # percent that work which is not tracked may cost more with the series
# How soft-dirty is used, and what grows in which unit.
STEPS = ("arm first", "arm later", "write first", "read pagemap", "read scan")
GROWTH = {"resident": "MiB", "mappings": "mappings"}


def tables(figures):
    """The tables of FIGURES in Markdown by name."""
    return {"Tracking": tracking(figures), "Strides": strides(figures),
            "Ranges": ranges(figures), "Untracked": untracked(figures),
            "Growth": growth(figures)}


def report(figures):
    """All tables of FIGURES, and what misses the goal."""
    found = [f"{' '.join(key)}: {text}" for key, text in missed(figures)]
    return "\n\n".join([f"{name}\n\n{table}" for name, table in tables(figures).items()]
                       + ["\n".join([f"not tracked, and more than {GOAL} % dearer: {len(found)}",
                                     *found])])


def markdown(header, rows):
    """A table with the cells of HEADER and of ROWS."""
    return "\n".join("| " + " | ".join(cells) + " |"
                     for cells in (header, ["---"] * len(header), *rows))


def number(value):
    """VALUE as text, with a decimal where it matters."""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def place(machine):
    """The architecture and the CPU of a MACHINE, and whether its kernel has but the core."""
    kernel, cpu = machine.split(" ")
    return (f"x86-64 {cpu}" if "x86_64" in kernel
            else f"arm64 {cpu}" + ", core" * kernel.endswith("-core"))


def index(figures, program):
    """The figures of PROGRAM by machine, method, memory, stride and what was done."""
    return {(one.machine, one.method, one.memory, one.stride, one.what): one
            for one in figures if one.program == program}


def each(figure, field="instructions"):
    """What FIGURE has of FIELD for a page; a dash if there is no figure."""
    return number(getattr(figure, field) / figure.pages) if figure else "-"


def ways(figures):
    """Every way to track: by memory, machine and method what was done, a figure each.

    In the order of the kinds of memory, then of the methods.
    """
    found = {}
    for (machine, method, memory, stride, what), one in index(figures, "track").items():
        if stride == 1:
            found.setdefault((memory, method, machine), {})[what] = one
    orders = [list(dict.fromkeys(key[part] for key in found)) for part in range(3)]
    return dict(sorted(found.items(), key=lambda item: [
        order.index(part) for order, part in zip(orders, item[0])]))


def free(found, memory, machine):
    """Of FOUND, as ways() has it, what untracked MEMORY costs on the CPU of MACHINE.

    The writes are those of the program, so they take the same on any kernel.
    """
    cpu = machine.split(" ")[1]
    return next(cells for (kind, method, other), cells in found.items()
                if (kind, method, other.split(" ")[1]) == (memory, "untracked", cpu))


def costs(cells, untracked_cells):
    """The CELLS of a way to track as texts, beside those of the same memory untracked."""
    arm, write = cells.get("arm first"), cells["write first"]
    reads = [cells.get(what) for what in ("read pagemap", "read scan", "read own")]
    renew = cells.get("read and arm")
    return [each(arm), each(cells.get("arm later")), each(write),
            f"{write.instructions / untracked_cells['write first'].instructions:.0f}",
            f"{write.faults / write.pages:.2f}", f"{arm.invalidations:,}" if arm else "-",
            f"{write.invalidations / write.pages:.2f}", each(reads[0]), each(reads[1] or reads[2]),
            each(renew)]


def tracking(figures, only=None):
    """Every way to track on every machine, by the kind of memory, or of the kind ONLY."""
    found = ways(figures)
    rows = [[memory, method, place(machine),
             *costs(cells, free(found, memory, machine))]
            for (memory, method, machine), cells in found.items() if only in (None, memory)]
    return markdown(["memory", "tracked by", "machine", "arm, first", "arm, later",
                     "first write", "× untracked", "faults", "TLB inv. of arm",
                     "of a write", "read pagemap", "read otherwise", "read and arm"], rows)


def mail(figures, only):
    """The same of the kind of memory ONLY, in a mail's width."""
    found = ways(figures)
    rows = []
    for (memory, method, machine), cells in found.items():
        if memory == only:
            first, _, write, times, _, _, _, pagemap, scan, renew = costs(
                cells, free(found, memory, machine))
            rows.append((method, place(machine), first, write, times, pagemap, scan, renew))
    return aligned([("tracked by", "machine", "arm", "write", "ratio", "read", "scan", "both"),
                    *rows])


def strides(figures):
    """The first write to every page, every second, every sixteenth."""
    found = index(figures, "track")
    rows = []
    for machine, memory in dict.fromkeys((key[0], key[2]) for key in found
                                         if key[1] == "soft-dirty"):
        cells = [found[machine, "soft-dirty", memory, stride, what]
                 for what in ("write first", "write later") for stride in (1, 2, 16)]
        rows.append([memory, place(machine), *[each(cell) for cell in cells]])
    return markdown(["memory", "machine", "every page", "every 2nd", "every 16th",
                     "later: every page", "every 2nd", "every 16th"], rows)


def ranges(figures):
    """A few pages of a large process."""
    found = index(figures, "range")
    return markdown(["16 pages of a process of", "by", "machine", "instructions a page",
                     "TLB invalidations"],
                    [[size, method, place(machine), each(one), f"{one.invalidations:,}"]
                     for (machine, method, size, *_), one in sorted(
                         found.items(), key=lambda item: (item[0][2], item[0][1]))])


def changes(figures):
    """What the series changes for those who do not track.

    Of each kind of memory and work on a CPU: the figure of the plain kernel, and the change
    in percent with soft-dirty off and on.
    """
    found = {}
    for one in figures:
        if one.program == "untracked":
            kernel, cpu = one.machine.split(" ")
            kind = next((word for word in ("plain", "off") if f"-{word}" in kernel), "on")
            found.setdefault((cpu, one.memory, one.what), {})[kind] = one
    return {key: (kinds["plain"], *[100 * (kinds[kind].instructions
                                           / kinds["plain"].instructions - 1)
                                    for kind in ("off", "on")])
            for key, kinds in found.items()}


def missed(figures):
    """What is dearer than the goal allows, as pairs of a key and both changes."""
    return [(key, f"off {off:+.2f} %, on {more:+.2f} %")
            for key, (_, off, more) in changes(figures).items() if max(off, more) > GOAL]


def untracked(figures):
    """The price for those who do not track."""
    found = changes(figures)
    cpus = list(dict.fromkeys(cpu for cpu, *_ in found))
    rows = []
    for memory, what in dict.fromkeys(key[1:] for key in found):
        cells = []
        for cpu in cpus:
            plain, *percents = found[cpu, memory, what]
            cells += [each(plain), *[f"{percent:+.2f} %" for percent in percents]]
        rows.append([memory, what, *cells])
    return markdown(["memory", "work", *[text for cpu in cpus
                                         for text in (f"{cpu}: plain", "off", "on")]], rows)


def growth(figures):
    """How the costs of a page change with the size, and with the number of mappings."""
    rows = []
    for program, unit in GROWTH.items():
        found = index(figures, program)
        for machine, size, memory in dict.fromkeys(key[:3] for key in found):
            rows.append([memory, place(machine), f"{int(size):,} {unit}",
                         *[each(found[machine, size, memory, 1, what]) for what in STEPS]])
    return markdown(["memory", "machine", "size", *STEPS], rows)

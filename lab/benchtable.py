# SPDX-License-Identifier: GPL-2.0-only
"""The figures of make bench as tables in Markdown."""


def report(figures):
    """All tables of FIGURES, each under a line that says what it shows."""
    parts = (("Tracking, a page: instructions of who arms it, of who writes, of who reads",
              tracking(figures)),
             ("First write after soft-dirty was cleared, instructions a page that is written",
              strides(figures)),
             ("Work that is not tracked: instructions without the series, change with it",
              untracked(figures)),
             ("Soft-dirty of a larger process, instructions a page", growth(figures)))
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts)


def markdown(header, rows):
    """A table with the cells of HEADER and of ROWS."""
    return "\n".join("| " + " | ".join(cells) + " |"
                     for cells in (header, ["---"] * len(header), *rows))


def number(value):
    """VALUE as text, with a decimal where it matters."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def index(figures, program):
    """The figures of PROGRAM by machine, method, memory, stride and what was done."""
    return {(one.machine, one.method, one.memory, one.stride, one.what): one
            for one in figures if one.program == program}


def each(figure, field="instructions"):
    """What FIGURE has of FIELD for a page; a dash if there is no figure."""
    return number(getattr(figure, field) / figure.pages) if figure else "-"


def tracking(figures):
    """Every way to track on every machine, by the kind of memory."""
    found = index(figures, "track")
    ways = dict.fromkeys((memory, machine, method)
                         for machine, method, memory, *_ in found)
    order = list(dict.fromkeys(memory for memory, *_ in ways))
    rows = []
    for memory, machine, method in sorted(ways, key=lambda way: order.index(way[0])):
        cells = {key[-1]: one for key, one in found.items()
                 if key[:-1] == (machine, method, memory, 1)}
        write, free = cells["write first"], found[machine, "untracked", memory, 1, "write first"]
        arm = cells.get("arm first")
        rows.append([memory, method, machine, each(arm), each(cells.get("arm later")), each(write),
                     f"{write.instructions / free.instructions:.0f}",
                     f"{write.faults / write.pages:.2f}",
                     str(arm.invalidations) if arm else "-",
                     f"{write.invalidations / write.pages:.2f}",
                     each(cells.get("read pagemap")),
                     each(cells.get("read scan") or cells.get("read own"))])
    return markdown(["memory", "tracked by", "machine", "arm, first", "arm, later",
                     "first write", "times an untracked one", "faults", "TLB invalidations: arm",
                     "write", "read by pagemap", "by PAGEMAP_SCAN or itself"], rows)


def strides(figures):
    """The first write to every page, every second, every sixteenth."""
    found = index(figures, "track")
    rows = []
    for machine, memory in dict.fromkeys((key[0], key[2]) for key in found
                                         if key[1] == "soft-dirty"):
        cells = [found[machine, "soft-dirty", memory, stride, what]
                 for what in ("write first", "write later") for stride in (1, 2, 16)]
        rows.append([memory, machine, *[each(cell) for cell in cells]])
    return markdown(["memory", "machine", "every page", "every 2nd", "every 16th",
                     "later: every page", "every 2nd", "every 16th"], rows)


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
    steps = ("arm first", "arm later", "write first", "read pagemap", "read scan")
    rows = []
    for program, unit in (("resident", "MiB"), ("mappings", "mappings")):
        found = index(figures, program)
        for machine, size, memory in dict.fromkeys(key[:3] for key in found):
            rows.append([memory, machine, f"{size} {unit}",
                         *[each(found[machine, size, memory, 1, what]) for what in steps]])
    return markdown(["memory", "machine", "size", *steps], rows)

# SPDX-License-Identifier: GPL-2.0-only
"""Plots of how the cost of soft-dirty grows, by gnuplot."""

from lab.benchtable import GROWTH, STEPS, index, place
from lab.util import output

SIZE = "1200,640"       # pixels
HEAD = """set terminal pngcairo size {size} font "sans,10"
set output "{file}"
set logscale xy
set xlabel "{unit}"
set ylabel "instructions a page"
set yrange [1:10000]
set grid
set key outside bottom center maxrows 5
set multiplot layout 1,{panels}
"""


def plot(figures, program, unit, to):
    """Draw what PROGRAM has in FIGURES, by size in UNIT, as the PNG TO; a panel a machine."""
    found = index(figures, program)
    machines = list(dict.fromkeys(key[0] for key in found))
    text = HEAD.format(size=SIZE, file=to, unit=unit, panels=len(machines))
    for machine in machines:
        memories = dict.fromkeys(key[2] for key in found if key[0] == machine)
        series, data = [], []
        for memory in memories:
            for color, step in enumerate(STEPS, 1):
                data += [f"{size} {one.instructions / one.pages}"
                         for (where, size, kind, _, what), one in found.items()
                         if (where, kind, what) == (machine, memory, step)] + ["e"]
                dash = 1 + list(memories).index(memory)
                series.append(f'"-" with linespoints lc {color} dt {dash} title "{memory}, {step}"')
        text += "\n".join([f'set title "{place(machine)}"', "plot " + ", ".join(series), *data, ""])
    output(["gnuplot"], input=text)


def plots(figures, folder, name):
    """Draw all of it into FOLDER as NAME-PROGRAM.png; the paths."""
    paths = []
    for program, unit in GROWTH.items():
        paths.append(folder / f"{name}-{program}.png")
        plot(figures, program, unit, paths[-1])
    return paths

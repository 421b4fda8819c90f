# SPDX-License-Identifier: GPL-2.0-only
"""The tables that a test run ends with."""

from lab import matrix


def table(tests):
    """The results as a table, a line a top-level test."""
    return aligned([("test", "passed", "failed", "skipped")]
                   + [(test.name, *map(str, test.counts())) for test in tests])


def failures(tests):
    """What failed in TESTS, a paragraph each: its path, and the first lines of its log."""
    return "\n".join("\n".join([f"failed: {path}", *[f"    {line}" for line in leaf.log[:12]]])
                     for test in tests for path, leaf in test.leaves() if not leaf.passed)


def end(tests):
    """Print the table of TESTS and what failed of them; the status to exit with."""
    print(table(tests))
    print(failures(tests))
    return 0 if all(test.ok() for test in tests) else 1


def wide_table(done):
    """The wide matrix DONE (boot: test) as a table with a column a CPU, and what each CPU had."""
    cpus = list(dict.fromkeys(boot.cpu for boot in done))
    rows = {}
    for boot, test in done.items():
        kernel = boot.kernel
        row = (kernel.base, kernel.page, str(kernel.va), matrix.kind(kernel))
        rows.setdefault(row, {})[boot.cpu] = "/".join(map(str, test.counts())) \
            + "*" * (test.name != str(boot))
    lines = [aligned([("base", "page", "VA", "kernel", *cpus)]
                     + [(*row, *(cells.get(cpu, "-") for cpu in cpus))
                        for row, cells in rows.items()]),
             "passed/failed/skipped; -: not run; *: a stored result, not booted now", ""]
    for cpu in cpus:
        logs = {}
        for boot, test in done.items():
            if boot.cpu == cpu:
                logs.setdefault(", ".join(test.log) or "did not boot", []).append(boot.kernel)
        lines += [f"{cpu}: {text}: {len(kernels)} boots, the first of {kernels[0]}"
                  for text, kernels in logs.items()]
    return "\n".join(lines)


def aligned(rows):
    """ROWS of texts as lines, their columns under each other."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip()
                     for row in rows)

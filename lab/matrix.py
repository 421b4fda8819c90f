# SPDX-License-Identifier: GPL-2.0-only
"""Which guests the tests boot, and which programs run in each."""

from dataclasses import dataclass

from lab import bases
from lab.kernel import Kernel

MAP = "softdirty-map"
LEAD_TEST = "soft-dirty"            # the lead's also runs on the other bases, as
FROM_LEAD = f"{LEAD_TEST}-{bases.LEAD}"
OWN_TEST = "soft-dirty-arm64"       # the series' own
GROUP_TESTS = ("pagemap-soft-clean", "uffd-soft-clean")     # those of its further groups
# The mm selftests that meet soft-dirty or the code around it; each base has some.
SELFTESTS = (LEAD_TEST, "madv_populate", "pagemap_ioctl", "mkdirty", "merge",
             "guard-regions", "ksm_functional_tests", "split_huge_page_test",
             "uffd-wp-mremap")
ALL = (MAP, *SELFTESTS, FROM_LEAD)
ON_X86 = (LEAD_TEST, OWN_TEST, *GROUP_TESTS)      # what an x86-64 kernel is asked, to compare
# By base and page size, what make test leaves to make test-all, and what no guest runs, since
# it ends neither in time nor well under emulation; the README says why.
LEFT_OUT = {
    ("7.3", "4k"): ("split_huge_page_test",),
    ("6.12", "4k"): (FROM_LEAD,),
}
NOT_RUN = {
    ("6.12", "4k"): ("split_huge_page_test",),
    ("7.3", "16k"): ("split_huge_page_test",),
    ("7.3", "64k"): ("split_huge_page_test", "uffd-wp-mremap"),
}

# The wide matrix: every pair of page size and address size, CPU and kind of kernel.
WIDE = (MAP, OWN_TEST, *GROUP_TESTS)
ADDRESSES = (("4k", 39), ("4k", 48), ("4k", 52), ("16k", 48), ("16k", 52), ("64k", 48),
             ("64k", 52))
CPUS = ("cortex-a57", "cortex-a76", "neoverse-n1", "max")
# Cortex-A57 has no 16K pages. Cortex-A35 has, and no hardware dirty management either.
CPUS_16K = ("cortex-a35", *CPUS[1:])
# Of it, what make test runs: of each base, and with and without hardware dirty management.
SOME_WIDE = (("7.3", "cortex-a57"), ("7.3", "max"), ("6.12", "neoverse-n1"))
KINDS = {"no debugging": {}, "debug": {"debug": True}, "KASAN": {"extra": "kasan"}}


@dataclass(frozen=True)
class Boot:
    """One guest: a kernel on a CPU, and the programs to run, those that its base has."""

    kernel: Kernel
    cpu: str
    tests: tuple = ALL

    def __str__(self):
        return f"{self.kernel} {self.cpu}{' wide' if self.is_wide else ''}"

    @property
    def is_wide(self):
        """Whether it runs the series' own test, which wants four CPUs and two NUMA nodes."""
        return OWN_TEST in self.tests

    def plain(self):
        """The same without the series: the yardstick."""
        return Boot(Kernel(self.kernel.base, self.kernel.page, debug=self.kernel.debug,
                           plain=True), self.cpu, self.tests)


def kind(kernel):
    """Which of KINDS the kernel KERNEL is."""
    return "debug" if kernel.debug else "KASAN" if kernel.extra == "kasan" else "no debugging"


def chosen_tests(base, page, everything):
    """What make test runs on BASE with PAGE, or with EVERYTHING make test-all."""
    left_out = NOT_RUN.get((base, page), ())
    if not everything:
        left_out += LEFT_OUT.get((base, page), ())
    return tuple(name for name in ALL if name not in left_out)


def narrow(everything):
    """The boots of make test, or with EVERYTHING those of make test-all beside the wide ones."""
    def boots(base, page, *cpus, debug=True):
        return [Boot(Kernel(base, page, debug=debug), cpu, chosen_tests(base, page, everything))
                for cpu in cpus]

    chosen = [*boots("7.3", "4k", "cortex-a57", "neoverse-n1", "max"),
              *boots("6.12", "4k", "cortex-a57", "neoverse-n1")]
    if not everything:
        return chosen + [Boot(Kernel(base, debug=True), cpu, WIDE) for base, cpu in SOME_WIDE]
    plain = [boot.plain() for boot in chosen if boot.cpu == "neoverse-n1"]
    chosen += [boot for page in ("16k", "64k") for boot in boots("7.3", page, "neoverse-n1")]
    chosen += [boot for base in bases.names()
               for boot in boots(base, "4k", "cortex-a57", "max", debug=False)]
    chosen += [Boot(Kernel(base, soft_dirty=False), "neoverse-n1",
                    chosen_tests(base, "4k", everything)) for base in bases.names()]
    chosen.append(Boot(Kernel(bases.LEAD, debug=True, arch="x86_64"), "max", ON_X86))
    return chosen + plain


def wide():
    """The boots of the wide matrix: all of it on 7.3, each page size and kind on 6.12."""
    cpus = {page: CPUS_16K if page == "16k" else CPUS for page, _ in ADDRESSES}
    chosen = [Boot(Kernel("7.3", page, va=va, **options), cpu, WIDE)
              for page, va in ADDRESSES for options in KINDS.values() for cpu in cpus[page]]
    chosen += [Boot(Kernel("6.12", page, **KINDS[name]), cpu, WIDE)
               for page, name in (*(("4k", name) for name in KINDS), ("16k", "debug"),
                                  ("64k", "debug"))
               for cpu in (cpus[page][0], cpus[page][-1])]
    return chosen


def by_kernel(boots):
    """BOOTS by their kernel, so that each is built once."""
    found = {}
    for boot in boots:
        found.setdefault(boot.kernel, []).append(boot)
    return found

# SPDX-License-Identifier: GPL-2.0-only
"""make off: with CONFIG_MEM_SOFT_DIRTY=n, is the kernel the one of the plain base?

Both are compared function by function, by vmlinux.o, in which each address still says what it
is of, and object by object, by vmlinux. An address is compared as the symbol that it is in,
since one function that has grown moves all that come after. What may differ, and why, is in
tests/off-differences; what is listed there has to differ. With the option on, and nobody using
it: the sizes.
"""

import fnmatch
import math
import re
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from lab import bases, kernel, ktap
from lab.kernel import Kernel
from lab.util import ROOT, LabError, Parser, main, output

PREFIX = kernel.ARCHES["arm64"][0]
EXPECTED = ROOT / "tests/off-differences"
# Objects that hold the build's version or the names of all symbols, or are put together
# by the linker from the lines of the source: no code, and no data that code computes with.
BUILD = ("linux_banner", "linux_proc_banner", "init_uts_ns", "kallsyms_*", "vermagic",
         "__start___bug_table", "kernel_config_data", "__vdso_*", "vdso_*")
# The compiler numbers what it makes, and counts on through a file.
_NUMBER = re.compile(r"\.\d+$")
_SYMBOL = re.compile(r"^ *\d+: ([0-9a-f]{16}) +(\d+|0x[0-9a-f]+) (\w+) +\w+ +\w+ +"
                     r"(?:\[.*\] )?(\d+) (\S+)$")
_HEADER = re.compile(r"^([0-9a-f]{16}) <(.+)>:$")
_SECTION = re.compile(r"^Disassembly of section (\S+):$")
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(.*)$")
_RELOCATION = re.compile(r"^\t+[0-9a-f]+: (R_AARCH64_\w+)\t([^+-]+)([+-]0x[0-9a-f]+)?$")
_TARGET = re.compile(r"\b[0-9a-f]+ (<[^>]+>)")
_LABEL = re.compile(r"<([^<>]+)>")
_PLACE = re.compile(r",?\s<[^<>]+>$")
_PADDING = ("nop", "udf\t#0")


@dataclass(frozen=True)
class Image:
    """What is compared of a kernel: the text of each function and object, by name."""

    functions: dict
    objects: dict
    sizes: dict         # bytes, by section, and of all functions


class Symbols:
    """The symbols and sections of an ELF file, to tell what an address is in.

    In a file that is yet to be linked each section begins at 0: here they follow each other.
    """

    def __init__(self, path):
        found, self.ends = {}, {}
        self.objects, self.code = [], 0
        self.image, self.placed, moved = path.read_bytes(), {}, {}
        for number, name, start, *rest in sections(path):
            moved[number] = 0 if start else self.free()
            self.placed[name] = (start or moved[number], *rest)
        for line in output([f"{PREFIX}readelf", "-sW", path]).splitlines():
            symbol = _SYMBOL.match(line)
            # Mapping symbols come and go with the layout.
            if (not symbol or symbol[4] not in moved or symbol[3] in ("SECTION", "FILE")
                    or symbol[5].startswith("$")):
                continue
            address = int(symbol[1], 16) + moved[symbol[4]]
            size, name = int(symbol[2], 0), _NUMBER.sub("", symbol[5])
            found.setdefault(address, name)
            if size:
                self.ends[address] = max(self.ends.get(address, 0), address + size)
            if size and symbol[3] == "OBJECT":
                self.objects.append((address, size, name))
            if size and symbol[3] == "FUNC":
                self.code += size
        self.objects.sort()
        self.starts = sorted(found)
        self.names = [found[start] for start in self.starts]

    def free(self):
        """An address behind all sections so far."""
        return max((start + length for start, _, length, _ in self.placed.values()),
                   default=1 << 40) + 0x1000 & ~0xfff

    def name(self, address):
        """ADDRESS as a symbol and an offset, or behind a symbol's end as what is there.

        That is a pointer, a string literal, or a constant without a name.
        """
        index = bisect_right(self.starts, address) - 1
        if index < 0:
            return hex(address)
        start = self.starts[index]
        # A symbol of assembler or linker may have no size: what it names is small.
        if address >= self.ends.get(start, start + 16):
            data = self.data(address, 256) or b""
            if len(data) >= 8 and self.known(int.from_bytes(data[:8], "little")):
                return f"-> {self.name(int.from_bytes(data[:8], 'little'))}"
            literal, end, _ = data.partition(b"\0")
            if end and literal.isascii():
                return repr(literal)
            if data:
                return data[:8].hex()
        return f"{self.names[index]}+{address - start:#x}"

    def data(self, address, size):
        """SIZE bytes at ADDRESS, fewer at the end of the section; None if the file has none."""
        for start, offset, length, kind in self.placed.values():
            if start <= address < start + length and kind != "NOBITS":
                begin = offset + address - start
                return self.image[begin:begin + min(size, start + length - address)]
        return None

    def known(self, value):
        """Whether VALUE is an address within the kernel."""
        return self.starts[0] <= value <= self.starts[-1]


def _next_name(name, found):
    """NAME, or if that is in FOUND already, with a number."""
    number, numbered = 1, name
    while numbered in found:
        number += 1
        numbered = f"{name} ({number})"
    return numbered


def functions(path):
    """The functions of the object file PATH as normalised disassembly, by name.

    Twins are numbered. Left out are the alternatives of instructions, which stand without a name
    behind the last function of a source file: they differ with what they stand in for.
    """
    found, lines, symbols = {}, [], Symbols(path)
    for line in output([f"{PREFIX}objdump", "-dr", "--no-show-raw-insn", path]).splitlines():
        section, header = _SECTION.match(line), _HEADER.match(line)
        instruction, relocation = _INSTRUCTION.match(line), _RELOCATION.match(line)
        if section:
            begin = symbols.placed[section[1]][0]
        elif header:
            start, lines = int(header[1], 16), []
            end = symbols.ends.get(begin + start, math.inf) - begin
            name = _next_name(_NUMBER.sub("", header[2]), found)
            found[name] = start, header[2], lines
        elif instruction:
            text = instruction[2].split("\t//")[0].split(" // ")[0].rstrip()
            if int(instruction[1], 16) >= end:
                lines = []
            lines.append((int(instruction[1], 16), _TARGET.sub(r"\1", text)))
        elif relocation:
            address, text = lines[-1]
            # The text names the begin of the section, for want of an address.
            lines[-1] = address, f"{_PLACE.sub('', text)} [{_of(relocation, symbols)}]"
    return {name: _numbered(*parts) for name, parts in found.items()}


def _of(relocation, symbols):
    """What the match RELOCATION refers to: a symbol, or what is in a section at an offset."""
    name, offset = relocation[2], relocation[3] or ""
    if name in symbols.placed:
        return symbols.name(symbols.placed[name][0] + int(offset or "0", 16))
    return f"{_NUMBER.sub('', name)}{offset}"


def _numbered(start, symbol, lines):
    """LINES (address, text) of the function SYMBOL at START, its jumps told by instruction.

    Padding goes: the compiler aligns loops by addresses. Of a jump into another function only
    that is told.
    """
    kept = [(address, text) for address, text in lines if text not in _PADDING]
    addresses = [address for address, _ in kept]

    def label(target):
        name, _, offset = target[1].partition("+")
        if name != symbol:
            return f"<{name}>"
        return f"<{bisect_left(addresses, start + int(offset or '0', 16))}>"

    return "\n".join(_LABEL.sub(label, text) for _, text in kept)


def sections(path):
    """Of the sections of the ELF file PATH that are loaded: number, name, address, offset, size
    and type.
    """
    for line in output([f"{PREFIX}readelf", "-SW", path]).splitlines():
        fields = re.match(r"^ *\[ *(\d+)\] (\S+) +(\S+) +([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+)"
                          r" \S+ +\w*A", line)
        if fields:
            yield (fields[1], fields[2], int(fields[4], 16), int(fields[5], 16),
                   int(fields[6], 16), fields[3])


def objects(symbols):
    """The data objects of SYMBOLS as words, addresses as symbols, by name; twins are numbered."""
    found = {}
    for address, size, symbol in symbols.objects:
        if any(fnmatch.fnmatchcase(symbol, pattern) for pattern in BUILD):
            continue
        name = _next_name(symbol, found)
        data = symbols.data(address, size)
        if data is None:
            found[name] = f"{size} bytes of nothing"
            continue
        words = struct.unpack(f"<{len(data) // 8}Q", data[:len(data) // 8 * 8])
        found[name] = " ".join([symbols.name(word) if symbols.known(word) else hex(word)
                                for word in words] + [data[len(data) // 8 * 8:].hex()])
    return found


def read(vmlinux):
    """The Image of VMLINUX, which lies beside what it was linked from."""
    symbols = Symbols(vmlinux)
    return Image(functions(vmlinux.with_suffix(".o")), objects(symbols), sizes(symbols))


def sizes(symbols):
    """The sizes in bytes of the sections of SYMBOLS, and of all functions."""
    return {"functions": symbols.code,
            **{name: size for name, (_, _, size, _) in symbols.placed.items()}}


def differences(before, after):
    """The names of what differs between two dicts, each with how."""
    found = {}
    for name in sorted({*before, *after}):
        if name not in after:
            found[name] = "gone"
        elif name not in before:
            found[name] = "new"
        elif before[name] != after[name]:
            found[name] = "differs"
    return found


def expected(base):
    """What may differ of BASE by tests/off-differences: a reason for each name."""
    return {name: reason for where, name, reason in ktap.read_list(EXPECTED)
            if fnmatch.fnmatchcase(base, where)}


def vmlinux_of(built):
    """The vmlinux of the kernel BUILT, built if need be."""
    kernel.build(built)
    path = built.out / "vmlinux"
    if not path.exists():
        raise LabError(f"{built} has no vmlinux")
    return path


def compare(base):
    """The test of BASE: that off means off. Its log has the sizes."""
    plain = read(vmlinux_of(Kernel(base, plain=True)))
    off = read(vmlinux_of(Kernel(base, soft_dirty=False)))
    used = sizes(Symbols(vmlinux_of(Kernel(base))))
    top, known = ktap.Test(f"{base} with CONFIG_MEM_SOFT_DIRTY=n"), expected(base)
    found = {**differences(plain.functions, off.functions),
             **differences(plain.objects, off.objects)}
    for name, how in found.items():
        top.tests.append(ktap.Test(f"{name} {how}: {known.get(name, 'why?')}",
                                   passed=name in known))
    for name in known.keys() - found.keys():
        top.fail(f"{name} does not differ, though tests/off-differences lists it")
    top.tests.append(ktap.Test(f"{len(plain.functions)} functions and {len(plain.objects)} "
                               f"objects compared, {len(found)} differ"))
    for name in ("functions", ".text", ".rodata", ".data"):
        top.log.append(f"{name}: plain {plain.sizes[name]}, off {off.sizes[name]}, "
                       f"on {used[name]} bytes")
    return top


def cli():
    """Command line: compare each base; 1 if something differs that should not."""
    Parser(prog="lab.off", description=__doc__.splitlines()[0]).parse_args()
    good = True
    for base in bases.names():
        top = compare(base)
        print(top.name)
        for line in top.log:
            print(f"  {line}")
        for leaf in top.tests:
            print(f"  {'ok' if leaf.passed else 'FAILED'}  {leaf.name}")
        good = good and top.ok()
    return 0 if good else 1


if __name__ == "__main__":
    main(cli)

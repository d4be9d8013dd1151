"""What cores are made of: four kinds of memory, made on the spot from this machine."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.figures import BenchError

MIB: Final = 1 << 20
HEAP: Final = "managed heap"

_EXECUTABLE: Final = 1
"""PF_X of elf(5)."""

_HEAP_PROGRAM: Final = """
import gc, random, sys
size, path = int(sys.argv[1]) << 20, sys.argv[2]
gc.disable()
chance, records, kept = random.Random(1), [], 0
while kept < size:
    for number in range(len(records), len(records) + 20_000):
        other = records[chance.randrange(len(records))] if records else None
        records.append({"id": number, "name": f"customer-{number}", "balance": chance.random() * 1000, "next": other,
                        "tags": (chance.randrange(100), "active" if number % 3 else "closed"), "seen": [number, number % 7]})
    with open("/proc/self/statm") as statm:
        kept = int(statm.read().split()[1]) * 4096
left = size
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory, open(path, "wb") as out:
    for line in maps.read().splitlines():
        words = line.split()
        first, last = (int(end, 16) for end in words[0].split("-"))
        if words[1].startswith("rw") and words[4] == "0" and (len(words) == 5 or words[5] == "[heap]"):
            while first < last and left:
                memory.seek(first)
                part = memory.read(min(last - first, 1 << 20, left))
                out.write(part)
                first, left = first + len(part), left - len(part)
"""
"""A CPython program that fills its memory with records, as a service keeps them, and writes down what its heap looks like."""


def make(name: str, path: Path, mib: int) -> Path:
    """Write so many MiB of the corpus *name* to *path* and return it; raises BenchError when this machine does not have as much."""
    CORPORA[name](path, mib)
    if path.stat().st_size != mib * MIB:
        raise BenchError(f"{name}: {path.stat().st_size} bytes instead of {mib} MiB")
    return path


def _make_zeros(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(mib * MIB)


def _make_heap(path: Path, mib: int) -> None:
    # What is not of the heap, the interpreter's own and pages that were given back, has to come on top.
    subprocess.run([sys.executable, "-I", "-c", _HEAP_PROGRAM, str(mib + 32), str(path)], check=True)
    with path.open("r+b") as file:
        file.truncate(min(mib * MIB, path.stat().st_size))


def _make_text(path: Path, mib: int) -> None:
    left = mib * MIB
    with path.open("wb") as out:
        while left:
            before = left
            for segment in _program_text():
                left -= out.write(segment[:left])
                if not left:
                    return
            # Programs that come again after hundreds of megabytes are as new to a compressor with a window of one.
            if left == before:
                raise BenchError("no programs below /usr")


def _make_noise(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


CORPORA: Final[dict[str, Callable[[Path, int], None]]] = {
    "zeros": _make_zeros,
    HEAP: _make_heap,
    "program text": _make_text,
    "incompressible": _make_noise,
}
"""Zeros; a CPython program's heap; the executable segments of this machine's programs and libraries; random bytes."""


def _program_text() -> Iterator[bytes]:
    for top in ("/usr/bin", "/usr/lib"):
        for directory, _, names in sorted(os.walk(top)):
            for name in sorted(names):
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) > 65536:
                    yield from _executable_segments(path)


def _executable_segments(path: str) -> Iterator[bytes]:
    """Yield what a 64-bit ELF file of this machine's byte order maps as executable; nothing for any other file (elf(5))."""
    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:5] != b"\x7fELF\x02" or head[5] != (1 if sys.byteorder == "little" else 2):
            return
        offset, size, count = struct.unpack_from("=Q", head, 32)[0], *struct.unpack_from("=HH", head, 54)
        for index in range(count):
            file.seek(offset + index * size)
            kind, flags, start, _, _, length = struct.unpack("=IIQQQQ", file.read(40))
            if kind == 1 and flags & _EXECUTABLE:
                file.seek(start)
                yield file.read(length)

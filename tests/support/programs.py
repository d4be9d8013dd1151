"""Programs that are identified: small ELF files with sections by keyword, and real ones from the machine's own compiler."""

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

BUILD_ID: Final = bytes(range(20))
SHT_PROGBITS: Final = 1
SHT_STRTAB: Final = 3
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
_ET_EXEC: Final = 2
_MACHINE: Final = 62


class Section(NamedTuple):
    """One section."""

    name: bytes
    content: bytes
    kind: int = SHT_PROGBITS
    offset: int | None = None
    """Where its header says that it is; None is the truth."""
    size: int | None = None


def write_program(
    sections: Sequence[Section], *, bits: int = 64, order: str = "<", extended_numbering: bool = False, **header: int
) -> bytes:
    """Return a program of these sections, with their names behind them and the table of headers at the end.

    *extended_numbering* puts the number of sections, and that of their names, into section 0, as where there are 65,280 or more.
    *header* overrides fields of the ELF header: shoff, shentsize, shnum, shstrndx.
    """
    ehsize, shentsize = (64, 64) if bits == 64 else (52, 40)
    names, data = b"\0", b""
    # Name, kind, offset, size and link of each.
    entries = [(0, 0, 0, 0, 0)]
    for section in sections:
        offset = ehsize + len(data) if section.offset is None else section.offset
        entries.append((len(names), section.kind, offset, len(section.content) if section.size is None else section.size, 0))
        names += section.name + b"\0"
        data += section.content + bytes(-len(section.content) % 8)
    entries.append((len(names), SHT_STRTAB, ehsize + len(data), len(names) + 10, 0))
    names += b".shstrtab\0"
    data += names + bytes(-len(names) % 8)
    if extended_numbering:
        entries[0] = (0, 0, 0, len(entries), len(entries) - 1)
    layout = f"{order}IIQQQQIIQQ" if bits == 64 else f"{order}IIIIIIIIII"
    table = b"".join(struct.pack(layout, *entry[:2], 0, 0, *entry[2:], 0, 1, 0) for entry in entries)
    fields = {
        "shoff": ehsize + len(data),
        "shentsize": shentsize,
        "shnum": 0 if extended_numbering else len(entries),
        "shstrndx": 0xFFFF if extended_numbering else len(entries) - 1,
    } | header
    word = "Q" if bits == 64 else "I"
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    rest = struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        _ET_EXEC, _MACHINE, 1, 0, 0, fields["shoff"], 0, ehsize, 56 if bits == 64 else 32, 0, fields["shentsize"], fields["shnum"],
        fields["shstrndx"],
    )  # fmt: skip
    return ident + rest + data + table


def build_id_note(build_id: bytes = BUILD_ID, *, order: str = "<", owner: bytes = b"GNU\0", kind: int = 3) -> bytes:
    """Return the note that a linker writes."""
    return struct.pack(f"{order}III", len(owner), len(build_id), kind) + owner + build_id + bytes(-len(build_id) % 4)


def program_file(directory: Path, name: str, build_id: bytes | None = BUILD_ID, uuid: bytes | None = None) -> Path:
    """Write a made-up program with a build-id, a stamp, both or neither."""
    sections = [Section(b".note.gnu.build-id", build_id_note(build_id), 7)] if build_id is not None else []
    sections += [Section(b".uuid", uuid)] if uuid is not None else []
    path = directory / name
    path.write_bytes(write_program(sections))
    return path


def compile_program(source: Path, output: Path, *options: str) -> Path:
    """Compile and link *source*; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-g", "-O1", "-pthread", *options, "-o", str(output), str(source)], check=True)
    return output


def needed(program: str) -> str:
    """Return the path of a program that the test needs; skips the test where it is missing."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found

"""Small ELF cores from keyword arguments: either class, either byte order, any segments, and headers that lie."""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

PT_LOAD: Final = 1
PT_NOTE: Final = 4
PN_XNUM: Final = 0xFFFF
ET_CORE: Final = 4
_PAGE: Final = 4096


class Segment(NamedTuple):
    """One program header and its content."""

    content: bytes = b""
    kind: int = PT_LOAD
    address: int = 0x400000
    offset: int | None = None
    """Where the header says that it is; None puts it behind the one before."""
    filesz: int | None = None
    """How long the header says that it is; None is the truth."""


def write_core(
    segments: Sequence[Segment] = (Segment(b"note" * 8, PT_NOTE), Segment(b"data" * 2000)),
    *,
    bits: int = 64,
    order: str = "<",
    kind: int = ET_CORE,
    extended_numbering: bool = False,
    **header: int,
) -> bytes:
    """Return a core as the kernel writes it: ELF header, program headers, then the segments, loads on page borders.

    *extended_numbering* writes PN_XNUM and one section header behind the data. *header* overrides fields of the ELF header by their
    names without the prefix (phoff, shoff, phentsize, phnum, shentsize), after everything else was laid out.
    """
    ehsize, phentsize, shentsize = (64, 56, 64) if bits == 64 else (52, 32, 40)
    at = ehsize + phentsize * len(segments)
    table, data = bytearray(), bytearray()
    for segment in segments:
        gap = -at % _PAGE if segment.kind == PT_LOAD else 0
        data += bytes(gap) + segment.content
        at += gap
        offset = at if segment.offset is None else segment.offset
        filesz = len(segment.content) if segment.filesz is None else segment.filesz
        at += len(segment.content)
        if bits == 64:
            table += struct.pack(f"{order}IIQQQQQQ", segment.kind, 6, offset, segment.address, 0, filesz, filesz, _PAGE)
        else:
            table += struct.pack(f"{order}IIIIIIII", segment.kind, offset, segment.address, 0, filesz, filesz, 6, _PAGE)
    fields = {
        "phoff": ehsize,
        "shoff": at if extended_numbering else 0,
        "phentsize": phentsize,
        "phnum": PN_XNUM if extended_numbering else len(segments),
        "shentsize": shentsize if extended_numbering else 0,
    } | header
    section = bytes(shentsize) if extended_numbering else b""
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    rest = struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        kind,
        62,
        1,
        0,
        fields["phoff"],
        fields["shoff"],
        0,
        ehsize,
        fields["phentsize"],
        fields["phnum"],
        fields["shentsize"],
        1 if extended_numbering else 0,
        0,
    )
    return b"".join([ident, rest, table, data, section])

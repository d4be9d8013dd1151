"""ELF headers and notes of a hostile file: what a core and a mapped executable have in common.

Everything is read through ``read_at``, and every count, length and offset is the attacker's: tables are walked in bounded steps and
never kept whole, and whatever lies outside the file, or in a damaged part of it, reads as if the file ended there. pyelftools
parses the headers; tables of up to a million entries are unpacked here, because its parser takes 40 µs for each entry (measured)
and its walk over notes allocates what a note says of itself.
"""

import struct
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple, cast

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from securecore import limits
from securecore.elfid import ReadAt
from securecore.errors import BrokenError

PT_LOAD: Final = 1
PT_NOTE: Final = 4

MAX_SEGMENTS: Final = 1 << 20
"""Program headers that are looked at: a process has at most vm.max_map_count mappings, which distributions set as high as this."""
MAX_NOTES: Final = 1 << 20
"""Notes that are walked: the kernel writes two to six for each thread."""

_PN_XNUM: Final = 0xFFFF
_NOTE_HEADER: Final = 12
_OWNER_MAX: Final = 16
"""Bytes of a note's owner that are looked at; the ones that matter are CORE, LINUX and GNU."""
_TABLE_STEP: Final = 1 << 14
"""Program headers that are read at once: less than 1 MiB."""


class Stream:
    """The file object that pyelftools wants, over *read_at*: no read is longer than asked for, or than a piece."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._read_at = read_at
        self.size = size
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to *offset*, from the beginning or (2) from the end."""
        self._position = offset + (self.size if whence == 2 else 0)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, length: int) -> bytes:
        """Return up to *length* bytes and move behind them; short at the end of the file and where it is damaged."""
        data = self.at(self._position, length)
        self._position += len(data)
        return data

    def at(self, offset: int, length: int, maximum: int = limits.PIECE_BYTES) -> bytes:
        """Return up to *length* bytes, at most *maximum*, from *offset*; short at the end and where the file is damaged."""
        length = min(length, maximum, self.size - offset)
        if offset < 0 or length <= 0:
            return b""
        try:
            return self._read_at(offset, length)
        except BrokenError:
            return b""


class Segment(NamedTuple):
    """A program header, as far as it is needed; every number is what the file says."""

    kind: int
    offset: int
    address: int
    size: int
    """Bytes in the file."""


class Note(NamedTuple):
    """A note's place; its content is read by whoever knows how much of it is sensible."""

    owner: bytes
    kind: int
    offset: int
    """Of the content."""
    size: int
    """Of the content, within the file."""


class Image(NamedTuple):
    """An ELF file whose header has been parsed."""

    stream: Stream
    order: str
    """``<`` or ``>``, for struct."""
    is_wide: bool
    """64-bit."""
    kind: str | int
    """ET_CORE and so on; a number when it has no name."""
    machine: str | int
    """EM_X86_64 and so on; a number when it has no name."""
    table: int
    """Offset of the program headers."""
    segments: int
    """How many of them are looked at, at most MAX_SEGMENTS."""
    structs: Any
    """pyelftools' ELFStructs for this class, byte order and machine."""

    @property
    def word(self) -> str:
        """The struct letter of an address."""
        return "Q" if self.is_wide else "I"

    @property
    def word_bytes(self) -> int:
        """Bytes of an address."""
        return 8 if self.is_wide else 4

    def parse(self, structure: Any, offset: int) -> Any:
        """Return one of *structs* from *offset* of the file; raises BrokenError when it is cut off."""
        try:
            return struct_parse(structure, cast(IO[bytes], self.stream), offset)
        except ELFError as error:
            raise BrokenError("a structure in the core is cut off") from error

    def unpack(self, letters: str, data: bytes, offset: int = 0) -> tuple[int, ...]:
        """Return the integers at *offset* of *data*, in the file's byte order; raises BrokenError when *data* is too short."""
        try:
            return struct.unpack_from(self.order + letters, data, offset)
        except struct.error as error:
            raise BrokenError("a structure in the core is cut off") from error


def open_image(read_at: ReadAt, size: int) -> Image:
    """Return the ELF file of *size* bytes behind *read_at*; raises BrokenError when it has no header that makes sense."""
    stream = Stream(read_at, size)
    file = cast(IO[bytes], stream)
    try:
        elf = ELFFile(file)
        header = elf.header
        count = header["e_phnum"]
        if count == _PN_XNUM:
            count = struct_parse(elf.structs.Elf_Shdr, file, header["e_shoff"])["sh_info"]
    except ELFError as error:
        raise BrokenError("not an ELF file, or its header is cut off") from error
    if header["e_phentsize"] != elf.structs.Elf_Phdr.sizeof():
        raise BrokenError(f"program headers of {header['e_phentsize']} bytes")
    return Image(
        stream=stream,
        order="<" if elf.little_endian else ">",
        is_wide=elf.elfclass == 64,
        kind=header["e_type"],
        machine=header["e_machine"],
        table=header["e_phoff"],
        segments=min(count, MAX_SEGMENTS),
        structs=elf.structs,
    )


def iter_segments(image: Image) -> Iterator[Segment]:
    """Yield the program headers that are there, in the order of the file."""
    layout = struct.Struct(image.order + ("IIQQQQQQ" if image.is_wide else "IIIIIIII"))
    for first in range(0, image.segments, _TABLE_STEP):
        wanted = min(_TABLE_STEP, image.segments - first) * layout.size
        data = image.stream.at(image.table + first * layout.size, wanted)
        for fields in layout.iter_unpack(data[: len(data) // layout.size * layout.size]):
            if image.is_wide:
                kind, _flags, offset, address, _physical, size = fields[:6]
            else:
                kind, offset, address, _physical, size = fields[:5]
            yield Segment(kind, offset, address, size)
        if len(data) < wanted:
            return


def iter_notes(image: Image, segment: Segment) -> Iterator[Note | None]:
    """Yield the notes of a PT_NOTE segment, then None if it was cut off: by the end of the file, damage, or MAX_NOTES.

    Layout: words of 4 bytes in either class (owner's length, content's length, type), owner and content each padded to 4 bytes.
    Source: the System V gABI, chapter 5, note section; Linux fs/binfmt_elf.c writenote().
    """
    at, end = segment.offset, segment.offset + segment.size
    for _ in range(MAX_NOTES):
        if end - at < _NOTE_HEADER:
            return
        head = image.stream.at(at, _NOTE_HEADER + _OWNER_MAX)
        if len(head) < _NOTE_HEADER:
            break
        owner_bytes, size, kind = image.unpack("III", head)
        content = at + _NOTE_HEADER + (owner_bytes + 3 & ~3)
        if content + size > min(end, image.stream.size):
            break
        owner = head[_NOTE_HEADER : _NOTE_HEADER + min(owner_bytes, _OWNER_MAX)].rstrip(b"\0")
        yield Note(owner, kind, content, size)
        at = content + (size + 3 & ~3)
    yield None

"""What names an ELF file: its build-id, its ``.uuid`` section, its debuglink. A bounded look at headers, without a library.

The crash handler has a child look at the crashed program with this, and the analyser at what a person names, so every number here
is the attacker's: tables are read up to a bound, and whatever lies outside the file reads as absent.
Source: the System V gABI (headers, sections, notes); ld(1) --build-id; objcopy(1) --add-gnu-debuglink.
"""

import struct

from securecore import limits
from securecore.declarations import Callable, Final, Iterator, NamedTuple
from securecore.errors import BrokenError

ReadAt = Callable[[int, int], bytes]
"""Returns up to so many bytes (second) from an offset (first); fewer only at the end. May raise BrokenError where it is damaged."""

UUID_SECTION: Final = ".uuid"

_PT_NOTE: Final = 4
_SHT_NOTE: Final = 7
_SHT_NOBITS: Final = 8
_NT_GNU_BUILD_ID: Final = 3
_SHN_XINDEX: Final = 0xFFFF
_HEADER_BYTES: Final = 64
_MAX_SEGMENTS: Final = 128
"""Program headers that are looked at; linkers write about a dozen."""
_MAX_SECTIONS: Final = 8192
"""Sections that are looked at: linkers write about 40 into a program, a compiler one for each function into an object file."""
_MAX_NAMES_BYTES: Final = limits.MIB
"""Of the table of section names; a program's has some 400 bytes."""
_MAX_NOTES_BYTES: Final = 64 * limits.KIB
"""Of one area of notes; a program's have some hundred bytes, those of a kernel some KiB."""
_MAX_NOTES: Final = 1024
_BUILD_ID_BYTES: Final = range(4, 65)
"""Lengths of a build-id: 20 for SHA-1, the linkers' default; up to a 64-byte hash given by hand."""
_MAX_UUID_BYTES: Final = 256
"""A ``.uuid`` section: 16 bytes, or a line of text; what is longer names nothing."""
_MAX_LINK_BYTES: Final = 4096
"""A debuglink holds a file name (NAME_MAX is 255), padding and four bytes."""


class ProgramIds(NamedTuple):
    """What names a program; each is None where the file has none."""

    build_id: str | None = None
    """Hexadecimal. Two files with the same one were made by the same run of the linker, stripped or not."""
    uuid: str | None = None
    """The ``.uuid`` section, as ``uuid_text`` writes it."""
    debuglink: str | None = None
    """The name of the file that has the debugging symbols."""
    debuglink_crc32: str | None = None
    """That file's checksum, eight hexadecimal digits."""


class _Header(NamedTuple):
    order: str
    is_wide: bool
    segments: tuple[int, int, int]
    """Offset, entry size, count."""
    sections: tuple[int, int, int]
    names: int
    """The number of the section that holds the sections' names."""


class _Section(NamedTuple):
    name: int
    kind: int
    offset: int
    size: int
    link: int


def identify(read_at: ReadAt, size: int) -> ProgramIds:
    """Return what names the ELF file of *size* bytes behind *read_at*, of either class and byte order.

    The build-id is looked for in sections of notes, then in segments of them: an object file has no segments, what is mapped into a
    process no sections. Raises BrokenError when there is no ELF header. Not checked: that any of it is true.
    """

    def read(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        try:
            return read_at(offset, length) if offset >= 0 and length > 0 else b""
        except BrokenError:
            return b""

    header = _parse_header(read(0, _HEADER_BYTES))
    sections = _sections(read, header)
    named = _by_name(read, header, sections)
    uuid = named.get(UUID_SECTION.encode())
    link = named.get(b".gnu_debuglink")
    name, checksum = _debuglink(header, read(link.offset, min(link.size, _MAX_LINK_BYTES))) if link else (None, None)
    return ProgramIds(
        build_id=_find_build_id(read, header, sections),
        uuid=uuid_text(read(uuid.offset, uuid.size)) if uuid and uuid.size <= _MAX_UUID_BYTES else None,
        debuglink=name,
        debuglink_crc32=checksum,
    )


def find_image_end(read_at: ReadAt, size: int) -> int:
    """Return where ends what the tables of the ELF file of *size* bytes behind *read_at* speak of: headers, sections, segments.

    What a file has from there on no ELF tool knows of. Raises BrokenError when there is no ELF header. Not for cores with 65,535
    program headers and more, whose number stands elsewhere.
    """

    def read(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return read_at(offset, length) if length > 0 else b""

    header = _parse_header(read(0, _HEADER_BYTES))
    segments = struct.Struct(header.order + ("IIQQQQQQ" if header.is_wide else "IIIIIIII"))
    ends = [header.segments[0] + segments.size * header.segments[2]]
    for entry in _table(read, segments, header.segments[0], header.segments[2]):
        offset, length = (entry[2], entry[5]) if header.is_wide else (entry[1], entry[4])
        ends.append(offset + length)
    sections = struct.Struct(header.order + ("IIQQQQIIQQ" if header.is_wide else "IIIIIIIIII"))
    at, _, count = header.sections
    if at and count == 0:
        first = _table(read, sections, at, 1)
        count = first[0][5] if first else 0
    ends.append(at + sections.size * count)
    ends += [entry[4] + entry[5] for entry in _table(read, sections, at, count) if entry[1] != _SHT_NOBITS]
    return max(_HEADER_BYTES if header.is_wide else 52, *ends)


def uuid_text(content: bytes) -> str | None:
    """Return the content of a ``.uuid`` section as text: itself when it is printable, 16 bytes in the form of RFC 9562, else hex.

    NULs and white space around a text do not count. None when nothing is left.
    """
    try:
        text = content.decode("ascii").strip("\0 \t\r\n")
    except UnicodeDecodeError:
        text = "\0"
    if text.isprintable():
        return text or None
    digits = content.hex()
    if len(content) == 16:
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return digits


def _parse_header(data: bytes) -> _Header:
    if data[:4] != b"\x7fELF" or len(data) < 52 or data[4] not in (1, 2) or data[5] not in (1, 2):
        raise BrokenError("not an ELF file, or its header is cut off")
    order, is_wide = "<" if data[5] == 1 else ">", data[4] == 2
    try:
        phoff, shoff, _flags, _ehsize, phentsize, phnum, shentsize, shnum, names = struct.unpack_from(
            f"{order}{'QQ' if is_wide else 'II'}IHHHHHH", data, 32 if is_wide else 28
        )
    except struct.error as error:
        raise BrokenError("not an ELF file, or its header is cut off") from error
    return _Header(order, is_wide, (phoff, phentsize, phnum), (shoff, shentsize, shnum), names)


def _sections(read: ReadAt, header: _Header) -> list[_Section]:
    """Return the section headers, up to a bound; where there are too many for the ELF header, section 0 has their number."""
    layout = struct.Struct(header.order + ("IIQQQQIIQQ" if header.is_wide else "IIIIIIIIII"))
    offset, entry_bytes, count = header.sections
    if not offset or entry_bytes != layout.size:
        return []
    if count == 0:
        first = _table(read, layout, offset, 1)
        count = first[0][5] if first else 0
    entries = _table(read, layout, offset, min(count, _MAX_SECTIONS))
    return [_Section(name, kind, at, size, link) for name, kind, _flags, _address, at, size, link, *_ in entries]


def _table(read: ReadAt, layout: struct.Struct, offset: int, count: int) -> list[tuple[int, ...]]:
    data = read(offset, count * layout.size)
    return list(layout.iter_unpack(data[: len(data) // layout.size * layout.size]))


def _by_name(read: ReadAt, header: _Header, sections: list[_Section]) -> dict[bytes, _Section]:
    """Return the sections that have content, by name; the first of a name counts."""
    index = sections[0].link if header.names == _SHN_XINDEX and sections else header.names
    if index >= len(sections):
        return {}
    names = read(sections[index].offset, min(sections[index].size, _MAX_NAMES_BYTES))
    found: dict[bytes, _Section] = {}
    for section in sections:
        if section.kind != _SHT_NOBITS and section.name < len(names):
            # Longer ones are none that is looked for.
            found.setdefault(names[section.name : section.name + 32].partition(b"\0")[0], section)
    return found


def _find_build_id(read: ReadAt, header: _Header, sections: list[_Section]) -> str | None:
    areas = [(section.offset, section.size) for section in sections if section.kind == _SHT_NOTE]
    for offset, size in [*areas[:_MAX_SEGMENTS], *_note_segments(read, header)]:
        area = read(offset, min(size, _MAX_NOTES_BYTES))
        for owner, kind, content in _notes(area, header.order):
            if (owner, kind) == (b"GNU\0", _NT_GNU_BUILD_ID) and len(content) in _BUILD_ID_BYTES:
                return content.hex()
    return None


def _note_segments(read: ReadAt, header: _Header) -> Iterator[tuple[int, int]]:
    layout = struct.Struct(header.order + ("IIQQQQQQ" if header.is_wide else "IIIIIIII"))
    offset, entry_bytes, count = header.segments
    if entry_bytes == layout.size:
        for entry in _table(read, layout, offset, min(count, _MAX_SEGMENTS)):
            if entry[0] == _PT_NOTE:
                yield (entry[2], entry[5]) if header.is_wide else (entry[1], entry[4])


def _notes(area: bytes, order: str) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield owner, type and content of the notes that are whole: words of 4 bytes, owner and content each padded to 4."""
    at, head = 0, struct.Struct(f"{order}III")
    for _ in range(_MAX_NOTES):
        if len(area) - at < head.size:
            return
        owner_bytes, size, kind = head.unpack_from(area, at)
        owner_at = at + head.size
        content_at = owner_at + (owner_bytes + 3 & ~3)
        if content_at + size > len(area):
            return
        yield area[owner_at : owner_at + owner_bytes], kind, area[content_at : content_at + size]
        at = content_at + (size + 3 & ~3)


def _debuglink(header: _Header, content: bytes) -> tuple[str | None, str | None]:
    """Return name and checksum: the name, a NUL, padding to 4 bytes, and the CRC-32 in the file's byte order."""
    name, terminator, _ = content.partition(b"\0")
    checksum_at = len(name) + 4 & ~3
    if not name or not terminator or len(content) < checksum_at + 4:
        return None, None
    (checksum,) = struct.unpack_from(f"{header.order}I", content, checksum_at)
    return name.decode("utf-8", "backslashreplace"), f"{checksum:08x}"

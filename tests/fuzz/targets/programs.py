"""Local mode, and pairing cores with programs: what names an ELF file, compressed files of others, options in core_pattern."""

import gzip
import os
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Final

import zstandard

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.deflate import gzip_packing, zlib_packing
from securecore.dump.unpacking import Source, unpack
from securecore.elfid import ProgramIds, identify
from securecore.errors import BrokenError, ConfigError
from securecore.sender.local_mode import LocalMode, parse_local_mode
from tests.fuzz.target import Target, check_words
from tests.support.elf import PT_NOTE, Segment, write_core
from tests.support.programs import SHT_NOTE, Section, build_id_note, write_program

_UNPACKED_BYTES: Final = 4 * limits.MIB
"""Where a check stops: what some kilobytes may stand for is bounded by time alone."""


def check_program(data: bytes) -> None:
    """A file that is no ELF file is refused; what names another stands in it, and few and small reads find it."""
    reads, volume = 0, 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal reads, volume
        reads, volume = reads + 1, volume + length
        assert 0 <= offset < offset + length <= len(data)
        return data[offset : offset + length]

    try:
        ids = identify(read_at, len(data))
    except BrokenError as error:
        check_words(error)
        return
    finally:
        # Tables and names once, two names of a section, and at most 128 areas of notes of each kind.
        assert reads <= 8 + 2 * 128
        assert volume <= 8 * len(data) + 2 * 128 * min(len(data), 64 * limits.KIB)
    _check_ids(ids, data)


def _check_ids(ids: ProgramIds, data: bytes) -> None:
    if ids.build_id is not None:
        assert 4 <= len(bytes.fromhex(ids.build_id)) <= 64
        assert bytes.fromhex(ids.build_id) in data
    if ids.uuid is not None:
        assert ids.uuid.isascii()
        assert ids.uuid.isprintable()
        assert len(ids.uuid) <= 512
        assert ids.uuid.encode() in data or bytes.fromhex(ids.uuid.replace("-", "")) in data
    assert (ids.debuglink is None) == (ids.debuglink_crc32 is None)


def program_seeds() -> Iterator[bytes]:
    """Programs of either class and byte order with everything that names them, and one without sections."""
    for bits in (32, 64):
        for order in "<>":
            sections = [
                Section(b".note.gnu.build-id", build_id_note(order=order), SHT_NOTE),
                Section(b".uuid", b"build-77\n"),
                Section(b".gnu_debuglink", b"app.debug\0\0\0abcd"),
            ]
            yield write_program(sections, bits=bits, order=order)
            yield write_core([Segment(build_id_note(order=order), PT_NOTE)], bits=bits, order=order, kind=3)
    yield write_program([Section(b".uuid", bytes(range(0xF0, 0x100)))], extended_numbering=True)


def check_unpacking(data: bytes) -> None:
    """A compressed file is broken, or it is what Python's gzip and zlib, or zstd itself, make of all of it."""
    offset = 0

    def read(length: int) -> bytes:
        nonlocal offset
        part = data[offset : offset + length]
        offset += len(part)
        return part

    found = bytearray()
    try:
        unpacked = unpack(Source(read))
        for part in unpacked.plaintext:
            assert 1 <= len(part) <= limits.PIECE_BYTES
            found += part
            if len(found) > _UNPACKED_BYTES:
                return
    except BrokenError as error:
        check_words(error)
        return
    if unpacked.kind == "gz":
        assert gzip.decompress(data) == found
    elif unpacked.kind == "zlib":
        assert zlib.decompress(data) == found
    else:
        with zstandard.ZstdDecompressor().stream_reader(BytesIO(data), read_across_frames=True) as reader:
            assert reader.read() == found


def unpacking_seeds() -> Iterator[bytes]:
    """Files of ours and of other programs: one member or frame and several, with and without checksums, skippable frames."""
    plain = b"core " * 300
    for packing in (gzip_packing(1), zlib_packing(6)):
        frame = packing.make_encoder().frame(plain)
        packing.observe(memoryview(plain))
        packing.add(len(frame), len(plain))
        yield packing.header + frame + packing.trailer()
    yield gzip.compress(plain, mtime=0) + gzip.compress(b"")
    yield zlib.compress(plain)
    frame = bytes(Compressor().frame(plain))
    yield frame + seek_table([FrameEntry(len(frame), len(plain))])
    for size, checksum in ((False, True), (True, False), (False, False)):
        yield zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum).compress(plain)
    yield b"\x5a\x2a\x4d\x18\x03\0\0\0abc" + frame


def check_local_options(data: bytes) -> None:
    """Options before the kernel's numbers are refused, or they are a mode that says the same when it is written again."""
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    try:
        mode, rest = parse_local_mode(words)
    except ConfigError as error:
        check_words(error)
        return
    if mode is None:
        assert list(rest) == words
        return
    assert os.path.isabs(mode.directory)
    assert ".." not in mode.directory.split("/")
    assert parse_local_mode([*mode.arguments(), *rest]) == (mode, list(rest))


def local_option_seeds() -> Iterator[bytes]:
    """What core_pattern says."""
    modes = [LocalMode("/var/lib/securecore/cores"), LocalMode("/cores", "gz", 9, 10), LocalMode("/c", "zlib", 1, None)]
    for mode in modes:
        yield b"\0".join(os.fsencode(word) for word in [*mode.arguments(), "4711", "4713", "33"])
    yield b"4711\x004713"


PROGRAM = Target(check_program, program_seeds, ("elfid.identify", "elfid.uuid_text"))
UNPACKING = Target(check_unpacking, unpacking_seeds, ("dump.unpacking.unpack",))
LOCAL_OPTIONS = Target(check_local_options, local_option_seeds, ("sender.local_mode.parse_local_mode",))

"""A dump's bytes: frames, the container around them, the manifest."""

import json
from collections.abc import Iterator
from zlib import crc32

import pytest
import zstandard

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.dump.container import FrameEntry, seek_table, seek_table_bytes
from securecore.dump.frames import FrameCut, FrameRefused, check_frame, is_torn_frame, walk_frame, zero_frame
from securecore.dump.manifest import OUTCOMES, Manifest, parse_manifest
from securecore.dump.reader import DumpReader, open_container, open_frames
from securecore.errors import BrokenError
from tests.fuzz.files import file_of
from tests.fuzz.target import Target
from tests.support.dumps import NOW, WEB, dump_id
from tests.support.wire import STORE

_CHECKSUM_FLAG = 0x04
_PIECES_READ = 4
"""Pieces of a container that are decompressed for each input; a few tens of bytes can stand for a mebibyte."""


def check_frame_bytes(data: bytes) -> None:
    """What check_frame takes is one frame to zstd too, and stands for exactly the length that it declares, or for nothing."""
    try:
        length = check_frame(data)
    except FrameRefused:
        with pytest.raises((FrameRefused, BrokenError)):
            Decompressor().piece(data)
        return
    assert 1 <= length <= limits.PIECE_BYTES
    assert walk_frame(b"<" + data + b">", 1) == (length, 1 + len(data))
    beginning = data[: crc32(data) % len(data)]
    with pytest.raises(FrameCut):
        walk_frame(beginning, 0)
    assert is_torn_frame(beginning)
    assert not is_torn_frame(data)
    parameters = zstandard.get_frame_parameters(data)
    assert (parameters.content_size, parameters.dict_id) == (length, 0)
    assert parameters.window_size <= 8 * limits.MIB
    assert parameters.has_checksum or data == zero_frame(length)
    if parameters.has_checksum:
        # Hardly a mutated frame has a right checksum; without one, what its blocks stand for is seen.
        _check_blocks(data[:4] + bytes([data[4] ^ _CHECKSUM_FLAG]) + data[5:-4], length)
    try:
        piece = Decompressor().piece(data)
    except BrokenError:
        return
    assert len(piece) == length
    frame = Compressor().frame(piece)
    assert (check_frame(frame), Decompressor().piece(frame)) == (length, piece)


def _check_blocks(bare: bytes, length: int) -> None:
    """zstd makes exactly *length* bytes of the blocks, or refuses them."""
    try:
        piece = zstandard.ZstdDecompressor().decompress(bare, max_output_size=length)
    except zstandard.ZstdError:
        return
    assert len(piece) == length


def frame_seeds() -> Iterator[bytes]:
    """Frames of every form that zstd writes: raw, RLE and compressed blocks, one and several, content sizes of 1, 2 and 4 bytes."""
    noise = bytes(crc32(bytes([number])) >> 16 & 0xFF for number in range(250))
    pieces = [b"x", b"core " * 40, b"ab" * 300, noise, noise * 2, b"A" * 200_000, b"B" * limits.PIECE_BYTES, noise * 800]
    for level in (1, 3, 19):
        yield from (bytes(Compressor(level).frame(piece)) for piece in pieces)
    yield from (zero_frame(length) for length in (1, 2, 255, 256, 128 * 1024, 128 * 1024 + 2, limits.PIECE_BYTES))
    for size, checksum in ((False, True), (True, False), (False, False)):
        yield zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum).compress(b"another's frame")


def check_container_bytes(data: bytes) -> None:
    """Walk and seek table lead only to whole frames, and everything read is what those frames stand for."""
    fd = file_of(data)
    walked, end = open_frames(fd)
    at = 0
    for entry in walked.entries:
        assert walk_frame(data, at) == (entry.plain, at + entry.stored)
        at += entry.stored
    assert at == end <= len(data)
    rewritten = data[:end] + seek_table(walked.entries)
    assert open_container(file_of(rewritten, "rewritten")).entries == walked.entries
    try:
        reader = open_container(fd)
    except BrokenError:
        return
    entries = reader.entries
    assert sum(entry.stored for entry in entries) + seek_table_bytes(len(entries)) == len(data)
    assert reader.size == sum(entry.plain for entry in entries)
    at = 0
    for index, entry in enumerate(entries[:_PIECES_READ]):
        assert reader.frame(index) == data[at : at + entry.stored]
        at += entry.stored
        _check_piece(reader, index)


def _check_piece(reader: DumpReader, index: int) -> None:
    """A piece has the length that the table says, and reading within it gives a part of it."""
    try:
        piece = reader.piece(index)
    except BrokenError:
        return
    assert len(piece) == reader.entries[index].plain
    skip = len(piece) // 3
    assert reader.read_at(index * limits.PIECE_BYTES + skip, len(piece) - skip) == piece[skip:]


def container_seeds() -> Iterator[bytes]:
    """Containers of none to four pieces, and what a cut connection leaves."""
    frames = [bytes(Compressor().frame(piece * limits.PIECE_BYTES)) for piece in (b"a", b"\0", b"b")]
    last = bytes(Compressor().frame(b"the end"))
    entries = [FrameEntry(len(frame), limits.PIECE_BYTES) for frame in frames] + [FrameEntry(len(last), 7)]
    for count in (0, 1, 3, 4):
        yield b"".join([*frames, last][:count]) + seek_table(entries[:count])
    yield b"".join([*frames, last])
    yield b"".join(frames)[:-5]
    yield last + seek_table(entries[3:])


def check_manifest(data: bytes) -> None:
    """A payload is refused, or it is the one encoding of values within their bounds."""
    try:
        manifest = parse_manifest(data)
    except BrokenError:
        return
    assert manifest.encode() == data
    numbers = [manifest.size, manifest.frames, manifest.started_at, manifest.ended_at, manifest.predicted_size or 0]
    assert all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
    assert manifest.outcome in OUTCOMES
    assert len(manifest.root) == len(manifest.report_sha256) == 32
    assert len(manifest.sender) <= limits.MAX_WORDS
    said = json.loads(data)
    assert (said["type"], said["version"]) == ("securecore/manifest", 1)
    assert (said["host"], said["dump"], said["store"]) == (str(manifest.host), str(manifest.dump), str(manifest.store))


def manifest_seeds() -> Iterator[bytes]:
    """Manifests of a complete and of a cut dump."""
    manifest = Manifest(dump_id(1), WEB, STORE, "complete", 4096, 4096, 1, bytes(32), b"\xff" * 32, 1, 2, "securecore 0.1")
    yield manifest._replace(outcome="cut", lost_frames=1).encode()
    yield manifest.encode()
    at = int(NOW.timestamp())
    cut = manifest._replace(outcome="cut", predicted_size=None, size=(1 << 63) - 1, started_at=at)
    yield cut._replace(sender='"\\\u00e9\U0001f600').encode()


FRAME = Target(
    check_frame_bytes,
    frame_seeds,
    ("dump.frames.check_frame", "dump.frames.walk_frame", "dump.frames.is_torn_frame", "dump.compression.Decompressor.piece"),
)
CONTAINER = Target(
    check_container_bytes,
    container_seeds,
    ("dump.container.footer_frames", "dump.container.parse_seek_table", "dump.reader.open_container", "dump.reader.open_frames",
     "dump.reader.DumpReader.decode",
     "dump.reader.scan_frames", "dump.reader.DumpReader.read_at"),
)  # fmt: skip
MANIFEST = Target(check_manifest, manifest_seeds, ("dump.manifest.parse_manifest",), is_json=True)

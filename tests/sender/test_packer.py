"""A local file in the making, where there is no memory for it, or no thread."""

import os
import threading
from hashlib import sha256
from typing import Final

import pytest

from securecore import limits
from securecore.dump.packing import PieceEncoder, make_packing
from securecore.errors import StorageError
from securecore.sender import packer
from securecore.sender.packer import Packed, Packer
from securecore.sender.pump import Frame
from tests.support.elf import Segment, write_core
from tests.support.local_files import KINDS, noise, unpack_bytes

CORE: Final = write_core([Segment(noise(2 * limits.MIB)), Segment(bytes(3 * limits.MIB)), Segment(noise(100_000))])


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody has used up all processes."""

    def refuse(thread: threading.Thread) -> None:
        raise StorageError("a thread could not be started")

    monkeypatch.setattr(packer, "start", refuse)


def pack(
    kind: str, core: bytes, written: bytearray, head: bytes = b"", fails_at: int | None = None, why: BaseException | None = None
) -> Packed:
    """Pack *core*, of which *head* was read before; the write with the number *fails_at* raises *why*."""
    reading, writing = os.pipe()
    writes = 0

    def feed() -> None:
        try:
            os.write(writing, core[len(head) :])
        except BrokenPipeError:
            pass
        os.close(writing)

    def write(data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes - 1 == fails_at and why is not None:
            raise why
        written.extend(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    packed = Packer(make_packing(kind, None), write).pack(reading, head, lambda: None)
    feeder.join(60)
    assert not feeder.is_alive()
    return packed


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("head", [0, 5000, 3 * limits.MIB])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_thread_the_file_is_the_same(kind: str, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, with whatever of the source was read before: the caller's thread does all of it."""
    alone, usual = bytearray(), bytearray()
    packed = pack(kind, CORE, alone, CORE[:head])
    monkeypatch.undo()
    expected = pack(kind, CORE, usual)

    assert packed == expected
    assert (packed.failure, packed.end.size, packed.end.predicted_size) == (None, len(CORE), len(CORE))
    assert alone == usual
    assert unpack_bytes(bytes(alone)) == CORE


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("why", [StorageError("the disk is full"), MemoryError()], ids=["disk", "memory"])
@pytest.mark.parametrize("number", range(3))
def test_without_a_thread_a_write_that_is_refused_lets_the_source_go_and_is_told(number: int, why: BaseException) -> None:
    """The header's too, which is written with the first frame: the source is read no further, and closed."""
    packed = pack("zst", CORE, bytearray(), fails_at=number, why=why)

    assert isinstance(packed.failure, StorageError)
    assert packed.end.size <= max(1, number) * limits.PIECE_BYTES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", ["some", "none"])
def test_a_file_whose_rest_is_refused_has_an_end(threads: str, kind: str, request: pytest.FixtureRequest) -> None:
    """What was written before is a file of its own, whatever was read meanwhile; where nothing was, there is no end either."""
    if threads == "none":
        request.getfixturevalue("no_thread")
    written, nothing = bytearray(), bytearray()
    packed = pack(kind, CORE, written, fails_at=3, why=StorageError("the disk is full"))
    refused = pack(kind, CORE, nothing, fails_at=1, why=StorageError("the disk is full"))

    assert unpack_bytes(bytes(written)) == CORE[: packed.size]
    assert (packed.size, packed.stored_bytes) == (2 * limits.PIECE_BYTES, len(written))
    assert packed.sha256 == sha256(written).digest()
    assert (refused.size, bytes(nothing)) == (0, make_packing(kind, None).header)


@pytest.mark.usefixtures("no_thread")
def test_without_a_thread_and_memory_for_a_piece_what_is_there_is_a_file_that_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trailer fits what stands before it."""
    pieces, real = [], packer.make_frame

    def make_frame(encoder: PieceEncoder, piece: memoryview) -> Frame:
        pieces.append(len(piece))
        if len(pieces) == 3:
            raise MemoryError
        return real(encoder, piece)

    monkeypatch.setattr(packer, "make_frame", make_frame)
    written = bytearray()
    packed = pack("gz", CORE, written)

    assert (packed.failure, packed.end.failure, packed.end.size) == (None, "out of memory", 2 * limits.PIECE_BYTES)
    assert unpack_bytes(bytes(written)) == CORE[: 2 * limits.PIECE_BYTES]


def test_a_write_without_memory_lets_the_source_go_and_is_told() -> None:
    """The pipe is closed before its end, and the file is no bug's fault."""
    reading, writing = os.pipe()
    refused = threading.Event()

    def write_until_refused() -> None:
        try:
            while True:
                os.write(writing, os.urandom(limits.PIECE_BYTES))
        except BrokenPipeError:
            refused.set()
        os.close(writing)

    def write(data: bytes) -> None:
        if data:
            raise MemoryError

    writer = threading.Thread(target=write_until_refused)
    writer.start()
    packed = Packer(make_packing("zst", None), write).pack(reading)
    writer.join(60)

    assert refused.is_set()
    assert isinstance(packed.failure, StorageError)
    assert packed.failure.message == "the file could not be written: out of memory"

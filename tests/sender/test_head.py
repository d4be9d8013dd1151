"""The beginning of a core that is read ahead: it tells the length, and not a byte of it is lost."""

import os
import threading

import pytest

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.sender.head import Head, read_head
from securecore.sender.pump import Pump
from tests.support.elf import Segment, write_core

CORE = write_core([Segment(bytes(range(256)) * 10)])


def head_of(data: bytes, step: int = 1 << 20) -> Head:
    """Return the head of a pipe into which *data* is written by steps, and which is closed then."""
    reading, writing = os.pipe()

    def write() -> None:
        for at in range(0, len(data), step):
            os.write(writing, data[at : at + step])
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        head = read_head(reading)
        while os.read(reading, 1 << 16):
            pass
    finally:
        thread.join()
        os.close(reading)
    return head


@pytest.mark.parametrize("step", [1, 63, 64, 65, 1 << 20])
def test_a_cores_length_is_known_from_its_headers(step: int) -> None:
    """However they arrive; what was read is the core's beginning."""
    head = head_of(CORE, step)
    assert head.predicted_size == len(CORE)
    assert CORE.startswith(head.data)


@pytest.mark.parametrize("data", [b"", b"\x7fEL", CORE[:64], b"no ELF core"], ids=["empty", "cut", "header", "other"])
def test_what_tells_no_length_has_none(data: bytes) -> None:
    """All that there was is in the head."""
    assert head_of(data) == Head(data, None)


def test_a_source_that_cannot_be_read_has_ended() -> None:
    """A directory, as a descriptor."""
    fd = os.open("/", os.O_RDONLY)
    try:
        assert read_head(fd) == Head(b"", None)
    finally:
        os.close(fd)


PIECE = limits.PIECE_BYTES


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_pump_goes_on_behind_a_head(length: int) -> None:
    """The pieces are those of the whole, wherever the head ends."""
    core = os.urandom(3 * PIECE + 77)
    rest, writing = os.pipe()
    whole = Pump(Compressor)
    reader = threading.Thread(target=lambda: whole.read(rest, core[:length]))
    reader.start()
    taker: list[bytes] = []
    taking = threading.Thread(target=lambda: taker.extend(frame.stored for frame in whole.frames()))
    taking.start()
    with os.fdopen(writing, "wb") as file:
        file.write(core[length:])
    reader.join()
    taking.join()
    os.close(rest)

    assert [len(Decompressor().piece(frame)) for frame in taker] == [PIECE] * 3 + [77]
    assert b"".join(map(bytes, map(Decompressor().piece, taker))) == core
    assert whole.end is not None
    assert whole.end.size == len(core)

"""The pump: every byte, in order, in bounded memory, whatever the source and the consumer do."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.errors import StorageError
from securecore.merkle import leaf_hash
from securecore.sender.pump import Frame, Pump
from tests.support.elf import write_core

PIECES_AHEAD = 8
"""Frames that wait to be taken; with the buffers that are being filled, all that a pump holds."""


@contextmanager
def pumping(pump: Pump, chunks: list[bytes]) -> Iterator[None]:
    """Feed *chunks* through a pipe, one write each, to a pump that reads in a thread."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(writing, view) :]
        except BrokenPipeError:
            pass
        os.close(writing)

    def read() -> None:
        try:
            pump.read(reading)
        finally:
            os.close(reading)

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def plaintext(frames: list[Frame]) -> bytes:
    """Return what *frames* stand for, checking each one's leaf and length."""
    parts = []
    for frame in frames:
        piece = Decompressor().piece(frame.stored)
        assert (frame.leaf, frame.plain) == (leaf_hash(frame.stored), len(piece))
        parts.append(piece)
    return b"".join(parts)


chunk = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 3 * limits.MIB).map(bytes),
    st.tuples(st.integers(0, 2 * limits.MIB), st.integers(0, 1 << 30)).map(lambda pair: random.Random(pair[1]).randbytes(pair[0])),
)


@given(st.lists(chunk, max_size=5))
@settings(max_examples=25, deadline=None)
def test_frames_hold_every_byte_in_order_however_it_arrives(chunks: list[bytes]) -> None:
    """Short reads, long reads, zeroes and noise: pieces are cut at every whole MiB and nowhere else."""
    whole, pump = b"".join(chunks), Pump(Compressor)
    with pumping(pump, chunks):
        frames = list(pump.frames())

    assert plaintext(frames) == whole
    assert all(frame.plain == limits.PIECE_BYTES for frame in frames[:-1])
    assert pump.end is not None
    assert (pump.end.size, pump.end.failure) == (len(whole), None)


def test_a_slow_consumer_stops_the_reading_not_the_memory() -> None:
    """With nobody to take frames the pump reads a bounded part of its source and waits."""
    read_so_far: list[int] = []
    settled = threading.Event()

    def note(size: int) -> None:
        read_so_far.append(size)
        if len(read_so_far) == PIECES_AHEAD:
            settled.set()

    pump = Pump(Compressor, note)
    with pumping(pump, [os.urandom(limits.MIB)] * 40):
        assert settled.wait(10)
        ahead = len(read_so_far)
        frames = list(pump.frames())

    assert len(frames) == 40
    assert ahead <= PIECES_AHEAD + 1


def test_an_abandoned_pump_lets_its_source_go() -> None:
    """When nothing can be kept, reading stops at the next piece: the crashed process must not wait for nothing."""
    pump = Pump(Compressor)
    with pumping(pump, [os.urandom(limits.MIB)] * 30):
        frames = pump.frames()
        next(frames)
        pump.abandon()
        rest = list(frames)

    assert len(rest) < 20
    assert pump.end is not None
    assert pump.end.size < 30 * limits.MIB


def test_a_source_that_fails_says_why_and_keeps_what_came() -> None:
    """A read error is not an end: the outcome will not be called complete."""
    pump = Pump(Compressor)
    directory = os.open("/", os.O_RDONLY)
    thread = threading.Thread(target=pump.read, args=(directory,))
    thread.start()
    frames = list(pump.frames())
    thread.join()
    os.close(directory)

    assert frames == []
    assert pump.end is not None
    assert pump.end.failure == "Is a directory"


def test_the_size_is_predicted_from_the_first_piece() -> None:
    """An ELF core tells its length before it has arrived, so that the receiver can judge it and a cut is noticed."""
    core = write_core()
    pump = Pump(Compressor)
    with pumping(pump, [core[:-10]]):
        frames = list(pump.frames())

    assert plaintext(frames) == core[:-10]
    assert pump.end is not None
    assert pump.end.predicted_size == len(core)


@pytest.mark.parametrize("error", [MemoryError(), StorageError("a piece could not be compressed: not enough memory")], ids=repr)
def test_a_machine_without_memory_does_not_hold_the_process(error: Exception) -> None:
    """No piece can be compressed: whoever takes frames is told, and once nobody wants them any more reading ends all the same."""

    class Exhausted:
        def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
            raise error

    pump = Pump(Exhausted)
    with pumping(pump, [os.urandom(limits.MIB)] * 30):
        with pytest.raises(StorageError, match="could not be compressed"):
            list(pump.frames())
        pump.abandon()
        assert list(pump.frames()) == []

    assert pump.end is not None
    assert pump.end.size < 30 * limits.MIB

"""The pump: every byte, in order, in bounded memory, whatever the source and the consumer do."""

import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.errors import StorageError
from securecore.merkle import leaf_hash
from securecore.sender import ahead
from securecore.sender import pump as pump_module
from securecore.sender.ahead import Ahead
from securecore.sender.pump import Frame, Pump
from securecore.sender.threads import ROOM_BYTES
from tests.support.elf import write_core
from tests.support.kernel import wait_until
from tests.support.poor_memory import leave_memory_for

PIECES_AHEAD = ahead.PIECES
"""Pieces that were read, and whose frames wait to be taken: all that a pump holds."""


@contextmanager
def pumping(pump: Pump, chunks: list[bytes]) -> Iterator[threading.Thread]:
    """Feed *chunks* through a pipe, one write each, to a pump that reads in a thread; yield that thread."""
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
    yield threads[1]
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


def is_held(thread: threading.Thread) -> bool:
    """Return whether a thread has found no place for another piece and waits for somebody to make one."""
    calls, frame = [], sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        calls.append(frame.f_code)
        frame = frame.f_back
    return {Ahead.take.__code__, threading.Condition.wait.__code__} <= set(calls)


def test_a_slow_consumer_stops_the_reading_not_the_memory() -> None:
    """With nobody to take frames the pump reads a bounded part of its source, holds a dozen pieces, and waits."""
    taken: list[int] = []
    source = [os.urandom(limits.PIECE_BYTES)] * 40
    pump = Pump(Compressor, on_piece=lambda piece: taken.append(len(piece)))
    tracemalloc.start()
    try:
        with pumping(pump, source) as reader:
            # Only who takes a frame makes a place: so it has settled for good, or has read all that there is.
            wait_until(lambda: True if is_held(reader) or not reader.is_alive() else None)
            seen = list(taken)
            _, peak = tracemalloc.get_traced_memory()
            frames = list(pump.frames())
    finally:
        tracemalloc.stop()

    assert len(frames) == len(source)
    assert seen == [limits.PIECE_BYTES] * PIECES_AHEAD
    # A buffer for the next, and before it what has to be free for a thread, or what two workers need while they make two frames.
    assert peak < (PIECES_AHEAD + 1 + 1) * limits.PIECE_BYTES + ROOM_BYTES


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


def test_a_machine_without_memory_for_a_compressor_does_not_hold_the_process() -> None:
    """Not even the encoders can be made: that is told as any piece is which cannot be compressed."""

    def exhausted() -> Compressor:
        raise MemoryError

    pump = Pump(exhausted)
    with pumping(pump, [os.urandom(limits.MIB)] * 30):
        with pytest.raises(StorageError, match="out of memory"):
            list(pump.frames())
        pump.abandon()
        assert list(pump.frames()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_without_workers_who_takes_frames_compresses(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is left for them, or for one only: every byte comes out all the same."""
    core, left = random.Random(5).randbytes(12 * limits.MIB + 5), workers

    def start(worker: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise StorageError("a thread could not be started")
        left -= 1
        worker.start()

    monkeypatch.setattr(pump_module, "start", start)
    pump = Pump(Compressor)
    with pumping(pump, [core]):
        frames = list(pump.frames())

    assert plaintext(frames) == core
    assert pump.end is not None
    assert pump.end.failure is None


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This thread, and those that it starts, may run on one processor only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_cpu")
def test_on_one_processor_one_worker_does_all() -> None:
    """Reader, worker, consumer and source take turns on it: every byte comes out."""
    core = random.Random(6).randbytes(20 * limits.MIB + 5)
    pump = Pump(Compressor)
    with pumping(pump, [core]):
        frames = list(pump.frames())

    assert pump_module.count_workers() == 1
    assert plaintext(frames) == core


def test_a_crash_takes_no_more_than_two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: others are at work on them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    assert pump_module.count_workers() == 2


def test_who_stops_a_pump_loses_nothing_that_it_has_read() -> None:
    """Every piece up to there becomes a frame, and the size that is told is theirs."""

    def stop(size: int) -> None:
        if size == 3 * limits.PIECE_BYTES:
            pump.stop()

    core = random.Random(15).randbytes(20 * limits.PIECE_BYTES)
    pump = Pump(Compressor, stop)
    with pumping(pump, [core]):
        frames = list(pump.frames())

    assert plaintext(frames) == core[: 3 * limits.PIECE_BYTES]
    assert pump.end is not None
    assert pump.end.size == 3 * limits.PIECE_BYTES


def test_who_waits_for_a_frame_can_be_called() -> None:
    """The source stands still; the consumer's thread does what it is called for, and goes on to wait."""
    called: list[int | None] = []
    reading, writing = os.pipe()
    pump = Pump(Compressor)
    reader = threading.Thread(target=pump.read, args=(reading,))
    taker = threading.Thread(target=lambda: list(pump.frames(lambda: called.append(threading.current_thread().ident))))
    taker.start()
    reader.start()
    pump.wake()
    wait_until(lambda: called or None)
    assert taker.is_alive()
    os.close(writing)
    reader.join()
    taker.join()
    os.close(reading)

    assert called == [taker.ident]


def test_what_has_a_place_is_ahead_before_anything_is_compressed(tmp_path: Path) -> None:
    """Who crashed waits for the reading alone: nobody else is at work until it can go no further, or frames are wanted."""
    seen: list[int] = []
    core = tmp_path / "core"
    core.write_bytes(random.Random(17).randbytes((PIECES_AHEAD - 1) * limits.PIECE_BYTES + 5))

    class Noticing(Compressor):
        def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
            seen.append(pump.size)
            return super().frame(piece)

    pump = Pump(Noticing)
    with core.open("rb") as source:
        pump.read(source.fileno())

    assert plaintext(list(pump.frames())) == core.read_bytes()
    assert seen == [core.stat().st_size] * PIECES_AHEAD


def test_frames_that_are_wanted_are_made_while_the_source_goes_on() -> None:
    """Who takes frames need not wait for the end: the first ones come while the source is open and silent."""
    reading, writing = os.pipe()
    pump = Pump(Compressor)
    reader = threading.Thread(target=pump.read, args=(reading,))
    reader.start()
    piece = random.Random(18).randbytes(limits.PIECE_BYTES)
    feeder = threading.Thread(target=os.write, args=(writing, piece))
    feeder.start()
    frames = pump.frames()
    first = next(frames)
    feeder.join()
    os.close(writing)
    reader.join()
    os.close(reading)

    assert plaintext([first, *frames]) == piece


def test_reading_that_waits_for_the_compressor_holds_nobody() -> None:
    """Only who does not take frames is told that the source stands still: a busy machine is no slow receiver."""
    let_go = threading.Event()

    class Slow(Compressor):
        def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
            let_go.wait()
            return super().frame(piece)

    pump = Pump(Slow)
    taker = threading.Thread(target=lambda: [None for _ in pump.frames()])
    taker.start()
    with pumping(pump, [random.Random(19).randbytes(limits.PIECE_BYTES)] * (PIECES_AHEAD + 1)) as reader:
        wait_until(lambda: True if is_held(reader) else None)
        held_s = pump.held_s
        let_go.set()
    taker.join()

    assert held_s == 0.0


def test_who_compresses_himself_is_the_one_that_holds_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a worker a frame that is not taken is one that is not made: the time until then counts as a slow receiver's."""

    def refuse(_: threading.Thread) -> None:
        raise StorageError("a thread could not be started")

    monkeypatch.setattr(pump_module, "start", refuse)
    core = random.Random(20).randbytes(20 * limits.MIB)
    pump = Pump(Compressor)
    with pumping(pump, [core]):
        frames = pump.frames()
        first = next(frames)
        wait_until(lambda: pump.held_s or None)
        rest = list(frames)

    assert plaintext([first, *rest]) == core


def test_with_little_memory_the_workers_are_at_work_before_frames_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third buffer cannot be had, and who will take frames has no connection yet: the reading goes on all the same."""
    leave_memory_for(2, monkeypatch)
    core = random.Random(21).randbytes(6 * limits.MIB + 1)
    pump = Pump(Compressor)
    with pumping(pump, [core]) as reader:
        wait_until(lambda: True if not reader.is_alive() else None)
        frames = list(pump.frames())

    assert plaintext(frames) == core

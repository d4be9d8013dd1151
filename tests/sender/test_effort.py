"""The level of compression: more where frames wait for the wire, and never where a piece waits for a worker."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.dump.compression import Compressor, Decompressor
from securecore.sender import ahead
from securecore.sender.effort import LEVELS, TURN, Effort, eager_pump
from securecore.sender.pump import Frame, Pump
from tests.support.kernel import wait_until

FULL = ahead.PIECES
"""Frames that a pump makes ahead of who takes them."""


def levels(effort: Effort, frames: int, pieces: int, count: int) -> list[int]:
    """Return what *effort* says *count* times in the same state."""
    return [effort.find_level(frames, pieces) for _ in range(count)]


def test_a_queue_that_stays_full_takes_the_level_up_step_by_step() -> None:
    """One step after each full turn of the queue, and no further than the last."""
    found = levels(Effort(), FULL, 0, 4 * TURN)

    assert found == [*[LEVELS[0]] * (TURN - 1), *[LEVELS[1]] * TURN, *[LEVELS[2]] * (2 * TURN + 1)]


def test_a_queue_that_is_full_for_a_moment_changes_nothing() -> None:
    """A receiver has written to its disk; the next pieces are compressed as all others."""
    effort = Effort()
    found = [level for _ in range(10) for level in levels(effort, FULL, 0, TURN - 1) + levels(effort, 1, 0, 1)]

    assert set(found) == {limits.ZSTD_LEVEL}


@pytest.mark.parametrize(("frames", "pieces"), [(0, 0), (2, 0), (FULL, 1), (0, 1)])
def test_the_pipe_never_waits_for_a_level(frames: int, pieces: int) -> None:
    """Where the queue has got short, or a piece waits for a worker, the next piece is at the usual level, and from there anew."""
    effort = Effort()
    levels(effort, FULL, 0, 3 * TURN)

    assert levels(effort, frames, pieces, 1) + levels(effort, FULL, 0, TURN - 1) == [limits.ZSTD_LEVEL] * TURN


def test_between_many_and_few_the_level_stays() -> None:
    """Who takes and who makes keep step."""
    effort = Effort()
    levels(effort, FULL, 0, TURN)

    assert set(levels(effort, 4, 0, 3 * TURN)) == {LEVELS[1]}


def take_when_full(pump: Pump, reader: threading.Thread) -> Iterator[Frame]:
    """Yield the frames of a pump, each once its queue is full, or its source has ended."""
    frames = pump.frames()
    while True:
        wait_until(lambda: True if pump.queues == (FULL, 0) or not reader.is_alive() else None)
        try:
            yield next(frames)
        except StopIteration:
            return


def test_frames_that_wait_for_the_wire_get_smaller(tmp_path: Path) -> None:
    """With a consumer that is always behind, what comes later is compressed harder; every byte is there, and none was worse."""
    words = Path(os.__file__).read_bytes().split()
    draw = random.Random(3)
    pieces = [b" ".join(draw.choices(words, k=200_000))[: limits.PIECE_BYTES].ljust(limits.PIECE_BYTES) for _ in range(40)]
    core = tmp_path / "core"
    core.write_bytes(b"".join(pieces))
    pump = eager_pump()
    with core.open("rb") as source:
        reader = threading.Thread(target=pump.read, args=(source.fileno(),))
        reader.start()
        frames = list(take_when_full(pump, reader))
        reader.join()

    assert [Decompressor().piece(frame.stored) for frame in frames] == pieces
    usual = [len(Compressor().frame(piece)) for piece in pieces]
    sizes = [len(frame.stored) for frame in frames]
    assert sizes[:FULL] == usual[:FULL]
    assert all(size <= most for size, most in zip(sizes, usual, strict=True))
    assert sum(sizes[-FULL:]) < 0.95 * sum(usual[-FULL:])

"""How far a pump reads ahead: places and memory, whichever of pieces and frames it is that waits."""

import threading
from mmap import mmap

import pytest

from securecore import limits
from securecore.sender.ahead import PIECES, Ahead
from tests.support.kernel import wait_until
from tests.support.poor_memory import leave_memory_for


def make_ahead(*, is_compressing: bool = False) -> Ahead:
    """Return one whose reader nobody has to be told of."""
    return Ahead(lambda: is_compressing, lambda: None)


def test_the_buffer_that_was_used_last_is_used_next() -> None:
    """While nothing waits, one buffer does for a core of any length: it stays in the processor's caches."""
    places, used = make_ahead(), set()
    for _ in range(3 * PIECES):
        buffer = places.take()
        used.add(id(buffer))
        places.give_back(buffer)
        places.leave()

    assert len(used) == 1


@pytest.mark.parametrize("frame_bytes", [0, 100_000, limits.PIECE_BYTES, limits.MAX_FRAME_BYTES])
def test_pieces_and_frames_share_one_bound(frame_bytes: int) -> None:
    """Buffers are given back where frames take their memory, so that both together stay within it however large the frames are."""
    places = make_ahead()
    for buffer in [places.take() for _ in range(PIECES)]:
        places.give_back(buffer, frame_bytes)
        assert places.bytes <= limits.PIECE_BYTES + PIECES * limits.MAX_FRAME_BYTES
    for _ in range(PIECES):
        places.leave(frame_bytes)
    assert places.bytes <= PIECES * limits.PIECE_BYTES


def test_a_reader_waits_for_a_place() -> None:
    """It can be asked before; somebody who takes a frame ends the wait, which counts as his."""
    places = make_ahead()
    for _ in range(PIECES):
        assert not places.is_full
        places.give_back(places.take(), 10)
    assert places.is_full
    reader = threading.Thread(target=places.take)
    reader.start()
    wait_until(lambda: places.held_s or None)
    places.leave(10)
    reader.join()

    held_s = places.held_s
    assert held_s > 0
    assert places.held_s == held_s


def test_with_little_memory_the_buffers_that_there_are_have_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third cannot be had: the reader waits for one of the two, and nobody is said to hold it."""
    leave_memory_for(2, monkeypatch)
    places = make_ahead()
    first, _ = places.take(), places.take()
    taken: list[mmap] = []
    reader = threading.Thread(target=lambda: taken.append(places.take()))
    reader.start()
    places.give_back(first, 10)
    reader.join()

    assert taken[0] is first
    assert places.held_s == 0.0


def test_without_memory_for_one_buffer_there_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first, so nobody could give one back: to wait would be for ever."""
    leave_memory_for(0, monkeypatch)
    with pytest.raises(MemoryError):
        make_ahead().take()


def test_a_core_that_is_larger_goes_on_with_few_buffers() -> None:
    """The first pieces were read as far ahead as can be; after that what is compressed was read a moment ago."""
    places = make_ahead(is_compressing=True)
    waiting = [places.take() for _ in range(PIECES)]
    reader = threading.Thread(target=lambda: waiting.append(places.take()))
    reader.start()
    while reader.is_alive():
        places.give_back(waiting.pop(0), 10)
        places.leave(10)
        reader.join(0.01)

    assert places.bytes == 4 * limits.PIECE_BYTES
    assert places.held_s == 0.0


def test_who_could_make_a_place_is_called_before_the_wait() -> None:
    """By the reading thread, which holds nothing then: a worker that is started there gives buffers back."""
    waiting = list[mmap]()

    def make_place() -> None:
        buffer = waiting.pop()
        places.give_back(buffer, 10)
        places.leave(10)

    places = Ahead(lambda: False, make_place)
    waiting += [places.take() for _ in range(PIECES)]
    places.take()

    assert len(waiting) == PIECES - 1
    assert places.held_s == 0.0


def test_memory_that_was_let_go_of_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While frames took its place all buffers but one were; that one does where there is no more memory to be had."""
    places = make_ahead()
    for buffer in [places.take() for _ in range(PIECES)]:
        places.give_back(buffer, limits.MAX_FRAME_BYTES)
    leave_memory_for(0, monkeypatch)
    places.leave(limits.MAX_FRAME_BYTES)

    assert len(places.take()) == limits.PIECE_BYTES

"""A turn that handlers take: one at a time, and nobody waits for longer than was said."""

import os
import threading
from pathlib import Path

import pytest

from securecore.sender.turn import take_turn


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What the turn is taken at."""
    path = tmp_path / "file"
    path.touch()
    return path


def test_a_turn_that_somebody_keeps_is_not_waited_for_beyond_the_patience(file: Path) -> None:
    """The first look is in any case; whoever holds the turn has it still."""
    with file.open() as first, file.open() as second:
        assert take_turn(first.fileno(), 0.0)
        assert not take_turn(second.fileno(), 0.0)
        assert not take_turn(second.fileno(), 0.01)


def test_a_turn_that_is_let_go_is_the_next_ones(file: Path) -> None:
    """It has waited for it."""
    first, taken = file.open(), []
    assert take_turn(first.fileno(), 0.0)
    with file.open() as second:
        waiting = threading.Thread(target=lambda: taken.append(take_turn(second.fileno(), 60)))
        waiting.start()
        first.close()
        waiting.join()

    assert taken == [True]


def test_what_cannot_be_locked_says_so(file: Path) -> None:
    """It is no turn of anybody's: who asks decides what that means."""
    fd = os.open(file, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        take_turn(fd, 0.0)

"""Turns: so many at once and no more, given back whatever happens, and kept by nobody who waits for its peer."""

import socket
import threading

import pytest

from securecore.errors import BrokenError
from securecore.receiver.turns import Turns
from tests.receiver.test_slow_sender import HALF_A_RECORD
from tests.support.receivers import new_dump_id
from tests.support.stages import Stage


def test_as_many_as_there_are_turns_go_on_at_once_and_the_next_one_waits() -> None:
    """Neither fewer nor more: whoever comes then goes on when the first has left."""
    turns, is_in = Turns(2), threading.Event()

    def take() -> None:
        with turns:
            is_in.set()

    other = threading.Thread(target=take)
    with turns:
        with turns:
            other.start()
            assert not is_in.is_set()
        other.join()
        assert is_in.is_set()


def test_a_turn_that_ends_by_an_error_is_given_back() -> None:
    """A session that fails while it reads holds up nobody else."""
    turns = Turns(1)
    for _ in range(2):
        with pytest.raises(BrokenError), turns:
            raise BrokenError("cut")
    with turns:
        pass


def test_peers_that_stop_within_a_record_keep_no_turn(stage: Stage) -> None:
    """However many do, a dump that is sent meanwhile comes to its receipt."""
    for _ in range(5):
        stuck = stage.hand()
        stuck.open(new_dump_id())
        socket.socket.sendall(stuck.socket, HALF_A_RECORD)

    stage.serves_the_next()

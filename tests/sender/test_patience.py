"""How long a sender waits: while bytes really move, and never for ever."""

import math
import socket

import pytest

from securecore import limits
from securecore.sender.patience import Wait, count_acknowledged, is_deadline

RATE = limits.MIN_RATE_BYTES_PER_S
STOCK_S = 10.0


class Link:
    """A clock and a peer that takes so many bytes a second."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.now = 1000.0
        self.moved = 5_000_000.0

    def patience(self, most_s: float = math.inf, *, until_s: float = math.inf) -> float:
        """Return for how many seconds a wait lasts, *until_s* at most, when it is asked as often as it says."""
        wait = Wait(STOCK_S, most_s, lambda: int(self.moved), lambda: self.now)
        began = self.now
        while (left := wait.left_s()) > 0 and self.now - began < until_s:
            self.now += left
            self.moved += left * self.bytes_per_s
        return self.now - began


def test_who_stalls_is_given_up_after_the_whole_stock() -> None:
    """Nothing moves: the deadline is what it says."""
    assert Link(0).patience() == pytest.approx(STOCK_S)


@pytest.mark.parametrize("bytes_per_s", [RATE, 2 * RATE, 1000 * RATE])
def test_who_moves_is_waited_for(bytes_per_s: float) -> None:
    """At the minimum rate or above it, for as long as it takes."""
    assert Link(bytes_per_s).patience(until_s=3600) >= 3600


def test_who_drips_is_given_up() -> None:
    """Below the minimum rate the stock runs out: at half of it, in twice the time."""
    assert Link(RATE / 2).patience() == pytest.approx(2 * STOCK_S, rel=0.01)
    assert Link(1).patience() == pytest.approx(STOCK_S, rel=0.01)


def test_what_has_moved_buys_no_more_than_the_stock() -> None:
    """A link that was fast and then stalls is given up as soon as one that was slow."""
    link = Link(1_000_000)
    wait = Wait(STOCK_S, math.inf, lambda: int(link.moved), lambda: link.now)
    link.now, link.moved = link.now + 5, link.moved + 1e9
    assert wait.left_s() > 0
    link.now += STOCK_S
    assert wait.left_s() == 0


@pytest.mark.parametrize("bytes_per_s", [0, RATE, 1000 * RATE])
def test_nobody_is_waited_for_longer_than_the_most(bytes_per_s: float) -> None:
    """Whoever moves however fast: a crashed process is held no longer."""
    assert Link(bytes_per_s).patience(3.0) == pytest.approx(3.0)


def test_the_most_may_change_its_mind_while_it_is_waited_for() -> None:
    """It is asked each time: what was to be the end is none while there is nowhere to put the rest."""
    answers = iter([0.5, math.inf, math.inf, 0.0])
    wait = Wait(STOCK_S, lambda: next(answers), lambda: 0, lambda: 1000.0)

    assert [wait.left_s() for _ in range(4)] == [0.5, 1.0, 1.0, 0.0]


def test_a_wait_is_asked_often_enough_to_see_what_moves() -> None:
    """A stock that lasts less than a second is looked at four times."""
    assert Wait(0.4).left_s() == pytest.approx(0.1)
    assert Wait(100.0).left_s() == 1.0


def test_what_moves_is_what_the_peers_host_has_taken() -> None:
    """Not what our own kernel has: a peer that reads nothing makes the count stand still, and one that reads lets it go on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with socket.create_connection(listener.getsockname()) as sending, listener.accept()[0] as receiving:
            sending.setblocking(False)
            written = 0
            try:
                while True:
                    written += sending.send(bytes(65536))
            except BlockingIOError:
                pass
            stalled = count_acknowledged(sending)
            assert 0 < stalled < written
            read = 0
            while read < written:
                read += len(receiving.recv(65536))
            assert count_acknowledged(sending) > stalled


def test_what_cannot_be_counted_moves_nothing() -> None:
    """A socket without TCP, as a kernel without the count: the deadline is then what it says."""
    one, other = socket.socketpair()
    with one, other:
        assert count_acknowledged(one) == 0


@pytest.mark.parametrize("value", [True, False, 0, -1, 0.0, 600.1, 601, math.inf, -math.inf, math.nan, "5", None, [5], {}, 10**400])
def test_what_is_no_deadline(value: object) -> None:
    """Seconds above zero that a person may wait, and nothing else."""
    assert not is_deadline(value)


@pytest.mark.parametrize("value", [1, 0.001, 600, 600.0, 5e-324])
def test_what_is_a_deadline(value: object) -> None:
    """Whole or not."""
    assert is_deadline(value)

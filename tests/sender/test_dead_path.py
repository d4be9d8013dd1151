"""A receiver that the network cuts off while its answer is awaited: its host's silence is noticed, long before the answer is late.

A scripted receiver goes dark: a filter throws away every packet that comes to its socket, so that its TCP acknowledges nothing.
The deadlines for answers stay as they are, two minutes; what must be noticed is noticed within seconds.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import pytest

from securecore import limits
from securecore.errors import UnreachableError
from securecore.merkle import EMPTY_ROOT
from securecore.sender.delivery import Delivery, connect
from securecore.sender.flush import flush
from securecore.sender.patience import quiet_s, usual_patience
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Open, Ready
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of
from tests.support.scripted import STORE, Peer, Script, scripted_receiver
from tests.support.waiting import wait_in

pytestmark = pytest.mark.slow

PATH_S: Final = 2.0
PROGRESS_S: Final = 0.5
CUT_OFF: Final = "its host cannot be reached any more"


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that asks every second whether the other host is there, and believes in its end after two."""
    monkeypatch.setattr(limits, "KEEP_ALIVE_EVERY_S", 1)
    monkeypatch.setattr(limits, "PATH_DEADLINE_S", PATH_S)
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", PROGRESS_S)


def dark_in(state: State) -> Script:
    """Return the script that is cut off in *state*: all that the sender has said by then has come, and nothing else does."""

    def script(peer: Peer) -> None:
        if state is State.IDLE:
            peer.go_dark(Ready(STORE, 1 << 24))
        peer.reach(state)
        peer.go_dark()

    return script


@contextmanager
def talking_to(fleet: Fleet, script: Script, progress_s: float = PROGRESS_S) -> Iterator[Delivery]:
    """Have a connection to a receiver with that script while the block runs."""
    patience = usual_patience()._replace(progress_s=progress_s)
    with (
        scripted_receiver(fleet.receiver, script) as scripted,
        closing(connect([scripted.address], papers_of(fleet.host).context, patience=patience)) as delivery,
    ):
        yield delivery


def ask(delivery: Delivery) -> object:
    """Name a dump and return the answer."""
    return delivery.open(Open(new_dump_id(), b"{}"), lambda frames: None)


@pytest.mark.parametrize("state", [State.IDLE, State.OPENING])
def test_a_receiver_that_is_cut_off_is_not_waited_for(state: State, fleet: Fleet) -> None:
    """Be it before the question has come to it, which is sent time and again, or behind it, where nothing is left to be sent."""
    with talking_to(fleet, dark_in(state)) as delivery, pytest.raises(UnreachableError, match=CUT_OFF):
        ask(delivery)


def test_a_receiver_that_is_at_work_is_waited_for(fleet: Fleet) -> None:
    """It says nothing for longer than a dead path would be believed in, but its host is there."""

    def script(peer: Peer) -> None:
        peer.reach(State.OPENING)
        peer.drip([b""], 2 * PATH_S)
        peer.say(Accept(0, EMPTY_ROOT))
        peer.stay()

    with talking_to(fleet, script) as delivery:
        assert ask(delivery) == Accept(0, EMPTY_ROOT)


def test_who_lets_the_network_pause_for_longer_waits_for_longer(fleet: Fleet) -> None:
    """`progress` of sender.toml says how long a link may be dark: a path is not taken for dead before."""
    with talking_to(fleet, dark_in(State.OPENING), progress_s=2 * PATH_S) as delivery:
        with pytest.raises(UnreachableError, match=CUT_OFF):
            ask(delivery)
        assert quiet_s(delivery._socket) >= 2 * PATH_S


def test_a_flush_does_not_wait_for_the_receipt_of_one_that_is_cut_off(fleet: Fleet, spool: Spool) -> None:
    """All was sent, and the network goes: the dump stays, and the next one is tried at once."""
    dump = wait_in(spool, fleet)
    with scripted_receiver(fleet.receiver, dark_in(State.ENDING)) as scripted:
        (flushed,) = flush(spool, [scripted.address], papers_of(fleet.host))

    assert type(flushed.failure) is UnreachableError
    assert CUT_OFF in flushed.failure.message
    assert spool.dump_ids() == [dump]


def test_a_host_that_takes_nothing_is_not_a_host_that_is_gone() -> None:
    """Where the window is shut the kernel asks more and more seldom: that it hears nothing in between proves nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sending,
        listener.accept()[0],
    ):
        fill(sending)
        wait_until(lambda: heard_ms(sending) > 1000 or None)

        assert quiet_s(sending) == 0.0


def fill(sending: socket.socket) -> None:
    """Write until neither end takes more."""
    sending.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sending.sendall(bytes(64 * limits.MIB))


def heard_ms(connection: socket.socket) -> int:
    """Return how long ago the kernel has heard of the other end, as it says."""
    (milliseconds,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60), 56)
    return int(milliseconds)


def test_where_the_kernel_does_not_tell_nobody_is_gone() -> None:
    """A socket that is not TCP's has no such thing."""
    one, other = socket.socketpair()
    with one, other:
        assert quiet_s(one) == 0.0

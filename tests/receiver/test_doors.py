"""The receiver's doors: strangers push out strangers, never a host, and nobody fills the log by knocking."""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import BusyError
from securecore.names import Address, HostName
from securecore.receiver.doors import Doorkeeper, StrangerLog, Visitor, network_of
from securecore.receiver.policy import Doors, Policy
from securecore.sender.delivery import connect
from tests.support.certificates import Fleet
from tests.support.hands import Hand
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes

HOST = HostName("web-1.hosts.acme.example")


def keeper(**doors: int) -> Doorkeeper:
    """Return a doorkeeper with these bounds."""
    bounds = Doors(**doors)
    return Doorkeeper(lambda: bounds)


def enter(doorkeeper: Doorkeeper, network: int, port: int = 1) -> Visitor:
    """Have somebody come from an address of 192.0.2.0/24."""
    visitor = doorkeeper.enter((f"192.0.2.{network}", port))
    assert visitor is not None
    return visitor


@given(st.lists(st.integers(1, 5), max_size=60), st.integers(1, 12), st.integers(1, 12))
def test_strangers_make_room_for_strangers(arrivals: list[int], strangers: int, per_address: int) -> None:
    """All who come are let in. Never more are left than may be, and who has to go is the oldest of those who are most."""
    doorkeeper = keeper(strangers=strangers, strangers_per_address=per_address)
    here: list[Visitor] = []
    for network in arrivals:
        before, numbers = here, Counter(visitor.network for visitor in here)
        here = [visitor for visitor in (*before, enter(doorkeeper, network)) if not visitor.is_sent_away]
        gone = [visitor for visitor in before if visitor.is_sent_away]
        for visitor in gone:
            doorkeeper.leave(visitor)
            assert numbers[visitor.network] in (max(numbers.values()), per_address)
            assert visitor == next(other for other in before if other.network == visitor.network)
        assert len(gone) <= 1
        assert len(here) <= strangers
        assert max(Counter(visitor.network for visitor in here).values()) <= per_address
    assert doorkeeper.visitors() == here


def test_one_address_pushes_out_itself_alone() -> None:
    """Whoever came first from another address stays, however many come from one."""
    doorkeeper = keeper(strangers=4)
    other = enter(doorkeeper, 1)
    flood = [enter(doorkeeper, 2, port) for port in range(100)]
    assert not other.is_sent_away
    assert [visitor.is_sent_away for visitor in flood] == [True] * 97 + [False] * 3


def test_hosts_are_never_pushed_out() -> None:
    """Where hosts have all places, who comes is turned away; a stranger among them makes room."""
    doorkeeper = keeper(connections=3)
    hosts = [enter(doorkeeper, 1, port) for port in range(2)]
    for visitor in hosts:
        doorkeeper.identify(visitor, HOST)
    stranger = enter(doorkeeper, 2)
    later = enter(doorkeeper, 3)
    assert stranger.is_sent_away
    doorkeeper.leave(stranger)
    doorkeeper.identify(later, HOST)
    assert doorkeeper.enter(("192.0.2.4", 1)) is None
    assert not any(visitor.is_sent_away for visitor in (*hosts, later))


def test_a_host_has_so_many_connections_and_no_more() -> None:
    """Another host is not touched by that, and who leaves makes room."""
    doorkeeper = keeper(per_host=2)
    first, second, third, other = (enter(doorkeeper, number) for number in range(1, 5))
    doorkeeper.identify(first, HOST)
    doorkeeper.identify(second, HOST)
    with pytest.raises(BusyError, match="2 connections here already"):
        doorkeeper.identify(third, HOST)
    doorkeeper.identify(other, HostName("db-1.hosts.acme.example"))
    doorkeeper.leave(first)
    doorkeeper.identify(third, HOST)


def test_who_is_sent_away_before_its_handshake_begins_is_hung_up_on_when_it_does() -> None:
    """The socket by which a handshake is ended is known a moment after the connection is."""
    doorkeeper = keeper(strangers=1)
    early = enter(doorkeeper, 1)
    enter(doorkeeper, 2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        doorkeeper.shake_hands(early, ours)
        assert theirs.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%2", "fe80::/64"), ("::1", "::/64"),
    ],
)  # fmt: skip
def test_an_ipv6_network_counts_as_one(address: str, network: str) -> None:
    """Who has one has 2**64 addresses."""
    assert network_of((address, 1, 0, 0)) == network


def test_knocking_fills_no_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound lines are counted, by address; an hour later both begin anew."""
    monkeypatch.setattr(limits, "STRANGER_LINES", 3)
    monkeypatch.setattr(limits, "ALL_STRANGERS_LINES", 5)
    told = StrangerLog(lambda: datetime(2026, 11, 26, 9, 14, tzinfo=UTC))
    for network, number in (("192.0.2.1", 10), ("192.0.2.2", 10), ("192.0.2.3", 10)):
        for _ in range(number):
            told.failed(network, f"failed peer={network}")
    assert Counter(caplog.messages) == {"failed peer=192.0.2.1": 3, "failed peer=192.0.2.2": 2}
    caplog.clear()
    told.summarise()
    told.summarise()
    assert caplog.messages == [
        "7 more connections of 192.0.2.1 were not let in since 09:14",
        "8 more connections of 192.0.2.2 were not let in since 09:14",
        "10 more connections of 192.0.2.3 were not let in since 09:14",
    ]
    told.failed("192.0.2.1", "again")
    assert caplog.messages[-1] == "again"


def test_counting_addresses_takes_no_memory_without_end(caplog: pytest.LogCaptureFixture) -> None:
    """Those beyond the first so many share one count."""
    told = StrangerLog(lambda: datetime(2026, 11, 26, tzinfo=UTC))
    for number in range(10 * limits.MAX_CONNECTIONS):
        told.failed(f"host {number}", "line")
    assert len(told._lines) == limits.MAX_CONNECTIONS + 1
    assert told._lines["other addresses"] == limits.STRANGER_LINES
    told.summarise()
    counted = 9 * limits.MAX_CONNECTIONS - limits.STRANGER_LINES
    assert caplog.messages[-1].startswith(f"{counted} more connections of other addresses")


# With a real receiver.


def connections(where: Address, number: int) -> Iterator[socket.socket]:
    """Yield connections that have said nothing yet, from several addresses of loopback."""
    for index in range(number):
        yield socket.create_connection((where.host, where.port), timeout=20, source_address=(f"127.0.0.{2 + index % 4}", 0))


def test_a_host_comes_in_while_strangers_have_all_places(fleet: Fleet, tmp_path: Path) -> None:
    """Twice as many of them as there are places: those who came first are gone, and every dump of a host arrives."""
    policy = Policy(doors=Doors(strangers=16))
    with running_receiver(fleet.receiver, tmp_path / "store", policy=policy) as receiver, ExitStack() as stack:
        strangers = [stack.enter_context(one) for one in connections(receiver.addresses[0], 32)]
        wait_until(lambda: receiver.session_count == 16 or None)
        outcomes = [send_bytes(b"a core", papers_of(fleet.host), receiver.addresses) for _ in range(5)]
        assert [outcome.failure for outcome in outcomes] == [None] * 5
        assert [one.recv(1) for one in strangers[:16]] == [b""] * 16


def test_a_host_with_too_many_connections_is_told_so(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told that it may come again, and comes in once one of its others has gone."""
    papers, policy = papers_of(fleet.host), Policy(doors=Doors(per_host=2))
    with running_receiver(fleet.receiver, tmp_path / "store", policy=policy) as receiver, ExitStack() as stack:
        first, _ = (stack.enter_context(closing(connect(receiver.addresses, papers.context))) for _ in range(2))
        with pytest.raises(BusyError, match="this host has 2 connections here already") as caught:
            connect(receiver.addresses, papers.context)
        assert caught.value.retry_after_s > 0
        first.close()
        wait_until(lambda: receiver.session_count == 1 or None)
        assert send_bytes(b"a core", papers, receiver.addresses).failure is None
    (line,) = [message for message in caplog.messages if "connections here already" in message]
    assert "host=web-1." in line


def send_for(seconds: float, hand: Hand) -> None:
    """Send pieces of zeroes without a pause."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        hand.send(bytes(limits.PIECE_BYTES))


def test_a_connection_that_lasts_too_long_ends_and_what_it_brought_stays(fleet: Fleet, tmp_path: Path) -> None:
    """Between two messages, with a word; a new connection goes on behind what is held."""
    dump = new_dump_id()
    with running_receiver(fleet.receiver, tmp_path / "store", policy=Policy(doors=Doors(session_s=0.5))) as receiver:
        with closing(Hand(fleet.host, receiver.addresses)) as hand:
            hand.open(dump)
            with pytest.raises(BusyError, match="go on with a new one"):
                send_for(20, hand)
        with closing(Hand(fleet.host, receiver.addresses)) as again:
            assert again.open(dump).held > 0

"""The receiver's doors: strangers push out strangers, never a host, and nobody fills the log by knocking."""

import errno
import os
import shutil
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.errors import BusyError, StorageError
from securecore.merkle import leaf_hash
from securecore.names import Address, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver import session
from securecore.receiver.commit import Committer
from securecore.receiver.doors import Doorkeeper, StrangerLog, Visitor
from securecore.receiver.policy import Doors, Policy
from securecore.receiver.refusals import NotAdmitted
from securecore.sender.delivery import connect
from securecore.sender.parcel import Papers
from securecore.store.growing_core import GrowingCore
from securecore.tls import secure
from securecore.wire.messages import Accept, Receipt, Refusal, Refuse
from tests.support.certificates import DOMAIN, Fleet, no_passphrase
from tests.support.hands import Hand, first_message
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
    with pytest.raises(NotAdmitted, match="2 connections here already") as refused:
        doorkeeper.identify(third, HOST)
    assert (refused.value.code, refused.value.retry_after_s) == (Refusal.BUSY, limits.BUSY_RETRY_AFTER_S)
    doorkeeper.identify(other, HostName("db-1.hosts.acme.example"))
    doorkeeper.leave(first)
    doorkeeper.identify(third, HOST)


def test_who_is_sent_away_before_its_handshake_begins_is_hung_up_on_when_it_does() -> None:
    """The socket by which a connection is ended is known a moment after the connection is."""
    doorkeeper = keeper(strangers=1)
    early = enter(doorkeeper, 1)
    enter(doorkeeper, 2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        doorkeeper.hold(early, ours)
        assert theirs.recv(1) == b""


def test_who_is_known_is_never_hung_up_on() -> None:
    """The descriptor by which that could be done is given back, as that of a stranger is who leaves."""
    doorkeeper = keeper(strangers=1)
    for is_known in (True, False):
        visitor = enter(doorkeeper, 1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            doorkeeper.hold(visitor, ours.dup())
            if is_known:
                doorkeeper.identify(visitor, HOST)
                doorkeeper.hang_up_strangers()
                ours.send(b"x")
                assert theirs.recv(1) == b"x"
            doorkeeper.leave(visitor)
            ours.close()
            theirs.settimeout(10)
            assert theirs.recv(1) == b""


def test_who_was_sent_away_does_not_come_in_after_all() -> None:
    """Its handshake was over in that moment: it would be one more than may be, counted by nobody."""
    doorkeeper = keeper(strangers=1)
    early = enter(doorkeeper, 1)
    enter(doorkeeper, 2)
    with pytest.raises(BusyError):
        doorkeeper.identify(early, HOST)


def test_there_are_only_so_many_who_were_sent_away_and_linger() -> None:
    """A connection that cannot be ended at once is counted until it has gone."""
    doorkeeper = keeper(connections=4, strangers=2)
    came = [doorkeeper.enter(("192.0.2.1", port)) for port in range(10)]
    assert [visitor is None for visitor in came] == [False] * 6 + [True] * 4


def test_who_has_many_networks_pushes_out_himself_only() -> None:
    """A stranger in each of a /48's networks: whoever comes in is not the one to go, nor is he later."""
    doorkeeper = keeper(strangers=8)

    def come(address: str) -> Visitor:
        visitor = doorkeeper.enter((address, 1, 0, 0))
        assert visitor is not None
        return visitor

    honest = [come("2001:db8:aaaa:1::1"), come("192.0.2.1"), come("2001:db8:bbbb:1::1")]
    flood = [come(f"2001:db8:ffff:{number:x}::1") for number in range(50)]
    assert [visitor.is_sent_away for visitor in honest] == [False] * 3
    assert [visitor.is_sent_away for visitor in flood] == [True] * 45 + [False] * 5


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
    told.summarise()
    counted = 9 * limits.MAX_CONNECTIONS - limits.STRANGER_LINES
    assert caplog.messages[-1].startswith(f"{counted} more connections of other addresses")


def test_addresses_without_end_share_one_count_when_no_line_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the hour's lines are used up by few, neither memory nor the summary grows with the addresses that knock."""
    monkeypatch.setattr(limits, "ALL_STRANGERS_LINES", 5)
    told = StrangerLog(lambda: datetime(2026, 11, 26, 9, 14, tzinfo=UTC))
    for number in range(10 * limits.MAX_CONNECTIONS):
        told.failed(f"host {number}", "line")
    caplog.clear()
    told.summarise()
    assert len(caplog.messages) == limits.MAX_CONNECTIONS - 5 + 1
    counted = 9 * limits.MAX_CONNECTIONS
    assert caplog.messages[-1] == f"{counted} more connections of other addresses were not let in since 09:14"


def test_strangers_do_not_take_the_lines_of_the_machines_own_faults(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor these those of strangers: each has a bound of its own, and what is beyond it is counted."""
    monkeypatch.setattr(limits, "ALL_STRANGERS_LINES", 2)
    monkeypatch.setattr(limits, "FAULT_LINES", 3)
    told = StrangerLog(lambda: datetime(2026, 11, 26, 9, 14, tzinfo=UTC))
    for _ in range(5):
        told.faulted("accept failed")
        told.failed("192.0.2.1", "failed")
    assert Counter(caplog.messages) == {"accept failed": 3, "failed": 2}
    caplog.clear()
    told.summarise()
    told.summarise()
    assert caplog.messages == [
        "3 more connections of 192.0.2.1 were not let in since 09:14",
        "2 more connections of any address were not let in since 09:14, by a fault of this machine",
    ]


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


def refused(papers: Papers, where: Address) -> ssl.SSLSocket:
    """Return a connection from one address of loopback whose holder has heard REFUSE, and does not go."""
    plain = socket.create_connection((where.host, where.port), timeout=20, source_address=("127.0.0.2", 0))
    secured = secure(papers.context, plain, server_name=where.host, deadline_s=20)
    message, _ = first_message(secured.recv(65536)) or (None, 0)
    assert isinstance(message, Refuse)
    return secured


@pytest.mark.parametrize("code", [Refusal.NOT_ALLOWED, Refusal.REVOKED])
def test_who_is_refused_and_stays_makes_room_as_well(
    code: Refusal, own_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a host that was let in keeps its place while others want it: one that is denied, or revoked, is a stranger."""
    monkeypatch.setattr(session, "_LINGER_S", 600.0)
    knocker, papers = HostName(f"db-2.{DOMAIN}"), papers_of(own_fleet.hosts["db-2"])
    policy = Policy(deny=(str(knocker),) if code is Refusal.NOT_ALLOWED else (), doors=Doors(connections=2, strangers=1))
    if code is Refusal.REVOKED:
        revoke_name(own_fleet.pki, knocker, "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.path / "crl.pem", own_fleet.receiver / "crl.pem")
    with running_receiver(own_fleet.receiver, tmp_path / "store", policy=policy) as receiver, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(refused(papers, receiver.addresses[0]))
            wait_until(lambda: receiver.session_count == 1 or None)
        with closing(connect(receiver.addresses, papers_of(own_fleet.host).context)):
            wait_until(lambda: receiver.session_count == 1 or None)


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


def test_knocking_on_a_full_house_fills_no_log(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host has the only place; who is turned away is told of so often, and then counted."""
    monkeypatch.setattr(limits, "STRANGER_LINES", 3)
    papers, policy = papers_of(fleet.host), Policy(doors=Doors(connections=1))
    with running_receiver(fleet.receiver, tmp_path / "store", policy=policy) as receiver:
        with closing(connect(receiver.addresses, papers.context)):
            for one in connections(receiver.addresses[0], 40):
                with one:
                    assert one.recv(1) == b""
        wait_until(lambda: receiver.session_count == 0 or None)
    lines = [message for message in caplog.messages if "too many connections" in message]
    assert len(lines) == 4 * 3
    assert sum("7 more connections of 127.0.0." in message for message in caplog.messages) == 4


class Deaf(socket.socket):
    """A listener of a process that has no descriptor left."""

    def accept(self) -> tuple[socket.socket, object]:
        """Do what the kernel does then."""
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.slow
def test_no_descriptor_left_fills_no_log(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows who knocks then; it is said so often in an hour, and then counted."""
    monkeypatch.setattr(limits, "FAULT_LINES", 3)
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver, Deaf() as listener:
        for _ in range(5):
            receiver._accept(listener)
    assert caplog.messages.count(f"accept failed: {os.strerror(errno.EMFILE)}") == 3
    assert any(message.startswith("2 more connections of any address were not let in") for message in caplog.messages)


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


def refuse(committer: Committer, *of: object) -> bytes:
    """Be a full disk, in the place of a committer's last steps."""
    raise StorageError("the disk is full")


def walk_slowly(monkeypatch: pytest.MonkeyPatch, for_s: float) -> None:
    """Make each walk over a core take so long."""
    walk = GrowingCore.walk

    def walk_at_last(core: GrowingCore, between: Callable[[], None]) -> object:
        ready = threading.Event()
        threading.Timer(for_s, ready.set).start()
        ready.wait(20)
        return walk(core, between)

    monkeypatch.setattr(GrowingCore, "walk", walk_at_last)


def test_our_own_reading_of_what_is_held_does_not_count(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump whose frames take longer to walk than a connection may last goes on all the same, frame by frame."""
    dump, most_s = new_dump_id(), 0.5
    with running_receiver(fleet.receiver, tmp_path / "store", policy=Policy(doors=Doors(session_s=most_s))) as receiver:
        with closing(Hand(fleet.host, receiver.addresses)) as hand:
            hand.open(dump)
            hand.send(b"x" * limits.PIECE_BYTES)
            hand.close()
        wait_until(lambda: receiver.session_count == 0 or None)
        walk_slowly(monkeypatch, most_s * 1.5)
        with closing(Hand(fleet.host, receiver.addresses)) as again:
            answer = again.open(dump)
            assert isinstance(answer, Accept)
            assert answer.held == 1
            again.tree.append(leaf_hash(Compressor().frame(b"x" * limits.PIECE_BYTES)))
            again.size += limits.PIECE_BYTES
            again.send(b"the end")
            assert again.delivery.end(again.manifest(dump))


def test_nor_does_that_of_a_dump_that_only_lacks_its_receipt(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit was interrupted, so all of it is read again; then the connection goes on with the next dump."""
    dump, most_s = new_dump_id(), 0.5
    with running_receiver(fleet.receiver, tmp_path / "store", policy=Policy(doors=Doors(session_s=most_s))) as receiver:
        with closing(Hand(fleet.host, receiver.addresses)) as hand, monkeypatch.context() as patch:
            patch.setattr(Committer, "_commit", refuse)
            hand.open(dump)
            hand.send(b"the end")
            with pytest.raises(BusyError, match="disk refuses"):
                hand.delivery.end(hand.manifest(dump))
        wait_until(lambda: receiver.session_count == 0 or None)
        walk_slowly(monkeypatch, most_s * 1.5)
        with closing(Hand(fleet.host, receiver.addresses)) as again:
            assert isinstance(again.open(dump), Receipt)
            assert isinstance(again.open(new_dump_id()), Accept)

"""Refusals at a real receiver: what the host hears, what is left in the store, what the log of the host says of it."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.audit.entry import parse_entry
from securecore.dump.compression import Compressor
from securecore.errors import BusyError, RefusedError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.policy import Doors, Floor, Policy, Quota
from securecore.receiver.server import Receiver
from securecore.store.growing_core import GrowingCore
from securecore.wire.messages import Accept, Ack, Data, End, Open, Receipt, Refusal, Refuse, Zero, encode
from tests.support.certificates import DOMAIN, Fleet, no_passphrase
from tests.support.dumps import WEB
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, running_receiver, wait_until_idle
from tests.support.stores import Commands

NOISE = os.urandom(limits.PIECE_BYTES)
OPEN_HOUSE = Policy(floor=Floor(share=0.0))
DB = HostName(f"db-2.{DOMAIN}")


def refusals_in(tmp_path: Path, host: HostName = WEB) -> list[dict[str, Any]]:
    """The entries of refusals in a host's log."""
    path = tmp_path / "store" / "audit" / str(host) / "entries.jsonl"
    entries = [dict(parse_entry(line)) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [entry for entry in entries if entry["event"] == "refused"]


def files_in(tmp_path: Path) -> list[str]:
    """What there is of dumps."""
    return sorted(path.name for place in ("incoming", "hosts") for path in (tmp_path / "store" / place).glob("*/*"))


class House:
    """A running receiver and who comes to it."""

    def __init__(self, fleet: Fleet, receiver: Receiver, stack: ExitStack) -> None:
        self.receiver = receiver
        self._fleet = fleet
        self._stack = stack

    def hand(self, host: str = "web-1") -> Hand:
        """A sender that has heard READY; it leaves before the receiver ends, which would wait for its dump."""
        hand = Hand(self._fleet.hosts[host], self.receiver.addresses)
        self._stack.callback(hand.close)
        return hand


@contextmanager
def house(fleet: Fleet, store: Path, policy: Policy) -> Iterator[House]:
    """Run a receiver with this policy while the block runs."""
    with running_receiver(fleet.receiver, store, policy=policy) as receiver, ExitStack() as stack:
        yield House(fleet, receiver, stack)


def test_a_host_that_is_not_let_in_is_told_so_and_it_is_on_record(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Instead of READY, for good; another one is let in."""
    policy = OPEN_HOUSE._replace(deny=(str(WEB),))
    with caplog.at_level(logging.INFO), house(fleet, tmp_path / "store", policy) as at:
        with pytest.raises(RefusedError, match="on this receiver's list of hosts that may not send"):
            at.hand()
        at.hand("db-2")
    (entry,) = refusals_in(tmp_path)
    assert (entry["code"], entry["dump"], entry["host"], entry["others"]) == (Refusal.NOT_ALLOWED, None, str(WEB), 0)
    assert [f"failed host={WEB}" in line for line in caplog.messages].count(True) == 1


BREACHES: dict[Refusal, Callable[[Hand, DumpId], bytes]] = {
    Refusal.BAD_FRAME: lambda hand, dump: encode(Data(b"no frame")),
    Refusal.BAD_MANIFEST: lambda hand, dump: encode(End(hand.manifest(dump, report=b"{}"))),
    Refusal.BAD_REQUEST: lambda hand, dump: encode(Ack(1)),
}


@pytest.mark.parametrize("code", BREACHES)
def test_a_host_that_breaks_the_rules_is_on_record(code: Refusal, fleet: Fleet, tmp_path: Path) -> None:
    """No sender of ours does: whoever looks for a host that is stolen finds it in its log, with the dump that it offered."""
    dump = new_dump_id()
    with house(fleet, tmp_path / "store", OPEN_HOUSE) as at:
        hand = at.hand()
        hand.open(dump)
        hand.put(BREACHES[code](hand, dump))
        refused = hand.refusal()
        hand.close()
        wait_until_idle(at.receiver)
    (entry,) = refusals_in(tmp_path)
    assert refused.code == code
    assert (entry["code"], entry["dump"], entry["reason"], entry["others"]) == (code, str(dump), refused.words, 0)


def test_a_stranger_leaves_nothing(fleet: Fleet, tmp_path: Path, own_fleet: Fleet) -> None:
    """A certificate of another fleet makes no log, whatever host it names."""
    policy = OPEN_HOUSE._replace(deny=("*",))
    with house(fleet, tmp_path / "store", policy) as at:
        papers = own_fleet.hosts["web-1"]
        (papers / "ca.pem").write_bytes((fleet.host / "ca.pem").read_bytes())
        with pytest.raises(SecurecoreError, match=r"refused|closed|alert"):
            Hand(papers, at.receiver.addresses)
        wait_until_idle(at.receiver)
    assert os.listdir(tmp_path / "store" / "audit") == ["receiver"]


def test_a_dump_that_is_refused_at_open_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """No directory, no frame: an entry in the log, with the dump's id."""
    policy = OPEN_HOUSE._replace(quota=Quota(dumps=0))
    dump = new_dump_id()
    with house(fleet, tmp_path / "store", policy) as at:
        hand = at.hand()
        with pytest.raises(BusyError, match="has 0 of its 0 dumps here") as refused:
            hand.open(dump)
    assert refused.value.retry_after_s == limits.QUOTA_RETRY_AFTER_S
    assert files_in(tmp_path) == []
    assert [(entry["code"], entry["dump"]) for entry in refusals_in(tmp_path)] == [(Refusal.QUOTA, str(dump))]


def test_of_a_dump_that_is_refused_at_open_nothing_is_said_to_be_kept(fleet: Fleet, tmp_path: Path) -> None:
    """Whatever became of one before it on the same connection: its sender must know that it has all of it still."""
    first, second = new_dump_id(), new_dump_id()
    with house(fleet, tmp_path / "store", OPEN_HOUSE._replace(quota=Quota(dumps=1))) as at:
        hand = at.hand()
        hand.open(first)
        hand.send(b"core")
        hand.delivery.end(hand.manifest(first))
        hand.put(encode(Open(second, b"{}", None)))
        refused = hand.refusal()
    assert (refused.code, refused.kept) == (Refusal.QUOTA, False)
    assert files_in(tmp_path) == [str(first)]


def test_a_dump_whose_first_frame_finds_no_room_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """It was begun, for it was not predicted; nothing of it was acknowledged."""
    policy = OPEN_HOUSE._replace(quota=Quota(stored_bytes=1000))
    with house(fleet, tmp_path / "store", policy) as at:
        hand = at.hand()
        hand.open(new_dump_id())
        hand.send(NOISE)
        assert hand.refusal().code == Refusal.QUOTA
        hand.close()
        wait_until_idle(at.receiver)
        assert files_in(tmp_path) == []


def test_what_came_before_the_quota_was_used_up_is_acknowledged_and_stays(fleet: Fleet, tmp_path: Path) -> None:
    """The sender is told of every frame that is here before it hears no; it goes on from there once there is room."""
    store, dump = tmp_path / "store", new_dump_id()
    policy = OPEN_HOUSE._replace(quota=Quota(stored_bytes=4 * limits.MIB))
    with house(fleet, store, policy) as at:
        hand = at.hand()
        hand.open(dump)
        for _ in range(3):
            hand.send(NOISE)
        hand.put(encode(Data(bytes(Compressor().frame(NOISE)))))
        acknowledged, refused = hand.answer(), hand.answer()
        # As long as there is no room for a frame, its rest is not taken, and not walked.
        with pytest.raises(BusyError, match="of its"):
            at.hand().open(dump)
    with house(fleet, store, OPEN_HOUSE) as at:
        answer = at.hand().open(dump)
    assert acknowledged == Ack(3)
    assert isinstance(refused, Refuse)
    assert (refused.code, refused.words.partition(";")[0]) == (Refusal.QUOTA, "this host has 3.0 MiB of its 4.0 MiB here")
    assert isinstance(answer, Accept)
    assert answer.held == 3


@pytest.mark.parametrize("why", ["a bad sector", "another report"])
def test_a_dump_that_cannot_be_opened_holds_up_no_other(
    why: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun first, and its host offers it again and again: another one takes all that is left of the quota."""
    first = new_dump_id()
    with house(fleet, tmp_path / "store", OPEN_HOUSE._replace(quota=Quota(stored_bytes=8 * limits.MAX_FRAME_BYTES))) as at:
        begun = at.hand()
        begun.open(first)
        begun.send(NOISE)
        begun.wait_until_acknowledged()
        begun.close()
        wait_until_idle(at.receiver)
        with monkeypatch.context() as patch:
            if why == "a bad sector":
                patch.setattr(GrowingCore, "walk", unreadable)
            with pytest.raises(SecurecoreError):
                at.hand().open(first, *([] if why == "a bad sector" else [b'{"program":"other"}']))
        other, second = at.hand(), new_dump_id()
        other.open(second)
        for _ in range(7):
            other.send(NOISE)
        assert other.delivery.end(other.manifest(second)).receipt


def unreadable(core: GrowingCore, between: Callable[[], None]) -> int:
    """Read a core whose disk does not give it back."""
    raise StorageError("cannot read the dump: input/output error")


def test_a_host_that_sends_many_at_once_is_told_to_come_again(fleet: Fleet, tmp_path: Path) -> None:
    """In seconds; a dump that comes over a new connection takes the place of its old one, and is no other."""
    dump = new_dump_id()
    with house(fleet, tmp_path / "store", OPEN_HOUSE._replace(quota=Quota(at_once=1))) as at:
        at.hand().open(dump)
        other, same = at.hand(), at.hand()
        with pytest.raises(BusyError, match="sends 1 dump at once") as refused:
            other.open(new_dump_id())
        assert isinstance(same.open(dump), Accept)
    assert refused.value.retry_after_s == limits.BUSY_RETRY_AFTER_S


def test_a_host_with_as_many_connections_as_it_may_have_finds_that_on_record(fleet: Fleet, tmp_path: Path) -> None:
    """It is refused before it can offer a dump, and so before it could have too many of these."""
    with house(fleet, tmp_path / "store", OPEN_HOUSE._replace(doors=Doors(per_host=1), quota=Quota(at_once=1))) as at:
        at.hand()
        for _ in range(3):
            with pytest.raises(BusyError, match="has 1 connection here already"):
                at.hand()
    (entry,) = refusals_in(tmp_path)
    assert (entry["code"], entry["dump"], entry["others"]) == (Refusal.BUSY, None, 0)


def test_a_connection_that_may_last_no_longer_is_on_record(fleet: Fleet, tmp_path: Path) -> None:
    """It is told to come again, as one is that has too many."""
    with house(fleet, tmp_path / "store", OPEN_HOUSE._replace(doors=Doors(session_s=1e-9))) as at:
        for _ in range(2):
            hand = at.hand()
            with pytest.raises(BusyError, match="go on with a new one"):
                hand.open(new_dump_id())
    (entry,) = refusals_in(tmp_path)
    assert (entry["code"], entry["others"]) == (Refusal.BUSY, 0)


def revoke(fleet: Fleet, host: HostName) -> None:
    """Revoke a host's certificate, and give the receiver the list."""
    revoke_name(fleet.pki, host, "keyCompromise", no_passphrase, datetime.now(UTC))
    shutil.copyfile(fleet.pki.path / "crl.pem", fleet.receiver / "crl.pem")


def test_a_revoked_certificate_of_a_host_that_is_known_here_is_on_record(own_fleet: Fleet, tmp_path: Path) -> None:
    """Somebody may have stolen it. A host of which nothing was ever here gets no log by that: many may have been stolen."""
    with house(own_fleet, tmp_path / "store", OPEN_HOUSE) as at:
        at.hand().open(new_dump_id())
    for host in (WEB, DB):
        revoke(own_fleet, host)
    with house(own_fleet, tmp_path / "store", OPEN_HOUSE) as at:
        for host in ("web-1", "web-1", "db-2"):
            with pytest.raises(RefusedError, match="revoked on"):
                at.hand(host)
    (entry,) = refusals_in(tmp_path)
    assert (entry["code"], entry["dump"], entry["host"], entry["others"]) == (Refusal.REVOKED, None, str(WEB), 0)
    assert "revoked on" in entry["reason"]
    assert sorted(path.name for path in (tmp_path / "store" / "audit").iterdir()) == ["receiver", str(WEB)]


@pytest.mark.parametrize(
    ("years", "code"), [(50, Refusal.EXPIRED), (-50, Refusal.NOT_YET_VALID)], ids=["expired", "not valid yet"]
)
def test_a_certificate_that_only_its_dates_speak_against_is_a_hosts(
    years: int, code: Refusal, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which, and where it is known here so does its own: its operator finds it there."""
    with house(fleet, tmp_path / "store", OPEN_HOUSE) as at:
        at.hand().open(new_dump_id())
        at.receiver._service.clock = lambda: datetime.now(UTC) + timedelta(days=365 * years)
        for host in ("web-1", "db-2"):
            with pytest.raises(SecurecoreError, match="this host's certificate"):
                at.hand(host)
    (entry,) = refusals_in(tmp_path)
    assert (entry["code"], entry["dump"]) == (code, None)
    for name in (WEB, DB):
        assert [f"failed host={name} dump=- peer=" in line for line in caplog.messages].count(True) == 1
    assert not (tmp_path / "store" / "audit" / str(DB)).exists()


def test_zeroes_count_as_what_they_stand_for(fleet: Fleet, tmp_path: Path) -> None:
    """A few bytes on the wire that would be 4 GiB extracted are held against the quota of plaintext."""
    policy = OPEN_HOUSE._replace(quota=Quota(plain_bytes=limits.GIB))
    with house(fleet, tmp_path / "store", policy) as at:
        hand = at.hand()
        hand.open(new_dump_id())
        with pytest.raises(BusyError, match=r"and 4\.0 GiB would come"):
            hand.say(Zero(limits.MAX_ZERO_PIECES))


def test_the_policy_of_now_counts(fleet: Fleet, tmp_path: Path) -> None:
    """A receiver that is told of another policy asks no connection to begin anew."""
    with house(fleet, tmp_path / "store", OPEN_HOUSE) as at:
        hand = at.hand()
        at.receiver._service.policy = OPEN_HOUSE._replace(deny=("*",))
        with pytest.raises(RefusedError, match="may not send"):
            hand.open(new_dump_id())


def test_a_host_that_is_denied_while_it_sends_gets_no_receipt(fleet: Fleet, tmp_path: Path) -> None:
    """The lists are judged again before the commit, as a revocation is; what came is no dump that was received."""
    dump = new_dump_id()
    with house(fleet, tmp_path / "store", OPEN_HOUSE) as at:
        hand = at.hand()
        hand.open(dump)
        hand.send(NOISE)
        at.receiver._service.policy = OPEN_HOUSE._replace(deny=(str(WEB),))
        with pytest.raises(RefusedError, match="may not send"):
            hand.delivery.end(hand.manifest(dump))
        wait_until_idle(at.receiver)
    assert list((tmp_path / "store" / "hosts").glob("*/*")) == []
    assert [(entry["code"], entry["dump"]) for entry in refusals_in(tmp_path)] == [(Refusal.NOT_ALLOWED, str(dump))]


def test_a_whole_dump_is_answered_whatever_the_quota(fleet: Fleet, tmp_path: Path) -> None:
    """A sender that has lost its receipt gets it again: nothing is to come."""
    store, dump = tmp_path / "store", new_dump_id()
    with house(fleet, store, OPEN_HOUSE) as at:
        hand = at.hand()
        hand.open(dump)
        hand.send(NOISE)
        hand.delivery.end(hand.manifest(dump))
    policy = Policy(quota=Quota(stored_bytes=0, plain_bytes=0, dumps=0, dumps_per_hour=0), floor=Floor(free_bytes=1 << 62))
    with house(fleet, store, policy) as at:
        assert isinstance(at.hand().open(dump), Receipt)


def test_refusals_are_shown_and_verified_with_the_log(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`audit log` says why, and `audit verify` takes the entry for one."""
    policy = OPEN_HOUSE._replace(quota=Quota(dumps=0))
    with house(fleet, tmp_path / "store", policy) as at, pytest.raises(BusyError):
        at.hand().open(new_dump_id())
    commands = Commands(tmp_path / "store", fleet, capsys)
    assert "refused" in (shown := commands("audit", "log").out)
    assert "this host has 0 of its 0 dumps here; only a deletion or a higher quota makes room\n" in shown
    (row,) = commands("audit", "log", "--json").document
    assert (row["event"], row["code"], row["others"]) == ("refused", 205, 0)
    assert commands.audit().code == 0

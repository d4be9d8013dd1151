"""A session by its messages, each sent by hand over real TLS: what is refused, what survives a cut, who wins."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.certs.chain import Anchors
from securecore.dump.compression import Compressor
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.errors import BusyError, RefusedError, SecurecoreError, StorageError, UnreachableError
from securecore.merkle import leaf_hash
from securecore.names import DumpId, HostName, StoreId
from securecore.pki.revocation import revoke_name
from securecore.receiver.observer import Observer
from securecore.receiver.policy import Policy
from securecore.receiver.server import Receiver
from securecore.receiver.session import Session
from securecore.sender import evidence
from securecore.sender.parcel import Outcome
from securecore.sender.patience import Wait
from securecore.store.growing_core import GrowingCore
from securecore.store.layout import open_store
from securecore.wire.messages import REST_FEATURE, Accept, Ack, Data, End, Ready, Zero
from tests.support.certificates import DOMAIN, Fleet, make_hierarchy, no_passphrase
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes, wait_until_idle

PIECES = [os.urandom(limits.PIECE_BYTES), bytes(limits.PIECE_BYTES), b"the end"]


Hands = Callable[..., Hand]


@pytest.fixture
def hands() -> Iterator[Hands]:
    """Makes hands, and closes their connections in the end."""
    with ExitStack() as stack:

        def make(fleet: Fleet, receiver: Receiver, host: str = "web-1") -> Hand:
            hand = Hand(fleet.hosts[host], receiver.addresses)
            stack.callback(hand.delivery.close)
            return hand

        yield make


def published(tmp_path: Path) -> list[str]:
    """Return the ids of all published dumps."""
    with open_store(str(tmp_path / "store")) as store:
        return [str(dump) for host in store.host_names() for dump in store.dump_ids(host)]


def incoming(tmp_path: Path) -> list[str]:
    """Return the ids of all dumps of the fleet's first host that are coming in."""
    return [path.name for path in (tmp_path / "store" / "incoming" / f"web-1.{DOMAIN}").iterdir()]


STEPS = ["open", "first", "second", "third"]


@pytest.mark.parametrize("last", STEPS)
def test_a_cut_after_any_message_leaves_no_complete_dump(
    last: str, fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands
) -> None:
    """However much was sent, without END there is nothing that looks whole."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    for piece in PIECES[: STEPS.index(last)]:
        hand.send(piece)
    hand.delivery.close()
    receiver.stop()
    wait_until_idle(receiver)

    assert published(tmp_path) == []


def test_a_cut_dump_is_resumed_where_its_durable_frames_end(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """What the receiver holds is named by count and root, and the dump is finished from there."""
    dump, first = new_dump_id(), hands(fleet, receiver)
    first.open(dump)
    pieces = [os.urandom(limits.PIECE_BYTES) for _ in range(9)]
    for piece in pieces:
        first.send(piece)
    first.wait_until_acknowledged()
    first.delivery.close()

    second = hands(fleet, receiver)
    answer = second.open(dump)
    assert isinstance(answer, Accept)
    for piece in pieces[: answer.held]:
        second.tree.append(leaf_hash(Compressor().frame(piece)))
        second.size += len(piece)
    held_root = second.tree.root()
    for piece in pieces[answer.held :]:
        second.send(piece)
    receipt = second.delivery.end(second.manifest(dump))

    assert answer.held >= 8
    assert held_root == answer.root
    evidence.check_receipt(second.papers.credentials, receipt, second.delivery.address, dump, None, time.time())
    assert published(tmp_path) == [str(dump)]


def test_the_newest_session_for_a_dump_wins(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """A sender that comes back before its old connection is noticed dead is not kept waiting."""
    dump, older, newer = new_dump_id(), hands(fleet, receiver), hands(fleet, receiver)
    older.open(dump)
    older.send(PIECES[0])

    answer = newer.open(dump)

    assert isinstance(answer, Accept)
    with pytest.raises(BusyError, match="newer connection"):
        older.delivery.wait_for_ack(Wait(10))


@pytest.mark.parametrize("core", [b"", b"core"], ids=["report", "frame"])
def test_a_dump_of_which_the_report_alone_is_here_is_not_said_to_be_kept(
    core: bytes, fleet: Fleet, receiver: Receiver, hands: Hands
) -> None:
    """As where a newer connection ends the first one: without a frame the core is with its sender, or nowhere."""
    dump, older, newer = new_dump_id(), hands(fleet, receiver), hands(fleet, receiver)
    older.open(dump)
    if core:
        older.send(core)
        older.wait_until_acknowledged()
    newer.open(dump)

    assert older.refusal().kept is bool(core)


MANIFEST_LIES: dict[str, tuple[Callable[[Hand, DumpId], bytes], str]] = {
    "another size": (lambda hand, dump: hand.manifest(dump, size=hand.size + 1), "another size"),
    "complete though shorter than predicted": (
        lambda hand, dump: hand.manifest(dump, predicted_size=hand.size + 1),
        "shorter than predicted",
    ),
    "another dump": (lambda hand, dump: hand.manifest(new_dump_id()), "another dump"),
    "another host": (lambda hand, dump: hand.forged_manifest(dump, host=HostName(f"db-2.{DOMAIN}")), "another host"),
    "another store": (lambda hand, dump: hand.manifest(dump, store=StoreId.make(os.urandom(16))), "another store"),
    "another root": (lambda hand, dump: hand.forged_manifest(dump, root=bytes(32)), "another root"),
    "one frame more": (lambda hand, dump: hand.forged_manifest(dump, frames=hand.tree.size + 1), "another frames"),
    "one frame less": (lambda hand, dump: hand.forged_manifest(dump, frames=hand.tree.size - 1), "another frames"),
    "another report": (lambda hand, dump: hand.manifest(dump, report=b"{}"), "another report_sha256"),
    "no manifest": (lambda hand, dump: b"x", "not a signed statement"),
    "a flipped byte": (lambda hand, dump: flip(hand.manifest(dump)), "signature"),
}
"""What is wrong with it: how it is made, and what the sender reads."""


def flip(token: bytes) -> bytes:
    """Return *token* with one character in the middle of its payload changed."""
    middle = len(token.split(b".")[0]) + 20
    return token[:middle] + (b"A" if token[middle : middle + 1] != b"A" else b"B") + token[middle + 1 :]


@pytest.mark.parametrize("lie", MANIFEST_LIES)
def test_a_manifest_that_does_not_hold_is_refused(lie: str, fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """Every statement of the manifest is held against what was received."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    for piece in PIECES:
        hand.send(piece)

    make, words = MANIFEST_LIES[lie]
    with pytest.raises(RefusedError, match=words):
        hand.delivery.end(make(hand, dump))

    assert published(tmp_path) == []


def test_a_forged_manifest_without_a_lie_is_taken(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """What is refused above is the one field that lies, not how the test signs."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    hand.send(PIECES[2])
    hand.delivery.end(hand.forged_manifest(dump))

    assert published(tmp_path) == [str(dump)]


def test_a_manifest_signed_by_another_host_is_refused(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """A manifest must be signed with the very certificate of the session, not just with a good one."""
    dump, hand, other = new_dump_id(), hands(fleet, receiver), hands(fleet, receiver, "db-2")
    hand.open(dump)
    hand.send(PIECES[2])
    other.tree, other.size = hand.tree, hand.size

    with pytest.raises(RefusedError, match="another certificate"):
        hand.delivery.end(other.manifest(dump))

    assert published(tmp_path) == []


BAD_FRAMES = {
    "no frame": b"hello",
    "trailing bytes": ZERO_PIECE_FRAME + b"x",
    "cut off": Compressor().frame(b"abc" * 1000)[:-1],
    "two frames": Compressor().frame(b"abc") * 2,
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_what_is_no_frame_is_refused(name: str, fleet: Fleet, receiver: Receiver, hands: Hands) -> None:
    """DATA is exactly one frame; the sender is told so in words."""
    hand = hands(fleet, receiver)
    hand.open(new_dump_id())

    with pytest.raises(RefusedError, match="frame"):
        hand.send_and_wait(BAD_FRAMES[name])


def test_nothing_may_follow_a_short_piece(fleet: Fleet, receiver: Receiver, hands: Hands) -> None:
    """Only the last piece may be shorter than 1 MiB: offsets are computed from that."""
    hand = hands(fleet, receiver)
    hand.open(new_dump_id())
    hand.send(b"short")

    with pytest.raises(RefusedError, match="short piece"):
        hand.send_and_wait(ZERO_PIECE_FRAME)


OUT_OF_ORDER = {"DATA first": Data(b"x"), "ZERO first": Zero(1), "END first": End(b"x")}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_a_message_out_of_order_ends_the_connection_in_words(name: str, fleet: Fleet, receiver: Receiver, hands: Hands) -> None:
    """The receiver trusts no order but the state table's."""
    hand = hands(fleet, receiver)
    with pytest.raises(RefusedError, match="not allowed in state"):
        hand.say(OUT_OF_ORDER[name])


def test_a_sender_may_not_speak_the_receivers_messages(fleet: Fleet, receiver: Receiver, hands: Hands) -> None:
    """There is no verb by which a sender could acknowledge, list or read."""
    hand = hands(fleet, receiver)
    with pytest.raises(RefusedError, match="not allowed"):
        hand.say(Ack(1))


def test_a_send_that_fails_leaves_the_socket_to_be_read_without_waiting(receiver: Receiver) -> None:
    """Whatever comes behind it, a session reads within a turn that others want, and waits there for nobody."""
    far, near = socket.socketpair()
    far.close()
    with _Plain(fileno=near.detach()) as secured:
        session = Session(secured, "somebody", receiver._service, Observer(), lambda host: None, lambda line: None)  # type: ignore[arg-type]
        with pytest.raises(UnreachableError):
            session._send(Ready(receiver._service.store.store_id, limits.MAX_FRAMES, REST_FEATURE))
        assert secured.gettimeout() == 0


class _Plain(socket.socket):
    """A socket that has as much of TLS as a session asks for before its first message."""

    def getpeercert(self, binary_form: bool) -> bytes | None:
        """Return that there is none."""
        return None


def test_two_hosts_may_use_the_same_dump_id(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """A dump is (host, id): nobody can block or reach another host's dump by guessing its id."""
    dump = new_dump_id()
    for name in ("web-1", "db-2"):
        hand = hands(fleet, receiver, name)
        answer = hand.open(dump)
        assert isinstance(answer, Accept)
        assert answer.held == 0
        hand.send(name.encode())
        hand.delivery.end(hand.manifest(dump))

    assert published(tmp_path) == [str(dump)] * 2


def test_a_dump_resumed_with_another_report_is_refused(fleet: Fleet, receiver: Receiver, hands: Hands) -> None:
    """The report of a dump is what it was when the dump began."""
    dump, first = new_dump_id(), hands(fleet, receiver)
    first.open(dump)
    for _ in range(9):
        first.send(os.urandom(limits.PIECE_BYTES))
    first.wait_until_acknowledged()
    first.delivery.close()

    with pytest.raises(RefusedError, match="another report"):
        hands(fleet, receiver).open(dump, b'{"program":"other"}')


def test_a_host_revoked_while_it_sends_gets_no_receipt(own_fleet: Fleet, tmp_path: Path, hands: Hands) -> None:
    """Revocation is judged again before the commit, by the list that was loaded meanwhile."""
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        dump, hand = new_dump_id(), hands(own_fleet, running)
        hand.open(dump)
        hand.send(PIECES[2])
        revoke_name(own_fleet.pki, HostName(f"web-1.{DOMAIN}"), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.path / "crl.pem", own_fleet.receiver / "crl.pem")
        before = running.material
        running.reload()
        wait_for_reload(running, before)

        with pytest.raises(RefusedError, match="revoked on"):
            hand.delivery.end(hand.manifest(dump))
        wait_until_idle(running)

    assert published(tmp_path) == []
    assert incoming(tmp_path) == []


def test_a_host_whose_certificate_expires_while_it_sends_gets_no_receipt(
    fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands
) -> None:
    """The clock is asked again before the commit, whatever was found at the handshake."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    hand.send(PIECES[2])
    receiver._service.clock = lambda: datetime.now(UTC) + timedelta(days=3650)
    with pytest.raises(RefusedError, match="expired on"):
        hand.delivery.end(hand.manifest(dump))
    wait_until_idle(receiver)

    assert published(tmp_path) == []
    assert incoming(tmp_path) == []


@pytest.mark.parametrize("gone", ["root", "hosts CA"])
def test_a_host_whose_root_or_ca_is_taken_away_while_it_sends_gets_no_receipt(
    gone: str, fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands
) -> None:
    """The commit's anchors are those of now, whatever chain was found at the handshake."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    hand.send(PIECES[2])
    material, other = receiver.material, make_hierarchy()
    root, ours = material.identity.anchors
    left = Anchors(other.anchors.roots, ours) if gone == "root" else Anchors(root, other.anchors.intermediates)
    receiver._service.material = material._replace(identity=material.identity._replace(anchors=left))
    with pytest.raises(RefusedError, match="which none of our roots signed" if gone == "root" else "signed by a"):
        hand.delivery.end(hand.manifest(dump))
    wait_until_idle(receiver)

    assert published(tmp_path) == []
    assert incoming(tmp_path) == []


@pytest.mark.parametrize("was_acknowledged", [False, True], ids=["nothing acknowledged", "a part acknowledged"])
def test_a_host_denied_while_it_sends_leaves_only_what_was_acknowledged(
    was_acknowledged: bool, fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands
) -> None:
    """Before the commit: a dump of which nothing was promised is gone, any other is kept with all that has come."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    for _ in range(9 if was_acknowledged else 1):
        hand.send(os.urandom(limits.PIECE_BYTES))
    if was_acknowledged:
        hand.wait_until_acknowledged()
    receiver._service.policy = Policy(deny=(f"web-1.{DOMAIN}",))
    with pytest.raises(RefusedError, match="may not send"):
        hand.delivery.end(hand.manifest(dump))
    wait_until_idle(receiver)
    assert incoming(tmp_path) == ([str(dump)] if was_acknowledged else [])
    if was_acknowledged:
        receiver._service.policy = Policy()
        assert hands(fleet, receiver).open(dump).held == 9


@pytest.mark.parametrize("end", ["frame", "manifest"])
@pytest.mark.parametrize("was_acknowledged", [False, True], ids=["nothing acknowledged", "a part acknowledged"])
def test_what_is_refused_leaves_only_what_was_acknowledged(
    was_acknowledged: bool, end: str, fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands
) -> None:
    """A frame that is none, a manifest that does not hold: nobody comes back for a dump of which nothing was promised."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    for _ in range(9 if was_acknowledged else 1):
        hand.send(os.urandom(limits.PIECE_BYTES))
    if was_acknowledged:
        hand.wait_until_acknowledged()
    with pytest.raises(RefusedError):
        hand.send_and_wait(b"hello") if end == "frame" else hand.delivery.end(b"x")
    wait_until_idle(receiver)
    assert incoming(tmp_path) == ([str(dump)] if was_acknowledged else [])


@pytest.mark.parametrize("call", ["_write", "sync"])
@pytest.mark.parametrize("was_acknowledged", [False, True], ids=["nothing acknowledged", "a part acknowledged"])
def test_what_the_disk_refuses_leaves_only_what_was_acknowledged(
    was_acknowledged: bool,
    call: str,
    fleet: Fleet,
    receiver: Receiver,
    tmp_path: Path,
    hands: Hands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a frame that cannot be written, and of one whose sender has gone and that cannot be made durable."""
    dump, hand = new_dump_id(), hands(fleet, receiver)
    hand.open(dump)
    for _ in range(8 if was_acknowledged else 0):
        hand.send(os.urandom(limits.PIECE_BYTES))
    if was_acknowledged:
        hand.wait_until_acknowledged()

    def refuse(core: GrowingCore, *data: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(GrowingCore, call, refuse)
    with suppress(BusyError):  # Where the disk has refused a frame before it.
        hand.send(PIECES[2])
    hand.close()
    wait_until_idle(receiver)
    assert incoming(tmp_path) == ([str(dump)] if was_acknowledged else [])


def wait_for_reload(receiver: Receiver, before: object) -> None:
    """Wait until the receiver's material is another one."""
    deadline = time.monotonic() + 10
    while receiver.material is before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert receiver.material is not before


def test_bad_material_on_reload_keeps_the_last_good_one(
    own_fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, hands: Hands
) -> None:
    """A reload that fails is logged and changes nothing."""
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        (own_fleet.receiver / "crl.pem").write_text("garbage")
        before = running.material
        running.reload()
        deadline = time.monotonic() + 10
        while not any("reload failed" in record.getMessage() for record in caplog.records) and time.monotonic() < deadline:
            time.sleep(0.005)
        dump, hand = new_dump_id(), hands(own_fleet, running)
        hand.open(dump)
        hand.send(PIECES[2])
        hand.delivery.end(hand.manifest(dump))

    assert running.material is before
    assert published(tmp_path) == [str(dump)]


def test_a_second_receiver_on_the_same_store_is_refused(fleet: Fleet, receiver: Receiver, tmp_path: Path, hands: Hands) -> None:
    """One appender: a store has one receiver."""
    with pytest.raises(SecurecoreError, match="another receiver"), running_receiver(fleet.receiver, tmp_path / "store"):
        pass


def test_a_receiver_that_stops_tells_its_idle_senders(fleet: Fleet, tmp_path: Path, hands: Hands) -> None:
    """SIGTERM is not a cut wire: who is connected hears why, and that it may come again."""
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        hand = hands(fleet, running)
    with pytest.raises(BusyError, match="being stopped"):
        hand.open(new_dump_id())


def test_sixteen_small_dumps_of_one_host_at_once_are_all_received(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """One audit log, many sessions: every one gets its receipt."""
    outcomes: list[Outcome] = []

    def send(number: int) -> None:
        for turn in range(4):
            outcomes.append(send_bytes(b"core %d %d" % (number, turn), papers_of(fleet.host), receiver.addresses))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [outcome.failure for outcome in outcomes] == [None] * 64
    assert len(published(tmp_path)) == 64

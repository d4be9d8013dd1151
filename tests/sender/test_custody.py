"""Custody ends with a proof: a receiver that passed the handshake says that it has the core, and only the truth lets go of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.cli.main import run
from securecore.errors import PeerError, SecurecoreError, UntrustedError
from securecore.names import Address, HostName
from securecore.sender import evidence
from securecore.sender.consignment import consign
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Ack, Gone, Message, Receipt
from securecore.wire.states import State
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Fleet
from tests.support.custody import CORE, FRAMES, held_open, kept, send_to
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.scripted import STORE, Peer, Script, forge_receipt, scripted_receiver

NOWHERE: Final = Address("127.0.0.1:9")
STRANGE_KEY: Final = LogSigner(f"{RECEIVER_NAME}/securecore", Ed25519PrivateKey.generate())
DB: Final = HostName(f"db-2.{DOMAIN}")

Forge = Callable[[Path, bytes], Receipt]
"""Makes a receipt from the receiver's identity and the manifest that it was sent."""


def forging(signer: LogSigner | None = None, origin_host: HostName | None = None, **changes: str) -> Forge:
    """Return the forge of a receipt with *changes* to its entry, signed by *signer* as of the log of *origin_host*."""
    return lambda identity, manifest: forge_receipt(identity, manifest, signer=signer, origin_host=origin_host, **changes)


def with_garbage(identity: Path, manifest: bytes) -> Receipt:
    """Bytes that are no proof, beside a true statement of the log key."""
    return forge_receipt(identity, manifest)._replace(receipt=b"\0")


def with_a_longer_path(identity: Path, manifest: bytes) -> Receipt:
    """A true receipt with one more hash on its path."""
    honest = forge_receipt(identity, manifest)
    return honest._replace(receipt=honest.receipt.replace(b"index 0\n", b"index 0\n" + b"A" * 43 + b"=\n"))


LONGEST: Final = Receipt(bytes(limits.MAX_RECEIPT_BYTES), bytes(limits.MAX_STATEMENT_BYTES))
FORGED: Final[dict[str, tuple[Forge, str]]] = {
    "empty": (lambda identity, manifest: Receipt(b"", b""), "not a signed statement"),
    "garbage": (lambda identity, manifest: Receipt(b"\xff" * 300, b"\xff" * 300), "not a signed statement"),
    "the longest": (lambda identity, manifest: LONGEST, "not a signed statement"),
    "garbage under a true statement": (with_garbage, "proof does not begin"),
    "with a path that leads nowhere": (with_a_longer_path, "does not lead to the root"),
    "of another dump": (forging(dump=str(new_dump_id())), "its entry says dump is"),
    "of another host's entry": (forging(host=str(DB)), "its entry says host is"),
    "of another host's log": (forging(origin_host=DB), "checkpoint is of"),
    "of another manifest": (forging(manifest_sha256="00" * 32), "its entry says manifest_sha256 is"),
    "of an extraction": (forging(event="extracted"), "its entry says event is"),
    "by another log key": (forging(signer=STRANGE_KEY), "sign"),
    "with hostile words": (forging(dump="\x1b[2J\n" + "x" * 5000), "its entry says dump is"),
}
"""How it is made, and a part of what the sender says of it."""


def answering_end(forge: Callable[[bytes], Message], seen: list[bytes] | None = None) -> Script:
    """Return the script of a receiver that takes everything and gives *forge* of the manifest for it."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        manifest = peer.hear_end()
        peer.say(forge(manifest))
        if seen is not None:
            seen.append(manifest)

    return script


@pytest.mark.parametrize("name", FORGED)
def test_a_receipt_that_proves_nothing_lets_go_of_nothing(name: str, fleet: Fleet, spool: Spool) -> None:
    """After END: the whole core is in the spool, the receipt log stays empty, and the error says what is wrong with it."""
    forge, words = FORGED[name]
    sent = send_to(answering_end(lambda manifest: forge(fleet.receiver, manifest)), fleet, spool)

    assert type(sent.failure) is UntrustedError
    assert "gave a receipt that proves nothing" in sent.failure.message
    assert words in sent.failure.message
    assert list(spool.receipts()) == []


def test_a_receipt_without_a_lie_is_believed(fleet: Fleet, spool: Spool) -> None:
    """What is refused above is the one thing that is wrong, not how the test makes receipts."""
    with scripted_receiver(fleet.receiver, answering_end(lambda manifest: forge_receipt(fleet.receiver, manifest))) as scripted:
        outcome = send_bytes(CORE, papers_of(fleet.host), [scripted.address], spool=spool)

    assert (outcome.failure, outcome.spooled) == (None, False)
    assert [facts["host"] for facts in spool.receipts()] == [f"web-1.{DOMAIN}"]


@pytest.mark.parametrize("answer", [Gone("deleted", b"r", b"k"), Receipt(b"r", b"k"), Accept(4, bytes(32))])
def test_nobody_can_have_a_dump_that_has_just_begun(answer: Message, fleet: Fleet, spool: Spool) -> None:
    """Its id was made a moment ago: whoever says that it is there already, whole, in part or deleted, lies."""
    sent = send_to(held_open(State.OPENING, answer), fleet, spool)

    assert type(sent.failure) is PeerError
    assert "says that it has this new dump already" in sent.failure.message


class Waiting:
    """A dump that waits in the spool, and the manifest that its host would sign for it."""

    def __init__(self, fleet: Fleet, spool: Spool) -> None:
        self.fleet, self.spool, self.dump = fleet, spool, new_dump_id()
        send_bytes(CORE, papers_of(fleet.host), [NOWHERE], spool=spool, dump=self.dump)

    @property
    def manifest(self) -> bytes:
        """The manifest that an honest flush sends to the scripted store."""
        entry = self.spool.entry(self.dump)
        assert entry is not None
        end, tree = entry.end(), consign(entry).as_begun.tree_at(4)
        entry.close()
        assert end is not None
        assert tree is not None
        credentials = papers_of(self.fleet.host).credentials
        return evidence.sign_manifest(credentials, self.dump, STORE, end, tree, entry.report, entry.start.started_at)

    def flush_to(self, *said: Message) -> SecurecoreError | None:
        """Deliver to a receiver that answers OPEN with *said*; return the failure."""
        with scripted_receiver(self.fleet.receiver, held_open(State.OPENING, *said)) as scripted:
            (flushed,) = flush(self.spool, [scripted.address], papers_of(self.fleet.host))
        return flushed.failure


@pytest.fixture
def waiting(fleet: Fleet, spool: Spool) -> Waiting:
    """A dump in the spool."""
    return Waiting(fleet, spool)


def as_receipt(receipt: Receipt) -> Message:
    """The dump is here."""
    return receipt


def as_gone(receipt: Receipt) -> Message:
    """The dump was here."""
    return Gone("deleted by alice", receipt.receipt, receipt.log_key)


ANSWERS: Final = [as_receipt, as_gone]


@pytest.mark.parametrize("name", [name for name in FORGED if name != "of another manifest"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_spooled_dump_stays_without_a_proof(name: str, answer: Callable[[Receipt], Message], waiting: Waiting) -> None:
    """RECEIPT or GONE in answer to OPEN: each needs the proof that this dump was received, or the core stays in the spool."""
    forge, words = FORGED[name]
    failure = waiting.flush_to(answer(forge(waiting.fleet.receiver, waiting.manifest)))

    assert type(failure) is UntrustedError
    assert words in failure.message
    assert kept(waiting.spool, waiting.dump) == (0, CORE)
    assert list(waiting.spool.receipts()) == []


OTHER_CONTENT: Final = {"report_sha256": "00" * 32, "root": "00" * 32, "frames": 3, "size": len(CORE) - 1}


@pytest.mark.parametrize("field", OTHER_CONTENT)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_spooled_dump_stays_when_another_content_was_received(
    field: str, answer: Callable[[Receipt], Message], waiting: Waiting
) -> None:
    """The receiver logged a dump of this id with another core or report: that is no proof for the core that we have."""
    receipt = forge_receipt(waiting.fleet.receiver, waiting.manifest, **{field: OTHER_CONTENT[field]})
    failure = waiting.flush_to(answer(receipt))

    assert type(failure) is UntrustedError
    assert f"its entry says {field} is" in failure.message
    assert kept(waiting.spool, waiting.dump) == (0, CORE)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_spooled_dump_goes_with_its_proof(answer: Callable[[Receipt], Message], waiting: Waiting) -> None:
    """Its receipt was lost on the way, or its operator has deleted it since: the proof is kept, the spool is empty."""
    assert waiting.flush_to(answer(forge_receipt(waiting.fleet.receiver, waiting.manifest))) is None

    assert waiting.spool.dump_ids() == []
    (facts,) = waiting.spool.receipts()
    assert facts["dump"] == str(waiting.dump)
    assert facts.get("gone") == ("deleted by alice" if answer is as_gone else None)
    assert facts["receipt"].startswith("c2sp.org/tlog-proof@v1")


def test_what_a_killed_handler_left_goes_with_the_proof_for_its_report(waiting: Waiting) -> None:
    """It sent END, fell back and was killed before it had written all: what the spool has of the core says nothing of its size."""
    manifest = waiting.manifest
    (waiting_path(waiting) / "end.json").unlink()

    assert waiting.flush_to(forge_receipt(waiting.fleet.receiver, manifest)) is None
    assert waiting.spool.dump_ids() == []


def waiting_path(waiting: Waiting) -> Path:
    """Return the directory of the entry."""
    return Path(f"/proc/self/fd/{waiting.spool.fd}").readlink() / "dumps" / str(waiting.dump)


def test_words_of_a_deletion_move_no_cursor(waiting: Waiting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who deleted it is the receiver's text: `spool flush` shows it without what a terminal would obey."""
    receipt = forge_receipt(waiting.fleet.receiver, waiting.manifest)
    gone = Gone("by \x1b[2J\x1b]0;x\x07alice\n9c41d07e  stored", receipt.receipt, receipt.log_key)
    with scripted_receiver(waiting.fleet.receiver, held_open(State.OPENING, gone)) as scripted:
        arguments = ["--spool", str(tmp_path / "spool"), "--to", str(scripted.address), "--identity", str(waiting.fleet.host)]
        code = run(["spool", "flush", *arguments])

    assert code == 0
    told = "deleted at the receiver: by ?[2J?]0;x?alice?9c41d07e  stored, receipt verified (0 frames sent now)"
    assert capsys.readouterr().out == f"{waiting.dump.short}  {told}\n"


def test_the_last_frame_stays_ours_until_the_receipt(fleet: Fleet, spool: Spool) -> None:
    """A receiver that has acknowledged every frame goes before its receipt: the spool has the short one, and so knows the size."""

    def acknowledge_all_and_go(peer: Peer) -> None:
        peer.reach(State.ENDING)
        peer.say(Ack(FRAMES))

    sent = send_to(acknowledge_all_and_go, fleet, spool, acknowledged=FRAMES - 1)
    entry = spool.entry(sent.dump)
    assert entry is not None
    kept_end, first = entry.end(), entry.start.frontier.size
    entry.close()

    assert kept_end is not None
    assert kept_end.size == first * limits.PIECE_BYTES + len(b"the end")

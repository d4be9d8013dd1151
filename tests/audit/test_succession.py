"""Successions of log keys: both keys have signed, published tools can tell, and no chain has a gap, a fork or a stranger in it."""

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore import limits
from securecore.audit.checkpoint import LogSigner, key_id, parse_checkpoint, signature_line
from securecore.audit.proof import TlogProof
from securecore.audit.succession import (
    Line,
    encode_history,
    parse_history,
    public_bytes,
    sign_succession,
    split_successions,
    verify_log_keys,
    verify_succession,
    verify_successions,
)
from securecore.errors import BrokenError, SecurecoreError
from securecore.merkle import EMPTY_ROOT
from tests.support.certificates import RECEIVER_NAME, Hierarchy
from tests.support.dumps import LOG_NAME, NOW
from tests.support.foreign import needs
from tests.support.log_keys import Dynasty, make_dynasty, make_receiver

OLD: Final = Ed25519PrivateKey.generate()
NEW: Final = Ed25519PrivateKey.generate()
NOTE: Final = sign_succession(LOG_NAME, OLD, NEW, NOW)
LOST: Final = sign_succession(LOG_NAME, public_bytes(OLD), NEW, NOW)


def test_a_succession_says_who_follows_whom() -> None:
    """What both keys have signed is read back: name, keys and time."""
    found = verify_succession(NOTE)
    assert (found.name, found.before, found.after, found.is_lost) == (LOG_NAME, public_bytes(OLD), public_bytes(NEW), False)
    assert found.at.startswith(f"{NOW:%Y-%m-%dT%H:%M:%S}")


def test_a_lost_key_has_not_signed_and_the_note_says_so() -> None:
    """It has one signature line, the new key's, and another word in place of ``before``."""
    found = verify_succession(LOST)
    assert found.is_lost
    assert LOST.count("\n— ".encode()) == 1
    assert "is said to be lost and has signed no succession" in found.words


@needs("openssl")
@pytest.mark.parametrize(("key", "line"), [(OLD, 0), (NEW, 1)], ids=["old", "new"])
def test_openssl_finds_both_signatures_good(key: Ed25519PrivateKey, line: int, tmp_path: Path) -> None:
    """A program that is not ours takes key and signature out of the note as signed-note lays them down, and verifies the text."""
    text, _, signatures = NOTE.partition(b"\n\n")
    identifier = key_id(LOG_NAME, public_bytes(key))
    typed = base64.b64decode(text.split(b"\n")[3 + line].rpartition(f"+{identifier.hex()}+".encode())[2])
    signature = base64.b64decode(signatures.splitlines()[line].split(b" ")[2])
    assert typed == b"\x01" + public_bytes(key)
    assert signature[:4] == identifier
    (tmp_path / "text").write_bytes(text + b"\n")
    (tmp_path / "signature").write_bytes(signature[4:])
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + typed[1:])
    words = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", str(tmp_path / "key.der")]
    words += ["-in", str(tmp_path / "text"), "-sigfile", str(tmp_path / "signature")]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    (tmp_path / "text").write_bytes(text.replace(b"before", b"lost") + b"\n")
    assert subprocess.run(words, capture_output=True, check=False).returncode != 0


def test_any_changed_byte_is_refused() -> None:
    """No byte of a note can be changed without one of the signatures, or the form, giving way."""
    for note in (NOTE, LOST):
        for at in range(len(note)):
            for change in (0x01, 0x20):
                changed = note[:at] + bytes([note[at] ^ change]) + note[at + 1 :]
                with pytest.raises(BrokenError):
                    verify_succession(changed)


def test_truncated_at_every_offset() -> None:
    """A note that was cut is none, behind its first signature line too."""
    for length in range(len(NOTE)):
        with pytest.raises(BrokenError):
            verify_succession(NOTE[:length])


def without_line(note: bytes, at: int) -> bytes:
    """Return a note without one of its signature lines."""
    text, blank, tail = note.partition(b"\n\n")
    lines = tail.splitlines(keepends=True)
    return text + blank + b"".join(lines[:at] + lines[at + 1 :])


@pytest.mark.parametrize("at", [0, 1])
def test_one_of_the_two_is_not_enough(at: int) -> None:
    """Whoever has one of the keys makes no succession: neither the thief of the next key, nor one who holds the old one alone."""
    with pytest.raises(BrokenError, match=f"not signed by the key {('before', 'after')[at]}"):
        verify_succession(without_line(NOTE, at))


def test_what_the_old_key_has_signed_is_not_turned_into_the_loss_of_it() -> None:
    """The new key's line under one text does not pass under the other."""
    with pytest.raises(BrokenError):
        verify_succession(NOTE.replace(b"\nbefore ", b"\nlost "))


def test_others_may_sign_too() -> None:
    """A line by another key, a witness's, is passed over."""
    text = NOTE.partition(b"\n\n")[0] + b"\n"
    witness = signature_line("witness.example.org", Ed25519PrivateKey.generate(), text)
    assert verify_succession(NOTE + witness) == verify_succession(NOTE)


def test_a_key_does_not_follow_itself() -> None:
    """A note whose two keys are one says nothing."""
    with pytest.raises(BrokenError):
        verify_succession(sign_succession(LOG_NAME, OLD, OLD, NOW))


def test_neither_a_checkpoint_nor_a_succession_passes_for_the_other() -> None:
    """The same keys sign both, so their texts must differ in form."""
    with pytest.raises(BrokenError):
        parse_checkpoint(NOTE)
    with pytest.raises(BrokenError):
        verify_succession(LogSigner(LOG_NAME, OLD).sign(LOG_NAME, 7, EMPTY_ROOT))


def test_notes_one_behind_the_other_are_taken_apart() -> None:
    """As a receiver sends them; nothing is nothing, and what is no note is refused."""
    assert list(split_successions(NOTE + LOST + NOTE)) == [NOTE, LOST, NOTE]
    assert verify_successions(b"") == ()
    assert [one.is_lost for one in verify_successions(NOTE + LOST)] == [False, True]
    for wrong in (b"x", NOTE + b"x", b"x" + NOTE, NOTE[:-1] + LOST):
        with pytest.raises(BrokenError):
            verify_successions(wrong)
    with pytest.raises(BrokenError, match="at most 31"):
        verify_successions(NOTE * limits.MAX_LOG_KEYS)


def test_a_chain_leads_back_to_the_first_key(own_hierarchy: Hierarchy) -> None:
    """Of three keys the newest is in use, and the others count for what they have signed."""
    made = make_dynasty(own_hierarchy, 3)
    found = verify_log_keys(made.lines[-1].statement, made.history, own_hierarchy.anchors)
    assert (found.key.public_key, list(found.key.earlier), found.key.cut) == (
        made.public_keys[2], [made.public_keys[1], made.public_keys[0]], None,
    )  # fmt: skip
    assert found.history == made.history
    assert [one.after for one in verify_successions(found.successions)] == made.public_keys[1:]


def test_a_receiver_with_one_key_has_no_history(own_hierarchy: Hierarchy) -> None:
    """As all of them were before there were successions."""
    made = make_dynasty(own_hierarchy)
    found = verify_log_keys(made.lines[0].statement, None, own_hierarchy.anchors)
    assert (found.key.earlier, found.history, found.successions) == ((), b"", b"")


def test_a_key_that_is_not_in_use_yet_counts_for_nothing(own_hierarchy: Hierarchy) -> None:
    """A history is written before the key is put in its place."""
    made = make_dynasty(own_hierarchy, 3)
    found = verify_log_keys(made.lines[1].statement, made.history, own_hierarchy.anchors)
    assert (found.key.public_key, found.key.earlier) == (made.public_keys[1], (made.public_keys[0],))
    assert found.lines == tuple(made.lines[:2])


def test_a_receipt_is_of_the_key_that_has_signed_it(own_hierarchy: Hierarchy) -> None:
    """Whichever of those before the one in use; of another's, or of what is no receipt, nobody can say."""
    made = make_dynasty(own_hierarchy, 3)
    found = verify_log_keys(made.lines[-1].statement, made.history, own_hierarchy.anchors)

    def receipt(signer: LogSigner) -> bytes:
        return TlogProof(0, (), signer.sign(f"{made.name}/web-1.example.org", 1, EMPTY_ROOT), b"{}").encode()

    for at, public_key in enumerate(made.public_keys[:-1]):
        assert found.find_earlier(receipt(made.signer(at))) == public_key
    stranger = LogSigner(made.name, Ed25519PrivateKey.generate())
    for other in (receipt(made.signer(-1)), receipt(stranger), b"no receipt"):
        assert found.find_earlier(other) is None


def minted(made: Dynasty, hierarchy: Hierarchy) -> bytes:
    """What somebody does who has the TLS key, and not the log key: he states a key of his own, and puts it behind the others."""
    key = Ed25519PrivateKey.generate()
    forged = sign_succession(made.name, Ed25519PrivateKey.generate(), key, made.now)
    made.lines.append(Line(made.state(key), forged))
    return made.history


def of_another(made: Dynasty, hierarchy: Hierarchy) -> bytes:
    """The old key's statement is another receiver's."""
    other = Dynasty(make_receiver(hierarchy, f"other.{RECEIVER_NAME}"), f"other.{RECEIVER_NAME}/securecore").enthrone()
    made.lines[0] = other.lines[0]
    return made.history


def skipping(made: Dynasty, hierarchy: Hierarchy) -> bytes:
    """One key is left out: its successor says that it came before."""
    return encode_history([made.lines[0], made.lines[2]])


def in_a_circle(made: Dynasty, hierarchy: Hierarchy) -> bytes:
    """The newest key is also the oldest."""
    note = sign_succession(made.name, made.keys[2], made.keys[0], made.now)
    return encode_history([made.lines[2]._replace(succession=None), Line(made.lines[0].statement, note), *made.lines[1:]])


@pytest.mark.parametrize("spoil", [minted, of_another, skipping, in_a_circle])
def test_a_history_with_a_stranger_in_it_is_refused(
    spoil: Callable[[Dynasty, Hierarchy], bytes], own_hierarchy: Hierarchy
) -> None:
    """Each key stands behind the one that has signed for it, under the receiver's name, and once."""
    made = make_dynasty(own_hierarchy, 3)
    history = spoil(made, own_hierarchy)
    with pytest.raises(BrokenError):
        verify_log_keys(parse_history(history)[-1].statement, history, own_hierarchy.anchors)


def test_a_key_outside_of_the_history_has_nothing_before_it(own_hierarchy: Hierarchy) -> None:
    """A statement that the TLS key signs for a new key does not inherit what others have signed."""
    made = make_dynasty(own_hierarchy, 2)
    found = verify_log_keys(made.state(Ed25519PrivateKey.generate()), made.history, own_hierarchy.anchors)
    assert found.key.earlier == ()


def test_a_chain_is_cut_where_a_key_was_lost_unless_its_successor_is_trusted(own_hierarchy: Hierarchy) -> None:
    """The receiver's TLS key alone vouches for that; so whoever verifies must know of it from elsewhere."""
    made = make_dynasty(own_hierarchy, 2).enthrone(is_lost=True).enthrone()
    statement, anchors = made.lines[-1].statement, own_hierarchy.anchors
    cut = verify_log_keys(statement, made.history, anchors, trusted=[made.verifier_key(3)]).key
    assert cut.earlier == (made.public_keys[2],)
    assert cut.cut is not None
    assert made.verifier_key(1) in cut.cut
    assert made.verifier_key(2) in cut.cut
    trusting = verify_log_keys(statement, made.history, anchors, trusted=[made.verifier_key(2)]).key
    assert trusting.earlier == tuple(reversed(made.public_keys[:3]))
    assert trusting.cut is None
    assert verify_log_keys(statement, made.history, anchors).key.earlier == trusting.earlier


def test_a_history_cut_at_every_offset_is_refused(own_hierarchy: Hierarchy) -> None:
    """But where it ends with a line: then it says less."""
    history = make_dynasty(own_hierarchy, 2).history
    ends = {at + 1 for at, byte in enumerate(history) if byte == 0x0A}
    for length in range(len(history)):
        if length not in ends:
            with pytest.raises(BrokenError):
                parse_history(history[:length])
    assert len(parse_history(history[: min(ends)])) == 1


@pytest.mark.parametrize(
    "history",
    [
        b"{}\n", b"[]\n", b"null\n", b"\n", b'{"statement":1,"succession":null}\n', b'{"statement":"x","succession":1}\n',
        b'{"statement":"x", "succession":null}\n', b'{"statement":"x","succession":"n"}\n', b"[" * 99999 + b"\n",
        b'{"statement":"x","succession":null}\n' * 2, b'{"statement":"\\ud800","succession":null}\n', b"\xff\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_history_is_refused(history: bytes, own_hierarchy: Hierarchy) -> None:
    """In words, whatever stands in the file."""
    with pytest.raises(SecurecoreError):
        parse_history(history)


def test_a_history_is_bounded(own_hierarchy: Hierarchy) -> None:
    """More keys than MAX_LOG_KEYS are not read; so many successions of the longest name fit what a message carries."""
    made = make_dynasty(own_hierarchy)
    with pytest.raises(BrokenError, match="too long"):
        parse_history(encode_history([made.lines[0], *[Line(b"x", b"n")] * limits.MAX_LOG_KEYS]))
    longest = sign_succession("a" * 253 + "/securecore", OLD, NEW, NOW)
    assert limits.MAX_LOG_KEYS * len(longest) <= limits.MAX_SUCCESSIONS_BYTES
    assert len(longest) <= limits.MAX_CHECKPOINT_BYTES

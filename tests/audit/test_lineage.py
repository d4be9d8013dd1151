"""The keys that have signed what a host keeps: one chain has all of them, or one is named."""

import json
from itertools import pairwise

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.kept_receipt import ReceiptVerifier, parse_line
from securecore.audit.lineage import Lineages, Strange
from securecore.audit.proof import TlogProof
from securecore.audit.succession import Succession, sign_succession
from securecore.errors import BrokenError
from securecore.merkle import leaf_hash
from tests.support.certificates import RECEIVER_NAME, Hierarchy
from tests.support.dumps import WEB
from tests.support.kept_receipts import entry
from tests.support.log_keys import Dynasty, make_dynasty, make_receiver


def line(keys: Dynasty, at: int, successions: bytes | None = None) -> bytes:
    """Return a line of a receipt log: the receipt of a log's only entry by one of the keys, with all that was before it."""
    signed = entry(1)
    notes = b"".join(one.succession or b"" for one in keys.lines[: at + 1]) if successions is None else successions
    note = keys.signer(at).sign(origin_of(keys.name, WEB), 1, leaf_hash(signed))
    fields = {"receipt": TlogProof(0, (), note, signed).encode().decode(), "log_key": keys.lines[at].statement.decode()}
    return json.dumps(fields | ({"successions": notes.decode()} if notes else {})).encode()


def found(hierarchy: Hierarchy, *lines: bytes, trusted: tuple[str, ...] = ()) -> list[Strange]:
    """Return what is strange about the keys of these receipts, each of which holds by itself."""
    verifier, lineages = ReceiptVerifier(hierarchy.anchors), Lineages(trusted)
    for number, one in enumerate(lines, 1):
        lineages.take(verifier.verify(parse_line(one, f"kept:{number}")))
    return list(lineages.find_strange())


def test_keys_that_have_handed_over_to_one_another_are_one_chain(own_hierarchy: Hierarchy) -> None:
    """In any order of the receipts, and where the receipts of one of the keys are missing."""
    keys = make_dynasty(own_hierarchy, 4)
    assert found(own_hierarchy, *[line(keys, at) for at in range(4)]) == []
    assert found(own_hierarchy, line(keys, 3), line(keys, 0)) == []
    assert found(own_hierarchy, line(keys, 0), line(keys, 3)) == []
    assert found(own_hierarchy, line(keys, 0)) == found(own_hierarchy) == []


def test_a_key_that_nothing_leads_to_is_named(own_hierarchy: Hierarchy) -> None:
    """With the first receipt that it has signed; a second receiver has keys of its own."""
    keys = make_dynasty(own_hierarchy, 2)
    stranger = Dynasty(keys.receiver).enthrone()
    (strange,) = found(own_hierarchy, line(keys, 0), line(stranger, 0), line(keys, 1), line(stranger, 0))
    assert strange.where == "kept:2"
    assert stranger.verifier_key(0) in strange.words
    other = Dynasty(make_receiver(own_hierarchy, f"other.{RECEIVER_NAME}"), f"other.{RECEIVER_NAME}/securecore").enthrone()
    assert found(own_hierarchy, line(keys, 0), line(other, 0)) == []


def test_a_key_that_has_handed_over_twice_is_a_fork(own_hierarchy: Hierarchy) -> None:
    """Its thief has it hand over to a key of his own, while the receiver goes on with another."""
    keys = make_dynasty(own_hierarchy, 2)
    thief = Dynasty(keys.receiver, keys.name, keys.keys[:1], keys.lines[:1]).enthrone()
    (strange,) = found(own_hierarchy, line(keys, 1), line(thief, 1))
    assert strange.where == "kept:2"
    assert "was handed over twice" in strange.words
    assert keys.verifier_key(1) in strange.words
    assert thief.verifier_key(1) in strange.words


def test_a_receiver_that_shows_very_many_keys_holds_nobody_up(own_hierarchy: Hierarchy) -> None:
    """The work grows with the keys, not with their square: with that, this one would take an hour."""
    keys = make_dynasty(own_hierarchy, 1)
    witness = ReceiptVerifier(own_hierarchy.anchors).verify(parse_line(line(keys, 0), "kept:1"))
    shown = [number.to_bytes(32, "big") for number in range(100_000)]
    successions = tuple(Succession(keys.name, before, after, is_lost=False, at="") for before, after in pairwise(shown))
    lineages = Lineages()
    lineages.take(witness._replace(key=shown[-1], successions=successions))
    lineages.take(witness._replace(where="kept:2", key=shown[0]))
    assert list(lineages.find_strange()) == []
    lineages.take(witness._replace(where="kept:3"))
    assert [strange.where for strange in lineages.find_strange()] == ["kept:3"]


def test_a_lost_key_is_said_and_believed_only_if_its_successor_is_trusted(own_hierarchy: Hierarchy) -> None:
    """And those after that with it."""
    keys = make_dynasty(own_hierarchy).enthrone(is_lost=True)
    (strange,) = found(own_hierarchy, line(keys, 0), line(keys, 1))
    assert "is said to be lost" in strange.words
    assert found(own_hierarchy, line(keys, 0), line(keys, 1), trusted=(keys.verifier_key(1),)) == []
    assert found(own_hierarchy, line(keys, 0), line(keys, 1), trusted=(keys.verifier_key(0),)) != []


def test_successions_that_do_not_hold_make_no_witness(own_hierarchy: Hierarchy) -> None:
    """Nor another receiver's, nor what is no text."""
    keys = make_dynasty(own_hierarchy, 2)
    verifier = ReceiptVerifier(own_hierarchy.anchors)
    note = keys.lines[1].succession or b""
    other = sign_succession("other.example.org/securecore", keys.keys[0], keys.keys[1], keys.now)
    changed = note.replace(b"\nbefore ", b"\nlost ")
    for wrong, words in ((changed, "does not hold"), (b"x", "does not hold"), (other, "another receiver's")):
        with pytest.raises(BrokenError, match=words):
            verifier.verify(parse_line(line(keys, 1, wrong), "kept:1"))
    with pytest.raises(BrokenError, match="no text"):
        parse_line(b'{"receipt":"x","successions":1}', "kept:1")

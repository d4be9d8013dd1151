"""Kept receipts: read from logs and proofs whatever else stands there, and believed only for what they prove."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.kept_receipt import Kept, Origin, ReceiptVerifier, Unread, find_origin, parse_line
from securecore.errors import BrokenError, SecurecoreError
from securecore.names import HostName
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, Hierarchy, make_hierarchy
from tests.support.dumps import WEB
from tests.support.kept_receipts import Notary, entries, entry, read

OTHER: Final = HostName(f"db-2.{HOST_NAME.partition('.')[2]}")


@pytest.fixture(scope="module")
def notary(own_hierarchy: Hierarchy) -> Notary:
    """A receiver of the hierarchy."""
    return Notary.make(own_hierarchy)


@pytest.fixture(scope="module")
def verifier(own_hierarchy: Hierarchy) -> ReceiptVerifier:
    """Who has the root and nothing else."""
    return ReceiptVerifier(own_hierarchy.anchors)


def places(found: list[Kept | Unread]) -> list[str]:
    """Return where receipts were found."""
    return [one.where for one in found if isinstance(one, Kept)]


def test_a_log_is_read_line_by_line(notary: Notary) -> None:
    """Each line is a receipt, with its statement and what was said of it."""
    found = read(notary.line(entries(1)) + notary.line(entries(2), gone="the operator"))

    assert places(found) == ["kept:1", "kept:2"]
    assert [(one.proof, one.statement, one.said.get("gone")) for one in found if isinstance(one, Kept)] == [
        (notary.proof(entries(1)), notary.statement, None),
        (notary.proof(entries(2)), notary.statement, "the operator"),
    ]


def test_proofs_are_read_one_behind_the_other(notary: Notary) -> None:
    """One in a file, as a store keeps it, or several, as `cat` puts them together."""
    one, two = notary.proof(entries(1)), notary.proof(entries(9), 3)

    assert read(one) == [Kept("kept:1", one, None, {})]
    assert read(one + two) == [Kept("kept:1", one, None, {}), Kept(f"kept:{one.count(10) + 1}", two, None, {})]
    assert read(b"") == []


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 700, b"a", b'"a"', b'["a"]', b"{}", b'{"receipt": 1}', b"[" * 20_000 + b"a", b"\xffa", b"1" * 5000, b" ",
        b'{"receipt": "", "dump": "a", "dump": "b"}', b'{"receipt": "", "receipt": ""}', b'{"receipt": "", "a": [{"": 1, "": 1}]}',
        b"x" * (limits.MAX_KEPT_RECEIPT_BYTES + 1), b"x" * (3 * limits.MAX_KEPT_RECEIPT_BYTES),
    ],
    ids=lambda line: f"{line[:9]!a}",
)  # fmt: skip
def test_a_damaged_line_hides_no_other(notary: Notary, line: bytes) -> None:
    """It is named by its number, wherever it stands, and the others are read."""
    good = notary.line(entries(1))
    for lines, damaged in (([line + b"\n", good, good], 1), ([good, line + b"\n", good], 2)):
        found = read(b"".join(lines))

        assert [one.where for one in found if isinstance(one, Unread) and not one.is_torn] == [f"kept:{damaged}"]
        assert places(found) == [f"kept:{number}" for number in (1, 2, 3) if number != damaged]


def test_a_log_cut_at_every_offset_loses_no_whole_line(notary: Notary) -> None:
    """What is left of the last line is called torn, unless all but its newline is there."""
    line = notary.line(entries(1))
    for cut in range(len(line)):
        found = read(line + line[:cut])

        assert places(found) == ["kept:1", "kept:2"][: 2 if cut == len(line) - 1 else 1]
        assert [one.is_torn for one in found if isinstance(one, Unread)] == [True] * (0 < cut < len(line) - 1)


@given(st.binary(max_size=300))
def test_any_bytes_are_receipts_or_named(data: bytes) -> None:
    """No line of a log is passed over in silence but blank ones, and nothing else is raised."""
    lines = data.split(b"\n")
    expected = [number for number, line in enumerate(lines, 1) if line]

    assert [int(one.where.partition(":")[2]) for one in read(data)] == expected


@pytest.mark.parametrize("index", range(5))
def test_a_receipt_that_holds_is_a_witness(notary: Notary, verifier: ReceiptVerifier, index: int) -> None:
    """Of its log, its receiver and host, and its entry."""
    witness = verifier.verify(parse_line(notary.line(entries(5), index), "here"))

    assert (witness.where, witness.origin) == ("here", origin_of(notary.signer.name, WEB))
    assert (str(witness.receiver), witness.host, witness.receipt.entry) == (RECEIVER_NAME, WEB, entries(5)[index])
    assert find_origin(parse_line(notary.line(entries(5)), "")) == Origin(notary.signer.name, WEB)


Lie = Callable[[Notary], bytes]


def stranger(notary: Notary) -> Notary:
    """Return a receiver of the same name under somebody else's root."""
    return Notary.make(make_hierarchy(suffix=" of somebody else"))


def neighbour(notary: Notary) -> Notary:
    """Return another receiver under our root."""
    return Notary.make(notary.hierarchy, f"backup.{HOST_NAME.partition('.')[2]}")


def impostor(notary: Notary) -> Notary:
    """Return who has the statement and not the key."""
    return Notary(notary.hierarchy, stranger(notary).signer, notary.statement)


def saying(**changes: Any) -> Lie:
    """Return what makes the line of a good receipt, in which something else is said."""
    return lambda notary: notary.line(entries(5), **changes)


LIES: Final[dict[str, tuple[Lie, str]]] = {
    "another key": (lambda notary: impostor(notary).line(entries(5)), "not signed by the log's key"),
    "another root": (lambda notary: stranger(notary).line(entries(5)), "the log key's statement does not hold: "),
    "another receiver's key": (lambda notary: saying(log_key=neighbour(notary).statement.decode())(notary), "and its key is"),
    "no statement": (saying(log_key=...), "the log key's statement is not with it"),
    "a statement that is none": (saying(log_key="a.b.c"), "the log key's statement does not hold: "),
    "a statement of no text": (saying(log_key="\ud800"), "the log key's statement does not hold: "),
    "a proof of no text": (saying(receipt="\ud800"), "proof does not begin"),
    "no proof": (saying(receipt=""), "proof does not begin"),
    "no host's log": (
        lambda notary: saying(receipt=notary.proof(entries(5)).decode().replace(f"/{WEB}", "/web"))(notary), "which is no host's",
    ),
    "an entry of another host": (lambda notary: notary.line([entry(0, host=OTHER)]), "its entry is of host"),
    "another entry": (
        lambda notary: saying(receipt=notary.proof(entries(5)).decode().replace("index 4", "index 3"))(notary), "does not lead to",
    ),
    "another dump's line": (saying(dump="d"), "its line says dump is 'd'"),
    "another host's line": (saying(host="db-2"), "its line says host is 'db-2'"),
    "another time": (saying(received_at="then"), "its line says received_at is 'then'"),
    "another index": (saying(index=2), "its line says index is 2, it proves 4"),
    "no index": (lambda notary: notary.line(entries(1), index=False), "its line says index is False, it proves 0"),
    "an index that is no integer": (saying(index=4.0), "its line says index is 4.0, it proves 4"),
    "another origin": (saying(origin="x"), "its line says origin is 'x'"),
    "another address": (saying(receiver="192.0.2.9:1"), "its line says it came from '192.0.2.9:1'"),
    "no address": (saying(receiver=7), "its line says it came from 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_does_not_hold_is_no_witness(notary: Notary, verifier: ReceiptVerifier, name: str) -> None:
    """Its key, its proof, and what its line says of it: each lie is refused in words that name it, and again the second time."""
    tell, words = LIES[name]
    kept = parse_line(tell(notary), "here")

    for _ in range(2):
        with pytest.raises(BrokenError) as refused:
            verifier.verify(kept)
        assert words in refused.value.message


def test_a_proof_alone_needs_the_key(notary: Notary, verifier: ReceiptVerifier, own_hierarchy: Hierarchy) -> None:
    """Whoever has the statement may give it; without it nothing says whose key that was."""
    (kept,) = read(notary.proof(entries(3)))
    assert isinstance(kept, Kept)

    with pytest.raises(BrokenError, match="the log key's statement is not with it"):
        verifier.verify(kept)
    assert ReceiptVerifier(own_hierarchy.anchors, notary.log_key).verify(kept).receipt.leaf_index == 2


@pytest.mark.slow
@given(data=st.data())
def test_any_changed_byte_is_refused_or_says_the_same(data: st.DataObject, notary: Notary, verifier: ReceiptVerifier) -> None:
    """No byte of a line can be another one so that another thing is proved."""
    line = notary.line(entries(5))
    at = data.draw(st.integers(0, len(line) - 1))
    changed = bytearray(line)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = verifier.verify(parse_line(bytes(changed), "here"))
    except SecurecoreError:
        return
    assert found == verifier.verify(parse_line(line, "here"))


def test_a_statement_cut_at_every_length_makes_no_witness(notary: Notary, verifier: ReceiptVerifier) -> None:
    """Nor does what stands behind it: no line is cut in a way that leaves a receipt."""
    line = json.loads(notary.line(entries(1)))
    for name in ("receipt", "log_key"):
        for cut in range(0, len(line[name]), 7):
            with pytest.raises(BrokenError):
                verifier.verify(parse_line(json.dumps(line | {name: line[name][:cut]}).encode(), "here"))

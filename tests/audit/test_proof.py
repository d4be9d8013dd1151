"""Receipts: proofs in the C2SP form that lead from an entry to a signed root, or are refused."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.proof import TlogProof, inclusion_from_stream, parse_proof, verify_receipt
from securecore.errors import BrokenError
from securecore.merkle import Frontier, inclusion_proof, leaf_hash, root_of
from tests.support.dumps import LOG_NAME, WEB, make_log_signer

SIGNER = make_log_signer()
ORIGIN = origin_of(LOG_NAME, WEB)
ENTRIES = [f'{{"event":"x","n":{number},"time":"y"}}'.encode() for number in range(7)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


def receipt(index: int, size: int = 7) -> bytes:
    proof = inclusion_proof(LEAVES[:size], index)
    return TlogProof(index, tuple(proof), SIGNER.sign(ORIGIN, size, root_of(LEAVES[:size])), ENTRIES[index]).encode()


@pytest.mark.parametrize("size", range(1, 8))
def test_every_receipt_verifies(size: int) -> None:
    """Each entry of each tree has a receipt that gives it back with its index and checkpoint."""
    for index in range(size):
        found = verify_receipt(receipt(index, size), ORIGIN, SIGNER.public_key)
        assert (found.entry, found.leaf_index, found.checkpoint.size) == (ENTRIES[index], index, size)
        assert found.fields == {"event": "x", "n": index, "time": "y"}


def test_form_of_a_receipt() -> None:
    """The lines are those of c2sp.org/tlog-proof@v1, and the checkpoint follows verbatim."""
    head, _, checkpoint = receipt(2, 3).partition(b"\n\n")
    hashes = [base64.b64encode(sibling) for sibling in inclusion_proof(LEAVES[:3], 2)]
    assert head.split(b"\n") == [b"c2sp.org/tlog-proof@v1", b"extra " + base64.b64encode(ENTRIES[2]), b"index 2", *hashes]
    assert checkpoint == SIGNER.sign(ORIGIN, 3, root_of(LEAVES[:3]))


def test_the_example_of_the_specification_has_this_form() -> None:
    """A proof without extra data, as others write them, is parsed into its parts and written back the same."""
    text = b"c2sp.org/tlog-proof@v1\nindex 73894\n" + base64.b64encode(bytes(32)) + b"\n\nexample.com/fancylog\n"
    proof = parse_proof(text)
    assert proof == TlogProof(73894, (bytes(32),), b"example.com/fancylog\n", None)
    assert proof.encode() == text


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    """No byte of a receipt can be another one."""
    original = receipt(5)
    at = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BrokenError):
        verify_receipt(bytes(changed), ORIGIN, SIGNER.public_key)


def test_truncated_at_every_offset() -> None:
    """No beginning of a receipt is one, and nothing may follow it."""
    original = receipt(5)
    for length in range(len(original)):
        with pytest.raises(BrokenError):
            verify_receipt(original[:length], ORIGIN, SIGNER.public_key)
    with pytest.raises(BrokenError):
        verify_receipt(original + b"\n", ORIGIN, SIGNER.public_key)


def test_another_entry_index_or_log_is_refused() -> None:
    """A receipt proves its own entry at its own place in its own log."""
    proof = parse_proof(receipt(5))
    for forged in (proof._replace(extra=ENTRIES[4]), proof._replace(leaf_index=4), proof._replace(hashes=proof.hashes[1:])):
        with pytest.raises(BrokenError, match="does not lead to the root"):
            verify_receipt(forged.encode(), ORIGIN, SIGNER.public_key)
    with pytest.raises(BrokenError, match="does not carry its entry"):
        verify_receipt(proof._replace(extra=None).encode(), ORIGIN, SIGNER.public_key)
    with pytest.raises(BrokenError, match="is of log"):
        verify_receipt(receipt(5), f"{ORIGIN}x", SIGNER.public_key)
    with pytest.raises(BrokenError, match="not signed"):
        verify_receipt(receipt(5), ORIGIN, make_log_signer().public_key)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        b"c2sp.org/tlog-proof@v1\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 00\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex -1\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 99999999999999999999\n\nx",
        b"c2sp.org/tlog-proof@v1\nextra AAAB=\nindex 0\n\nx",
        b"c2sp.org/tlog-proof@v1\nextra AAAA\nextra AAAA\nindex 0\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 0\nAAAA\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 0\n\xff\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 65 + b"\nx",
        b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + b"x" * limits.MAX_RECEIPT_BYTES,
    ],
)
def test_malformed_proofs_are_refused(text: bytes) -> None:
    """Numbers and base64 have one spelling, and everything is bounded."""
    with pytest.raises(BrokenError, match="proof"):
        parse_proof(text)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, 16, 33])
def test_streamed_proofs_are_the_defined_ones(size: int) -> None:
    """Reading leaves once gives the proof of the recursive definition, whatever follows behind the size."""
    leaves = [leaf_hash(bytes([number])) for number in range(size)]
    for index in range(size):
        streamed, leaf = inclusion_from_stream(iter([*leaves, bytes(32)]), index, size)
        assert (streamed, leaf) == (inclusion_proof(leaves, index), leaves[index])


def test_streamed_proof_of_too_few_leaves() -> None:
    """A log shorter than the size is broken; an index outside is the caller's error."""
    with pytest.raises(BrokenError, match="has 2 entries"):
        inclusion_from_stream(iter(LEAVES[:2]), 0, 3)
    for index in (-1, 3):
        with pytest.raises(ValueError):
            inclusion_from_stream(iter(LEAVES), index, 3)


def test_the_frontier_gives_the_same_proof() -> None:
    """The proof that an append takes from the frontier is the one that re-reading gives."""
    frontier = Frontier()
    for size, leaf in enumerate(LEAVES, 1):
        expected, _ = inclusion_from_stream(iter(LEAVES), size - 1, size)
        assert frontier.proof_for_next() == expected
        frontier.append(leaf)

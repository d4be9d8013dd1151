"""The one Merkle tree implementation, against RFC 6962's own recursive definition and published roots."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.merkle import EMPTY_ROOT, Frontier, inclusion_proof, leaf_hash, node_hash, root_from_inclusion, root_of

# The leaves and roots that implementations of RFC 6962 have been tested with since certificate-transparency's merkle_tree_test.cc.
LEAVES = [bytes.fromhex(text) for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def define_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + define_root(leaves[:split]) + define_root(leaves[split:])).digest()


def hashes(count: int) -> list[bytes]:
    return [leaf_hash(index.to_bytes(4, "big")) for index in range(count)]


@pytest.mark.parametrize("size", sorted(ROOTS))
def test_published_roots(size: int) -> None:
    """The roots are those of other implementations."""
    assert root_of(leaf_hash(leaf) for leaf in LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize("size", range(70))
def test_frontier_root_is_the_defined_root(size: int) -> None:
    """A tree grown leaf by leaf has the root of the recursive definition at every size."""
    frontier = Frontier()
    frontier.extend(hashes(size))
    assert (frontier.size, frontier.root()) == (size, define_root(hashes(size)))


def test_empty_root() -> None:
    """The empty tree's root is the hash of nothing."""
    assert Frontier().root() == EMPTY_ROOT == define_root([])


def test_leaf_and_node_hashes_cannot_collide() -> None:
    """A node's content offered as a leaf has another hash."""
    left, right = hashes(2)
    assert leaf_hash(left + right) != node_hash(left, right)


def test_leaf_hash_takes_any_buffer() -> None:
    """bytes, bytearray and memoryview of the same content have one hash."""
    assert leaf_hash(b"abc") == leaf_hash(bytearray(b"abc")) == leaf_hash(memoryview(b"abc")) == sha256(b"\x00abc").digest()


@pytest.mark.parametrize("size", range(1, 35))
def test_every_inclusion_proof_gives_the_root(size: int) -> None:
    """Each leaf of each tree has a proof that leads to the root, and to nothing at any other index."""
    leaves = hashes(size)
    root = define_root(leaves)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert root_from_inclusion(leaves[index], index, size, proof) == root
        for other in range(size):
            if other != index:
                assert root_from_inclusion(leaves[index], other, size, proof) != root


@pytest.mark.parametrize("size", range(1, 35))
def test_proof_for_next_is_the_proof_of_the_last_leaf(size: int) -> None:
    """The proof that a frontier gives before an append is the one that the recursive definition gives after it."""
    frontier = Frontier()
    frontier.extend(hashes(size - 1))
    assert frontier.proof_for_next() == inclusion_proof(hashes(size), size - 1)


@given(st.integers(1, 200), st.data())
def test_changed_proofs_are_refused(size: int, data: st.DataObject) -> None:
    """A proof with a flipped bit, a hash too few or too many, or a hash of the wrong length never gives the root."""
    leaves = hashes(size)
    index = data.draw(st.integers(0, size - 1))
    root, proof = root_of(leaves), inclusion_proof(leaves, index)
    assert root_from_inclusion(leaves[index], index, size, [*proof, bytes(32)]) is None
    if proof:
        at, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[at], "big") ^ 1 << bit).to_bytes(32, "big")
        assert root_from_inclusion(leaves[index], index, size, [*proof[:at], flipped, *proof[at + 1 :]]) != root
        assert root_from_inclusion(leaves[index], index, size, proof[:-1]) is None
        assert root_from_inclusion(leaves[index], index, size, [proof[0][:31], *proof[1:]]) is None


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (1, 1), (0, 0), (5, 4)])
def test_no_proof_outside_the_tree(index: int, size: int) -> None:
    """There is no proof for an index outside the tree, and none is believed."""
    assert root_from_inclusion(bytes(32), index, size, []) is None
    with pytest.raises(IndexError):
        inclusion_proof(hashes(size), index)


def test_a_copy_grows_alone() -> None:
    """Appending to a copy leaves the original as it was."""
    frontier = Frontier()
    frontier.extend(hashes(5))
    before = frontier.root()
    frontier.copy().append(hashes(1)[0])
    assert (frontier.size, frontier.root()) == (5, before)

"""Receipts held against each other: those of one log agree whatever they are about, and those of two are caught without either."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.audit.contradiction import Contradiction, Histories
from securecore.audit.proof import parse_proof, proved_ranges
from securecore.merkle import leaf_hash, root_of
from tests.support.certificates import make_hierarchy
from tests.support.dumps import NOW
from tests.support.kept_receipts import STORE_ID, Notary, entries, entry

NOTARY = Notary.make(make_hierarchy(now=NOW))
PLACES = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))
"""Sizes of a log, each with the index of an entry."""


def contradictions(*receipts: tuple[list[bytes], int]) -> list[Contradiction]:
    """Return what is found of receipts, each for an entry of a log, in order; ``kept:N`` is where the Nth stands."""
    histories = Histories()
    witnesses = [NOTARY.witness(log, index, f"kept:{at}") for at, (log, index) in enumerate(receipts, 1)]
    return [found for witness in witnesses if (found := histories.take(witness)) is not None]


@given(PLACES)
def test_a_proof_fixes_the_hashes_of_ranges(place: tuple[int, int]) -> None:
    """From the entry's own up to the whole log, each is the root of those entries alone."""
    size, index = place
    leaves = [leaf_hash(one) for one in entries(size)]
    proof = parse_proof(NOTARY.proof(entries(size), index))
    found = list(proved_ranges(leaves[index], index, size, proof.hashes))

    assert found[0] == (index, index + 1, leaves[index])
    assert found[-1] == (0, size, root_of(leaves))
    assert all(value == root_of(leaves[first:end]) for first, end, value in found)


@pytest.mark.slow
@given(st.lists(PLACES, max_size=12))
def test_receipts_of_one_log_never_contradict_each_other(places: list[tuple[int, int]]) -> None:
    """Whichever entries they are about, at whichever sizes, in whichever order they were kept."""
    assert contradictions(*((entries(size), index) for size, index in places)) == []


@pytest.mark.slow
@given(PLACES, PLACES, st.integers(0, 40))
def test_two_histories_are_found_where_both_speak_of_what_was_changed(
    one: tuple[int, int], other: tuple[int, int], since: int
) -> None:
    """Found is every pair that gives one range two hashes, nothing else, and it is named by what differs."""
    logs = entries(one[0]), entries(other[0], "rewritten", since)
    said = [
        {(first, end): value for first, end, value in proved_ranges(leaf_hash(log[index]), index, len(log), hashes)}
        for log, (_, index) in zip(logs, (one, other), strict=True)
        for hashes in [parse_proof(NOTARY.proof(log, index)).hashes]
    ]
    differing = {at for at in said[0].keys() & said[1].keys() if said[0][at] != said[1][at]}

    found = contradictions((logs[0], one[1]), (logs[1], other[1]))

    assert bool(found) == bool(differing)
    for contradiction in found:
        assert (contradiction.first, contradiction.end) in differing
        assert contradiction.end > since
        assert (contradiction.earlier, contradiction.later) == ("kept:1", "kept:2")


@pytest.mark.parametrize(
    ("receipts", "words"),
    [
        ([(entries(5), 3), (entries(9, "b", 3), 3)], "entry 3 is two entries"),
        ([(entries(5), 4), (entries(5, "b", 2), 0)], "entry 4 is two entries"),
        ([(entries(8), 0), (entries(8, "b", 6), 3)], "entries 4 to 7 have two hashes"),
        ([(entries(7), 0), (entries(7, "b", 5), 5)], "the first 7 entries have two roots"),
        # Each was given for the newest entry, so no size and no index is in both; the second proof has the first one's root in it.
        ([(entries(2), 1), (entries(3, "b", 0), 2)], "entries 0 to 1 have two hashes"),
    ],
)
def test_what_cannot_be_is_told(receipts: list[tuple[list[bytes], int]], words: str) -> None:
    """In words that say which entries two receipts do not agree on."""
    (found,) = contradictions(*receipts)

    assert found.what == words


def test_logs_of_two_hosts_or_receivers_have_nothing_to_agree_on() -> None:
    """The same places in other logs hold other entries."""
    histories = Histories()
    witness = NOTARY.witness(entries(5))

    others = [witness._replace(origin=f"{witness.origin}{end}") for end in ("a", "b")]
    assert [histories.take(one) for one in (witness, *others)] == [None] * 3
    assert histories.take(NOTARY.witness(entries(5, "b"))) is not None


def test_two_stores_are_told() -> None:
    """A receiver that began its log anew has two histories of it; what the entries say of their stores helps to see why."""
    log, new_store = [entry(0, store=STORE_ID)], STORE_ID.replace("3b", "4c")
    (found,) = contradictions((log, 0), ([entry(0, store=new_store)], 0))
    (without,) = contradictions((log, 0), ([entry(0)], 0))

    assert found.what == f"entry 0 is two entries, of stores {STORE_ID} and {new_store}"
    assert without.what == "entry 0 is two entries"


def test_a_third_receipt_is_held_against_both() -> None:
    """What was found before hides nothing that comes behind it."""
    found = contradictions((entries(4), 3), (entries(4, "b"), 3), (entries(4, "c"), 3), (entries(4), 2))

    assert [(one.earlier, one.later) for one in found] == [("kept:1", "kept:2"), ("kept:1", "kept:3")]

"""Logs held against kept receipts: exactly those that do not fit are found, and the log's length costs time and no memory."""

import os
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.audit.checkpoint import origin_of
from securecore.audit.comparison import FORKED, SHORTENED, Attestation, LogComparison, attest, compare_log
from securecore.audit.entry import RECEIVED
from securecore.merkle import leaf_hash, root_of
from tests.support.certificates import make_hierarchy
from tests.support.dumps import NOW, WEB, dump_id
from tests.support.entries import deleted, received
from tests.support.kept_receipts import Notary, entries, entry

NOTARY = Notary.make(make_hierarchy(now=NOW))
ORIGIN = origin_of(NOTARY.signer.name, WEB)
GIVEN = st.tuples(st.integers(0, 24), st.integers(1, 24), st.integers(0, 23))
"""A receipt: how many entries of its log are this one's too, how long it was, and which entry was proved."""


def write_log(place: Path, log: Sequence[bytes], signed: int | None = None) -> None:
    """Write a log of which the first *signed* entries, or all, are under its checkpoint."""
    count = len(log) if signed is None else signed
    (place / "entries.jsonl").write_bytes(b"".join(one + b"\n" for one in log))
    (place / "checkpoint").write_bytes(NOTARY.signer.sign(ORIGIN, count, root_of(leaf_hash(one) for one in log[:count])))


def compare(place: Path, *attestations: Attestation) -> LogComparison:
    """Compare the log in a directory."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return compare_log(fd, ORIGIN, NOTARY.signer.public_key, attestations)
    finally:
        os.close(fd)


def given_for(log: Sequence[bytes], index: int = -1) -> Attestation:
    """Return what a receipt says that was given for an entry of *log*."""
    return attest(NOTARY.witness(log, index))


@pytest.mark.slow
@given(size=st.integers(0, 24), behind=st.integers(0, 4), receipts=st.lists(GIVEN, max_size=8))
def test_exactly_the_receipts_that_do_not_fit_are_found(size: int, behind: int, receipts: list[tuple[int, int, int]]) -> None:
    """Whatever log there is, and whatever receipts: each that is of another history or of a longer one, and no other."""
    log = entries(size + behind)
    logs = [entries(length, "another", since) for since, length, _ in receipts]
    attestations = [given_for(other, index % len(other)) for other, (_, _, index) in zip(logs, receipts, strict=True)]
    fitting = [len(other) <= size and other == log[: len(other)] for other in logs]

    with tempfile.TemporaryDirectory() as place:
        write_log(Path(place), log, size)
        found = compare(Path(place), *attestations)

    assert (found.size, found.problem) == (size, None)
    assert [one not in found.departures for one in attestations] == fitting
    for other, one in zip(logs, attestations, strict=True):
        kind = SHORTENED if len(other) > size else FORKED
        assert one not in found.departures or found.departures[one].kind == kind


def test_what_was_rewritten_is_told(tmp_path: Path) -> None:
    """The very entry that a receipt proves, or another one before its checkpoint; or the log was put back."""
    write_log(tmp_path, entries(5, "another", 3))
    rewritten, before, longer = given_for(entries(5), 4), given_for(entries(5), 1), given_for(entries(9), 1)

    found = compare(tmp_path, rewritten, before, longer, given_for(entries(3), 1)).departures

    assert {one: found[one].words for one in found} == {
        rewritten: "entry 4 of the log is another than the one that this receipt proves",
        before: "the entry that this receipt proves is there, and another of the first 5 is not what it was",
        longer: "the log has 5 entries, this receipt was given when it had 9",
    }


def test_what_the_log_says_last_of_a_dump_is_told(tmp_path: Path) -> None:
    """Of the dumps of the receipts, and of no others."""
    log = [received(1), received(2), deleted(1), received(3)]
    write_log(tmp_path, log)
    attestations = [Attestation(4, root_of(map(leaf_hash, log)), at, leaf_hash(log[at]), dump_id(at + 1)) for at in (0, 1)]

    found = compare(tmp_path, *attestations)

    assert found.departures == {}
    assert {dump: (entered.event, entered.at) for dump, entered in found.newest.items()} == {
        dump_id(1): ("deleted", 2), dump_id(2): (RECEIVED, 1),
    }  # fmt: skip


@pytest.mark.parametrize("dump", [None, 7, "", "no dump", "\ud800"])
def test_an_entry_may_be_about_no_dump(dump: object, tmp_path: Path) -> None:
    """A refusal is, and an entry may say anything; it is compared like any other."""
    log = [entry(0, dump=dump)]
    write_log(tmp_path, log)

    assert given_for(log).dump is None
    assert compare(tmp_path, given_for(log)).departures == {}


@pytest.mark.parametrize(
    ("spoil", "problem", "departs"),
    [
        (lambda place: (place / "checkpoint").unlink(), "checkpoint is missing", False),
        (lambda place: (place / "checkpoint").write_bytes(b"x"), "checkpoint is not a signed note", False),
        (lambda place: (place / "entries.jsonl").unlink(), "entries.jsonl is missing", True),
        (lambda place: (place / "entries.jsonl").write_bytes(b""), "the log has 0 entries, its checkpoint says 5", True),
        (lambda place: (place / "entries.jsonl").write_bytes(b"x" * 20_000), "the log has 0 entries, its checkpoint says 5", True),
        (lambda place: write_last(place, b"{}"), "the log does not begin as it was signed, with 5 entries", False),
    ],
)
def test_a_log_that_does_not_hold_is_compared_as_it_stands(spoil: object, problem: str, departs: bool, tmp_path: Path) -> None:
    """What is wrong with it is told, and which receipts it contradicts all the same."""
    write_log(tmp_path, entries(5))
    assert callable(spoil)
    spoil(tmp_path)
    one = given_for(entries(3), 1)

    found = compare(tmp_path, one)

    assert (found.problem, one in found.departures) == (problem, departs)


def write_last(place: Path, last: bytes) -> None:
    """Put something in the place of a log's last entry."""
    lines = (place / "entries.jsonl").read_bytes().splitlines(keepends=True)
    (place / "entries.jsonl").write_bytes(b"".join([*lines[:-1], last + b"\n"]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Three times the entries, the same receipts: no more is kept than they ask for."""
    peaks = []
    for size in (30_000, 90_000):
        log = entries(size)
        write_log(tmp_path, log)
        attestations = [given_for(log[:at]) for at in (1, 77, 1_500)]
        del log
        tracemalloc.start()
        assert compare(tmp_path, *attestations).departures == {}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] + 200_000

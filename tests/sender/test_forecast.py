"""How much room the rest of a core may take: more than is likely, before a wire that works is given up; else what is likely."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.merkle import leaf_hash
from securecore.names import DumpId
from securecore.sender.custody import Custody
from securecore.sender.forecast import Forecast
from securecore.sender.pump import Frame

GIB: Final = 1024 * limits.MIB


def custody_of(frames: list[tuple[int, int]]) -> Custody:
    """Return the custody of a dump that had so many frames of so many bytes each, one after the other."""
    custody = Custody(DumpId.make(0, bytes(10)), b"{}", 0, None)
    for count, stored in frames:
        for _ in range(count):
            custody.take(Frame(bytes(stored), leaf_hash(b""), limits.PIECE_BYTES))
            custody.acknowledge(custody.all.size)
    return custody


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(10, 2000)), max_size=4), st.integers(0, 1 << 50))
def test_never_more_than_the_rest_itself(frames: list[tuple[int, int]], rest: int) -> None:
    """Uncompressed it takes its own length, and nothing takes more."""
    assert 0 <= custody_of(frames).expect(rest) <= rest


def test_before_anything_was_seen_the_rest_counts_whole() -> None:
    """The first pieces of a core compress well whatever comes behind them."""
    assert custody_of([]).expect(GIB) == GIB
    assert custody_of([(8, 100_000)]).expect(GIB) == GIB


def test_what_has_compressed_well_for_long_counts_twice_what_it_took() -> None:
    """So a process whose memory is larger than the disk is not held for as long as a slow link takes."""
    expected = custody_of([(1000, limits.PIECE_BYTES // 10)]).expect(GIB)
    assert 2 * GIB // 10 < expected < 3 * GIB // 10


@pytest.mark.parametrize("noise", [8, 16])
def test_where_noise_has_begun_the_rest_counts_whole(noise: int) -> None:
    """However well all before it compressed: what comes next is likely to be like it."""
    assert custody_of([(1000, 100), (noise, limits.PIECE_BYTES)]).expect(GIB) > 0.99 * GIB


def likely(frames: list[tuple[int, int]], rest: int) -> int:
    """Return what a core that had so many frames of so many bytes each, one after the other, is likely to take still."""
    forecast = Forecast()
    for count, stored in frames:
        for _ in range(count):
            forecast.add(limits.PIECE_BYTES, stored)
    return forecast.expect(rest)


def test_of_a_core_of_which_little_is_known_nothing_is_likely() -> None:
    """By its first pieces it is not taken for one that no disk can hold."""
    assert likely([], GIB) == likely([(15, limits.PIECE_BYTES)], GIB) == 0


@pytest.mark.parametrize("before", [0, 100, 10_000], ids="{} frames that took nothing before".format)
def test_a_core_that_does_not_compress_is_known_for_it_after_sixteen_frames(before: int) -> None:
    """Whatever it began with: nobody is to make others go for as long as he likes."""
    assert likely([(before, 20), (16, limits.PIECE_BYTES)], GIB) == GIB


def test_what_has_compressed_alike_for_long_is_likely_to_go_on_so() -> None:
    """Neither more nor less than what it has taken so far."""
    assert likely([(1000, limits.PIECE_BYTES // 4)], GIB) == pytest.approx(GIB / 4, rel=0.02)

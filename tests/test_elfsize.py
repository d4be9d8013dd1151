"""ELF header arithmetic: how long must a core be, and what do headers that lie cost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import elfsize, limits
from securecore.elfsize import CoreSize, expected_size
from tests.support.elf import PN_XNUM, PT_NOTE, Segment, write_core

SHAPES = [(bits, order) for bits in (32, 64) for order in "<>"]
SEGMENTS = [
    [],
    [Segment(b"n" * 100, PT_NOTE)],
    [Segment(b"n" * 100, PT_NOTE), Segment(b"a" * 5000), Segment(b"b" * 4096), Segment(b"")],
    [Segment(b"a" * 10)] * 70,
]


@pytest.mark.parametrize(("bits", "order"), SHAPES)
@pytest.mark.parametrize("segments", SEGMENTS, ids=len)
@pytest.mark.parametrize("extended", [False, True])
def test_the_prediction_is_the_length(bits: int, order: str, segments: list[Segment], extended: bool) -> None:
    """For both classes and byte orders, with and without PN_XNUM."""
    core = write_core(segments, bits=bits, order=order, extended_numbering=extended)
    size = CoreSize()
    size.feed(core)
    assert size.expected == (len(core) if len(core) >= 64 else None)


def test_segments_need_not_be_in_order() -> None:
    """With kernel.core_sort_vma the smallest comes first: the end is the largest end, not the last."""
    core = write_core([Segment(b"", offset=90_000, filesz=10_000), Segment(b"", offset=5_000, filesz=100)])
    assert expected_size(core) == 100_000


@pytest.mark.parametrize(("bits", "order"), SHAPES)
def test_truncation_at_every_offset_is_unknown_until_the_table_is_whole(bits: int, order: str) -> None:
    """Then it is the whole length, however little of the data has come."""
    core = write_core(bits=bits, order=order)
    table_end = (64 + 2 * 56) if bits == 64 else (52 + 2 * 32)
    answers = [expected_size(core[:cut]) for cut in range(table_end + 10)]
    assert answers == [None] * table_end + [len(core)] * 10


@given(st.data())
def test_any_split_gives_the_same_answer(data: st.DataObject) -> None:
    """Where the pipe cuts the core does not matter."""
    bits, order = data.draw(st.sampled_from(SHAPES))
    core = write_core(bits=bits, order=order, extended_numbering=data.draw(st.booleans()))
    cuts = sorted(data.draw(st.sets(st.integers(0, 300), max_size=12)) | {0, len(core)})
    size = CoreSize()
    for start, stop in pairwise(cuts):
        size.feed(memoryview(core)[start:stop])
    assert size.expected == len(core)


def test_nothing_is_kept_once_the_answer_is_known() -> None:
    """A core of any size costs no memory behind its headers."""
    size = CoreSize()
    for _ in range(3):
        size.feed(write_core())
        assert not size._prefix


@pytest.mark.parametrize(
    "prefix",
    [b"x", b"\x7fELG", b"#!/bin/sh\n", bytes(100), *(b"\x7fELF" + bad + bytes(60) for bad in (b"\0\0", b"\3\1", b"\2\3"))],
)
def test_what_is_no_elf_file_has_no_predicted_length(prefix: bytes) -> None:
    """That is settled at once, and for good."""
    size = CoreSize()
    size.feed(prefix)
    size.feed(write_core())
    assert size.expected is None
    assert not size._prefix


@pytest.mark.parametrize(
    "core",
    [
        write_core(kind=2),
        write_core(phentsize=32),
        write_core(bits=32, phentsize=56),
        write_core(phoff=elfsize._TABLE_MAX + 1),
        write_core(phoff=(1 << 64) - 1),
        write_core(phoff=(1 << 64) - 1, phnum=PN_XNUM - 1),
        write_core(phnum=PN_XNUM, shoff=0),
        write_core(phnum=PN_XNUM, shoff=(1 << 64) - 1, shentsize=64),
        write_core([Segment(offset=(1 << 64) - 1, filesz=(1 << 64) - 1)]),
        write_core([Segment(offset=1 << 63, filesz=0)]),
        write_core([Segment(offset=(1 << 63) - 1, filesz=1)]),
    ],
)
def test_headers_that_no_core_has_give_no_length(core: bytes) -> None:
    """An executable, entries of another size, tables beyond any core's, and lengths that no file can have."""
    assert expected_size(core) == -1


@pytest.mark.parametrize("size", [(1 << 63) - 1, limits.MAX_FRAMES * limits.PIECE_BYTES])
def test_a_length_that_a_file_can_have_is_believed(size: int) -> None:
    """It is advice; nothing is allocated for it."""
    assert expected_size(write_core([Segment(offset=size - 10, filesz=10)])) == size


def test_a_table_that_never_ends_is_given_up_on() -> None:
    """A header that promises its program headers as late as it may costs eight megabytes, and then nothing."""
    size = CoreSize()
    size.feed(write_core(phoff=elfsize._TABLE_MAX, phnum=PN_XNUM - 1))
    for _ in range(20):
        assert len(size._prefix) <= elfsize._TABLE_MAX
        size.feed(bytes(limits.PIECE_BYTES))
    assert size.expected is None
    assert not size._prefix


@pytest.mark.slow
def test_the_largest_table_is_read() -> None:
    """One program header below PN_XNUM."""
    core = write_core([Segment(offset=1 << 40, filesz=index) for index in range(PN_XNUM - 1)])
    assert expected_size(core) == (1 << 40) + PN_XNUM - 2


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: write_core()[:18] + tail))
def test_arbitrary_bytes_give_an_answer(prefix: bytes) -> None:
    """Never an exception; a length that a file can have, "too short" or "no core"."""
    answer = expected_size(prefix)
    assert answer is None or -1 <= answer < 1 << 63

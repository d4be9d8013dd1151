"""Random access: any offset of the plaintext, and never a byte that the container does not vouch for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.reader import DumpReader, open_container, open_frames, read_exactly
from securecore.errors import BrokenError, StorageError

WHOLE: Final = limits.PIECE_BYTES
PLAIN: Final = b"0123456789abcdef" * (WHOLE // 16) + bytes(WHOLE) + b"".join(b"%07d," % n for n in range(WHOLE // 8)) + b"the end"
COMPRESSOR: Final = Compressor()
FRAMES: Final = [COMPRESSOR.frame(PLAIN[at : at + WHOLE]) for at in range(0, len(PLAIN), WHOLE)]
ENTRIES: Final = [FrameEntry(len(frame), min(WHOLE, len(PLAIN) - index * WHOLE)) for index, frame in enumerate(FRAMES)]
CONTAINER: Final = b"".join(FRAMES) + seek_table(ENTRIES)


@pytest.fixture
def written(tmp_path: Path) -> Iterator["Written"]:
    """A place for containers on a real disk."""
    place = Written(tmp_path / "core.zst")
    yield place
    place.close()


class Written:
    """A file that is open for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fds: list[int] = []

    def __call__(self, data: bytes) -> int:
        """Return a descriptor of a file that holds *data*."""
        self.path.write_bytes(data)
        self.fds.append(os.open(self.path, os.O_RDONLY))
        return self.fds[-1]

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DumpReader]:
    """A reader over the container of PLAIN."""
    path = tmp_path_factory.mktemp("reader") / "core.zst"
    path.write_bytes(CONTAINER)
    fd = os.open(path, os.O_RDONLY)
    yield open_container(fd)
    os.close(fd)


def test_all_pieces_in_order_are_the_plaintext(reader: DumpReader) -> None:
    """And the size is theirs."""
    assert b"".join(reader.pieces()) == PLAIN
    assert reader.size == len(PLAIN)
    assert [reader.frame(index) for index in range(len(FRAMES))] == FRAMES


@settings(deadline=None)
@given(offset=st.integers(0, len(PLAIN) + 10), length=st.integers(0, 3000) | st.integers(0, len(PLAIN) + 10))
def test_any_range_is_a_slice_of_the_plaintext(reader: DumpReader, offset: int, length: int) -> None:
    """read_at(o, n) == plain[o : o + n]."""
    assert PLAIN[offset : offset + length] == reader.read_at(offset, length)


@pytest.mark.parametrize("offset", [0, WHOLE - 1, WHOLE, 3 * WHOLE - 3, 3 * WHOLE, len(PLAIN) - 1, len(PLAIN)])
@pytest.mark.parametrize("length", [0, 1, 5, WHOLE + 1])
def test_ranges_at_the_borders_of_pieces(reader: DumpReader, offset: int, length: int) -> None:
    """Where one piece ends and the next begins, and at the end of the dump."""
    assert PLAIN[offset : offset + length] == reader.read_at(offset, length)


def test_an_empty_dump_has_no_bytes(written: Written) -> None:
    """A container of no frames is a seek table."""
    empty = open_container(written(seek_table([])))
    assert (empty.size, empty.read_at(0, 10), list(empty.pieces())) == (0, b"", [])


def test_frames_are_read_without_a_seek_table(written: Written) -> None:
    """Of a dump that is still coming in, with a torn frame at its end; the offset says where the whole ones end."""
    whole = len(FRAMES[0]) + len(FRAMES[1])
    partial, end = open_frames(written(b"".join(FRAMES[:3])[:-1]))
    assert end == whole
    assert b"".join(partial.pieces()) == PLAIN[: 2 * WHOLE]
    complete, end = open_frames(written(CONTAINER))
    assert end == sum(entry.stored for entry in ENTRIES)
    assert complete.entries == ENTRIES


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 16, 17, 48, len(CONTAINER) - 1])
def test_a_container_that_was_cut_is_broken(written: Written, cut: int) -> None:
    """Its seek table is at its end, so that none of it is left."""
    with pytest.raises(BrokenError):
        open_container(written(CONTAINER[:cut]))


@pytest.mark.slow
def test_a_container_cut_at_every_offset_gives_its_whole_frames_and_no_other(written: Written) -> None:
    """Without the last byte of its seek table it is no container; what is whole of it is read all the same."""
    pieces = [b"a" * WHOLE, bytes(WHOLE), b"the end"]
    frames = [COMPRESSOR.frame(piece) for piece in pieces]
    entries = [FrameEntry(len(frame), len(piece)) for frame, piece in zip(frames, pieces, strict=True)]
    container = b"".join(frames) + seek_table(entries)
    ends = [sum(map(len, frames[:count])) for count in range(len(frames) + 1)]
    for cut in range(len(container)):
        fd = written(container[:cut])
        with pytest.raises(BrokenError):
            open_container(fd)
        partial, end = open_frames(fd)
        assert end == max(whole for whole in ends if whole <= cut)
        assert partial.entries == entries[: ends.index(end)]
    assert open_container(written(container)).entries == entries
    with pytest.raises(BrokenError):
        open_container(written(container + b"x"))


def test_a_table_that_is_longer_than_its_container_is_broken(written: Written) -> None:
    """A footer that promises sixteen million frames costs neither memory nor an offset before the beginning."""
    footer = limits.MAX_FRAMES.to_bytes(4, "little") + b"\0" + 0x8F92EAB1.to_bytes(4, "little")
    with pytest.raises(BrokenError, match="longer than its container"):
        open_container(written(bytes(100) + footer))


def test_a_damaged_frame_costs_only_its_own_piece(written: Written) -> None:
    """The error names the frame; the pieces around it are read."""
    damaged = bytearray(CONTAINER)
    damaged[len(FRAMES[0]) + len(FRAMES[1]) + 1000] ^= 1
    broken = open_container(written(bytes(damaged)))
    with pytest.raises(BrokenError, match="frame 2: "):
        broken.read_at(2 * WHOLE + 5, 1)
    assert broken.read_at(0, 2 * WHOLE) == PLAIN[: 2 * WHOLE]
    assert broken.piece(3) == b"the end"


def test_a_seek_table_that_lies_about_a_piece_is_found(written: Written) -> None:
    """Lengths that add up but are not the frames' are found when a piece is read."""
    wrong_plain = [*ENTRIES[:-1], FrameEntry(ENTRIES[-1].stored, 100)]
    with pytest.raises(BrokenError, match="frame 3: holds 7 bytes, the seek table says 100"):
        open_container(written(b"".join(FRAMES) + seek_table(wrong_plain))).piece(3)
    moved = [FrameEntry(ENTRIES[0].stored + 1, WHOLE), FrameEntry(ENTRIES[1].stored - 1, WHOLE), *ENTRIES[2:]]
    shifted = open_container(written(b"".join(FRAMES) + seek_table(moved)))
    for index in (0, 1):
        with pytest.raises(BrokenError, match=f"frame {index}: "):
            shifted.piece(index)


def test_a_file_that_shrinks_under_its_reader_is_broken(written: Written) -> None:
    """Not an endless loop, and not zeroes."""
    shrinking = open_container(written(CONTAINER))
    os.truncate(written.path, 100)
    with pytest.raises(BrokenError, match="cut off"):
        shrinking.frame(2)


def test_what_the_disk_does_not_give_is_a_storage_error() -> None:
    """A descriptor that cannot be read at an offset, or is none."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(StorageError, match="cannot read the dump"):
            read_exactly(reading, 0, 1)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(StorageError, match="cannot read the dump"):
        open_container(reading)

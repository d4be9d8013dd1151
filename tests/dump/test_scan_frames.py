"""Walking a container frame by frame, without its seek table."""

import os
import tracemalloc
from pathlib import Path

import pytest

from securecore import limits
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.reader import open_frames, scan_frames
from tests.support.dumps import core_bytes, frames_of


def write(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("tail", [b"", b"\x28", seek_table([]), b"\x00" * 9, b"\x28\xb5\x2f\xfd\xa4"])
def test_whole_frames_are_found_and_the_rest_left(tail: bytes, tmp_path: Path) -> None:
    """The walk gives every whole frame with offset, length and bytes, and ends before anything else."""
    frames = frames_of(core_bytes())
    fd = write(tmp_path / "core", b"".join(frame for frame, _ in frames) + tail)
    try:
        found = list(scan_frames(fd))
        reader, end = open_frames(fd)
    finally:
        os.close(fd)
    assert [(bytes(scanned.data), scanned.plain) for scanned in found] == frames
    assert [scanned.offset for scanned in found] == [sum(len(frame) for frame, _ in frames[:at]) for at in range(len(frames))]
    assert reader.entries == [FrameEntry(len(frame), plain) for frame, plain in frames]
    assert end == sum(len(frame) for frame, _ in frames)


def test_the_walk_ends_behind_a_short_piece(tmp_path: Path) -> None:
    """A frame behind a short piece is not part of the dump."""
    frames = [frame for frame, _ in frames_of(core_bytes(1, 8))]
    fd = write(tmp_path / "core", b"".join([*frames, ZERO_PIECE_FRAME]))
    try:
        assert len(list(scan_frames(fd))) == 2
    finally:
        os.close(fd)


def test_large_frames_cross_windows(tmp_path: Path) -> None:
    """Frames of incompressible bytes that straddle what is read at once are found whole."""
    core = os.urandom(11 * limits.PIECE_BYTES + 17)
    frames = frames_of(core)
    fd = write(tmp_path / "core", b"".join(frame for frame, _ in frames))
    try:
        assert [bytes(scanned.data) for scanned in scan_frames(fd)] == [frame for frame, _ in frames]
    finally:
        os.close(fd)


@pytest.mark.slow
def test_a_walk_over_many_small_frames_is_bounded(tmp_path: Path) -> None:
    """Memory does not grow with the number of frames, nor work with their plaintext: 4 GiB of zeroes."""
    fd = write(tmp_path / "core", ZERO_PIECE_FRAME * 4_000)
    tracemalloc.start()
    try:
        assert sum(scanned.plain for scanned in scan_frames(fd)) == 4_000 * limits.PIECE_BYTES
        assert tracemalloc.get_traced_memory()[1] < 16 * limits.MIB
    finally:
        tracemalloc.stop()
        os.close(fd)

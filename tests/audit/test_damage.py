"""The survey of a core: the same by however many threads, and ended at once by whoever interrupts it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.audit.damage import Survey, survey_core
from securecore.dump import reader
from securecore.dump.compression import Compressor
from securecore.dump.container import FrameLengths, seek_table
from tests.support.dumps import core_bytes, frames_of

PIECES = 12
CORE = core_bytes(PIECES - 1, 60)
FRAMES = [frame for frame, _ in frames_of(CORE)]
EXPECTED = (PIECES, len(CORE))


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A container of twelve frames, the last of them short."""
    lengths = FrameLengths()
    for frame, plain in frames_of(CORE):
        lengths.add(len(frame), plain)
    path = tmp_path / "core.zst"
    path.write_bytes(b"".join(FRAMES) + seek_table(lengths))
    return path


def survey(path: Path, threads: int, *, decode: bool = True, expected: tuple[int, int] | None = EXPECTED) -> Survey:
    fd = os.open(path, os.O_RDONLY)
    try:
        return survey_core(fd, expected, decode=decode, threads=threads)
    finally:
        os.close(fd)


def offset_of(frame: int) -> int:
    return sum(map(len, FRAMES[:frame]))


def spoil(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip_content(path: Path) -> None:
    for frame in (2, 3, 7):
        spoil(path, offset_of(frame) + 12, b"\xff\xff\xff")


def lie_in_the_table(path: Path) -> None:
    """Give the fourth frame's place to a sound one of another length."""
    frame = Compressor().frame(b"short")
    lengths = FrameLengths()
    for at, (sound, plain) in enumerate(frames_of(CORE)):
        lengths.add(len(frame) if at == 3 else len(sound), plain)
    path.write_bytes(b"".join([*FRAMES[:3], frame, *FRAMES[4:]]) + seek_table(lengths))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "none": lambda path: None,
    "content": flip_content,
    "a header": lambda path: spoil(path, offset_of(5), b"\x00"),
    "no table": lambda path: os.truncate(path, offset_of(PIECES)),
    "no table, and a header": lambda path: (os.truncate(path, offset_of(PIECES)), spoil(path, offset_of(5), b"\x00")),
    "no table, and content": lambda path: (flip_content(path), os.truncate(path, offset_of(PIECES))),
    "cut off in a frame": lambda path: os.truncate(path, offset_of(6) + 5),
    "empty": lambda path: os.truncate(path, 0),
    "a lie in the table": lie_in_the_table,
}


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_outcome_is_the_same(damage: str, decode: bool, threads: int, core: Path) -> None:
    """Root, lengths, the table's problem and the damage, in order, whoever has looked at which frame."""
    DAMAGES[damage](core)
    for expected in (None, EXPECTED):
        alone = survey(core, 1, decode=decode, expected=expected)
        assert survey(core, threads, decode=decode, expected=expected) == alone
    assert bool(alone.damage or alone.table_problem) == (damage != "none")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("has_table", [True, False])
def test_a_disk_that_refuses_costs_what_cannot_be_read(
    has_table: bool, threads: int, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a seek table one frame; without it what lies behind that, and nothing before."""
    if not has_table:
        os.truncate(core, offset_of(PIECES))
    real, bad = os.pread, range(offset_of(4), offset_of(5))
    monkeypatch.setattr(reader, "_WINDOW_BYTES", len(max(FRAMES, key=len)) + 1)

    def pread(fd: int, length: int, offset: int) -> bytes:
        if offset <= bad.start < offset + length:
            raise OSError(5, os.strerror(5))
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    found = survey(core, threads)

    first = found.damage[0]
    assert "Input/output error" in first.reason
    if has_table:
        assert [(damage.first_frame, damage.last_frame) for damage in found.damage] == [(4, 4)]
        assert found.frames == PIECES
    else:
        assert first.last_frame == PIECES - 1
        assert 0 < found.frames == first.first_frame <= 4


@pytest.mark.parametrize("has_table", [True, False])
def test_whoever_interrupts_is_obeyed_at_once(has_table: bool, core: Path) -> None:
    """No frame is counted any more, and no thread stays."""
    if not has_table:
        os.truncate(core, offset_of(PIECES))
    before, done = threading.active_count(), []

    def interrupt(frames: int, total: int) -> None:
        done.append(frames)
        raise KeyboardInterrupt

    fd = os.open(core, os.O_RDONLY)
    with pytest.raises(KeyboardInterrupt):
        survey_core(fd, EXPECTED, decode=True, progress=interrupt, threads=2)
    os.close(fd)
    assert done == [1]
    assert threading.active_count() == before


def test_progress_is_told_of_each_frame_in_order(core: Path) -> None:
    """By the thread that called."""
    seen: list[tuple[int, int, int]] = []
    fd = os.open(core, os.O_RDONLY)
    survey_core(
        fd, EXPECTED, decode=True, progress=lambda done, of: seen.append((done, of, threading.get_ident())), threads=4
    )
    os.close(fd)
    assert seen == [(done, PIECES, threading.get_ident()) for done in range(1, PIECES + 1)]

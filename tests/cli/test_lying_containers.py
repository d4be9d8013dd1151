"""Stored containers that lie, as no receiver of ours stores them: every command that reads a core refuses or survives them."""

import struct
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.dump.container import FrameEntry, seek_table
from securecore.names import DumpId
from tests.support.certificates import Fleet
from tests.support.dumps import frames_of
from tests.support.stores import Commands, fill_store

WHOLE: Final = limits.PIECE_BYTES
CORE: Final = b"".join(bytes([number, 255 - number]) * (WHOLE // 2) for number in range(4)) + b"the end"
FRAMES: Final = [frame for frame, _ in frames_of(CORE)]
ENTRIES: Final = [FrameEntry(len(frame), plain) for frame, plain in frames_of(CORE)]
BODY: Final = b"".join(FRAMES)
TABLE: Final = seek_table(ENTRIES)
FOOTER: Final = 9


def with_table(entries: list[FrameEntry]) -> bytes:
    """Return the true frames with another table."""
    return BODY + seek_table(entries)


def with_footer(count: int, descriptor: int = 0, magic: int = 0x8F92EAB1) -> bytes:
    """Return the container with another footer."""
    return BODY + TABLE[:-FOOTER] + struct.pack("<IBI", count, descriptor, magic)


def of_frames(frames: list[bytes], plains: list[int]) -> bytes:
    """Return a container of other frames with the table that is true of them."""
    return b"".join(frames) + seek_table([FrameEntry(len(frame), plain) for frame, plain in zip(frames, plains, strict=True)])


SHORT: Final = Compressor().frame(b"short")
PLAINS: Final = [entry.plain for entry in ENTRIES]
MAX_U32: Final = (1 << 32) - 1
LIES: Final[dict[str, bytes]] = {
    "empty": b"",
    "a table alone": TABLE,
    "an empty table": seek_table([]),
    "no table": BODY,
    "a table twice": BODY + TABLE + TABLE,
    "a byte behind the table": BODY + TABLE + b"\0",
    "a byte before the table": BODY + b"\0" + TABLE,
    "half a table": BODY + TABLE[: len(TABLE) // 2],
    "the end of a table": BODY + TABLE[9:],
    "one frame fewer": with_footer(4),
    "one frame more": with_footer(6),
    "no frames": with_footer(0),
    "as many frames as can be": with_footer(limits.MAX_FRAMES),
    "more frames than can be": with_footer(limits.MAX_FRAMES + 1),
    "4 Gi frames": with_footer(MAX_U32),
    "checksums in the table": with_footer(5, descriptor=0x80),
    "a reserved bit": with_footer(5, descriptor=0x04),
    "another magic number": with_footer(5, magic=0x8F92EAB0),
    "stored lengths that overflow": with_table([FrameEntry(MAX_U32, WHOLE)] * 4 + [FrameEntry(MAX_U32, 7)]),
    "stored lengths of 0": with_table([FrameEntry(0, WHOLE)] * 4 + [FrameEntry(len(BODY), 7)]),
    "stored lengths that add up and are wrong": with_table(
        [FrameEntry(ENTRIES[0].stored + 1, WHOLE), FrameEntry(ENTRIES[1].stored - 1, WHOLE), *ENTRIES[2:]]
    ),
    "plain lengths that overflow": with_table([FrameEntry(entry.stored, MAX_U32) for entry in ENTRIES]),
    "plain lengths of 0": with_table([FrameEntry(entry.stored, 0) for entry in ENTRIES]),
    "a longer last piece": with_table([*ENTRIES[:-1], FrameEntry(ENTRIES[-1].stored, WHOLE)]),
    "a shorter last piece": with_table([*ENTRIES[:-1], FrameEntry(ENTRIES[-1].stored, 1)]),
    "a short piece in the middle, in the table": with_table([ENTRIES[0], FrameEntry(ENTRIES[1].stored, 5), *ENTRIES[2:]]),
    "a short piece in the middle": of_frames([FRAMES[0], SHORT, *FRAMES[2:]], [WHOLE, 5, *PLAINS[2:]]),
    "a short piece in the middle that the table hides": of_frames([FRAMES[0], SHORT, *FRAMES[2:]], PLAINS),
    "frames swapped": of_frames([FRAMES[1], FRAMES[0], *FRAMES[2:]], PLAINS),
    "a frame left out": of_frames(FRAMES[1:], PLAINS[1:]),
    "a frame twice": of_frames([FRAMES[0], *FRAMES], [WHOLE, *PLAINS]),
    "two frames as one entry": BODY + seek_table([FrameEntry(ENTRIES[0].stored + ENTRIES[1].stored, WHOLE), *ENTRIES[2:]]),
    "a skippable frame among the frames": of_frames([FRAMES[0], b"\x50\x2a\x4d\x18\x04\0\0\0skip", *FRAMES[1:]], [WHOLE, *PLAINS]),
    "rubbish": bytes(range(256)) * 40,
    "rubbish before a true table": bytes(len(BODY)) + TABLE,
}


class Sample(Commands):
    """A store with one dump, whose core the test replaces."""

    dump_id: DumpId

    @property
    def core(self) -> Path:
        """The container."""
        return self.dump(self.dump_id) / "core.zst"


@pytest.fixture
def sample(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sample:
    """A store with a dump of CORE."""
    made = Sample(tmp_path / "store", fleet, capsys)
    (made.dump_id,) = fill_store(fleet, made.store, [("web-1", CORE)])
    assert made.core.read_bytes() == BODY + TABLE
    return made


@pytest.mark.parametrize("name", LIES)
def test_verify_finds_a_container_that_lies(name: str, sample: Sample) -> None:
    """Named or with --all, quick or not: exit code 6, and no other words than its own."""
    sample.core.write_bytes(LIES[name])

    for arguments in ([sample.dump_id], ["--all"], [sample.dump_id, "--quick"]):
        ran = sample.verify(*arguments)
        assert (ran.code, ran.err) == (6, "")
        assert "BROKEN" in ran.out


@pytest.mark.parametrize("name", LIES)
def test_extract_writes_no_core_that_is_not_the_one(name: str, sample: Sample, tmp_path: Path) -> None:
    """Exit code 6 and no file; with --partial perhaps a file whose every piece is sound or a hole, and exit code 6 all the same."""
    sample.core.write_bytes(LIES[name])

    ran = sample.extract(sample.dump_id, tmp_path / "core")

    assert ran.code == 6
    assert ran.err.startswith("securecore: ")
    assert not (tmp_path / "core").exists()
    partial = sample.extract(sample.dump_id, tmp_path / "partial", "--partial")
    assert partial.code == 6
    if (tmp_path / "partial").exists():
        written = (tmp_path / "partial").read_bytes()
        pieces = [written[at : at + WHOLE] for at in range(0, len(written), WHOLE)]
        assert all(piece in CORE or not any(piece) or piece == b"short" for piece in pieces)


@pytest.mark.parametrize("name", LIES)
def test_show_and_list_survive_a_container_that_lies(name: str, sample: Sample) -> None:
    """What the papers say is shown; what the core says is not known, in words."""
    sample.core.write_bytes(LIES[name])

    for arguments in (["show", sample.dump_id], ["show", sample.dump_id, "--json"], ["list"]):
        ran = sample(*arguments)
        assert (ran.code, ran.err) == (0, "")

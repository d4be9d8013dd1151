"""The container: read by zstd itself, and believed only where its seek table adds up."""

import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Final

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.dump.container import (
    FOOTER_BYTES,
    TABLE_END_BYTES,
    FrameEntry,
    FrameLengths,
    find_plain_bytes,
    footer_frames,
    parse_seek_table,
    seek_table,
    seek_table_bytes,
    seek_table_parts,
)
from securecore.errors import BrokenError

WHOLE: Final = limits.PIECE_BYTES
ENTRIES: Final = [FrameEntry(100, WHOLE), FrameEntry(37, WHOLE), FrameEntry(50, 1234)]
STORED: Final = 187
ZSTD: Final = shutil.which("zstd")


def container_of(plain: bytes) -> bytes:
    """Return the container of *plain*."""
    compressor, frames, entries = Compressor(), [], []
    for at in range(0, len(plain), WHOLE):
        piece = plain[at : at + WHOLE]
        frames.append(compressor.frame(piece))
        entries.append(FrameEntry(len(frames[-1]), len(piece)))
    return b"".join(frames) + seek_table(entries)


def test_the_seek_table_is_that_of_the_format() -> None:
    """Skippable frame 0x184D2A5E, 8 bytes for each frame, then count, descriptor 0 and 0x8F92EAB1, all little-endian."""
    expected = struct.pack("<II IIII IBI", 0x184D2A5E, 8 * 2 + 9, 100, WHOLE, 50, 7, 2, 0, 0x8F92EAB1)
    assert expected == seek_table([FrameEntry(100, WHOLE), FrameEntry(50, 7)])


@pytest.mark.parametrize(("stored", "plain"), [(0, 1), (limits.MAX_FRAME_BYTES + 1, 1), (1, 0), (1, limits.PIECE_BYTES + 1)])
def test_lengths_that_no_frame_has_are_broken(stored: int, plain: int) -> None:
    """Whoever writes the container: a receiver says that its peer broke the protocol, and a compressor has none."""
    lengths = FrameLengths()
    with pytest.raises(BrokenError, match="out of bounds"):
        lengths.add(stored, plain)
    lengths.add(1, 1)
    with pytest.raises(BrokenError, match="must be the last"):
        lengths.add(1, 1)


def test_a_long_seek_table_comes_in_parts() -> None:
    """A few kilobytes on the wire make a dump of 16 TiB of zeroes; its table of 128 MiB must not be in memory at once."""
    parts = list(seek_table_parts([FrameEntry(45, WHOLE)] * 200_000))

    assert max(map(len, parts)) <= 512 * 1024
    assert len(b"".join(parts)) == seek_table_bytes(200_000)
    assert parse_seek_table(b"".join(parts), 200_000 * 45 + seek_table_bytes(200_000))[-1] == FrameEntry(45, WHOLE)


@pytest.mark.parametrize("frames", [0, 1, 3, 1000])
def test_a_seek_table_has_the_length_that_is_predicted(frames: int) -> None:
    """So that a disk can be asked for it beforehand."""
    assert seek_table_bytes(frames) == len(seek_table([FrameEntry(10, WHOLE)] * frames))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_seek_table_survives(count: int) -> None:
    """Parsing gives back the entries, for an empty dump too."""
    entries = ENTRIES[3 - count :]
    table = seek_table(entries)
    assert entries == parse_seek_table(table, sum(entry.stored for entry in entries) + len(table))


def test_parsed_entries_are_those_of_the_table_however_they_are_read() -> None:
    """In order, by index from either end, as a slice, and by where the frames begin."""
    parsed = parse_seek_table(seek_table(ENTRIES), STORED + len(seek_table(ENTRIES)))
    assert list(parsed) == parsed[:] == ENTRIES
    assert [parsed[index] for index in range(3)] == [parsed[index] for index in range(-3, 0)] == ENTRIES
    assert list(parsed.offsets()) == [0, ENTRIES[0].stored, ENTRIES[0].stored + ENTRIES[1].stored, STORED]
    assert parsed != ENTRIES[:2]
    assert parsed != [*ENTRIES[:2], FrameEntry(1, 1)]


def test_a_table_in_memory_takes_four_bytes_a_frame() -> None:
    """That of the longest dump, 16 million frames, must not take two gigabytes of whoever verifies or extracts it."""
    table = seek_table([FrameEntry(45, WHOLE)] * 100_000)
    tracemalloc.start()
    parsed = parse_seek_table(table, 100_000 * 45 + len(table))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(parsed) == 100_000
    assert held < 6 * 100_000
    assert peak < 12 * 100_000


def lie(entries: list[FrameEntry], at: int = 0, data: bytes = b"") -> bytes:
    """Return a seek table with *data* written over it at offset *at*."""
    table = seek_table(entries)
    at %= len(table)
    return table[:at] + data + table[at + len(data) :]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (lie([FrameEntry(0, WHOLE), FrameEntry(187, 5)]), "is not possible: .* is out of bounds"),
        (lie([FrameEntry(187, 0)]), "is not possible: .* is out of bounds"),
        (lie([FrameEntry(187, WHOLE + 1)]), "is not possible: .* is out of bounds"),
        (lie([FrameEntry(limits.MAX_FRAME_BYTES + 1, WHOLE)]), "is not possible: .* is out of bounds"),
        (lie([FrameEntry(100, 5), FrameEntry(87, WHOLE)]), "is not possible: a frame follows a short piece"),
        (lie([FrameEntry(100, WHOLE), FrameEntry(86, 5)]), "does not add up"),
        (lie([FrameEntry(100, WHOLE), FrameEntry(88, 5)]), "does not add up"),
        (lie([]), "does not add up"),
        (lie(ENTRIES, 0, b"\x50\x2a\x4d\x18"), "wrong length or header"),
        (lie(ENTRIES, 4, b"\0\0\0\0"), "wrong length or header"),
        (lie(ENTRIES, -4, b"\0"), "does not end with a seek table"),
        (lie(ENTRIES, -5, b"\x80"), "does not end with a seek table"),
        (lie(ENTRIES, -9, struct.pack("<I", 2)), "wrong length or header"),
        (lie(ENTRIES, -9, struct.pack("<I", 4)), "wrong length or header"),
        (lie(ENTRIES, -9, struct.pack("<I", limits.MAX_FRAMES)), "wrong length or header"),
        (lie(ENTRIES, -9, struct.pack("<I", limits.MAX_FRAMES + 1)), "does not end with a seek table"),
        (lie(ENTRIES, -9, b"\xff\xff\xff\xff"), "does not end with a seek table"),
    ],
)  # fmt: skip
def test_a_lie_in_the_seek_table_is_refused(table: bytes, words: str) -> None:
    """Every offset that a reader will use follows from entries that are possible and add up."""
    with pytest.raises(BrokenError, match=words):
        parse_seek_table(table, STORED + len(table))


@pytest.mark.parametrize("entries", [ENTRIES, ENTRIES[:1], ENTRIES[2:], []])
def test_the_end_of_a_seek_table_tells_the_plaintext(entries: list[FrameEntry]) -> None:
    """Without reading the rest: all pieces but the last are whole."""
    assert find_plain_bytes(seek_table(entries)[-TABLE_END_BYTES:]) == sum(entry.plain for entry in entries)


def test_what_is_no_end_of_a_seek_table_tells_nothing() -> None:
    """Cut at every offset, with a byte behind it, or with numbers that no frame has."""
    end = seek_table(ENTRIES)[-TABLE_END_BYTES:]
    impossible = [
        struct.pack("<IIIBI", 50, plain, frames, 0, 0x8F92EAB1) for plain, frames in ((0, 3), (WHOLE + 1, 3), (1, 1 << 31))
    ]
    for other in [*(end[:cut] for cut in range(len(end))), *(end[cut:] for cut in range(1, len(end))), end[1:] + b"x", *impossible]:
        assert find_plain_bytes(other) is None


def test_truncation_at_every_offset_is_refused() -> None:
    """Of the table, from either end."""
    table = seek_table(ENTRIES)
    for cut in range(len(table)):
        for part in (table[:cut], table[len(table) - cut :]):
            with pytest.raises(BrokenError):
                parse_seek_table(part, STORED + len(table))


@pytest.mark.parametrize("length", [0, 8, 10])
def test_a_footer_has_nine_bytes(length: int) -> None:
    """Anything else is too short to be a container."""
    with pytest.raises(BrokenError, match="too short"):
        footer_frames(bytes(length))


@given(st.binary(max_size=120), st.integers(0, 10_000))
def test_arbitrary_bytes_are_refused(table: bytes, size: int) -> None:
    """Or add up, which arbitrary bytes do not."""
    with pytest.raises(BrokenError):
        parse_seek_table(table, size)


@given(st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, 1 << 21)), max_size=6))
def test_accepted_entries_fill_the_container(pairs: list[tuple[int, int]]) -> None:
    """Whatever is accepted is in bounds, with whole pieces but the last."""
    table = seek_table([FrameEntry(*pair) for pair in pairs])
    stored = sum(pair[0] for pair in pairs)
    try:
        entries = parse_seek_table(table, stored + len(table))
    except BrokenError:
        return
    assert entries == pairs
    assert all(entry.plain == WHOLE for entry in entries[:-1])
    assert all(0 < entry.stored <= limits.MAX_FRAME_BYTES and 0 < entry.plain <= WHOLE for entry in entries)


PLAINS: Final = {
    "empty": b"",
    "short": b"some bytes",
    "zeroes": bytes(2 * WHOLE + 5),
    "mixed": b"abcd" * (WHOLE // 2) + bytes(WHOLE) + b"the end",
}


@pytest.mark.skipif(ZSTD is None, reason="the zstd program is not installed")
@pytest.mark.parametrize("name", PLAINS)
def test_the_zstd_program_reads_a_container(name: str, tmp_path: Path) -> None:
    """`zstd -d` gives the plain bytes, `-t` passes, `-l` counts our frames and the seek table as a skippable one."""
    plain = PLAINS[name]
    path = tmp_path / "core.zst"
    path.write_bytes(container_of(plain))
    assert plain == subprocess.run([str(ZSTD), "-dc", str(path)], capture_output=True, check=True).stdout
    subprocess.run([str(ZSTD), "-tq", str(path)], check=True)
    listing = subprocess.run([str(ZSTD), "-l", str(path)], capture_output=True, check=True, text=True).stdout
    assert listing.splitlines()[1].split()[:2] == [str(-(-len(plain) // WHOLE) + 1), "1"]


@pytest.mark.parametrize("name", PLAINS)
def test_the_library_reads_a_container_as_one_stream(name: str) -> None:
    """Across frames; the seek table is skipped."""
    reader = zstandard.ZstdDecompressor().stream_reader(container_of(PLAINS[name]), read_across_frames=True)
    assert PLAINS[name] == reader.read()


def test_the_footer_counts_the_frames() -> None:
    """From the last nine bytes alone."""
    counts = [footer_frames(container_of(PLAINS[name])[-FOOTER_BYTES:]) for name in ("mixed", "empty")]
    assert counts == [4, 0]

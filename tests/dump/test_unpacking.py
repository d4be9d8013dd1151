"""Files are believed only when they are whole: cut at any byte, changed or continued, each is broken; and what is whole is read."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.container import FrameEntry, seek_table, seek_table_bytes
from securecore.dump.frames import ZERO_PIECE_FRAME, zero_frame
from securecore.dump.unpacking import Source, unpack
from securecore.errors import BrokenError
from tests.support.elf import Segment, write_core
from tests.support.local_files import KINDS, cut_pieces, filter_through, heap, noise, pack_pieces, unpack_bytes, zstd_bomb

MIB: Final = limits.MIB
SEEK_TABLE_OF_ONE: Final = seek_table_bytes(1)
PLAIN: Final = {
    "nothing": b"",
    "one byte": b"x",
    "heap": heap(2 * MIB + 77),
    "zeroes": bytes(3 * MIB + 1),
    "noise": noise(MIB + 1),
    "a whole piece": heap(MIB),
}

ZST_LONG: Final = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=False)
FOREIGN: Final = {
    "zstd, one frame": zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN["heap"]),
    "zstd, no checksum, no size": zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN["heap"]),
    "zstd, a window of 128 MiB": zstandard.ZstdCompressor(compression_params=ZST_LONG).compress(PLAIN["heap"]),
    "zstd, several frames": b"".join(
        zstandard.compress(PLAIN["heap"][at : at + 300_000]) for at in range(0, 2 * MIB + 77, 300_000)
    ),
    "zstd, skippable frames around": struct.pack("<II", 0x184D2A50, 3)
    + b"abc"
    + zstandard.compress(PLAIN["heap"])
    + struct.pack("<II", 0x184D2A5F, 0),
    "gzip": gzip.compress(PLAIN["heap"]),
    "gzip, several members": gzip.compress(PLAIN["heap"][:1000]) + gzip.compress(b"") + gzip.compress(PLAIN["heap"][1000:]),
    "zlib": zlib.compress(PLAIN["heap"], 9),
    "zlib, a window of 512 bytes": (lambda deflate: deflate.compress(PLAIN["heap"]) + deflate.flush())(zlib.compressobj(6, 8, 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLAIN)
def test_what_we_pack_is_unpacked(kind: str, name: str) -> None:
    """Every format, whole and in parts of a few bytes."""
    data = pack_pieces(kind, cut_pieces(PLAIN[name]))

    assert unpack_bytes(data) == PLAIN[name]
    assert unpack_bytes(data[:20_000] if len(data) < 20_000 else data, 4093) == PLAIN[name]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_pack_is_unpacked(name: str) -> None:
    """Any frame, member and stream of the standards, whoever made it."""
    assert unpack_bytes(FOREIGN[name]) == PLAIN["heap"]


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
@pytest.mark.parametrize(
    "program", [["zstd", "-qc"], ["zstd", "-qc", "--long=27"], ["gzip", "-c"], ["pigz", "-c"], ["pigz", "-cz"]], ids=" ".join
)
def test_what_programs_pack_is_unpacked(program: list[str], size: int) -> None:
    """A whole MiB from another zstd is no piece of ours that lost its seek table."""
    assert unpack_bytes(filter_through(program, heap(size))) == heap(size)


def cuts(data: bytes) -> Iterator[bytes]:
    """Yield every beginning of *data* that is not all of it."""
    return (data[:length] for length in range(len(data)))


# Zero pieces between the others: frames of a few bytes, so that each offset of a file of several pieces can be tried.
MANY: Final = [bytes(MIB), bytes(MIB), heap(500)]
CORE: Final = cut_pieces(write_core([Segment(b"page" * 9 + bytes(MIB))]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pieces", [[b"x"], [heap(3000)], MANY, [bytes(MIB)], CORE], ids=["a byte", "a heap", "several pieces", "a zero piece", "a core"]
)
def test_a_file_cut_anywhere_is_broken(kind: str, pieces: list[bytes]) -> None:
    """Every beginning of every format is refused, but for that of a zst file which has all of its plaintext, seek table or not."""
    data = pack_pieces(kind, pieces)
    plain, accepted = b"".join(pieces), []
    for cut in cuts(data):
        try:
            accepted.append(unpack_bytes(cut))
        except BrokenError:
            continue

    assert set(accepted) <= ({plain} if kind == "zst" and len(pieces) == 1 else set())


@pytest.mark.parametrize("name", [name for name in FOREIGN if "several" not in name and "around" not in name])
def test_a_foreign_file_cut_anywhere_is_broken(name: str) -> None:
    """Beginnings at every kilobyte, and each of the last hundred bytes."""
    data = FOREIGN[name]
    for length in [*range(0, len(data) - 100, 1009), *range(len(data) - 100, len(data))]:
        with pytest.raises(BrokenError):
            unpack_bytes(data[:length])


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("more", [b"\0", b"x", b"\n", b"\x28\xb5", bytes(512), b"garbage" * 10])
def test_a_file_that_goes_on_behind_its_end_is_broken(name: str, more: bytes) -> None:
    """Whatever was appended to it, it is not what was written; zeroes behind gzip data are the exception that gzip makes."""
    if name.startswith("gzip") and not any(more):
        assert unpack_bytes(FOREIGN[name] + more, 7) == PLAIN["heap"]
        return
    with pytest.raises(BrokenError):
        unpack_bytes(FOREIGN[name] + more)


def test_zeroes_behind_gzip_data_go_to_the_end() -> None:
    """As gzip: what follows them is not passed over."""
    packed = gzip.compress(b"data")
    assert filter_through(["gzip", "-dcq"], packed) == unpack_bytes(packed + bytes(600_000)) == b"data"
    for more in (b"x", packed):
        with pytest.raises(BrokenError, match="goes on behind its end"):
            unpack_bytes(packed + bytes(600_000) + more)


@pytest.mark.parametrize("name", ["heap", "zeroes", "one byte", "nothing"])
def test_two_containers_in_one_file_are_one_after_the_other(name: str) -> None:
    """`cat a.zst b.zst`, as with every program's files; the second one is held to the same rules."""
    one, other = pack_pieces("zst", cut_pieces(PLAIN["heap"])), pack_pieces("zst", cut_pieces(PLAIN[name]))

    assert unpack_bytes(one + other) == PLAIN["heap"] + PLAIN[name]
    with pytest.raises(BrokenError):
        unpack_bytes(one + other[:-1])
    with pytest.raises(BrokenError, match="seek table is not that of the frames"):
        unpack_bytes(one + one[-seek_table_bytes(3) :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_a_bit_changed_is_broken(kind: str) -> None:
    """Checksums are verified: no change of a byte that stands for plaintext, or for its checksum, passes.

    The bytes of a gzip header that say nothing of the plaintext (time, system) are the format's own affair.
    """
    plain = heap(2000)
    data = bytearray(pack_pieces(kind, [plain]))
    for at in range(10 if kind == "gz" else 0, len(data)):
        data[at] ^= 1 << at % 8
        try:
            assert unpack_bytes(bytes(data)) == plain
        except BrokenError:
            pass
        data[at] ^= 1 << at % 8


@pytest.mark.parametrize(
    "table",
    [
        seek_table([FrameEntry(len(ZERO_PIECE_FRAME), MIB)]),
        seek_table([FrameEntry(len(ZERO_PIECE_FRAME), MIB), FrameEntry(len(zero_frame(5)), 6)]),
        seek_table([FrameEntry(len(ZERO_PIECE_FRAME), MIB), FrameEntry(len(zero_frame(5)), 5)])[:-9]
        + struct.pack("<IBI", 3, 0, 0x8F92EAB1),
    ],
    ids=["a frame missing", "another length", "another count"],
)
def test_a_seek_table_that_lies_is_broken(table: bytes) -> None:
    """It is held against the frames that were read, never believed."""
    frames = ZERO_PIECE_FRAME + zero_frame(5)
    assert unpack_bytes(frames + seek_table([FrameEntry(len(ZERO_PIECE_FRAME), MIB), FrameEntry(len(zero_frame(5)), 5)])) == bytes(
        MIB + 5
    )
    with pytest.raises(BrokenError, match="seek table is not that of the frames"):
        unpack_bytes(frames + table)


def test_one_piece_of_a_longer_core_is_no_core() -> None:
    """Cut behind its first frame the file is like any other program's; only the core in it says that there was more."""
    core = write_core([Segment(noise(3 * MIB))])
    data = pack_pieces("zst", cut_pieces(core))
    first = data.index(b"\x28\xb5\x2f\xfd", 4)

    with pytest.raises(BrokenError, match="its seek table is missing"):
        unpack_bytes(data[:first])


def test_one_whole_piece_of_what_is_no_core_may_be_anybodys() -> None:
    """The one cut that is not seen: another zstd program writes the same of 1 MiB. One byte less or more, and it is seen."""
    frames = [pack_pieces("zst", [piece])[:-SEEK_TABLE_OF_ONE] for piece in cut_pieces(noise(3 * MIB))]

    assert unpack_bytes(frames[0]) == noise(3 * MIB)[:MIB]
    for cut in (frames[0][:-1], frames[0] + frames[1][:1], frames[0] + frames[1]):
        with pytest.raises(BrokenError):
            unpack_bytes(cut)


@given(
    st.binary(max_size=300)
    | st.sampled_from(sorted(FOREIGN)).flatmap(lambda name: st.binary(max_size=60).map(lambda end: FOREIGN[name][:200] + end))
)
def test_any_bytes_are_unpacked_or_broken(data: bytes) -> None:
    """No other exception, whatever the file holds."""
    try:
        unpack_bytes(data)
    except BrokenError:
        pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x7fELF" + bytes(60), "neither zstd nor gzip nor zlib"),
        (b"P", "neither"),
        (b"\x78\xbb" + bytes(20), "neither"),
        (b"\x1f\x8b", "cut off"),
        (b"\x28\xb5\x2f\xfd", "cut off"),
        (b"\x28\xb5\x2f\xfd\x04\x88" + b"\xff\xff\xff", "reserved type"),
    ],
)
def test_the_reason_is_said(data: bytes, message: str) -> None:
    """What a person reads tells a file of another kind from one that was cut."""
    with pytest.raises(BrokenError, match=message):
        unpack_bytes(data)


@pytest.mark.parametrize(
    ("header", "window"),
    [
        (b"\x00\x89", 9 << 24),
        (b"\x00\xa8", 1 << 31),
        (b"\xa0\x01\x00\x00\x08", (1 << 27) + 1),
        (b"\xe1\x07" + b"\xff" * 8, (1 << 64) - 1),
    ],
    ids=["128 MiB and an eighth", "2 GiB", "one segment", "one segment, a dictionary"],
)
def test_a_window_that_is_too_large_is_not_called_damage(header: bytes, window: int) -> None:
    """The file may be good: the hint names the program and the switch that take it."""
    with pytest.raises(BrokenError, match=f"asks for {window} bytes of memory") as raised:
        unpack_bytes(b"\x28\xb5\x2f\xfd" + header + bytes(20))
    assert raised.value.hint == "`zstd -d --long=31` takes it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_unpacked_in_small_parts(kind: str) -> None:
    """256 MiB of zeroes never makes more than a piece of them at a time, however short the file is."""
    if kind == "zst":
        data = zstd_bomb(2048)
    else:
        data = zlib.compress(bytes(1 << 28), 9)
        data = data if kind == "zlib" else gzip.compress(bytes(1 << 28), 1)
    parts = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    sizes = [len(part) for part in unpack(Source(lambda length: parts.pop(0) if parts else b"")).plaintext]

    assert max(sizes) <= MIB
    assert sum(sizes) == 1 << 28

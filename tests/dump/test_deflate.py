"""Streams made of independent pieces are standard streams: every program that reads gzip or zlib says so."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securecore import limits
from securecore.dump.deflate import Deflater
from tests.support.local_files import cut_pieces, filter_through, heap, noise, pack_pieces, seven_zip

DEFLATED: Final = ("gz", "zlib")
JUDGES: Final[dict[str, Callable[[bytes], bytes]]] = {"gz": gzip.decompress, "zlib": zlib.decompress}

PLAIN: Final = {
    "nothing": b"",
    "one byte": b"x",
    "zeroes": bytes(2 * limits.MIB + 5),
    "noise": noise(limits.MIB + 1),
    "heap": heap(3 * limits.MIB),
    "a whole piece": heap(limits.PIECE_BYTES),
}

pieces = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.integers(1, 70_000).map(bytes),
        st.tuples(st.integers(1, 70_000), st.integers(0, 1 << 30)).map(lambda pair: noise(*pair)),
        st.tuples(st.integers(1, 70_000), st.integers(0, 1 << 30)).map(lambda pair: heap(*pair)),
    ),
    max_size=6,
)


@pytest.mark.parametrize("kind", DEFLATED)
@given(pieces=pieces, level=st.integers(1, 9))
@settings(max_examples=40)
def test_any_pieces_at_any_level_are_one_stream(kind: str, pieces: list[bytes], level: int) -> None:
    """Wherever the pieces are cut: zlib inflates them to their plaintext, its checksum and length included, and nothing is left."""
    window = {"gz": 31, "zlib": 15}[kind]
    inflate = zlib.decompressobj(window)

    plain = inflate.decompress(pack_pieces(kind, pieces, level))

    assert plain == b"".join(pieces)
    assert (inflate.eof, inflate.unused_data, inflate.unconsumed_tail) == (True, b"", b"")


@pytest.mark.parametrize("kind", DEFLATED)
@pytest.mark.parametrize("name", PLAIN)
def test_pythons_own_modules_read_it(kind: str, name: str) -> None:
    """gzip.decompress and zlib.decompress: one member, no more."""
    assert JUDGES[kind](pack_pieces(kind, cut_pieces(PLAIN[name]))) == PLAIN[name]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("program", [["gzip", "-dc"], ["pigz", "-dc"], ["zcat"], ["zstd", "-dcq", "--format=gzip"]], ids=" ".join)
def test_programs_read_gzip(program: list[str], name: str) -> None:
    """gzip, pigz, zcat and zstd give the plaintext and no word on standard error."""
    data = pack_pieces("gz", cut_pieces(PLAIN[name]))
    if program[0] == "zstd" and not gzip_is_built_into_zstd():
        pytest.skip("this zstd does not read gzip")

    assert filter_through(program, data) == PLAIN[name]


def gzip_is_built_into_zstd() -> bool:
    """Return whether the zstd program was built with zlib."""
    return b"gzip" in filter_through(["zstd", "-vV"], b"")


@pytest.mark.parametrize("name", PLAIN)
def test_pigz_reads_zlib(name: str) -> None:
    """The zlib format has no program of its own; pigz reads it."""
    assert filter_through(["pigz", "-dcz"], pack_pieces("zlib", cut_pieces(PLAIN[name]))) == PLAIN[name]


@pytest.mark.parametrize("name", PLAIN)
def test_7z_reads_gzip(name: str, tmp_path: Path) -> None:
    """What the users of archives on other systems have."""
    (tmp_path / "core.gz").write_bytes(pack_pieces("gz", cut_pieces(PLAIN[name])))
    assert seven_zip(tmp_path / "core.gz") == PLAIN[name]


def test_a_part_of_a_stream_is_whole_bytes_and_goes_on() -> None:
    """A piece ends with the empty stored block of a sync flush (RFC 1951 section 3.2.4), and no block of it is the last."""
    part = Deflater(1).frame(os.urandom(1000))
    inflate = zlib.decompressobj(-15)
    inflate.decompress(part)

    assert part.endswith(b"\x00\x00\xff\xff")
    assert not inflate.eof


def test_the_trailers_are_those_of_the_standards() -> None:
    """RFC 1952: CRC-32 and length, little-endian; RFC 1950: Adler-32, big-endian; both over all pieces in order."""
    plain = b"one" + b"two"

    assert pack_pieces("gz", [b"one", b"two"])[-8:] == struct.pack("<II", zlib.crc32(plain), len(plain))
    assert pack_pieces("zlib", [b"one", b"two"])[-4:] == struct.pack(">I", zlib.adler32(plain))


@pytest.mark.parametrize("kind", DEFLATED)
def test_noise_grows_by_a_thousandth_at_most(kind: str) -> None:
    """What cannot be compressed is stored: no piece costs more than its blocks' headers."""
    assert len(pack_pieces(kind, cut_pieces(noise(4 * limits.MIB)))) < 4 * limits.MIB * 1.001

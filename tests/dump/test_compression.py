"""Frames as they come from the compressor: what they cost in memory, beside their bytes."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from securecore import limits
from securecore.dump import compression
from securecore.dump.compression import Compressor, Decompressor, EagerCompressor
from securecore.errors import StorageError


@pytest.mark.parametrize("noise", [1, 10_000, limits.PIECE_BYTES // 4, limits.PIECE_BYTES // 2, limits.PIECE_BYTES])
def test_a_frame_takes_no_more_than_twice_its_bytes(noise: int) -> None:
    """A ring that bounds the bytes of its frames bounds its memory, however well they compress."""
    compressor = Compressor()
    piece = os.urandom(noise) + bytes(limits.PIECE_BYTES - noise)
    tracemalloc.start()
    try:
        frames = [compressor.frame(piece) for _ in range(16)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 2.1 * sum(map(len, frames)) + 16 * limits.KIB


TEXT = Path(os.__file__).read_bytes() * 20
POINTERS = b"".join(struct.pack("<QII", 0x7F << 40 | at * 2654435761 % (1 << 26) * 16, at >> 9, at & 3) for at in range(1 << 16))


@pytest.mark.parametrize("level", [-5, 0, 1])
def test_an_eager_compressor_without_time_is_the_usual_one(level: int) -> None:
    """No level below the usual is taken: a store keeps for years what was saved in a moment."""
    assert EagerCompressor(lambda: level).frame(TEXT) == Compressor().frame(TEXT)


@pytest.mark.parametrize("level", [3, 6])
def test_an_eager_compressor_with_time_makes_the_smaller_frame(level: int) -> None:
    """Text gets smaller at higher levels, an array of pointers does not: whichever frame is smaller stands for the piece."""
    eager = EagerCompressor(lambda: level)
    text, pointers, after = eager.frame(TEXT), eager.frame(POINTERS), [eager.frame(TEXT) for _ in range(17)]

    assert len(text) < len(Compressor().frame(TEXT))
    assert len(Compressor(level).frame(POINTERS)) > len(Compressor().frame(POINTERS)) == len(pointers)
    assert [Decompressor().piece(frame) for frame in (text, pointers)] == [TEXT, POINTERS]
    # A try in vain is not made again at once.
    assert after == [*[Compressor().frame(TEXT)] * 16, text]


@pytest.mark.parametrize("error", [MemoryError(), StorageError("a piece could not be compressed: not enough memory")], ids=repr)
def test_without_memory_for_more_the_usual_frame_is_kept(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of a higher level are larger; a core is not cut for want of them."""

    class Small(Compressor):
        __slots__ = ()

        def __init__(self, level: int = limits.ZSTD_LEVEL) -> None:
            if level > limits.ZSTD_LEVEL:
                raise error
            super().__init__(level)

    monkeypatch.setattr(compression, "Compressor", Small)

    assert EagerCompressor(lambda: 6).frame(TEXT) == Compressor().frame(TEXT)

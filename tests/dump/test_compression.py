"""Frames as they come from the compressor: what they cost in memory, beside their bytes."""

import os
import tracemalloc

import pytest

from securecore import limits
from securecore.dump.compression import Compressor


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

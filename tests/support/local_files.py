"""Local files made by hand and by other programs, and cores worth compressing."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.dump.packing import make_packing
from securecore.dump.unpacking import Source, unpack

KINDS: Final = ("zst", "gz", "zlib")


def pack_pieces(kind: str, pieces: list[bytes], level: int | None = None) -> bytes:
    """Return the file of these pieces, made in one thread."""
    packing = make_packing(kind, level)
    parts = [packing.header]
    for piece in pieces:
        packing.observe(memoryview(piece))
        parts.append(packing.make_encoder().frame(piece))
        packing.add(len(parts[-1]), len(piece))
    return b"".join([*parts, packing.trailer()])


def cut_pieces(plain: bytes) -> list[bytes]:
    """Return the pieces of *plain*, as a pump cuts them."""
    return [plain[at : at + limits.PIECE_BYTES] for at in range(0, len(plain), limits.PIECE_BYTES)]


def unpack_bytes(data: bytes, step: int = 1 << 20) -> bytes:
    """Return the plaintext of a file that is read in parts of *step* bytes."""
    at = 0

    def read(length: int) -> bytes:
        nonlocal at
        found = data[at : at + min(length, step)]
        at += len(found)
        return found

    return b"".join(unpack(Source(read)).plaintext)


def zstd_bomb(blocks: int, byte: bytes = b"\0") -> bytes:
    """Return a zstd frame of so many RLE blocks: four bytes of file for each 128 KiB of plaintext (RFC 8878 section 3.1.1.2)."""
    headers = [(limits.KIB * 128 << 3 | 1 << 1 | (number == blocks - 1)).to_bytes(3, "little") for number in range(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(header + byte for header in headers)


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that nothing makes smaller."""
    return random.Random(seed).randbytes(size)


def heap(size: int, seed: int = 1) -> bytes:
    """Return bytes as in a heap: some of them noise, some repeated, some zeroes."""
    source = random.Random(seed)
    parts = []
    while sum(map(len, parts)) < size:
        parts += [source.randbytes(40) * source.randint(1, 9), bytes(source.randint(0, 5000))]
    return b"".join(parts)[:size]


def filter_through(arguments: list[str], data: bytes) -> bytes:
    """Return what a program makes of *data*; skips the test where the program is not there, fails it when the program does."""
    if shutil.which(arguments[0]) is None:
        pytest.skip(f"no {arguments[0]} here")
    answer = subprocess.run(arguments, input=data, capture_output=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, b"")
    return answer.stdout


def seven_zip(path: Path) -> bytes:
    """Return what 7z extracts of a file, having tested it; skips the test where it is not there."""
    if shutil.which("7z") is None:
        pytest.skip("no 7z here")
    answer = subprocess.run(["7z", "e", "-so", str(path)], capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of that size; skips the test where this process may not."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)

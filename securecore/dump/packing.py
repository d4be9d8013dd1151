"""The formats of local files, and one file of them in the making.

``zst`` is the container of the store (container.py): any offset can be read without the rest, and ``zstd -d`` takes it. ``gz`` and
``zlib`` are one standard stream each (deflate.py). A file is its header, then what stands for its pieces in order, then a trailer;
what the pieces are turned by, and in which threads, is the caller's business.
"""

from securecore import limits
from securecore.declarations import Final, NamedTuple, Protocol
from securecore.errors import ConfigError


class PieceEncoder(Protocol):
    """Turns pieces into the bytes that stand for them; not for use by two threads at once."""

    def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Return the bytes that stand for *piece*, 1 to PIECE_BYTES of plaintext; raises StorageError when it cannot go on."""


class Packing(Protocol):
    """One file in the making."""

    @property
    def header(self) -> bytes:
        """Return what stands before the first piece."""

    def make_encoder(self) -> PieceEncoder:
        """Return an encoder, one for each thread."""

    def observe(self, piece: memoryview) -> None:
        """Take the plaintext of the next piece, in order; the bytes are the caller's again afterwards."""

    def add(self, stored: int, plain: int) -> None:
        """Take the lengths of the next piece, in order, as it is written."""

    def trailer(self) -> bytes:
        """Return what stands behind the last piece that was added; those that were only observed are not in the file."""


class Levels(NamedTuple):
    """The levels of a format: higher is smaller, and slower."""

    default: int
    highest: int


FORMATS: Final = {
    # zstd's levels from 20 on need hundreds of MiB for what, in pieces of 1 MiB, they do not make smaller (zstd.h, ZSTD_maxCLevel).
    "zst": Levels(limits.ZSTD_LEVEL, 19),
    "gz": Levels(limits.DEFLATE_LEVEL, 9),
    "zlib": Levels(limits.DEFLATE_LEVEL, 9),
}
"""The formats by the ends of their files' names, the best one first."""


def check_level(kind: str, level: int | None) -> int:
    """Return the level, the format's own when None; raises ConfigError when the format, or the level in it, does not exist."""
    if kind not in FORMATS:
        raise ConfigError(f"{kind[:40]!a} is no format: it is one of {', '.join(FORMATS)}")
    if level is None:
        return FORMATS[kind].default
    if not 1 <= level <= FORMATS[kind].highest:
        raise ConfigError(f"level {level} does not exist: {kind} has 1 to {FORMATS[kind].highest}")
    return level


def make_packing(kind: str, level: int | None) -> Packing:
    """Return a file in the making; raises ConfigError as check_level does."""
    level = check_level(kind, level)
    # A crashed process waits while its handler loads what it needs: not the other formats.
    if kind == "zst":
        from securecore.dump.compression import ContainerPacking

        return ContainerPacking(level)
    from securecore.dump.deflate import gzip_packing, zlib_packing

    return gzip_packing(level) if kind == "gz" else zlib_packing(level)

"""Bundles: what proves one dump to somebody who has no store, in one file that any tar program lists and unpacks.

A POSIX ustar archive (IEEE Std 1003.1, pax) in which every byte that is not a member's own is fixed. So the same members make the
same bundle, and its reader knows nothing else: no links, no extensions, nothing twice, nothing behind the end (docs/store.md).
What the members are worth is for bundle_verification.py to find out.
"""

import re
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

from securecore import limits
from securecore.audit.dump_reading import MANIFEST, RECEIPT, REPORT
from securecore.errors import BrokenError, Bug

FORMAT: Final = "FORMAT"
LOG_KEY: Final = "log-key.jws"
DELETION: Final = "deletion"

_MARK: Final = b"securecore-bundle 1\n"
_LISTS: Final = re.compile(r"crls/([0-9a-f]{64})\.pem")
_LIMITS: Final = {
    FORMAT: len(_MARK),
    LOG_KEY: limits.MAX_STATEMENT_BYTES,
    RECEIPT: limits.MAX_RECEIPT_BYTES,
    DELETION: limits.MAX_RECEIPT_BYTES,
    MANIFEST: limits.MAX_MANIFEST_BYTES,
    REPORT: limits.MAX_REPORT_BYTES,
    "": limits.MAX_CRL_BYTES,
}
"""The members in their order, each with the most bytes that it may have; the last one stands for the revocation lists."""
_ORDER: Final = tuple(_LIMITS)

_BLOCK: Final = 512
"""What everything in a tar is padded to."""
_NAME: Final = slice(0, 100)
_SIZE: Final = slice(124, 136)
_CHECKSUM: Final = slice(148, 156)
"""Fields of a header (ustar Header Block of pax)."""


class Bundle(NamedTuple):
    """The members of a bundle, byte for byte as they stand in a store; nothing of them is verified."""

    log_key: bytes
    """The statement of the log's key."""
    receipt: bytes
    """A proof of the entry that says that the dump was received, or given up."""
    deletion: bytes | None = None
    """The same of the entry that says that it was deleted since."""
    manifest: bytes | None = None
    report: bytes | None = None
    lists: tuple[str, bytes] | None = None
    """The revocation lists to which the entry refers, behind their digest."""

    def members(self) -> list[tuple[str, bytes]]:
        """Return the members' names and bytes, in order."""
        lists, pem = (f"crls/{self.lists[0]}.pem", self.lists[1]) if self.lists is not None else ("", None)
        found = [
            (FORMAT, _MARK),
            (LOG_KEY, self.log_key),
            (RECEIPT, self.receipt),
            (DELETION, self.deletion),
            (MANIFEST, self.manifest),
            (REPORT, self.report),
            (lists, pem),
        ]
        return [(name, data) for name, data in found if data is not None]

    def encode(self) -> bytes:
        """Return the bundle; raises Bug for a member that no reader would take."""
        parts = []
        for name, data in self.members():
            if len(data) > _LIMITS[_place_of(name)]:
                raise Bug(f"{name} is too long for a bundle")
            parts += [_header(name, len(data)), data, bytes(-len(data) % _BLOCK)]
        return b"".join([*parts, bytes(2 * _BLOCK)])


def read_bundle(file: IO[bytes]) -> Bundle:
    """Return the bundle in *file*, which is read once, and no further than one byte behind a bundle's end.

    Raises BrokenError unless it is one to the last byte; OSError when it cannot be read. Memory is bounded by the members' limits,
    about 16.4 MiB, of which the revocation lists are all but 0.4. Not checked: what the members are worth.
    """
    found: dict[str, tuple[str, bytes]] = {}
    for name, data in _read_members(file):
        found[_place_of(name)] = (name, data)
    for needed in (FORMAT, LOG_KEY, RECEIPT):
        if needed not in found:
            raise BrokenError(f"not a bundle: it has no {needed}")
    if found[FORMAT][1] != _MARK:
        raise BrokenError("not a bundle of this version: its FORMAT is another")
    deletion, manifest, report = (found[name][1] if name in found else None for name in (DELETION, MANIFEST, REPORT))
    lists = None
    if "" in found:
        name, pem = found[""]
        lists = (name[len("crls/") : -len(".pem")], pem)
    return Bundle(found[LOG_KEY][1], found[RECEIPT][1], deletion, manifest, report, lists)


def _read_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield each member's name and bytes; they come in order, so none comes twice."""
    before = -1
    while (header := _read(file, _BLOCK)) != bytes(_BLOCK):
        name = header[_NAME].rstrip(b"\0").decode("latin-1")
        place = _ORDER.index(_place_of(name))
        size_text = header[_SIZE]
        size = int(size_text[:-1], 8) if re.fullmatch(rb"[0-7]{11}\0", size_text) else -1
        if header != _header(name, size):
            raise BrokenError(f"not a bundle: the header of {name} is not the one that it must have")
        if size > _LIMITS[_ORDER[place]]:
            raise BrokenError(f"not a bundle: {name} has {size} bytes, at most {_LIMITS[_ORDER[place]]} are read")
        if place <= before:
            raise BrokenError(f"not a bundle: {name} stands twice, or not in its place")
        before = place
        data = _read(file, size)
        if any(_read(file, -size % _BLOCK)):
            raise BrokenError(f"not a bundle: there is something behind the end of {name}")
        yield name, data
    if _read(file, _BLOCK) != bytes(_BLOCK) or file.read(1):
        raise BrokenError("not a bundle: there is something behind its end")


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BrokenError("not a bundle: it ends too soon")
    return data


def _place_of(name: str) -> str:
    """Return which member has that name; raises BrokenError when none has."""
    if _LISTS.fullmatch(name):
        return ""
    if not name or name not in _LIMITS:
        raise BrokenError(f"not a bundle: it has a member {name[:100]!a}")
    return name


def _header(name: str, size: int) -> bytes:
    """Return the one header of a member: a regular file, 0600, of user and group 0 without names, of the beginning of 1970.

    For a size that no header can hold, one that is no header.
    """
    if size < 0:
        return b""
    fields = (
        (_NAME, name.encode("ascii")),
        (slice(100, 108), b"0000600\0"),
        (slice(108, 116), b"0000000\0"),
        (slice(116, 124), b"0000000\0"),
        (_SIZE, b"%011o\0" % size),
        (slice(136, 148), b"00000000000\0"),
        (_CHECKSUM, b" " * 8),
        (slice(156, 157), b"0"),
        (slice(257, 265), b"ustar\x0000"),
    )
    header = bytearray(_BLOCK)
    for place, data in fields:
        header[place.start : place.start + len(data)] = data
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)

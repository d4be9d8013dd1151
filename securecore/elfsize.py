"""ELF header arithmetic: how long must this core be? No content is parsed.

The kernel writes a core as ELF header, program headers, notes and page-aligned segments, and pads it to its full length even on a
pipe, so the end of the last segment is the length exactly (measured on Linux 6.18). A stream that ends earlier was cut: its
process was killed or frozen while it dumped, and only this arithmetic tells.
"""

import struct

from securecore.declarations import Final

_PN_XNUM: Final = 0xFFFF
_HEADER_BYTES: Final = 64
_SIZE_MAX: Final = (1 << 63) - 1
"""No file is longer (loff_t is signed): a header that says otherwise is not the kernel's."""
_TABLE_MAX: Final = 8 * 1024 * 1024
"""A program header table of the kernel's hard limit on mappings that people use (65,530 by default, 56 bytes each) is 3.5 MiB."""


class CoreSize:
    """The predicted length of a core, worked out from its first bytes as they arrive."""

    __slots__ = ("_prefix", "_settled", "expected")

    def __init__(self) -> None:
        self.expected: int | None = None
        """Bytes; None until enough has arrived, and for good when the stream is no ELF core."""
        self._prefix = bytearray()
        self._settled = False

    @property
    def is_undecided(self) -> bool:
        """Whether what has arrived could still become an ELF core: a source that ends now was cut within its headers."""
        return not self._settled

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the core; free of charge once the answer is known."""
        if self._settled:
            return
        self._prefix += data
        answer = expected_size(self._prefix)
        if answer is not None or len(self._prefix) > _TABLE_MAX:
            self.expected = answer if answer is not None and answer >= 0 else None
            self._settled = True
            self._prefix = bytearray()


def expected_size(prefix: bytes | bytearray) -> int | None:
    """Return the length in bytes that a core beginning with *prefix* must have.

    None when *prefix* is too short to tell; -1 when it cannot be an ELF core, or would be longer than a file can be. Either class
    and byte order. With 65,535 or more program headers e_phnum is PN_XNUM and the real count stands in a section header behind the
    data (core written by fs/binfmt_elf.c): then the length is that header's end, e_shoff + e_shentsize.
    """
    if len(prefix) < _HEADER_BYTES:
        return None if b"\x7fELF".startswith(bytes(prefix[:4])) else -1
    if prefix[:4] != b"\x7fELF" or prefix[4] not in (1, 2) or prefix[5] not in (1, 2):
        return -1
    order = "<" if prefix[5] == 1 else ">"
    wide = prefix[4] == 2
    kind = struct.unpack_from(f"{order}H", prefix, 16)[0]
    if wide:
        phoff, shoff, _flags, _ehsize, phentsize, phnum, shentsize = struct.unpack_from(f"{order}QQIHHHH", prefix, 32)
    else:
        phoff, shoff, _flags, _ehsize, phentsize, phnum, shentsize = struct.unpack_from(f"{order}IIIHHHH", prefix, 28)
    if kind != 4 or phentsize != (56 if wide else 32) or phoff > _TABLE_MAX:  # ET_CORE
        return -1
    if phnum == _PN_XNUM:
        return _bounded(shoff + shentsize) if shoff else -1
    if len(prefix) < phoff + phnum * phentsize:
        return None
    end = phoff + phnum * phentsize
    for index in range(phnum):
        at = phoff + index * phentsize
        if wide:
            offset, _vaddr, _paddr, filesz = struct.unpack_from(f"{order}QQQQ", prefix, at + 8)
        else:
            offset, _vaddr, _paddr, filesz = struct.unpack_from(f"{order}IIII", prefix, at + 4)
        end = max(end, offset + filesz)
    return _bounded(end)


def _bounded(size: int) -> int:
    return size if size <= _SIZE_MAX else -1

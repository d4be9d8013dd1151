"""The crashed process's memory, as far as its core holds it."""

from array import array
from typing import Final

from securecore import limits
from securecore.elf.image import PT_LOAD, Image, iter_segments
from securecore.elfid import identify
from securecore.errors import BrokenError

_IMAGE_BYTES: Final = 64 * limits.KIB
"""As much of a mapped executable as is looked at: where the kernel dumps its first page only, that is all there is (bit 4 of
/proc/PID/coredump_filter), and linkers put the build-id there."""


class Memory:
    """Reads by address: the PT_LOAD segments of a core, three words for each."""

    def __init__(self, core: Image) -> None:
        self._core = core
        self._addresses, self._sizes, self._offsets = array("Q"), array("Q"), array("Q")
        for segment in iter_segments(core):
            if segment.kind == PT_LOAD and segment.size:
                self._addresses.append(segment.address)
                self._sizes.append(segment.size)
                self._offsets.append(segment.offset)

    def read(self, address: int, length: int) -> bytes:
        """Return up to *length* bytes, at most a piece; fewer where the segment ends, none where the core has nothing."""
        for index, start in enumerate(self._addresses):
            if start <= address < start + self._sizes[index]:
                skip = address - start
                return self._core.stream.at(self._offsets[index] + skip, min(length, self._sizes[index] - skip))
        return b""

    def read_text(self, address: int, maximum: int) -> bytes | None:
        """Return the bytes up to a NUL; None where there is no NUL within *maximum* bytes, or nothing before it."""
        text, terminator, _ = self.read(address, maximum).partition(b"\0")
        return text if terminator and text else None


def find_build_id(memory: Memory, start: int) -> str | None:
    """Return the build-id, in hexadecimal, of the ELF file whose beginning is mapped at *start*; None when the core lacks it.

    The note is looked for at its file offset from *start*, for that mapping begins at the file's beginning.
    """
    data = memory.read(start, _IMAGE_BYTES)
    try:
        return identify(lambda offset, length: data[offset : offset + length], len(data)).build_id
    except BrokenError:
        return None

"""What a peer has sent and is no message yet: one buffer, as long as the longest message of the dump so far."""

from securecore.declarations import Final

_LEAST_BYTES: Final = 16 * 1024
"""Room for one TLS record (RFC 8446 section 5.1), which is what one read of a connection brings at most."""

_STEP_BYTES: Final = 64 * 1024
"""By which the buffer grows."""


class Inbox:
    """Bytes in the order in which they came. Who knows how long the next message is has its bytes put where they stay."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = self._end = 0
        """Of what was put in and not taken out."""

    def __len__(self) -> int:
        return self._end - self._start

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in, any number of them."""
        self.space(len(data))[:] = data
        self.fill(len(data))

    def space(self, wanted: int = _LEAST_BYTES) -> memoryview:
        """Return where the next bytes are to be put, so many as are *wanted*: ``fill`` says how many were.

        It is good until anything else is asked of this object.
        """
        if self._start == self._end:
            self._start = self._end = 0
        if self._end + wanted > len(self._buffer):
            held = self._buffer[self._start : self._end]
            if len(held) + wanted > len(self._buffer):
                self._buffer = bytearray(-(-(len(held) + wanted) // _STEP_BYTES) * _STEP_BYTES)
            self._buffer[: len(held)] = held
            self._start, self._end = 0, len(held)
        return memoryview(self._buffer)[self._end : self._end + wanted]

    def space_for(self, lacking: int) -> memoryview:
        """Return where the rest of a message is to be put, as much of it as there is room for; good for as long as a space.

        Who only announces a long message gets no memory for it: what is made anew is no longer than what has come.
        """
        return self.space(min(lacking, max(_LEAST_BYTES, len(self), len(self._buffer) - len(self))))

    def fill(self, count: int) -> None:
        """Take in the first so many bytes of the space that was returned last."""
        self._end += count

    def look(self, length: int, offset: int = 0) -> memoryview:
        """Return so many of the first bytes behind *offset*, as far as they are here; good for as long as a space."""
        begin = self._start + offset
        return memoryview(self._buffer)[begin : min(begin + length, self._end)]

    def drop(self, count: int) -> None:
        """Take the first so many bytes out, all of which are here."""
        self._start += count

    def let_go(self) -> None:
        """Give the memory back if nothing is here."""
        if not len(self):
            self.clear()

    def clear(self) -> None:
        """Take everything out, and the memory with it."""
        self._buffer = bytearray()
        self._start = self._end = 0

"""The kernel's words at a coredump socket: what core_pattern ``@@/path`` (Linux 6.17) and ``@/path`` (6.16) bring.

At ``@@`` the kernel asks before it dumps (include/uapi/linux/coredump.h):

1. It sends a request, ``u32 size, u32 size_ack, u64 mask``: its own length, the longest answer that it reads, and what it can do.
2. It reads an answer, ``u32 size, u32 spare, u64 mask``: exactly one of KERNEL, USERSPACE and REJECT, and WAIT if need be.
3. It sends a mark of four bytes that says how it liked the answer, and ends the connection unless that is 0.
4. With KERNEL it sends the core, up to an end of its direction alone. With WAIT it then waits until we close ours.

A later kernel's request may be longer: its first 16 bytes mean the same, the others are read and passed over, and only bits that
are known here are answered. At a plain ``@`` the core comes at once. Which of the two it is, the first byte tells.
"""

import os
import select
import struct
import time
from socket import MSG_PEEK, socket
from typing import Final, NamedTuple

from securecore.errors import PeerError, UnreachableError
from securecore.sender.system_log import log

KERNEL: Final = 1
"""The kernel writes the core to the socket."""
USERSPACE: Final = 2
"""It writes nothing, and counts the process as dumped."""
REJECT: Final = 4
"""It writes nothing."""
WAIT: Final = 8
"""It holds the process until the socket is closed."""

_HEAD: Final = struct.Struct("=IIQ")
_MARK: Final = struct.Struct("=I")
"""``enum coredump_mark``: sent as four bytes, though the header's comment speaks of one."""
_MARKS: Final = {
    1: "the answer is too short for this kernel",
    2: "the answer is too long for this kernel",
    3: "the answer has a bit that this kernel does not know",
    4: "the answer says two things at once",
}
REQUEST_MAX: Final = 4096
"""Bytes of a request: the first version has 16, and a structure that grows by a few numbers a year never gets there."""
_CORE_BEGINS: Final = b"\x7f"
"""Of ELF's four. No request has that many bytes, or 256 times n more: a structure of u64s is no odd number long."""


class Request(NamedTuple):
    """What a kernel offers."""

    size: int
    """Its length, of which the first 16 bytes are known here."""
    answer_max: int
    mask: int


def parse_request(data: bytes) -> Request:
    """Return what the first 16 bytes of a request say; raises PeerError when they are no request, or one that cannot be answered.

    Not checked: the bytes behind them, of which a later version may have any.
    """
    if len(data) < _HEAD.size:
        raise PeerError(f"a request has at least {_HEAD.size} bytes, not {len(data)}")
    request = Request(*_HEAD.unpack_from(data))
    if not _HEAD.size <= request.size <= REQUEST_MAX:
        raise PeerError(f"a request cannot be {request.size} bytes long")
    if request.answer_max < _HEAD.size:
        raise PeerError(f"an answer of {request.answer_max} bytes cannot say anything")
    if not request.mask & KERNEL:
        raise PeerError("the kernel does not offer to write the core")
    return request


def encode_answer(mask: int) -> bytes:
    """Return the answer of 16 bytes, which every version takes."""
    return _HEAD.pack(_HEAD.size, 0, mask)


def find_complaint(mark: bytes) -> str | None:
    """Return what a mark of four bytes complains of, None when it is content."""
    number = int(_MARK.unpack(mark)[0])
    return _MARKS.get(number, f"mark {number}") if number else None


class Gate:
    """Whether the kernel dumps, at one connection whose request was heard; or which has none, at a plain ``@``."""

    def __init__(self, connection: int, request: Request | None, wait_s: float) -> None:
        """*wait_s* is for how long a mark may be waited for."""
        self._connection, self._request, self._wait_s = connection, request, wait_s
        self._is_answered = request is None

    def open(self) -> None:
        """Have the kernel dump, and hold the process until the core is drained, where it can; once, however often it is called.

        Raises nothing: where the kernel does not dump, who reads the core meets its end at once.
        """
        if self._is_answered or self._request is None:
            return
        self._is_answered = True
        try:
            _send(self._connection, encode_answer(KERNEL | (WAIT & self._request.mask)))
            complaint = find_complaint(_read_exactly(self._connection, _MARK.size, time.monotonic() + self._wait_s))
        except UnreachableError as error:
            complaint = error.message
        if complaint is not None:
            log("untidy", error=f"the kernel does not dump: {complaint}")
            self._end()

    def refuse(self) -> None:
        """Have the kernel dump nothing; whoever calls it closes the connection next. Raises nothing.

        At a plain ``@``, and where it dumps already, it is the closing that ends it.
        """
        if self._is_answered or self._request is None:
            return
        self._is_answered = True
        if not self._request.mask & REJECT:
            return  # Then the connection that is closed without an answer says it.
        try:
            _send(self._connection, encode_answer(REJECT))
        except UnreachableError:
            pass  # It is gone, and dumps nothing either.

    def _end(self) -> None:
        """Put the end in the place of whatever might still come: nothing behind a broken conversation is a core."""
        try:
            nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, self._connection, inheritable=False)
            os.close(nothing)
        except OSError:
            pass  # No descriptor is left; the kernel has ended its side of the connection.


def hear(connection: socket, wait_s: float) -> Request | None:
    """Return the request that a connection begins with, of which nothing is left to read; None when the core itself has begun.

    Raises PeerError when it is neither, and UnreachableError when it ends, or has not come within *wait_s*.
    """
    ends_at = time.monotonic() + wait_s
    fd = connection.fileno()
    _wait(fd, ends_at)
    try:
        if connection.recv(1, MSG_PEEK) == _CORE_BEGINS:
            return None
    except OSError as error:
        raise UnreachableError(f"the kernel has gone: {error.strerror}") from error
    request = parse_request(_read_exactly(fd, _HEAD.size, ends_at))
    _read_exactly(fd, request.size - _HEAD.size, ends_at)
    return request


def _read_exactly(connection: int, length: int, ends_at: float) -> bytes:
    data = b""
    while len(data) < length:
        _wait(connection, ends_at)
        try:
            part = os.read(connection, length - len(data))
        except OSError as error:
            raise UnreachableError(f"the kernel has gone: {error.strerror}") from error
        if not part:
            raise UnreachableError("the kernel has ended the connection")
        data += part
    return data


def _wait(connection: int, ends_at: float) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(max(0.0, ends_at - time.monotonic()) * 1000):
        raise UnreachableError("the kernel says nothing")


def _send(connection: int, data: bytes) -> None:
    try:
        os.write(connection, data)
    except OSError as error:
        raise UnreachableError(f"the kernel has gone: {error.strerror}") from error

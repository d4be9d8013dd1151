"""What the agent reads of a kernel: its request at the socket, and a pidfd's structure."""

from collections.abc import Iterator

from securecore.errors import PeerError
from securecore.sender.coredump_socket import REQUEST_MAX, parse_request
from securecore.sender.pidfd import parse_info
from tests.fuzz.target import Target, check_words

_INFO_BYTES = 88


def check_request(data: bytes) -> None:
    """A request is refused, or bounded and read by the kernel's table; what stands behind its first 16 bytes changes nothing."""
    numbers = [int.from_bytes(data[at : at + width], "little") for at, width in ((0, 4), (4, 4), (8, 8))]
    is_one = len(data) >= 16 and 16 <= numbers[0] <= REQUEST_MAX and numbers[1] >= 16 and numbers[2] % 2 == 1
    try:
        request = parse_request(data)
    except PeerError as error:
        check_words(error)
        assert not is_one
        return
    assert is_one
    assert [*request] == numbers
    assert parse_request(data[:16]) == request


def request_seeds() -> Iterator[bytes]:
    """As Linux 6.18 sends it, as a later one might, and what is none."""
    yield bytes.fromhex("10000000100000000f00000000000000")
    yield bytes.fromhex("20000000180000007f00000000000000") + bytes(16)
    yield b"\x7fELF\x02\x01\x01" + bytes(9)
    yield bytes.fromhex("ffffffff100000000f00000000000000")


def check_info(data: bytes) -> None:
    """Of any structure, nobody is said to be dumped, or to be anybody, without the mask's bits for it."""
    whole = data[:_INFO_BYTES].ljust(_INFO_BYTES, b"\0")
    found = parse_info(whole)
    mask, pid = int.from_bytes(whole[:8], "little"), int.from_bytes(whole[20:24], "little")
    assert (found is not None) == (mask & 3 == 3 and pid != 0)
    if found is not None:
        dumps = int.from_bytes(whole[64:68], "little") if mask & 0x10 else 0
        assert (found.pid, found.uid) == (pid, int.from_bytes(whole[28:32], "little"))
        assert (found.is_dumped, found.dump_mode) == (dumps & 1 == 1, 2 if dumps & 8 else 1 if dumps & 4 else None)
        assert (found.signal is not None) == (mask & 0x40 != 0)


def info_seeds() -> Iterator[bytes]:
    """A dumped process by Linux 6.18, and by one that says the signal."""
    told = bytes.fromhex("17000000000000000100000000000000613c0000613c0000523c0000") + bytes(36) + bytes.fromhex("05000000")
    yield told
    yield b"\x57" + told[1:] + bytes.fromhex("0b000000")
    yield b"\x08" + told[1:]


REQUEST = Target(check_request, request_seeds, ("sender.coredump_socket.parse_request",), 64)
INFO = Target(check_info, info_seeds, ("sender.pidfd.parse_info",), _INFO_BYTES)

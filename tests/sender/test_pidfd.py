"""What a pidfd tells of a process: by the kernel itself, and by structures as kernels before and after this one fill them."""

import os
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.sender.pidfd import PidfdInfo, find_info, parse_info

ALIVE = 0x17
"""The mask that Linux 6.18 returns for what is asked: PID, CREDS, CGROUPID and COREDUMP."""
SIZE = 88


def info(mask: int = ALIVE, *, dumps: int = 5, signal: int = 0, pid: int = 4711) -> bytes:
    """Return a structure of 88 bytes, by the offsets of include/uapi/linux/pidfd.h."""
    ids = struct.pack("=11I", pid, pid, 17, 1000, 100, 1001, 101, 1002, 102, 1003, 103)
    return (struct.pack("=QQ", mask, 1) + ids + struct.pack("=iII", 0, dumps, signal)).ljust(SIZE, b"\0")


def test_a_dumped_process_is_known_by_its_real_ids() -> None:
    """As %P, %u and %g have them; the signal is not there before Linux 6.19."""
    assert parse_info(info()) == PidfdInfo(4711, 17, 1000, 100, is_dumped=True, dump_mode=1, signal=None)


def test_a_later_kernel_says_the_signal() -> None:
    """Only where the mask says that it has."""
    told = parse_info(info(ALIVE | 0x40, signal=11))
    untold = parse_info(info(signal=11))

    assert told is not None
    assert untold is not None
    assert (told.signal, untold.signal) == (11, None)


@pytest.mark.parametrize(
    ("dumps", "is_dumped", "mode"),
    [(4, False, 1), (8, False, 2), (5, True, 1), (9, True, 2), (13, True, 2), (1, True, None), (0, False, None)],
)
def test_the_bits_of_a_dump(dumps: int, is_dumped: bool, mode: int | None) -> None:
    """COREDUMPED is the dump itself; USER and ROOT are how it is to be kept, and the narrower one counts."""
    found = parse_info(info(dumps=dumps))
    assert found is not None
    assert (found.is_dumped, found.dump_mode) == (is_dumped, mode)


def test_bits_without_their_mask_say_nothing() -> None:
    """A kernel that does not fill the field leaves there what the caller had."""
    found = parse_info(info(0x07))
    assert found is not None
    assert (found.is_dumped, found.dump_mode) == (False, None)


@pytest.mark.parametrize("data", [info(0x10), info(0x11), info(0x12), info(pid=0), bytes(SIZE)])
def test_who_is_not_said_to_be_anybody_is_nobody(data: bytes) -> None:
    """Once it was reaped, pid and credentials are not there."""
    assert parse_info(data) is None


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_any_structure_is_taken_or_says_nothing(data: bytes) -> None:
    """A kernel of another time is no reason to fail."""
    found = parse_info(data)
    assert found is None or found.dump_mode in (1, 2, None)


needs_coredump_info = pytest.mark.skipif(
    not os.path.exists("/proc/sys/kernel/core_modes"), reason="PIDFD_GET_INFO tells of dumps since Linux 6.16, as core_modes"
)


@needs_coredump_info
def test_the_kernel_tells_of_this_process() -> None:
    """It lives, so it is not being dumped."""
    pidfd = os.pidfd_open(os.getpid())
    found = find_info(pidfd)
    os.close(pidfd)

    assert found is not None
    assert found[:5] == (os.getpid(), os.getppid(), os.getuid(), os.getgid(), False)


@needs_coredump_info
def test_a_process_that_was_reaped_is_nobody() -> None:
    """Whoever has its number by now."""
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    found = find_info(pidfd)
    os.close(pidfd)

    assert found is None


def test_what_is_no_pidfd_tells_nothing() -> None:
    """Nor is it an error: the caller says that nobody is known."""
    with open("/dev/null") as file:
        assert find_info(file.fileno()) is None

"""What the kernel's log says of crashes that it skipped, as records of /dev/kmsg."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.sender import kernel_log
from securecore.sender.kernel_log import Skips, count_skips, open_kernel_log, read_skips

SKIPPED = b"over core_pipe_limit, skipping core dump"


def record(number: int, text: bytes, *, priority: int = 4) -> bytes:
    """Return a record as read(2) gives it."""
    return b"%d,%d,12648761775,-;%s\n" % (priority, number, text)


def test_each_line_is_one_crash_with_its_record() -> None:
    """As Linux 6.18 writes them, and as kernels before 6.12 did; other lines have a number and no crash."""
    records = [
        record(7, b"usb 1-1: new device"),
        record(8, b"coredump: 5029(sh): " + SKIPPED),
        record(9, b"Pid 31(sh) over core_pipe_limit"),
        record(10, b"Skipping core dump"),
    ]
    assert count_skips(records) == Skips(10, ((8, 1), (9, 1)))


def test_lines_that_the_kernel_held_back_count_with_the_next_one() -> None:
    """It says how many they were just before it."""
    records = [
        record(1, b"coredump: 5(sh): " + SKIPPED),
        record(2, b"coredump_pipe: 14 callbacks suppressed"),
        record(3, b"show_signal_msg: 9 callbacks suppressed"),
        record(4, b"coredump: 6(sh): " + SKIPPED),
        record(5, b"coredump: 7(sh): " + SKIPPED),
    ]
    assert count_skips(records) == Skips(5, ((1, 1), (4, 15), (5, 1)))


def test_a_socket_that_takes_no_crash_has_words_of_its_own() -> None:
    """As Linux 6.18 writes them: the backlog is full, nobody listens, no socket is there; each was a crash."""
    records = [
        record(1, b"coredump: 5(sh): Coredump socket /run/securecore/coredump.sock receive queue full"),
        record(2, b"coredump_sock_connect: 4 callbacks suppressed"),
        record(3, b"coredump: 6(sh): Coredump socket /run/securecore/coredump.sock receive queue full"),
        record(4, b"coredump: 7(sh): Coredump socket connection /run/securecore/coredump.sock failed -111"),
        record(5, b"coredump: 8(sh): Coredump socket connection /run/securecore/coredump.sock failed -2"),
    ]
    assert count_skips(records) == Skips(5, ((1, 1), (3, 5), (4, 1), (5, 1)))


def test_silence_about_something_else_is_not_counted() -> None:
    """The same function has other complaints, with a limit of their own."""
    records = [
        record(1, b"coredump_pipe: 14 callbacks suppressed"),
        record(2, b"coredump: 6(sh): RLIMIT_CORE is set to 1, aborting core"),
        record(3, b"coredump: 7(sh): " + SKIPPED),
    ]
    assert count_skips(records) == Skips(3, ((3, 1),))


@pytest.mark.parametrize(
    "text",
    [
        b"sh[77]: " + SKIPPED,
        b"traps: over core_pipe_limit[5] trap divide error",
        b"coredump: 6(over core_pipe_limit): |/bin/x pipe failed",
        b"over core_pipe_limit",
        b"coredump: 6(Coredump socket /x receive queue full): no file",
        b"Coredump socket /x receive queue full",
    ],
)
def test_a_name_that_looks_like_the_line_is_none(text: bytes) -> None:
    """A process names itself; only the kernel's own words behind the brackets count."""
    assert count_skips([record(3, text)]) == Skips(3, ())


def test_what_others_write_into_the_log_is_not_the_kernels_word() -> None:
    """Whoever may write to /dev/kmsg gets another facility than 0, whatever he claims."""
    assert count_skips([record(3, b"coredump: 5(sh): " + SKIPPED, priority=12)]) == Skips(3, ())


@pytest.mark.parametrize("broken", [b"", b"\n", b"nonsense", b"4,x,1,-;text", b"4,5", b"4" * 99, b"\xff\xfe;"])
def test_broken_records_cost_nothing(broken: bytes) -> None:
    """They are passed over; a log of nothing else says nothing."""
    assert count_skips([broken]) is None
    assert count_skips([broken, record(3, b"coredump: 5(sh): " + SKIPPED), broken]) == Skips(3, ((3, 1),))


def test_a_record_cut_at_every_offset_counts_or_does_not() -> None:
    """It stands for one crash or for none, and never for one with another number."""
    whole = record(852, b"coredump: 5114(sh): " + SKIPPED)
    found = [count_skips([whole[:cut]]) for cut in range(len(whole) + 1)]

    assert {skips.found for skips in found if skips is not None} == {(), ((852, 1),)}
    assert {skips.newest for skips in found if skips is not None} == {852}


@given(st.lists(st.binary(max_size=80) | st.sampled_from([record(5, b"coredump_pipe: 9 callbacks suppressed")]), max_size=6))
def test_any_records_are_counted_or_passed_over(records: list[bytes]) -> None:
    """Whatever they hold, no error comes of it."""
    skips = count_skips(records)
    assert skips is None or all(crashes > 0 for _, crashes in skips.found)


def test_what_was_read_before_is_passed_over() -> None:
    """But for what may be about a core: a silence that was read then may be about a line that comes now, and is counted once."""
    records = [
        record(1, b"usb 1-1: new device"),
        record(2, b"coredump_pipe: 14 callbacks suppressed"),
        record(3, b"coredump: 6(sh): " + SKIPPED),
        record(4, b"coredump_pipe: 5 callbacks suppressed"),
        record(5, b"usb 1-1: gone"),
        record(6, b"coredump: 7(sh): " + SKIPPED),
    ]
    for last in range(-1, 7):
        skips = count_skips(records, last)
        assert skips is not None
        assert skips.newest == 6
        assert [one for one in skips.found if one[0] > last] == [one for one in ((3, 15), (6, 6)) if one[0] > last]


@pytest.fixture
def log() -> Iterator[tuple[int, socket.socket]]:
    """A log that gives one record with each read and never waits, and its other end."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading.setblocking(False)
    with reading, writing:
        yield reading.fileno(), writing


def test_a_log_is_read_to_its_end(log: tuple[int, socket.socket]) -> None:
    """Where nothing is to be read any more, nobody waits."""
    for number in range(5):
        log[1].send(record(number, b"coredump: 7(sh): " + SKIPPED))

    assert read_skips(log[0], 3) == Skips(4, tuple((number, 1) for number in range(5)))
    assert read_skips(log[0]) is None


def test_a_log_without_an_end_is_read_for_so_many_bytes(log: tuple[int, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beyond is left; what was found counts."""
    line = record(1, b"coredump: 7(sh): " + SKIPPED)
    monkeypatch.setattr(limits, "MAX_KERNEL_LOG_BYTES", 2 * len(line) + 1)
    for _ in range(5):
        log[1].send(line)

    assert read_skips(log[0]) == Skips(1, ((1, 1),) * 3)


def test_a_log_that_takes_long_is_left(log: tuple[int, socket.socket]) -> None:
    """However little it says at a time, or only that something was overwritten."""
    for number in range(5):
        log[1].send(record(number, b"usb 1-1: new device"))
    seconds = iter([0, 0, limits.KERNEL_LOG_S / 2, limits.KERNEL_LOG_S])

    assert read_skips(log[0], clock=lambda: next(seconds)) == Skips(1, ())


def test_a_log_that_may_not_be_read_is_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said then."""
    monkeypatch.setattr(kernel_log, "KMSG", str(tmp_path / "absent"))
    assert open_kernel_log() is None


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="the kernel's log may not be read here")
def test_the_real_log_is_read_to_its_end_without_waiting() -> None:
    """From its beginning, once; behind the last record there is nothing to say, and nobody waits for more.

    Whoever has read it finds its end again, and there is no shorter way to it.
    """
    log = open_kernel_log()
    assert log is not None
    try:
        skips, more = read_skips(log), read_skips(log)
        os.lseek(log, 0, os.SEEK_SET)
        again = read_skips(log, skips.newest if skips is not None else -1)
        with pytest.raises(OSError, match="Illegal seek"):
            os.lseek(log, 1, os.SEEK_SET)
    finally:
        os.close(log)

    assert skips is not None
    assert again is not None
    assert again.newest >= skips.newest
    assert skips.newest >= len(skips.found)
    assert more is None or more.newest > skips.newest

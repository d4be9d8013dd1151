"""The log's writer: whoever logs never waits for whoever reads, and what was dropped meanwhile is counted where it is missing."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from securecore.receiver import log_writer
from securecore.receiver.log_writer import LogWriter
from tests.support.certificates import Fleet
from tests.support.crash_cores import Crash
from tests.support.processes import PATIENCE_S, receiving, send_file


def fill(process: int | str, fd: int) -> int:
    """Write into a process's pipe until it takes no more, and return how much it took."""
    # Opened anew, so that it does not block for us and does for its owner.
    ours = os.open(f"/proc/{process}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    taken = 0
    # A pipe with less room than PIPE_BUF still takes single bytes (pipe(7)).
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                taken += os.write(ours, b"x" * size)
    os.close(ours)
    return taken


class Pipe:
    """A pipe, full, that a test reads when it wants to."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._filler = fill("self", self.writing)

    def drain(self) -> None:
        """Read what has filled it, so that there is room for lines."""
        while self._filler:
            self._filler -= len(os.read(self.reading, self._filler))

    def lines(self) -> list[str]:
        """Return the lines that stand in it."""
        return os.read(self.reading, 65536).decode().splitlines()

    def close(self) -> None:
        """Close the reading end, and so wake whoever waits to write."""
        os.close(self.reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A full pipe."""
    made = Pipe()
    yield made
    with suppress(OSError):
        made.close()


def record(words: str) -> logging.LogRecord:
    """Return what a logger gives to its handlers."""
    return logging.LogRecord("securecore.receiver", logging.INFO, __file__, 1, words, (), None)


def writer_to(pipe: Pipe) -> LogWriter:
    """Return a writer with the receiver's format."""
    writer = LogWriter(pipe.writing)
    writer.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    return writer


def test_what_waits_is_written_in_its_order(pipe: Pipe) -> None:
    """A reader that comes late misses nothing while there is room."""
    writer = writer_to(pipe)
    for number in range(100):
        writer.handle(record(f"line {number} \udcff"))

    pipe.drain()
    writer.close()
    assert pipe.lines() == [f"INFO line {number} \\udcff" for number in range(100)]


def test_what_finds_no_room_is_counted_where_it_is_missing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, and the reader is told how many lines are not there: those that came while the queue was full."""
    monkeypatch.setattr(log_writer, "_MAX_LINES", 10)
    writer = writer_to(pipe)
    for number in range(1000):
        writer.handle(record(f"line {number}"))

    pipe.drain()
    writer.close()
    numbers, dropped = [], 0
    for line in pipe.lines():
        if found := re.fullmatch(r"WARNING (\d+) lines of this log were dropped here: nobody has read it", line):
            dropped += int(found[1])
        else:
            numbers.append(int(line.removeprefix("INFO line ")) - dropped)
    # What the writer has in hand has left the queue, so how many there are is a matter of time; none of them goes uncounted.
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + dropped == 1000
    assert 10 <= len(numbers) <= 12


def test_an_end_does_not_wait_for_a_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing comes back though nothing can be written, the second time at once."""
    monkeypatch.setattr(log_writer, "_DRAIN_S", 0.01)
    writer = writer_to(pipe)
    writer.handle(record("never read"))
    writer.close()
    monkeypatch.setattr(log_writer, "_DRAIN_S", 3600.0)
    writer.close()

    assert writer._thread.is_alive()


def test_an_end_waits_for_what_can_be_written(pipe: Pipe) -> None:
    """What was logged last is there when the process ends, also where others have made the descriptor non-blocking."""
    os.set_blocking(pipe.writing, False)
    writer = writer_to(pipe)
    writer.handle(record("stopped"))
    pipe.drain()
    writer.close()

    assert not writer._thread.is_alive()
    assert pipe.lines() == ["INFO stopped"]


def test_a_reader_that_is_gone_costs_nothing(pipe: Pipe) -> None:
    """Lines for nobody are thrown away; the writer goes on."""
    writer = writer_to(pipe)
    pipe.close()
    writer.handle(record("for nobody"))
    writer.close()

    assert not writer._thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-v",)])
def test_a_log_that_nobody_reads_stops_no_receiver(options: tuple[str, ...], fleet: Fleet, tmp_path: Path) -> None:
    """Standard error is a full pipe: dumps are taken all the same, and SIGTERM ends it with exit code 0."""
    (tmp_path / "core").write_bytes(Crash().write())
    with receiving(fleet.receiver, tmp_path / "store", *options) as process:
        fill(process.popen.pid, 2)
        codes = [send_file(tmp_path / "core", str(process.addresses[0]), fleet.host).returncode for _ in range(2)]
        process.popen.terminate()
        code = process.popen.wait(PATIENCE_S)

    assert (codes, code) == ([0, 0], 0)

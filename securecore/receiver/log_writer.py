"""The receiver's log on its way to standard error, at which nobody has to read: no thread but the writer's own waits for it.

A terminal that is held with Ctrl-S, a pager that shows its first page, a pipe to a program that hangs: a write to them does not
come back. Were it made where something is logged, under the one lock that logging has for that, every session would wait for it,
and the stop as well.
"""

import logging
import os
import select
import threading
from collections import deque
from typing import Final

_MAX_LINES: Final = 8192
"""Lines that may wait: 256 connections with a line in a second each (observer.py) for half a minute; 2 MB at 250 bytes a line."""

_DRAIN_S: Final = 1.0
"""How long the end of the process waits for what is still to be written: a reader that is there takes milliseconds."""


class _Gap:
    """Stands in the queue for lines that found no room there."""

    def __init__(self) -> None:
        self.lines = 1


class LogWriter(logging.Handler):
    """Writes log lines to a descriptor by a thread of its own; lines that find no room are counted, and their number is said.

    The descriptor stays the caller's. What cannot be written to it, because its other end is gone, is nobody's to read.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: deque[str | _Gap] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._write_lines, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it where there is no room; never waits."""
        line = self.format(record)
        with self._changed:
            if len(self._lines) < _MAX_LINES:
                self._lines.append(line)
            elif isinstance(last := self._lines[-1], _Gap):
                last.lines += 1
            else:
                self._lines.append(_Gap())
            self._changed.notify()

    def close(self) -> None:
        """Wait until all is written, for _DRAIN_S at most; the rest is written if the process lives so long."""
        with self._changed:
            is_first, self._is_closing = not self._is_closing, True
            self._changed.notify()
        if is_first:  # logging closes each handler again when the interpreter ends
            self._thread.join(_DRAIN_S)
            super().close()

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closing)
                if not self._lines:
                    return
                line = self._lines.popleft()
            self._write(self._notice(line) if isinstance(line, _Gap) else line)

    def _notice(self, gap: _Gap) -> str:
        words = "%d lines of this log were dropped here: nobody has read it"
        return self.format(logging.LogRecord("securecore.receiver", logging.WARNING, __file__, 0, words, (gap.lines,), None))

    def _write(self, line: str) -> None:
        # By the descriptor: a write through sys.stderr would hold its lock while it waits, and the interpreter's end takes that.
        left = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Somebody else who has this terminal or pipe made it so.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                return

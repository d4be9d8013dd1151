"""Appends that wait for one log, so that whoever comes to write takes the others along: they share their writes to the disk."""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

from securecore.audit.entry import Statement, find_statement, parse_entry
from securecore.audit.introductions import Introduction
from securecore.errors import Bug, SecurecoreError


class Append:
    """What one thread wants to add to a log, and what has come of it."""

    def __init__(self, entries: Sequence[bytes], introducing: Introduction | None) -> None:
        """As HostLog.append_all has them; raises BrokenError for what is no entry."""
        self.entries = list(entries)
        self.introducing = introducing
        self.introduced: bytes | None = None
        """The entry of the certificate, which comes before the others; None where the log knows it."""
        self.statements: list[Statement | None] = []
        """Of each of the entries, the certificate's not among them."""
        self.receipts: list[bytes] = []
        self.error: BaseException | None = None
        self.is_done = False
        for entry in self.entries:
            parse_entry(entry)
            self.statements.append(find_statement(entry))

    def finish(self, error: BaseException | None = None) -> None:
        """Say that all of it is durable, or why it is not."""
        self.error, self.is_done = error, True

    def result(self) -> list[bytes]:
        """Return the receipts, or raise what stood in the way; for the thread that wanted it."""
        if self.error is not None:
            raise self.error
        return self.receipts


_Prepare = Callable[[Append, Sequence[Append]], None]


class AppendQueue:
    """Those that wait, in the order in which they came; for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Append] = deque()

    def add(self, append: Append) -> None:
        """Take one in, behind the others."""
        with self._lock:
            self._waiting.append(append)

    def drop(self, append: Append) -> None:
        """Forget one, if it still waits: its thread does not."""
        with self._lock:
            if append in self._waiting:
                self._waiting.remove(append)

    def write(self, prepare: _Prepare, add: Callable[[Sequence[Append]], None]) -> None:
        """Have those that can be written together *added*: all that wait, up to the first that introduces a certificate.

        Each is told what has come of it. *prepare* is told of each, and of those before it, and raises what it is refused with. For
        one thread at a time.
        """
        together = self._take(prepare)
        failure: SecurecoreError | OSError | None = Bug("an append to an audit log ended by an error that nobody has thought of")
        try:
            if any(append.introduced is not None or append.entries for append in together):
                add(together)
            failure = None
        except (SecurecoreError, OSError) as error:
            failure = error
        finally:
            for append in together:
                append.finish(failure)

    def _take(self, prepare: _Prepare) -> list[Append]:
        """Take out those that can be written together, but for those that may not be written at all: these are finished."""
        with self._lock:
            waiting = list(self._waiting)
        together: list[Append] = []
        for append in waiting:
            try:
                prepare(append, together)
            except (SecurecoreError, OSError, MemoryError) as error:
                append.finish(error)
                self.drop(append)
                continue
            if append.introduced is not None and together:
                break  # What its entry says of the key depends on those before it.
            together.append(append)
            if append.introduced is not None:
                break
        # Only now: by an error that nobody foresaw the others must not lose their places, for each waits until it is done.
        for append in together:
            self.drop(append)
        return together

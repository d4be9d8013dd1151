"""Having the audit logs say what a verification found: by the receiver that runs on the store, else with its identity."""

import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from securecore import limits
from securecore.cli import terminal
from securecore.errors import BrokenError, NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver import control, findings, standalone
from securecore.receiver.findings import Finding
from securecore.store.layout import Store


class Recorder:
    """Collects what was found of dumps and has it written, a batch at a time and the rest at the end; a context manager."""

    def __init__(self, store: Store, identity: Path | None) -> None:
        """*identity* is the receiver's, for entries that we sign ourselves; without one nothing is collected or written."""
        self._store = store
        self._identity = identity
        self._host: HostName | None = None
        self._found: list[Finding] = []
        self._unknown: list[DumpId] = []
        self._failures: dict[HostName, SecurecoreError] = {}
        """Hosts whose log took nothing, or not all, and why."""

    def note(self, host: HostName, dump: DumpId, problem: str | None) -> None:
        """Take what was found of a dump."""
        if self._identity is None:
            return
        if host != self._host or len(self._found) >= limits.DELETION_BATCH:
            self.flush()
        self._host = host
        self._found.append(Finding(dump, problem[: limits.MAX_WORDS] if problem is not None else None))

    def flush(self) -> None:
        """Return once all that was found until now is durable, or has met what conclude raises."""
        if self._host is None or self._identity is None:
            return
        host, found = self._host, self._found
        self._host, self._found = None, []
        try:
            for batch in findings.batches(found):
                self._unknown += self._record(host, batch, self._identity)
        except SecurecoreError as error:
            # One host's log must not keep others' dumps from being verified.
            self._failures.setdefault(host, error)

    def conclude(self, *, is_broken: bool) -> None:
        """Raise what kept findings from being written: the first host's error, a BrokenError all the same where a dump *is_broken*.

        NotFoundError where no receiver runs and there is no identity to sign with; BrokenError when dumps got no entry, because
        their host's log knows nothing of them.
        """
        if self._failures:
            (host, error), *others = self._failures.items()
            more = f"; nor of {terminal.count(len(others), 'more host')}" if others else ""
            kind = BrokenError if is_broken else type(error)
            raise kind(f"not recorded of {host}: {error.message}{more}", hint=error.hint)
        if self._unknown:
            first, count = self._unknown[0].short, len(self._unknown) - 1
            others_too = f", nor {count} more" if count else ""
            hint = "`securecore audit verify` says what is wrong with the log"
            raise BrokenError(f"not recorded: the audit log does not know {first}{others_too}", hint=hint)

    def _record(self, host: HostName, batch: list[Finding], identity: Path) -> list[DumpId]:
        unknown = control.ask_to_record(self._store, host, batch)
        if unknown is not None:
            return unknown
        uid = os.getuid()
        try:
            with standalone.appending_alone(self._store, identity) as logs:
                return findings.record(self._store, logs, host, batch, uid, control.user_name(uid), datetime.now(UTC))
        except NotFoundError as error:
            hint = "what is recorded is signed: start the receiver, or name its identity with --identity to sign the entries"
            raise NotFoundError(error.message, hint=hint) from error

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        # Also where the rest was not verified: what was found until then is no less true.
        self.flush()

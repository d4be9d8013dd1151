"""The logs of a store, as ``audit verify`` looks at them: the receiver-wide one before the hosts', and once more behind them."""

import os
from typing import Any, Final, NamedTuple

import click

from securecore.audit.checkpoint import origin_of, verifier_key
from securecore.audit.entry import WideHead, timestamp
from securecore.audit.log_verification import Holdings, LogVerification, verify_log
from securecore.audit.statement import LogKey
from securecore.audit.verified import Verified
from securecore.audit.wide_verification import HostsLogs, Said, WideVerification, read_said, verify_wide_log
from securecore.cli import holdings, terminal
from securecore.cli.verify import print_checks
from securecore.errors import NotFoundError, StorageError
from securecore.names import HostName
from securecore.store.layout import Store

GONE: Final = "its log is gone"
NONE_YET: Final = "no receiver-wide log yet: the store is older than it, and the next start of the receiver makes it"
ALL_HOSTS: Final = "all hosts"
"""In the place of a host's name: whose log the receiver-wide one is."""


class Before(NamedTuple):
    """What an earlier verification found of a log, and whether its entries are parsed again all the same."""

    verified: Verified | None = None
    from_the_start: bool = False

    def document(self) -> dict[str, Any] | None:
        """Return it for programs; None where none is known."""
        if self.verified is None:
            return None
        return {"entries": self.verified.size, "at": timestamp(self.verified.at)}


NOTHING_BEFORE: Final = Before()


class LogsLook:
    """One look at a store's logs: make it first, then verify the hosts' logs that are asked for, then the receiver-wide one."""

    def __init__(self, store: Store, log_key: LogKey) -> None:
        self._store = store
        self._log_key = log_key
        self._heads: set[WideHead] = set()
        self._problems: dict[HostName, str] = {}
        self._published: list[HostName] = []
        self._looked_at: list[HostName] = []
        self._is_absent, fd = self._open()
        try:
            self.said = read_said(fd, log_key.name, log_key.public_key) if fd is not None else Said()
        finally:
            if fd is not None:
                os.close(fd)

    @property
    def hosts(self) -> list[HostName]:
        """The hosts that must have a log, sorted: of published dumps, of logs, and those that the receiver-wide log names."""
        return sorted({*holdings.known_hosts(self._store), *self.said.hosts})

    def verify_host(self, host: HostName, before: Before = NOTHING_BEFORE) -> tuple[LogVerification, Holdings]:
        """Return what holds of a host's log, and what the store holds of the host; linear, streaming, without any lock.

        That there is no log, or none that can be opened, is for the checks to say.
        """
        held = holdings.read_holdings(self._store, host, self._log_key)
        try:
            fd = self._store.audit_directory(host, create=False)
        except (NotFoundError, StorageError):
            fd = None
        try:
            with terminal.Progress(f"verifying {host}", None, "entry") as progress:
                result = verify_log(
                    fd,
                    origin_of(self._log_key.name, host),
                    self._log_key.public_key,
                    log_key=self._log_key,
                    said=list(self.said.of(host)) if self.said.tree is not None else None,
                    holdings=held,
                    verified=before.verified,
                    from_the_start=before.from_the_start,
                    progress=lambda done, total: progress.update(done),
                )
        finally:
            if fd is not None:
                os.close(fd)
        self._take(host, result, held)
        return result, held

    def _take(self, host: HostName, result: LogVerification, held: Holdings) -> None:
        self._looked_at.append(host)
        self._heads.update(result.wide_heads)
        if result.said_problem is not None:
            self._problems[host] = result.said_problem if host in self._store.audited_hosts() else GONE
        if held.published:
            self._published.append(host)

    def verify(self, before: Before = NOTHING_BEFORE) -> WideVerification | None:
        """Return what holds of the log; None where there is none, and nothing says that there was one."""
        is_absent, fd = self._open()
        if is_absent and self._is_absent and not self._heads and before.verified is None:
            return None
        try:
            hosts = HostsLogs(sorted(self._heads), self._problems, self._published, self._looked_at)
            with terminal.Progress("verifying the receiver-wide log", None, "entry") as progress:
                return verify_wide_log(
                    fd,
                    self._log_key.name,
                    self._log_key.public_key,
                    self.said,
                    hosts,
                    log_key=self._log_key,
                    verified=before.verified,
                    from_the_start=before.from_the_start,
                    progress=lambda done, total: progress.update(done),
                )
        finally:
            if fd is not None:
                os.close(fd)

    def _open(self) -> tuple[bool, int | None]:
        """Return whether nothing stands in the log's place, and a descriptor of its directory if it can be opened."""
        try:
            return False, self._store.wide_log_directory(create=False)
        except NotFoundError:
            return True, None
        except StorageError:
            return False, None

    def document(self, result: WideVerification) -> dict[str, Any]:
        """Return the outcome for programs; it is of no host."""
        return {
            "host": None,
            "origin": result.origin,
            "ok": result.ok,
            "entries": result.size,
            "unsigned": result.unsigned,
            "contradicted": [{"host": str(host), "problem": self._problems[host]} for host in result.contradicted],
            "unnamed": [str(host) for host in result.unnamed],
            "checks": [check._asdict() for check in result.checks],
            "verifier_key": verifier_key(result.origin, self._log_key.public_key),
        }

    def print(self, result: WideVerification | None) -> None:
        """Print the outcome for a person."""
        if result is None:
            click.echo(f"{ALL_HOSTS}  {NONE_YET}")
            return
        click.echo(f"{ALL_HOSTS}  log {result.origin}")
        print_checks(result.checks)
        click.echo(f"      key   {verifier_key(result.origin, self._log_key.public_key)}")
        unsigned = f", {result.unsigned} more not yet under a checkpoint" if result.unsigned else ""
        verdict = terminal.good("ok") if result.ok else terminal.bad("BROKEN")
        click.echo(f"{ALL_HOSTS}  {verdict}  {terminal.count(result.size, 'entry')}{unsigned}")

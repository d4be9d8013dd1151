"""The verification of a store's logs, as ``audit verify`` makes it, in a form that a report keeps."""

from typing import Final

from securecore.audit.checkpoint import verifier_key
from securecore.audit.log_verification import LogVerification
from securecore.audit.statement import LogKey
from securecore.audit.wide_verification import WideVerification
from securecore.cli import holdings
from securecore.cli.overview.model import Verification
from securecore.cli.wide_log import NONE_YET, LogsLook
from securecore.names import HostName
from securecore.store.layout import Store

_NO_LOG: Final = "nothing was published or refused yet, so there is no log"


class ReportedLogs:
    """One look at a store's logs; where the log key is not known, none of them can be verified."""

    def __init__(self, store: Store, log_key: LogKey | None, problem: str | None) -> None:
        """*problem* is why the log key is not known."""
        self._log_key = log_key
        self._look = LogsLook(store, log_key) if log_key is not None else None
        self._unknown = Verification(None, f"the log key is not known: {problem}")
        self.hosts = frozenset(self._look.hosts if self._look is not None else holdings.known_hosts(store))
        """Those that must have a log."""

    def verify_host(self, host: HostName) -> Verification:
        """Return what holds of a host's log."""
        if self._look is None or self._log_key is None:
            return self._unknown
        if host not in self.hosts:
            return Verification(None, _NO_LOG)
        return _report(self._look.verify_host(host)[0], self._log_key)

    def verify_wide_log(self) -> Verification:
        """Return what holds of the receiver-wide log, held against all hosts' logs that were verified before."""
        if self._look is None or self._log_key is None:
            return self._unknown
        found = self._look.verify()
        if found is None:
            return Verification(None, NONE_YET)
        return _report(found, self._log_key)


def _report(found: LogVerification | WideVerification, log_key: LogKey) -> Verification:
    key = verifier_key(found.origin, log_key.public_key)
    return Verification(found.ok, None, found.origin, key, found.size, tuple(found.checks))

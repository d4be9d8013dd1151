"""What a peer is told when a receiver says no, and what a host's audit log says of it.

An authenticated host may ask again as often as it likes. So its log gets one entry for a code in an hour at most, which counts
those that had none. A stranger has no log; nor does a host get one by a certificate that is not believed any more, of which
somebody may have stolen many: only where something of the host is here is it on record.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Final

from securecore import limits
from securecore.audit.entry import refused_entry
from securecore.audit.log import HostLogs
from securecore.certs.judge import Reason
from securecore.certs.judge import Refusal as CertificateRefusal
from securecore.dump.frames import FrameRefused
from securecore.errors import BrokenError, BusyError, PeerError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.receiver.commit import ManifestRefused
from securecore.receiver.observer import log, quoted
from securecore.store.layout import Store
from securecore.wire.messages import Refusal, Refuse

_CERTIFICATE_CODES: Final = {
    Reason.UNKNOWN_ISSUER: Refusal.UNKNOWN_ISSUER,
    Reason.EXPIRED: Refusal.EXPIRED,
    Reason.NOT_YET_VALID: Refusal.NOT_YET_VALID,
    Reason.REVOKED: Refusal.REVOKED,
    Reason.WRONG_PURPOSE: Refusal.WRONG_PURPOSE,
    Reason.BAD_NAME: Refusal.BAD_NAME,
    Reason.CRL_EXPIRED: Refusal.REVOCATION_UNKNOWN,
    Reason.CRL_MISSING: Refusal.REVOCATION_UNKNOWN,
}


class Rejection(SecurecoreError):
    """A REFUSE, as an error: its message is for our log, *told* is what the peer hears, the same where it is not given."""

    def __init__(self, code: Refusal, message: str, *, told: str | None = None, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.told = message if told is None else told
        self.retry_after_s = retry_after_s


class NotAdmitted(Rejection):
    """The receiver's policy, or its disk, takes no more from this host now."""


ON_RECORD: Final = (NotAdmitted, CertificateRefusal, PeerError, ManifestRefused)
"""What a host is refused for by its own doing, or by our policy. A disk's fault, or a newer connection, is nothing to say of it."""


class RefusalNotes:
    """Writes into hosts' audit logs what they were refused. Safe for use by several threads."""

    def __init__(
        self, store: Store, logs: HostLogs, clock: Callable[[], datetime], ticks: Callable[[], float] = time.monotonic
    ) -> None:
        """*ticks* gives seconds of which only differences count."""
        self._store = store
        self._logs = logs
        self._clock = clock
        self._ticks = ticks
        self._lock = Lock()
        self._noted: dict[tuple[HostName, Refusal], tuple[float, int]] = {}
        """When an entry was last tried, and how many refusals had none since."""

    def note(self, host: HostName, dump_id: DumpId | None, error: SecurecoreError) -> None:
        """Write an entry, or count the refusal for the next one; a log that takes none is logged, and tried again in an hour.

        *error* is one of ON_RECORD. Not checked: that *host* is the one to whom the refused certificate was issued, and that its
        peer holds the key.
        """
        if isinstance(error, CertificateRefusal) and not self._store.knows(host):
            return
        code, now = Refusal(refuse(error).code), self._ticks()
        key = (host, code)
        with self._lock:
            noted_at, others = self._noted.get(key, (None, 0))
            if noted_at is not None and now - noted_at < limits.REFUSED_ENTRY_EVERY_S:
                self._noted[key] = (noted_at, others + 1)
                return
            # Before the disk is asked: one that hangs, or refuses, must not be asked again by each that is turned away meanwhile.
            self._noted[key] = (now, 0)
        moment = self._clock().astimezone(UTC)
        try:
            with self._logs.using(host) as audit:
                audit.append(refused_entry(moment, dump_id, host, code=code, reason=error.message, others=others))
        except SecurecoreError as failure:
            log.error("refusal not audited host=%s code=%s error=%s", host, code.name, quoted(failure.message))
            with self._lock:
                noted_at, since = self._noted[key]
                self._noted[key] = (noted_at, since + others + 1)


def refuse(error: SecurecoreError) -> Refuse:
    """Return the REFUSE that tells a peer of *error*: our own words for what is the peer's doing, few for what is ours."""
    if isinstance(error, Rejection):
        return Refuse(error.code, error.told, error.retry_after_s)
    if isinstance(error, CertificateRefusal):
        return Refuse(_CERTIFICATE_CODES.get(error.reason, Refusal.BAD_CERTIFICATE), error.message)
    if isinstance(error, FrameRefused):
        return Refuse(Refusal.BAD_FRAME, error.message)
    if isinstance(error, ManifestRefused):
        return Refuse(Refusal.BAD_MANIFEST, error.message)
    if isinstance(error, PeerError):
        return Refuse(Refusal.BAD_REQUEST, error.message)
    if isinstance(error, BusyError):
        return Refuse(Refusal.BUSY, error.message, retry_after_s=10)
    if isinstance(error, (StorageError, BrokenError)):
        return Refuse(Refusal.STORAGE, "the receiver's disk refuses to store this, or what is on it is damaged", retry_after_s=60)
    return Refuse(Refusal.BUSY, "the receiver cannot take this now", retry_after_s=60)

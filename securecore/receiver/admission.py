"""What a receiver takes from a host that has proved who it is: policy.py's quotas, and the floor of the store's file system.

1. ``check_host`` at the certificate, and again at each OPEN: a connection may outlive a change of the policy.
2. ``receiving`` at OPEN: how many dumps of the host are received at once.
3. ``check_opening``, before anything is made: a new dump must fit into the host's quota by what is certain of it, and the disk be
   above its floor. What others that are being received have announced and not yet sent counts too. The prediction is of plaintext;
   how much it takes when it is stored nobody knows before.
4. ``check_growth``, before a frame is written: the same by what is here. So a quota is not exceeded by a frame.

A dump that was begun is not new: counts and rates do not stop it, nor anything one that is all here, as far as that is known.
Where it needs room that is not there, it is turned away before its frames are walked: its host comes again and again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from securecore import limits, units
from securecore.names import DumpId, HostName
from securecore.receiver.policy import Policy, Quota
from securecore.receiver.refusals import NotAdmitted
from securecore.store.layout import Store
from securecore.store.usage import Amount, HostUsage, Usage, room_of
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal

_HOUR_S: Final = 3600
_REMEDY: Final = "vacuum or a higher quota makes room"


class _Reception:
    """One dump that a session has."""

    def __init__(self) -> None:
        self.is_new = False
        self.predicted_size = 0


class Admission:
    """Says no, by raising NotAdmitted. Safe for use by several threads."""

    def __init__(self, store: Store, usage: Usage, policy: Callable[[], Policy]) -> None:
        """*usage* follows the store; *policy* gives what counts now."""
        self._store = store
        self._usage = usage
        self._policy = policy
        self._lock = Lock()
        self._receptions: dict[HostName, dict[DumpId, _Reception]] = {}

    def check_host(self, host: HostName) -> None:
        """Check that a host may send at all."""
        policy = self._policy()
        if any(_is_meant(host, pattern) for pattern in policy.deny):
            raise NotAdmitted(Refusal.NOT_ALLOWED, f"{host} is on this receiver's list of hosts that may not send")
        if not any(_is_meant(host, pattern) for pattern in policy.allow):
            raise NotAdmitted(Refusal.NOT_ALLOWED, f"{host} is not on this receiver's list of hosts that may send")

    @contextmanager
    def receiving(self, host: HostName, dump_id: DumpId) -> Iterator[None]:
        """Count a dump as being received while the block runs; raises NotAdmitted when its host has as many under way as it may."""
        self.check_host(host)
        most = self._quota(host).at_once
        with self._lock:
            others = self._receptions.setdefault(host, {})
            if most is not None and len(others) >= most:
                words = f"this host sends {units.count(len(others), 'dump')} at once, as many as it may"
                raise NotAdmitted(Refusal.BUSY, words, retry_after_s=limits.BUSY_RETRY_AFTER_S)
            others[dump_id] = _Reception()
        try:
            yield
        finally:
            with self._lock:
                del others[dump_id]
                if not others:
                    del self._receptions[host]

    def check_opening(self, host: HostName, dump_id: DumpId, predicted_size: int | None) -> bool:
        """Check that there is room for a dump, within ``receiving``, and return whether it is a new one.

        Raises StorageError too, when what is here of the host cannot be counted.
        """
        is_new = self._store.find_place(host, dump_id) is None
        if not is_new and self._has_manifest(host, dump_id):
            return False
        quota = self._quota(host)
        is_bound = self._has_counted(host, quota)
        held = self._usage.held(host, dump_id).plain_bytes if is_bound and not is_new else 0
        missing = predicted_size - held if predicted_size is not None else None
        if not is_new and missing is not None and missing <= 0:
            return False
        self._check_floor(needs_inodes=is_new)
        if is_bound:
            with self._lock:
                # The others first: one that is begun between the two looks then counts twice, and never not at all.
                pending, promised = self._announced(host, dump_id)
                used = self._usage.of(host)
                if is_new:
                    _check_counts(quota, used, pending)
                # Less than a frame's room would let the rest of a dump come again and again, and be walked each time.
                least = 1 if is_new else limits.MAX_FRAME_BYTES
                _check_bytes(quota, Amount(used.stored_bytes, used.plain_bytes), Amount(least, max(least, missing or 0) + promised))
                reception = self._receptions[host][dump_id]
                reception.is_new, reception.predicted_size = is_new, predicted_size or 0
        return is_new

    def opened(self, dump: IncomingDump) -> None:
        """Take what a dump that a session has now opened really holds."""
        self._usage.grew(dump.host, dump.dump_id, Amount(dump.stored_bytes, dump.plain_bytes))

    def check_growth(self, dump: IncomingDump, more: Amount) -> None:
        """Check that there is room for *more* of a dump, and count it."""
        quota = self._quota(dump.host)
        self._check_floor()
        is_bound = self._has_counted(dump.host, quota)
        with self._lock:
            if is_bound:
                _check_bytes(quota, self._usage.taken(dump.host), more)
            after = Amount(dump.stored_bytes + more.stored_bytes, dump.plain_bytes + more.plain_bytes)
            self._usage.grew(dump.host, dump.dump_id, after)

    def _quota(self, host: HostName) -> Quota:
        policy = self._policy()
        return policy.host_quotas.get(str(host), policy.quota)

    def _has_counted(self, host: HostName, quota: Quota) -> bool:
        """Return whether anything depends on what a host has; then it is counted by now.

        For before the lock is taken: it may have many dumps, and the others are not to wait.
        """
        bounds = (quota.stored_bytes, quota.plain_bytes, quota.dumps, quota.dumps_per_hour)
        is_bound = any(bound is not None for bound in bounds)
        if is_bound:
            self._usage.taken(host)
        return is_bound

    def _has_manifest(self, host: HostName, dump_id: DumpId) -> bool:
        with self._store.open_dump(host, dump_id) as files:
            return files.read_manifest() is not None

    def _announced(self, host: HostName, dump_id: DumpId) -> tuple[int, int]:
        """Return how many other dumps of a host are about to be begun, and the plaintext that its others have yet to send."""
        pending = promised = 0
        for other, reception in self._receptions[host].items():
            if other == dump_id:
                continue
            found = self._usage.find_incoming(host, other)
            pending += reception.is_new and found is None
            promised += max(0, reception.predicted_size - (found or Amount()).plain_bytes)
        return pending, promised

    def _check_floor(self, *, needs_inodes: bool = False) -> None:
        floor, room = self._policy().floor, room_of(self._store)
        least = max(int(room.total_bytes * floor.share), floor.free_bytes)
        if room.free_bytes < least:
            free = units.size(room.free_bytes)
            raise _full(f"the store's file system has {free} left, and {units.size(least)} of it are to stay free")
        least = int(room.total_inodes * floor.share)
        if needs_inodes and room.free_inodes < least:
            raise _full(f"the store's file system has {room.free_inodes} inodes left, and {least} of them are to stay free")


def _check_counts(quota: Quota, used: HostUsage, pending: int) -> None:
    if quota.dumps is not None and used.dumps + pending >= quota.dumps:
        has = used.dumps + pending
        raise _over_quota(f"this host has {has} of its {units.count(quota.dumps, 'dump')} here; {_REMEDY}")
    most = quota.dumps_per_hour
    if most is not None and len(used.begun_s) + pending >= most:
        words = f"this host has begun {units.count(len(used.begun_s), 'dump')} within the hour, and may begin {most}"
        # Then so many have left the hour that one more may begin; a host that may begin none asks again in an hour.
        oldest = len(used.begun_s) + pending - most
        age_s = used.begun_s[oldest] if most > 0 and oldest < len(used.begun_s) else 0.0
        raise NotAdmitted(Refusal.QUOTA, words, retry_after_s=max(1, _HOUR_S - int(age_s)))


def _check_bytes(quota: Quota, used: Amount, more: Amount) -> None:
    if quota.stored_bytes is not None and used.stored_bytes + more.stored_bytes > quota.stored_bytes:
        has, most = units.size(used.stored_bytes), units.size(quota.stored_bytes)
        raise _over_quota(f"this host has {has} of its {most} here; {_REMEDY}")
    if quota.plain_bytes is not None and used.plain_bytes + more.plain_bytes > quota.plain_bytes:
        has, most = units.size(used.plain_bytes), units.size(quota.plain_bytes)
        asked = units.size(more.plain_bytes)
        raise _over_quota(f"this host has {has} of its {most} of plaintext here, and {asked} would come; {_REMEDY}")


def _over_quota(words: str) -> NotAdmitted:
    return NotAdmitted(Refusal.QUOTA, words, retry_after_s=limits.QUOTA_RETRY_AFTER_S)


def _full(words: str) -> NotAdmitted:
    # How large our disk is, is no host's business.
    told = "the receiver's disk is as full as it may be; vacuum or a larger disk makes room"
    return NotAdmitted(Refusal.STORAGE, words, told=told, retry_after_s=limits.FLOOR_RETRY_AFTER_S)


def _is_meant(host: HostName, pattern: str) -> bool:
    """Return whether *pattern* is the host's name, `*.` and a domain that it is in, or `*`."""
    return pattern in ("*", str(host)) or (pattern.startswith("*.") and str(host).endswith(pattern[1:]))

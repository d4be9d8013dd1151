"""What a receiver takes from a host that has proved who it is: policy.py's quotas, and the floor of the store's file system.

1. ``check_host`` at the certificate, at each OPEN, and before a commit: a connection may outlive a change of the policy. Who is
   denied is told nothing else, not even that a dump is here already: its operator may hold it for stolen.
2. ``check_opening``, before anything is made: one that is here already is answered, whatever its host has. How many dumps of the
   host are received at once; a new dump must fit into the host's quota by what is certain of it, and the disk be above its floor.
   What others that are being received have announced and not yet sent counts too. The prediction is of plaintext; how much it takes
   when it is stored nobody knows before, but for what so many zeroes take: what would not fit even so is not begun (floor.py too).
3. ``check_growth``, before a frame is written: the same by what is here. So a quota is not exceeded by a frame.

Several dumps must not use a quota up with their parts, so that none can be finished: parts can't be vacuumed. So the first that was
begun of a host's dumps that are coming in (store/account.py) goes before the others. It may use all that is left, they leave to it
what it may still need: of its predicted size the rest, as if it did not compress; a share of the quota at most where it was not
predicted, or is larger than what may be stored. Where that would not fit even if all that is published were vacuumed, it would hold
the others up in vain: they leave nothing to it, and make room for it by being finished. A new dump takes nobody's place, and is
begun only where there is room for all the plaintext that was announced.

While the first is away, refused itself or its sender gone, it holds up none that is sure to fit: all of it, though nothing
compress. That one is finished, so vacuum can take it; whoever goes on so is left its rest, by the first too when it is back. The
same where the first keeps a share alone, because nobody knows what it needs, and others have taken of that while it was away.

A dump that was begun is not new: counts and rates do not stop it, nor anything one that is all here, as far as that is known. Where
it needs room that is not there, it is turned away before its frames are walked: its host comes again and again. A dump of unknown
size may lack its end alone, so it is let in until it has asked for more; so is one that has brought all that it announced, and any
of a host without a quota, because only a walk tells what is here of that.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

from securecore import limits, units
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver import claims, quotas
from securecore.receiver.floor import check_floor, check_new, check_share
from securecore.receiver.policy import Policy, Quota
from securecore.receiver.refusals import NotAdmitted
from securecore.store.account import Amount, Part
from securecore.store.layout import Store
from securecore.store.usage import HostUsage, Usage, room_of
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal


class _Reception:
    """One dump that a session has."""

    def __init__(self) -> None:
        self.is_admitted = False
        """It counts for how many are received at once."""
        self.is_let_in = False
        """It has its room, or needs none as far as that is known."""
        self.is_sure = False
        """It goes on beside one that comes first because all of it fits: until its session ends the others leave it its rest."""
        self.is_new = False
        self.predicted_size: int | None = None


class Admission:
    """Says no, by raising NotAdmitted. Safe for use by several threads."""

    def __init__(self, store: Store, usage: Usage, policy: Callable[[], Policy]) -> None:
        """*usage* follows the store; *policy* gives what counts now."""
        self._store = store
        self._usage = usage
        self._policy = policy
        self._lock = Lock()
        self._receptions: dict[HostName, dict[DumpId, _Reception]] = {}
        self._stopped: dict[HostName, dict[DumpId, Amount]] = {}
        """Dumps that had no room for their next frame, with what was here of each: not all of it, be its size known or not."""
        self._ahead: Thread | None = None

    def check_host(self, host: HostName) -> None:
        """Check that a host may send at all."""
        policy = self._policy()
        if any(_is_meant(host, pattern) for pattern in policy.deny):
            raise NotAdmitted(Refusal.NOT_ALLOWED, f"{host} is on this receiver's list of hosts that may not send")
        if not any(_is_meant(host, pattern) for pattern in policy.allow):
            raise NotAdmitted(Refusal.NOT_ALLOWED, f"{host} is not on this receiver's list of hosts that may send")

    def start_counting(self) -> None:
        """Begin to count, in a thread of its own, what the hosts of the store have that have a quota: before they ask."""
        self._ahead = Thread(target=self.count_ahead, name="count", daemon=True)
        self._ahead.start()

    def count_ahead(self) -> None:
        """Count them one after the other; what stands in the way of it is said to the host's next dump."""
        with suppress(SecurecoreError):
            for host in self._store.host_names():
                if _is_bound(self._quota(host)) and not self._usage.is_stopping:
                    with suppress(SecurecoreError):
                        self._usage.is_counted_within(host, None)

    def stop_counting(self, timeout_s: float) -> bool:
        """Make counts end, and return whether they have within *timeout_s*; none is begun from now on."""
        ends_at = time.monotonic() + timeout_s
        has_ended = self._usage.stop(timeout_s)
        if self._ahead is not None:
            self._ahead.join(max(0.0, ends_at - time.monotonic()))
            has_ended = has_ended and not self._ahead.is_alive()
        return has_ended

    @contextmanager
    def receiving(self, host: HostName, dump_id: DumpId) -> Iterator[None]:
        """Have a dump counted as being received from ``check_opening`` on, while the block runs; checks its host."""
        self.check_host(host)
        with self._lock:
            self._receptions.setdefault(host, {})[dump_id] = _Reception()
        try:
            yield
        finally:
            with self._lock:
                del self._receptions[host][dump_id]
                if not self._receptions[host]:
                    del self._receptions[host]

    def check_opening(self, host: HostName, dump_id: DumpId, predicted_size: int | None) -> bool:
        """Check that there is room for a dump, within ``receiving``, and return whether it is a new one.

        Raises StorageError too, when what is here of the host cannot be counted.
        """
        is_new = self._store.find_place(host, dump_id) is None
        if not is_new and self._has_manifest(host, dump_id):
            return False
        quota = self._quota(host)
        if quota.dumps_per_hour is None:
            # A host without a rate could have us remember dumps without end, each gone again at its first frame.
            self._usage.forget_begun(host)
        # Whoever is turned away and comes again is not lost; nothing is known of a part before its host is counted.
        self._usage.touched(host, dump_id)
        self._admit(host, dump_id, quota)
        is_bound = _is_bound(quota)
        if is_bound:
            self._wait_until_counted(host)
            self._usage.touched(host, dump_id)
        missing = predicted_size
        if predicted_size is not None and not is_new:
            # What is here of a host without a quota is not counted: only a walk tells.
            missing = predicted_size - self._usage.held(host, dump_id).plain_bytes if is_bound else None
        stopped = self._find_stopped(host, dump_id)
        if not is_new and stopped is None and (missing is None or missing <= 0):
            return False
        floor, room = self._policy().floor, room_of(self._store)
        check_floor(floor, room, needs_inodes=is_new)
        if is_new:
            check_new(floor, room, predicted_size)
        elif stopped is not None:  # Of any other nobody knows before it is walked how it has compressed.
            check_share(floor, room, Part(stopped, predicted_size))
        if is_bound:
            self._decide(host, lambda: self._is_opening_decided(host, dump_id, quota, predicted_size, missing, is_new))
        return is_new

    def opened(self, dump: IncomingDump, predicted_size: int | None) -> None:
        """Take what a dump that a session has now opened really holds, and will."""
        self._usage.grew(dump.host, dump.dump_id, Amount(dump.taken_bytes, dump.plain_bytes))
        self._usage.announced(dump.host, dump.dump_id, predicted_size)
        with self._lock:
            self._stopped.get(dump.host, {}).pop(dump.dump_id, None)
            reception = self._receptions.get(dump.host, {}).get(dump.dump_id)
            if reception is not None:
                reception.is_let_in, reception.predicted_size = True, predicted_size

    def not_opened(self, host: HostName, dump_id: DumpId) -> None:
        """Take its turn from a dump that could not be opened, until it can be.

        A disk that does not give it back, or has no room for what is damaged of it, may not do so for days: none waits for that.
        """
        self._usage.could_not_be_opened(host, dump_id)

    def check_growth(self, dump: IncomingDump, more: Amount) -> None:
        """Check that there is room for *more* of a dump, and count it."""
        try:
            self._check_growth(dump, more)
        except NotAdmitted:
            if dump.frames or dump.has_report:  # Of any other nothing stays.
                self._note_stopped(dump)
            raise

    def _check_growth(self, dump: IncomingDump, more: Amount) -> None:
        quota = self._quota(dump.host)
        with self._lock:
            reception = self._receptions.get(dump.host, {}).get(dump.dump_id)
        floor, room, has = self._policy().floor, room_of(self._store), Amount(dump.taken_bytes, dump.plain_bytes)
        check_floor(floor, room, more.stored_bytes)
        check_share(floor, room, Part(has, reception.predicted_size if reception is not None else None))
        after = Amount(has.stored_bytes + more.stored_bytes, has.plain_bytes + more.plain_bytes)
        if _is_bound(quota):
            self._decide(dump.host, lambda: self._is_growth_decided(dump, more, after, quota))
        else:
            self._usage.grew(dump.host, dump.dump_id, after)

    def _decide(self, host: HostName, is_decided: Callable[[], bool]) -> None:
        """Run *is_decided* under the lock until it is true: as long as its host is counted.

        All hosts share the lock. So whoever has to wait for a count, after a change that nobody understood, leaves it meanwhile.
        """
        while True:
            self._wait_until_counted(host)
            with self._lock:
                if is_decided():
                    return

    def _is_opening_decided(
        self, host: HostName, dump_id: DumpId, quota: Quota, predicted_size: int | None, missing: int | None, is_new: bool
    ) -> bool:
        # The others first: one that is begun between the two looks then counts twice, and never not at all.
        pending, promised = self._announced(host, dump_id)
        # One that comes again was begun already, and may be begun once more.
        is_rated = quota.dumps_per_hour is not None
        used = self._usage.find(host, but_for=dump_id) if is_rated else self._usage.find_taken(host)
        if used is None:
            return False
        if is_new:
            quotas.check_counts(quota, used, pending)
        first, claim = self._claimed(host, dump_id, quota, used)
        is_sure = first is not None and self._passes(host, dump_id, first, quota, used, missing)
        if is_sure:
            first, claim = None, Amount()
        # Less than a frame's room would let the rest of a dump come again and again, and be walked each time.
        least = 1 if is_new else limits.MAX_FRAME_BYTES
        stored = max(least, claims.least_bytes(predicted_size or 0)) if is_new else least
        others = promised if is_new or first is not None else 0
        quotas.check_bytes(quota, used, Amount(stored, max(least, missing or 0) + others), claim)
        reception = self._receptions[host][dump_id]
        reception.is_let_in, reception.is_sure, reception.is_new = True, is_sure, is_new
        reception.predicted_size = predicted_size
        return True

    def _is_growth_decided(self, dump: IncomingDump, more: Amount, after: Amount, quota: Quota) -> bool:
        used = self._usage.find_taken(dump.host)
        if used is None:
            return False
        first, claim = self._claimed(dump.host, dump.dump_id, quota, used)
        reception = self._receptions.get(dump.host, {}).get(dump.dump_id)
        if first is not None and reception is not None and (reception.predicted_size or 0) >= after.plain_bytes:
            missing = (reception.predicted_size or 0) - dump.plain_bytes
            if self._passes(dump.host, dump.dump_id, first, quota, used, missing):
                reception.is_sure, claim = True, Amount()
        quotas.check_bytes(quota, used, more, claim)
        self._usage.grew(dump.host, dump.dump_id, after)
        return True

    def _admit(self, host: HostName, dump_id: DumpId, quota: Quota) -> None:
        """Count a dump as being received; raises NotAdmitted when its host has as many under way as it may."""
        with self._lock:
            receptions = self._receptions[host]
            others = sum(other.is_admitted for each, other in receptions.items() if each != dump_id)
            if quota.at_once is not None and others >= quota.at_once:
                words = f"this host sends {units.count(others, 'dump')} at once, as many as it may"
                raise NotAdmitted(Refusal.BUSY, words, retry_after_s=limits.BUSY_RETRY_AFTER_S)
            receptions[dump_id].is_admitted = True

    def _wait_until_counted(self, host: HostName) -> None:
        """Return once it is known what a host has; for before the lock is taken: it may have many dumps, others are not to wait."""
        if not self._usage.is_counted_within(host, limits.COUNT_PATIENCE_S):
            words = "what this host has here is still being counted"
            raise NotAdmitted(Refusal.BUSY, words, retry_after_s=limits.COUNT_RETRY_AFTER_S)

    def _note_stopped(self, dump: IncomingDump) -> None:
        with self._lock:
            stopped = self._stopped.setdefault(dump.host, {})
            if len(stopped) >= limits.MAX_STOPPED:
                stopped.clear()
            stopped[dump.dump_id] = Amount(dump.taken_bytes, dump.plain_bytes)

    def _find_stopped(self, host: HostName, dump_id: DumpId) -> Amount | None:
        with self._lock:
            return self._stopped.get(host, {}).get(dump_id)

    def _quota(self, host: HostName) -> Quota:
        policy = self._policy()
        return policy.host_quotas.get(str(host), policy.quota)

    def _has_manifest(self, host: HostName, dump_id: DumpId) -> bool:
        with self._store.open_dump(host, dump_id) as files:
            return files.read_manifest() is not None

    def _announced(self, host: HostName, dump_id: DumpId) -> tuple[int, int]:
        """Return how many other dumps of a host are about to be begun, and the plaintext that its others have yet to send.

        That of the one that goes before the others is not in it, nor that of one that is sure of its room: they have claims.
        """
        pending = promised = 0
        first = self._usage.find_first(host)
        for other, reception in self._receptions[host].items():
            if other == dump_id:
                continue
            found = self._usage.find_part(host, other)
            pending += reception.is_new and found is None
            if not reception.is_sure and (first is None or first[0] != other):
                promised += max(0, (reception.predicted_size or 0) - (found.amount if found is not None else Amount()).plain_bytes)
        return pending, promised

    def _claimed(self, host: HostName, dump_id: DumpId, quota: Quota, used: HostUsage) -> tuple[DumpId | None, Amount]:
        """Return which other dump of a host goes before this one, and what it and those that are sure of their room may still need.

        None where none goes before it, or the one that would is not likely to fit, whatever is vacuumed.
        """
        receptions = self._receptions.get(host, {})
        if dump_id in receptions and receptions[dump_id].is_sure:
            return None, Amount()
        first = self._usage.find_first(host)
        needs = [self._need(host, other, quota) for other, each in receptions.items() if each.is_sure and other != dump_id]
        if first is None or first[0] == dump_id or _is_vain(first[1], quota, used):
            return None, _sum(needs)
        is_counted = first[0] in receptions and receptions[first[0]].is_sure
        return first[0], _sum(needs if is_counted else [*needs, claims.claim(first[1], quota)])

    def _passes(
        self, host: HostName, dump_id: DumpId, first: DumpId, quota: Quota, used: HostUsage, missing: int | None
    ) -> bool:
        """Return whether a dump need not wait for the first: that is away, or may not fit, and this one is sure to.

        So it is if all of it fits though nothing compress, and the others that are being received need all they may.
        """
        if missing is None or not self._may_be_passed(host, first, quota, used):
            return False
        others = [other for other, each in self._receptions[host].items() if each.is_let_in and other not in (dump_id, first)]
        need = _sum([claims.uncompressed(max(0, missing)), *(self._need(host, other, quota) for other in others)])
        return quotas.has_room(quota, Amount(used.stored_bytes, used.plain_bytes), need)

    def _may_be_passed(self, host: HostName, first: DumpId, quota: Quota, used: HostUsage) -> bool:
        """Return whether the first is away, or the share that it may be sure of was taken meanwhile by what is coming in."""
        reception, part = self._receptions[host].get(first), self._usage.find_part(host, first)
        if reception is None or part is None:
            return True
        if reception.is_sure or not claims.is_share(part, quota):
            return False
        return not quotas.has_room(quota, Amount(used.coming_bytes, used.coming_plain), claims.claim(part, quota))

    def _need(self, host: HostName, dump_id: DumpId, quota: Quota) -> Amount:
        """Return what a dump that is being received may still need."""
        part, reception = self._usage.find_part(host, dump_id) or Part(Amount()), self._receptions[host][dump_id]
        return claims.claim(part._replace(predicted_size=reception.predicted_size or part.predicted_size), quota)


def _is_bound(quota: Quota) -> bool:
    """Return whether anything depends on what a host has."""
    return any(bound is not None for bound in (quota.stored_bytes, quota.plain_bytes, quota.dumps, quota.dumps_per_hour))


def _is_vain(part: Part, quota: Quota, used: HostUsage) -> bool:
    """Return whether a dump is not likely to fit though all that is published were vacuumed."""
    need = claims.foresee(part)
    if need is None:
        return False
    if claims.is_share(part, quota):
        need = need._replace(stored_bytes=0)  # It keeps no more than its share, and nobody knows how the rest of it compresses.
    return not quotas.has_room(quota, Amount(used.coming_bytes, used.coming_plain), need)


def _sum(needs: list[Amount]) -> Amount:
    return Amount(sum(need.stored_bytes for need in needs), sum(need.plain_bytes for need in needs))


def _is_meant(host: HostName, pattern: str) -> bool:
    """Return whether *pattern* is the host's name, `*.` and a domain that it is in, or `*`."""
    return pattern in ("*", str(host)) or (pattern.startswith("*.") and str(host).endswith(pattern[1:]))

"""What a host's quota says no to, in words that its operator understands: how much it has, and what would make room."""

from typing import Final

from securecore import limits, units
from securecore.receiver.policy import Quota
from securecore.receiver.refusals import NotAdmitted
from securecore.store.account import Amount
from securecore.store.usage import HostUsage
from securecore.wire.messages import Refusal

_HOUR_S: Final = 3600
_REMEDY: Final = "vacuum or a higher quota makes room"
_LAST_REMEDY: Final = "only a deletion or a higher quota makes room"


def check_counts(quota: Quota, used: HostUsage, pending: int) -> None:
    """Check that one more dump may be begun beside what there is, and the *pending* ones that are about to be begun."""
    if quota.dumps is not None and used.dumps + pending >= quota.dumps:
        has, coming = used.dumps + pending, used.coming + pending
        remedy = _remedy(quota.dumps, coming + 1, units.count(coming, "dump") if coming else "", "is" if coming == 1 else "are")
        raise _over_quota(f"this host has {has} of its {units.count(quota.dumps, 'dump')} here; {remedy}")
    most = quota.dumps_per_hour
    if most is not None and len(used.begun_s) + pending >= most:
        words = f"this host has begun {units.count(len(used.begun_s), 'dump')} within the hour, and may begin {most}"
        # Then so many have left the hour that one more may begin; a host that may begin none asks again in an hour.
        oldest = len(used.begun_s) + pending - most
        age_s = used.begun_s[oldest] if most > 0 and oldest < len(used.begun_s) else 0.0
        raise NotAdmitted(Refusal.QUOTA, words, retry_after_s=max(1, _HOUR_S - int(age_s)))


def check_bytes(quota: Quota, used: HostUsage, more: Amount, claim: Amount) -> None:
    """Check that *more* fits beside what there is, and beside the *claim*, never below 0, of a dump that goes before this one."""
    if quota.stored_bytes is not None:
        left = quota.stored_bytes - used.stored_bytes - more.stored_bytes
        words = _words(used.stored_bytes, quota.stored_bytes, "here") if left < claim.stored_bytes else ""
        if left < 0:
            # A frame's size would tell nobody anything.
            if more.stored_bytes > limits.MAX_FRAME_BYTES:
                words += f", and {units.size(more.stored_bytes)} would come"
            raise _over_quota(f"{words}; {_remedy(quota.stored_bytes, used.coming_bytes + more.stored_bytes, _coming(used))}")
        if words:
            raise _not_first(words)
    if quota.plain_bytes is not None:
        left = quota.plain_bytes - used.plain_bytes - more.plain_bytes
        words = _words(used.plain_bytes, quota.plain_bytes, "of plaintext here") if left < claim.plain_bytes else ""
        if left < 0:
            remedy = _remedy(quota.plain_bytes, used.coming_plain + more.plain_bytes, _coming(used))
            raise _over_quota(f"{words}, and {units.size(more.plain_bytes)} would come; {remedy}")
        if words:
            raise _not_first(words)


def has_room(quota: Quota, has: Amount, need: Amount) -> bool:
    """Return whether *need* fits beside what there is, in bytes."""
    return not _exceeds(quota.stored_bytes, has.stored_bytes + need.stored_bytes) and not _exceeds(
        quota.plain_bytes, has.plain_bytes + need.plain_bytes
    )


def _words(has: int, most: int, what: str) -> str:
    return f"this host has {units.size(has)} of its {units.size(most)} {what}"


def _exceeds(bound: int | None, amount: int) -> bool:
    return bound is not None and amount > bound


def _remedy(bound: int, without_published: int, coming: str, be: str = "is") -> str:
    """Return what makes room where the host would have so much if all that is published were gone.

    *coming* is what is coming in, "" for nothing: vacuum leaves it, and a deletion does not. It *be* still coming in.
    """
    if _exceeds(bound, without_published):
        return f"{coming} {be} still coming in, so {_LAST_REMEDY}" if coming else _LAST_REMEDY
    return f"{_REMEDY}, but for {coming} that {be} still coming in" if coming else _REMEDY


def _coming(used: HostUsage) -> str:
    return units.size(used.coming_bytes) if used.coming_bytes else ""


def _not_first(words: str) -> NotAdmitted:
    words += ", and an earlier dump of it that is coming in may need the rest; this one goes on after it"
    return NotAdmitted(Refusal.QUOTA, words, retry_after_s=limits.TURN_RETRY_AFTER_S)


def _over_quota(words: str) -> NotAdmitted:
    return NotAdmitted(Refusal.QUOTA, words, retry_after_s=limits.QUOTA_RETRY_AFTER_S)

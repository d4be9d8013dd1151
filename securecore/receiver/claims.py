"""What a dump that is coming in may still need of what its host may have: foreseen, at the most, and at the least."""

from securecore import limits
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.receiver.policy import Quota
from securecore.store.account import Amount, Part


def foresee(part: Part) -> Amount | None:
    """Return what a dump is likely to need still, by how it has compressed so far.

    None where nobody knows: its size was not predicted, or more has come of it than was.
    """
    if part.predicted_size is None or part.predicted_size < part.amount.plain_bytes:
        return None
    has, plain = part.amount, part.predicted_size - part.amount.plain_bytes
    return Amount(plain * has.stored_bytes // has.plain_bytes if has.plain_bytes else 0, plain)


def is_share(part: Part, quota: Quota) -> bool:
    """Return whether nobody knows what a dump needs, because its size was not predicted, or is more than may be stored."""
    return part.predicted_size is None or (quota.stored_bytes is not None and part.predicted_size > quota.stored_bytes)


def claim(part: Part, quota: Quota) -> Amount:
    """Return what a dump may still need, at the most where its size was predicted."""
    has, most = part.amount, quota.stored_bytes or 0
    share = max(0, most // limits.UNPREDICTED_SHARE - has.stored_bytes)
    if part.predicted_size is None:
        return Amount(share, max(0, (quota.plain_bytes or 0) // limits.UNPREDICTED_SHARE - has.plain_bytes))
    rest = uncompressed(max(0, part.predicted_size - has.plain_bytes))
    if part.predicted_size > most:
        # It fits only if it compresses, as one that is mostly zeroes does: all that there is would be kept for what never comes.
        seen = -(-rest.plain_bytes * has.stored_bytes // has.plain_bytes) if has.plain_bytes else rest.stored_bytes
        return rest._replace(stored_bytes=min(rest.stored_bytes, seen, share))
    return rest


def least_bytes(plain_bytes: int) -> int:
    """Return how many bytes so much plaintext takes on the disk if there is nothing but zeroes in it."""
    return plain_bytes // limits.PIECE_BYTES * len(ZERO_PIECE_FRAME)


def uncompressed(plain_bytes: int) -> Amount:
    """Return what so much plaintext takes if it does not compress at all."""
    return Amount(-(-plain_bytes // limits.PIECE_BYTES) * limits.MAX_FRAME_BYTES, plain_bytes)

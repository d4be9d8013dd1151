"""What stays free on the store's file system, and what one dump may take of the rest.

Below the floor every host is refused, and what is coming in can't be vacuumed. So one dump must not bring the disk there that could
not be finished anyway. How large a core is does not tell: zeroes, and what was never touched, take next to nothing. So what is sure
not to fit is not begun; any other is, and may take as much as it leaves above the floor. From then on it is judged by how it has
compressed so far: it goes on while its rest would fit. One of which nobody knows how much will come stops there.

All of that is asked anew with each frame. So a dump that was stopped goes on when there is room, and several leave room too.
"""

from typing import Final

from securecore import limits, units
from securecore.receiver import claims
from securecore.receiver.policy import Floor
from securecore.receiver.refusals import NotAdmitted
from securecore.store.account import Part
from securecore.store.usage import Room
from securecore.wire.messages import Refusal

# How large our disk is, is no host's business.
_FULL: Final = "the receiver's disk is as full as it may be; vacuum or a larger disk makes room"
_TOO_LARGE: Final = "this dump may need more than the receiver's disk has left; vacuum or a larger disk makes room"


def check_floor(floor: Floor, room: Room, more_bytes: int = 0, *, needs_inodes: bool = False) -> None:
    """Check that a file system is above its floor in bytes, and in inodes where a dump is to be made there.

    *more_bytes* are to be written: a frame may go below the floor by its length, a run of zeroes, which may be much longer, not.
    """
    least = floor.least_free(room.total_bytes)
    after = room.free_bytes - (more_bytes if more_bytes > limits.MAX_FRAME_BYTES else 0)
    if after < least:
        free = units.size(room.free_bytes)
        raise _refused(f"the store's file system has {free} left, and {units.size(least)} of it are to stay free", _FULL)
    least = int(room.total_inodes * floor.share)
    if needs_inodes and room.free_inodes < least:
        raise _refused(f"the store's file system has {room.free_inodes} inodes left, and {least} of them are to stay free", _FULL)


def check_new(floor: Floor, room: Room, predicted_size: int | None) -> None:
    """Check that a dump may fit above the floor: it would if there were nothing but zeroes in it."""
    left, least = _left(floor, room), claims.least_bytes(predicted_size or 0)
    if least > left:
        words = f"this dump takes {units.size(least)} at the least, and the store's file system has {units.size(left)}"
        raise _refused(f"{words} above what is to stay free", _TOO_LARGE)


def check_share(floor: Floor, room: Room, part: Part) -> None:
    """Check that a dump has taken no more than it leaves above the floor, or is likely to fit, where anything is to stay free."""
    left, has = _left(floor, room), part.amount.stored_bytes
    if has <= left or floor.least_free(room.total_bytes) == 0:
        return
    need = claims.foresee(part)
    if need is None or need.stored_bytes > left:
        words = f"this dump has {units.size(has)} here, and may need more than the {units.size(left)} that are left"
        raise _refused(f"{words} above what is to stay free", _TOO_LARGE)


def _left(floor: Floor, room: Room) -> int:
    return room.free_bytes - floor.least_free(room.total_bytes)


def _refused(words: str, told: str) -> NotAdmitted:
    return NotAdmitted(Refusal.STORAGE, words, told=told, retry_after_s=limits.FLOOR_RETRY_AFTER_S)

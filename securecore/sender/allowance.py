"""The time that a receiver has: while it holds a crashed process, and until its handler's life ends.

A process waits for its core to be drained in any case, and for the network no longer than for a share of that: whoever is up again
after four seconds should not be down for fourteen because a receiver has stalled.

While a process may still be held, a wire that works is given up only where the spool has room for all of the rest, as
Custody.expect foresees it: a core that is cut is worse than one that takes long. To wait for room for the rest as it is before it
is compressed would be worse still: where the disk is smaller than the memory of its machine, every process would be held for as
long as the link takes.

At the handler's deadline nobody may be held any more, and to keep the wire is to cut the core for certain. Then it is given up
wherever the rest might fit, and what size it has does not say that it would not (custody.least_bytes): what a cut would keep is in
memory, goes to the spool first, and has room there in any case.
"""

import math
import time
from threading import Event

from securecore import limits
from securecore.declarations import Final
from securecore.errors import BusyError
from securecore.names import StoreId
from securecore.sender.custody import Custody, least_bytes
from securecore.sender.lifetime import Lifetime
from securecore.sender.pump import Pump

TOO_SLOW: Final = "the receiver is slower than the core: the rest waits in the spool"
TIME_IS_UP: Final = "the handler's time is up: the rest waits in the spool"
_SHARE: Final = 0.4
"""For how long the network may hold a process, against what draining its core takes anyway: held by a receiver that has stalled, it
waits for one and a half times as long as with a healthy one, the move to the spool and its disk included. Where ``hold`` in
sender.toml is twice the usual it is twice as much, so that a slow disk can be spared."""
_LEAST_HOLD_S: Final = 1.0
"""However small the core: TCP waits as long before it sends something for the second time (RFC 6298 section 2.1)."""
_LOOK_FOR_ROOM_EVERY_S: Final = 1.0
"""Between two looks for room that was not there: in a spool with thousands of dumps and a quota one takes a tenth of a second."""


def share_s(most_s: float, size: int | None, read: int, reading_s: float) -> float:
    """Return for how many seconds the network may hold a process, *most_s* at the most: a share of what draining its core takes.

    *size* is what the core must have, None where nobody can tell; *read* of these bytes took *reading_s*, without such a hold.
    """
    if size is None or not read:
        return most_s
    share = _SHARE * most_s / limits.HOLD_BUDGET_S
    return min(most_s, max(_LEAST_HOLD_S, share * reading_s * max(size, read) / read))


class Allowance:
    """For how long one transfer may still wait for its receiver; its own thread asks."""

    def __init__(self, pump: Pump, custody: Custody, hold_budget_s: float | None, lifetime: Lifetime | None) -> None:
        """*hold_budget_s* is for how long the source may stand still in all at the most, None where nobody is held."""
        self._pump, self._custody, self._hold_budget_s, self._lifetime = pump, custody, hold_budget_s, lifetime
        self.source_closed = Event()
        """Set once the source is closed: nobody is held any more."""
        self.store: StoreId | None = None
        """The one that the wire leads to."""
        self._held_before_s: float | None = None
        """For how long the source stood still before there was a wire; None while there is none."""
        self.copying_s = 0.0
        """For how long the spool's disk took frames that the wire took as well: nobody's fault but its own."""
        self.is_too_slow = False
        """The source has stood still for as long as it may, and the spool has room for the rest."""
        self.is_over = False
        """There is no time for a receiver any more."""
        self._is_called_off = self._is_wire_kept = False
        self._look_for_room_at = -math.inf

    def connected(self, store: StoreId) -> None:
        """There is a wire, which leads to *store*: from here on it may hold the process for a share of the core's time.

        Until then there is ``connect`` of sender.toml for all receivers, so that one which is down does not cost the next its turn.
        """
        self.store, self._held_before_s = store, self._pump.held_s

    def call_off(self) -> None:
        """The handler's time is up: have the wire given up, or where the spool cannot take the rest the source; from any thread."""
        self._is_called_off = True

    def end(self) -> None:
        """There is no time any more, wherever the rest may go; from any thread."""
        self.is_over = True

    def within_s(self, deadline_s: float) -> float:
        """Return how long to wait for what has *deadline_s*; raises BusyError when the source has stood still for long enough.

        The same once there is no time for a receiver any more.
        """
        left_s = self.left_s()
        if left_s <= 0:
            raise BusyError(TIME_IS_UP if self.is_over else TOO_SLOW)
        return min(deadline_s, left_s)

    def left_s(self) -> float:
        """Return for how long to wait for the receiver: 0 once nobody may, and the spool has room for all of the rest.

        Without that the process must wait, and the wire ends what it has begun.
        """
        if self._is_called_off and not self.is_over and not self._is_wire_kept:
            self._give_up_something()
        if self.is_over:
            return 0.0
        if self._hold_budget_s is None or not self._custody.has_spool or self.source_closed.is_set():
            return math.inf
        held_s = self._pump.held_s - self.copying_s
        left_s = self._hold_budget_s - held_s
        if self._held_before_s is not None:
            budget_s = share_s(self._hold_budget_s, self._pump.predicted_size, self._pump.size, self._pump.reading_s)
            left_s = min(left_s, budget_s + self._held_before_s - held_s)
        if left_s > 0:
            return left_s
        now = time.monotonic()
        if not self.is_too_slow and now >= self._look_for_room_at:
            self._look_for_room_at = now + _LOOK_FOR_ROOM_EVERY_S
            self.is_too_slow = self._custody.keep_room(self.rest_bytes(), self.store)
        return 0.0 if self.is_too_slow else math.inf

    def rest_bytes(self) -> int:
        """Return how much room to keep for the frames that are still to come: for one alone where nobody can tell.

        Noise takes 4 bytes more for each 128 KiB (RFC 8878 section 3.1.1.2), which one frame more than the rest is enough for.
        """
        return limits.MAX_FRAME_BYTES + self._custody.expect(self._find_rest() or 0)

    def least_bytes(self) -> int:
        """Return how many bytes those frames take at the least, as custody.least_bytes has it."""
        self._pump.first_piece_read.wait()
        return least_bytes(self._find_rest())

    def _held_bytes(self) -> int:
        """Return how many bytes the frames may take that the pump holds: they are read, and a source that is cut keeps them.

        As many as they stand for, for nothing less is certain; and a frame more, for the piece that is being read, and as in
        rest_bytes.
        """
        return limits.MAX_FRAME_BYTES + max(0, self._pump.size - self._custody.size)

    def _find_rest(self) -> int | None:
        """Return how many plaintext bytes are still to come; None where nobody can tell."""
        end = self._pump.end
        size = end.size if end is not None else self._pump.predicted_size
        return max(0, size - self._custody.size) if size is not None else None

    def _give_up_something(self) -> None:
        """Give up the wire where the spool may take the rest; else the source, and have the wire for what is here already.

        What a cut would keep must be sure of its place there. Once all is read nothing can be cut for the wire's sake, and so must
        be all of it.
        """
        room = max(self.least_bytes(), self._held_bytes()) if self._pump.end is None else self.rest_bytes()
        if self._custody.keep_room(room, self.store):
            self.is_over = True
            return
        self._is_wire_kept = True
        if self._lifetime is not None:
            self._lifetime.end_source()

"""How long a handler lives, and in which order it then gives up what it holds.

Each wait for a receiver has a deadline of its own (patience.py), and so has each piece of the core: a crashed process may never end
it, as where a page of it lies on a file system whose server is its own (``piece_s``). This is the one for all of them together, and
for what has none: a disk may hang. Such a handler would keep one of the places that core_pipe_limit allows, and sixteen of them
would keep all further crashes from being handled.

1. At the deadline the wire is given up, if the spool has room for what is in memory and what is still to come may fit. If not, the
   wire is kept and the source given up: what is here by then still goes to the receiver, as a dump that was cut.
2. A grace later source and wire are given up, whatever becomes of the rest: the crashed process is let go, and the dump ends there,
   as cut; also one that the spool would have taken whole, but not in that time.
3. Another grace later the process ends, killed by a timer of the kernel's, which needs none of our threads to run and ends every
   wait in the kernel that a signal can end. What has been spooled by then has no end: ``spool flush`` delivers it as cut.

SIGTERM says that the time is up, with a grace of TERMINATION_GRACE_S before the second step: a machine that goes down sends it to
all that is left, and kills what is left then. One that comes before there is a Lifetime waits for it (handler.py).

The first two are the work of a signal's handler, which runs in the main thread: the one that reads the source, and that waits for
the others holding no lock that what is called here would take.
"""

import ctypes
import math
import os
import time
from _thread import get_ident  # a crash that is declined needs no more of the threading module
from types import FrameType

from securecore import limits
from securecore.declarations import TYPE_CHECKING, Callable, Final, Self

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without the names of enum, which take longer to load than all of this

CLOCK_MONOTONIC: Final = 1
_NANO: Final = 1_000_000_000
_AT_ONCE_S: Final = 0.001
"""For a timer, to which 0 means never."""
_TIMER_LIBRARIES: Final = (None, "librt.so.1")
"""Where timer_create(2) may be: in what Python is linked to, and before glibc 2.34 in a library of its own."""


class _SignalEvent(ctypes.Structure):
    """struct sigevent of sigevent(7): 64 bytes, of which the first members count where a signal is asked for."""

    _fields_ = (("value", ctypes.c_void_p), ("number", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48))


class _TimerSpan(ctypes.Structure):
    """struct itimerspec of timer_settime(2): interval and value, each as seconds and nanoseconds."""

    _fields_ = (("_interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


class Lifetime:
    """The deadline of this process; made once, in its main thread. Whoever leaves it as a context has released it."""

    def __init__(self, source: int, deadline_s: float, piece_s: float = math.inf) -> None:
        """Begin to count. *source* is what the crashed process writes to; who closes it need not say so here."""
        self.piece_s = piece_s
        """How long each piece of the source may take to come, as who reads it has to see to."""
        self._grace_s = min(limits.HANDLER_GRACE_S, deadline_s)
        self._source, self._deadline_s = source, deadline_s
        self._main = get_ident()
        self._identity = os.fstat(source)
        self._call_off: Callable[[], None] = lambda: None
        self._give_up: Callable[[], None] = lambda: None
        self._is_source_given_up = self._is_told_to_end = False
        self.cut: str | None = None
        """Why the source has ended before its end, once it has."""
        self.ends_at = time.monotonic() + deadline_s
        """When the wire is given up, by the monotonic clock."""
        self._graced_at = self.ends_at + self._grace_s
        signal.signal(signal.SIGALRM, self._pass)
        signal.setitimer(signal.ITIMER_REAL, deadline_s, self._grace_s)
        kill_after(deadline_s + 2 * self._grace_s)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends_at

    def attend(self, call_off: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Have *call_off* called at the deadline and *give_up* a grace later, at once where the time has come; by the main thread.

        Each is called between any two steps of the main thread, and maybe more than once.
        """
        self._call_off, self._give_up = call_off, give_up
        self._look()

    def end_source(self) -> None:
        """Have the main thread give the source up now, from any thread: a read that it waits in has to be interrupted there."""
        self._is_source_given_up = True
        signal.pthread_kill(self._main, signal.SIGALRM)

    def release(self) -> None:
        """Let SIGTERM end this process at once from here on: what became of the dump is settled, and nothing else is lost by it.

        Nor does SIGALRM come any more, of which the process would die while it ends. The kernel's timer stays.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        """Have the time be up; who says so more than once takes none away and gives none."""
        if not self._is_told_to_end:
            self._is_told_to_end = True
            now = time.monotonic()
            self.ends_at = min(self.ends_at, now)
            self._graced_at = min(self._graced_at, now + limits.TERMINATION_GRACE_S)
            left_s = max(_AT_ONCE_S, self._graced_at - now)
            signal.setitimer(signal.ITIMER_REAL, left_s, self._grace_s)
            kill_after(left_s + self._grace_s)
        self._look()

    def _pass(self, _number: int, _frame: FrameType | None) -> None:
        self._look()

    def _look(self) -> None:
        """Do what it is time for. By the clock: of signals that come at once, one may be all that is seen."""
        now = time.monotonic()
        if now >= self.ends_at:
            self._call_off()
        if now >= self._graced_at:
            self._give_up()
        if self._is_source_given_up or now >= self._graced_at:
            self._end_source()

    def _end_source(self) -> None:
        """Put a file without a byte in the source's place: whoever reads it, now or later, meets the end; nobody holds the pipe."""
        try:
            if os.path.samestat(os.fstat(self._source), self._identity):
                self.cut = self._why()
                nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
                os.dup2(nothing, self._source, inheritable=False)
                os.close(nothing)
        except OSError:
            pass  # The source is closed, which is what was wanted; or no descriptor is left, and the kernel's timer will end this.

    def _why(self) -> str:
        if self._is_told_to_end:
            return "the handler was told to end (SIGTERM)"
        return f"the handler's time is up ({self._deadline_s:.0f} s, deadline in [handler] of sender.toml)"


def kill_after(seconds: float) -> None:
    """Have the kernel kill this process in so many seconds; where no C library has such a timer, nobody does."""
    timer = ctypes.c_void_p()
    event = _SignalEvent(number=signal.SIGKILL)
    span = _TimerSpan(value=(int(seconds), int(seconds % 1 * _NANO)))
    for name in _TIMER_LIBRARIES:
        try:
            library = ctypes.CDLL(name, use_errno=True)
            create, settime = library.timer_create, library.timer_settime
        except (OSError, AttributeError):
            continue
        if create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0:
            settime(timer, 0, ctypes.byref(span), None)
        return

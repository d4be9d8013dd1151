"""What is told of a connection while it lives: nothing on most days, all of it with ``receive -v``.

A session tells its observer of each step. The plain ``Observer`` drops what it is told. The ``Narrator`` writes it into the log, at
level DEBUG, one short line a step in columns that a person can watch: the peer, the dump's last eight characters, and words. While
frames come it speaks by the clock and not by the frame, and once the sender has said END only of what follows. Whatever a
peer has chosen is quoted, or a name that has passed a constructor.
"""

import logging
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Protocol

from securecore import limits, units
from securecore.errors import SecurecoreError
from securecore.names import DumpId, HostName
from securecore.store.writer import IncomingDump

_EVERY_S: Final = 1.0
"""Between two lines of progress: 256 connections together stay below the 10,000 lines in 30 s from which journald drops some
(journald.conf(5), RateLimitBurst=)."""

_PEER_WIDTH: Final = len("255.255.255.255:65535")
_DUMP_WIDTH: Final = len("9c41d07e")
_PROGRAM_WIDTH: Final = 40
"""Characters of a program's name: the kernel's own has 15 (TASK_COMM_LEN), and the line has 100 others."""

_FINGERPRINT_WIDTH: Final = 16
"""Digits of a certificate's SHA-256: enough to tell a fleet's apart, and the beginning of what `pki inspect` prints."""

log = logging.getLogger("securecore.receiver")


class Held(Protocol):
    """What there is of a dump that is coming in."""

    @property
    def frames(self) -> int:
        """Frames that are here."""

    @property
    def plain_bytes(self) -> int:
        """What they stand for."""

    @property
    def stored_bytes(self) -> int:
        """What they take."""


class Observer:
    """Drops what it is told; also says what there is to tell, in the order in which it happens."""

    def accepted(self) -> None:
        """A peer has connected, and begins its handshake."""

    def admitted(self, host: HostName, version: str | None, cipher: str | None, certificate: bytes) -> None:
        """It has proved which host it is, with this certificate (DER), over this kind of TLS, and was told READY."""

    def opened(self, dump: DumpId, program: str | None, predicted_size: int | None, held: Held) -> None:
        """It sends a dump, from the frames on that are held already."""

    def grew(self, held: Held) -> None:
        """Frames have come; called for each message that brings some."""

    def acknowledged(self, frames: int) -> None:
        """The first so many frames are durable, and the sender was told so."""

    def ended(self, held: Held) -> None:
        """The sender has said END: all frames are here."""

    def receipted(self, dump: DumpId) -> None:
        """The dump is durable and logged, and its receipt is on its way."""

    def closed(self) -> None:
        """The connection is over."""


class Narrator(Observer):
    """Logs what it is told of one connection."""

    def __init__(self, peer: str, clock: Callable[[], float] = time.monotonic) -> None:
        """*clock* gives seconds; only their differences count."""
        self._peer = peer
        self._clock = clock
        self._began = clock()
        self._dump: DumpId | None = None
        self._predicted: int | None = None
        self._acknowledged = 0
        self._base = self._shown = self._now = (0, 0)
        """Plain and stored bytes of the dump: when it was opened, in the last line, and now."""
        self._shown_at = 0.0
        self._receipts = self._plain = self._stored = 0

    def accepted(self) -> None:
        """Say that somebody is there."""
        self._say("connected")

    def admitted(self, host: HostName, version: str | None, cipher: str | None, certificate: bytes) -> None:
        """Say who it is."""
        fingerprint = sha256(certificate).hexdigest()[:_FINGERPRINT_WIDTH]
        self._say(f"is {host}, certificate {fingerprint}, {version} {cipher}")

    def opened(self, dump: DumpId, program: str | None, predicted_size: int | None, held: Held) -> None:
        """Say what comes, and from where on."""
        self._dump, self._predicted = dump, predicted_size
        self._acknowledged = held.frames
        self._base = self._shown = self._now = (held.plain_bytes, held.stored_bytes)
        self._shown_at = self._clock()
        name = quoted(program[:_PROGRAM_WIDTH]) if program is not None else "unknown"
        expected = f"{units.size(predicted_size)} predicted" if predicted_size is not None else "size not known"
        self._say(f"opened, program {name}, {expected}" + (f", goes on at frame {held.frames}" if held.frames else ""))

    def grew(self, held: Held) -> None:
        """Say how far it is, if it is time to."""
        self._now = (held.plain_bytes, held.stored_bytes)
        if self._clock() - self._shown_at >= _EVERY_S:
            self._say_progress(held.frames)

    def acknowledged(self, frames: int) -> None:
        """Keep it for the next line of progress: a fast sender is acknowledged a hundred times a second."""
        self._acknowledged = frames

    def ended(self, held: Held) -> None:
        """Say how much there is in all."""
        self._now = (held.plain_bytes, held.stored_bytes)
        frames = units.count(held.frames, "frame")
        self._say(f"{units.size(held.plain_bytes)} in {frames}, {units.size(held.stored_bytes)} stored; END")

    def receipted(self, dump: DumpId) -> None:
        """Say that it is in safety."""
        self._dump = dump
        self._receipts += 1
        self._say("receipt sent")
        self._settle()

    def closed(self) -> None:
        """Say how much came over this connection."""
        self._settle()
        seconds = self._clock() - self._began
        count = "1 receipt" if self._receipts == 1 else f"{self._receipts} receipts"
        self._say(f"closed after {seconds:.1f} s: {count}, {units.size(self._plain)} as {units.size(self._stored)}")

    def _say_progress(self, frames: int) -> None:
        now = self._clock()
        plain, stored = self._now
        share = f" of {units.size(self._predicted)} {_percent(plain, self._predicted)}" if self._predicted else ""
        # A clock that stands still between two frames, as a coarse one may, makes a large rate and no error.
        rate = (plain - self._shown[0]) / max(now - self._shown_at, 0.001)
        durable = f"{self._acknowledged} of {frames} frames durable"
        self._say(f"{_column(plain)}{share}  {_column(stored)} stored  {_column(rate)}/s  {durable}")
        self._shown, self._shown_at = self._now, now

    def _settle(self) -> None:
        """Count what came of the dump that is under way, and have none."""
        self._plain += self._now[0] - self._base[0]
        self._stored += self._now[1] - self._base[1]
        self._base = self._now
        self._dump = None

    def _say(self, words: str) -> None:
        dump = self._dump.short if self._dump is not None else "-"
        log.debug("%-*s  %-*s  %s", _PEER_WIDTH, self._peer, _DUMP_WIDTH, dump, words)


def observer_of(peer: str) -> Observer:
    """Return who is told of a connection: a narrator where the log shows what it says."""
    return Narrator(peer) if log.isEnabledFor(logging.DEBUG) else Observer()


def note_damage(dump: IncomingDump) -> None:
    """Log what resume has found to be damaged of a dump, if anything."""
    if dump.damaged_bytes:
        log.error(
            "damaged host=%s dump=%s frame=%d kept=%d why='acknowledged frames may be among what was cut off and kept'",
            dump.host, dump.dump_id, dump.frames, dump.damaged_bytes,
        )  # fmt: skip


def quoted(text: str | None) -> str:
    """Return peer-supplied text as one printable word for a log line."""
    return ascii(text[: limits.MAX_WORDS]) if text is not None else "-"


def words_of(error: SecurecoreError | OSError) -> str:
    """Return why, quoted: of an OSError too, for a receiver that is out of descriptors must not lose a thread by it."""
    return quoted(error.message if isinstance(error, SecurecoreError) else str(error.strerror or error).lower())


def advice_of(error: SecurecoreError) -> str:
    """Return why, and what to do about it, quoted."""
    return quoted(error.message if error.hint is None else f"{error.message}; {error.hint}")


def _column(size: float) -> str:
    return units.size(size).rjust(units.SIZE_WIDTH)


def _percent(done: int, predicted: int) -> str:
    """Return the share in three digits; a prediction that was too small by far is the sender's."""
    return f"{min(100 * done // predicted, 999):>3} %"

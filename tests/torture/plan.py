"""What a run does, drawn from its seed: cores, who sends them, where wires are cut, and when which program is killed.

A plan holds shares and counts, no seconds but those of its sources: a share becomes a moment by the durations that the campaign has
measured on its machine. So the seed gives the same plan everywhere, though not the same interleaving.
"""

import random
from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from securecore import limits
from tests.support.elf import PT_NOTE, Segment, write_core
from tests.support.proxies import Cut

CRASHING: Final = "web-1"
"""The host whose cores come through the handler."""
SENDING: Final = "db-2"
"""The host whose cores a person sends."""

_LATE: Final = 1.1
"""Kills are uniform over a program's measured duration and a little more, for it varies."""


class Program(Enum):
    """What is started, and killed."""

    HANDLER = "handler"
    SEND = "send --spool"
    FLUSH = "spool flush"
    RECEIVER = "receive"


class After(Enum):
    """From which moment on a kill's share is counted."""

    START = "its start"
    FED = "the core's first byte"
    DRAINED = "the core's last byte"


class Kill(NamedTuple):
    """When a program is killed."""

    after: After
    share: float
    """Of the program's duration; behind FED, of the core's bytes."""


class Source(NamedTuple):
    """A core, and who sends it how."""

    program: Program
    starts_at: float
    """Share of the run's horizon."""
    core: bytes
    fed: int
    """Bytes of it that the crashed process writes: all, or fewer when it is killed itself."""
    feeding_s: float
    """Seconds that this takes it, at least."""
    kill: Kill | None
    cut: Cut | None

    @property
    def host(self) -> str:
        """Whose core it is."""
        return CRASHING if self.program is Program.HANDLER else SENDING


class Flush(NamedTuple):
    """A flush of a host's spool while all else goes on."""

    host: str
    starts_at: float
    kill: Kill | None
    cut: Cut | None


class Stop(NamedTuple):
    """An end of the receiver, which is started again at once."""

    at: float
    """Share of the run's horizon."""
    is_kill: bool
    """SIGKILL; else SIGTERM."""


class Plan(NamedTuple):
    """A run."""

    seed: int
    sources: tuple[Source, ...]
    flushes: tuple[Flush, ...]
    stops: tuple[Stop, ...]


def make_plan(seed: int, rates: Mapping[Program, float] | None = None) -> Plan:
    """Return the plan of a seed; *rates* is how probably each program is killed."""
    chances = dict.fromkeys(Program, 0.6) | dict(rates or {})
    draw = random.Random(seed)
    sources = tuple(_source(draw, chances) for _ in range(draw.randint(2, 4)))
    flushes = tuple(_flush(draw, chances) for _ in range(draw.choice([0, 1, 1, 2])))
    count = sum(draw.random() < chances[Program.RECEIVER] for _ in range(2))
    stops = tuple(sorted(Stop(draw.uniform(0.25, 1), draw.random() < 0.85) for _ in range(count)))
    return Plan(seed, sources, flushes, stops)


def _source(draw: random.Random, chances: Mapping[Program, float]) -> Source:
    program = draw.choice([Program.HANDLER, Program.HANDLER, Program.SEND])
    core = _core(draw)
    return Source(
        program,
        draw.uniform(0, 0.3),
        core,
        len(core) if draw.random() < 0.85 else draw.randrange(len(core)),
        draw.choice([0, draw.uniform(0, 0.3), draw.uniform(0.3, 0.6)]),
        _kill(draw) if draw.random() < chances[program] else None,
        _cut(draw, len(core)),
    )


def _core(draw: random.Random) -> bytes:
    """Return an ELF core of noise and zeroes, unlike every other from its first kilobyte on."""
    pieces = [bytes(limits.PIECE_BYTES) if draw.random() < 0.3 else draw.randbytes(limits.PIECE_BYTES) for _ in range(8)]
    memory = b"".join(pieces)[: draw.randint(1, 4096) if draw.random() < 0.2 else draw.randint(4096, 8 * limits.PIECE_BYTES)]
    return write_core([Segment(draw.randbytes(64), PT_NOTE), Segment(memory)])


def _flush(draw: random.Random, chances: Mapping[Program, float]) -> Flush:
    kill = Kill(After.START, draw.uniform(0, _LATE)) if draw.random() < chances[Program.FLUSH] else None
    return Flush(draw.choice([CRASHING, SENDING]), draw.uniform(0.2, 1), kill, _cut(draw, limits.PIECE_BYTES))


def _kill(draw: random.Random) -> Kill:
    after = draw.choices(list(After), [1, 2, 2])[0]  # Most of its time goes by before it has anything to lose.
    return Kill(after, draw.uniform(0, _LATE if after is After.START else 1))


def _cut(draw: random.Random, core_bytes: int) -> Cut | None:
    """Return where a wire is cut, three times in ten: somewhere in what an undisturbed one would carry, in either direction."""
    if draw.random() >= 0.3:
        return None
    from_sender = draw.random() < 0.7
    return Cut(draw.randint(1, core_bytes + 12_000 if from_sender else 8_000), from_sender, draw.random() < 0.5)

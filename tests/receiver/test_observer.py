"""What ``receive -v`` shows: each step of a connection in one short line, progress by the clock, nothing that a peer forges."""

import logging
import random
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from securecore import limits
from securecore.names import HostName
from securecore.receiver import observer
from securecore.receiver.observer import Narrator
from securecore.wire.messages import Accept
from tests.support.certificates import DOMAIN, Fleet
from tests.support.crash_cores import Crash
from tests.support.dumps import dump_id
from tests.support.hands import Hand
from tests.support.processes import receiving, send_file
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes, wait_until_idle

PEER = "127.0.0.1:53144"
DUMP = dump_id(7)
Told = Callable[[], list[str]]


class Part(NamedTuple):
    """A part of a dump, as a session's is: what is here of it."""

    frames: int
    plain_bytes: int
    stored_bytes: int


def part(pieces: int) -> Part:
    """Return so many whole pieces, stored in a tenth."""
    return Part(pieces, pieces * limits.PIECE_BYTES, pieces * limits.PIECE_BYTES // 10)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """Gives the words of the lines that a narrator has logged so far."""
    with caplog.at_level(logging.DEBUG, "securecore.receiver"):
        yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now


def test_a_connection_reads_from_top_to_bottom(told: Told) -> None:
    """Who, over what, which dump, how far, how fast, what is durable, the receipt, what it came to: in columns, word for word."""
    clock = Clock()
    narrator = Narrator(PEER, clock)
    narrator.accepted()
    narrator.admitted(HostName(f"web-1.{DOMAIN}"), "TLSv1.3", "TLS_AES_256_GCM_SHA384", b"a certificate")
    narrator.opened(DUMP, "nginx", 182 * limits.MIB, part(0))
    clock.now += 2
    narrator.grew(part(45))
    narrator.acknowledged(40)
    clock.now += 1
    narrator.grew(part(145))
    narrator.ended(part(182))
    narrator.receipted(DUMP)
    clock.now += 0.1
    narrator.closed()

    fingerprint = sha256(b"a certificate").hexdigest()[:16]
    nobody, dump = f"{PEER:<21}  -         ", f"{PEER:<21}  {DUMP.short}  "
    assert told() == [
        nobody + "connected",
        nobody + f"is web-1.{DOMAIN}, certificate {fingerprint}, TLSv1.3 TLS_AES_256_GCM_SHA384",
        dump + "opened, program 'nginx', 182 MiB predicted",
        dump + "45.0 MiB of 182 MiB  24 %   4.5 MiB stored  22.5 MiB/s  0 of 45 frames durable",
        dump + " 145 MiB of 182 MiB  79 %  14.5 MiB stored   100 MiB/s  40 of 145 frames durable",
        dump + "182 MiB in 182 frames, 18.2 MiB stored; END",
        dump + "receipt sent",
        nobody + "closed after 3.1 s: 1 receipt, 182 MiB as 18.2 MiB",
    ]


def test_progress_goes_by_the_clock(told: Told) -> None:
    """However many frames come, there is one line in a second, and none while nothing comes."""
    clock = Clock()
    narrator = Narrator(PEER, clock)
    narrator.opened(DUMP, None, None, part(0))
    for number in range(10_000):
        clock.now += 0.01
        narrator.grew(part(number))
    clock.now += 1000

    lines = told()[1:]
    assert 95 <= len(lines) <= 100
    assert all(re.search(r" MiB/s  0 of \d+ frames durable$", line) for line in lines)


def test_a_dump_that_goes_on_counts_only_what_came_now(told: Told) -> None:
    """The percentage is of the whole dump; rate and total are of this connection."""
    clock = Clock()
    narrator = Narrator(PEER, clock)
    narrator.opened(DUMP, "nginx", 100 * limits.MIB, part(60))
    clock.now += 1
    narrator.grew(part(70))
    narrator.closed()

    opened, progress, closed = told()
    assert opened.endswith("100 MiB predicted, goes on at frame 60")
    assert "70.0 MiB of 100 MiB  70 %" in progress
    assert "10.0 MiB/s  60 of 70 frames durable" in progress
    assert closed.endswith("closed after 1.0 s: 0 receipts, 10.0 MiB as 1.0 MiB")


@pytest.mark.parametrize(("predicted", "share"), [(1, "of 1 B 999 %"), (0, "stored"), (None, "stored"), (1 << 63, "  0 %")])
def test_a_prediction_that_lies_costs_no_more_than_a_wrong_number(predicted: int | None, share: str, told: Told) -> None:
    """Nothing is divided by what a peer says, and no column grows with it beyond its number."""
    clock = Clock()
    narrator = Narrator(PEER, clock)
    narrator.opened(DUMP, "nginx", predicted, part(0))
    clock.now += 1
    narrator.grew(part(5))

    assert share in told()[-1]


def test_a_program_s_name_forges_no_line(told: Told) -> None:
    """What a host says of its program stands in quotes, in ASCII, and is cut."""
    Narrator(PEER).opened(DUMP, "x\n2026-11-24 INFO complete \x1b[2J\u202e" + "y" * 1000, None, part(0))

    (line,) = told()
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 150
    assert "program 'x\\n2026" in line


def test_without_v_nothing_of_it_is_said_or_made(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At level INFO a transfer is logged as it always was, two lines a dump, and nobody narrates it."""
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        assert type(observer.observer_of(PEER)) is observer.Observer
        send_bytes(b"a core", papers_of(fleet.host), running.addresses)
        # A stop that comes before the sender's farewell is heard would be one line more.
        wait_until_idle(running)
    said = [record.getMessage().split()[0] for record in caplog.records]

    assert [word for word in said if not word.startswith("stop")] == ["started", "complete"]


def test_a_dump_that_is_sent_again_has_an_end_in_the_log(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sender that lost its receipt asks again: the second `started` has a `complete` as well, which says that it was here."""
    dump = new_dump_id()
    with running_receiver(fleet.receiver, tmp_path / "store") as running:
        for _ in range(2):
            with closing(Hand(fleet.host, running.addresses)) as hand:
                if isinstance(hand.open(dump), Accept):
                    hand.send(b"a core")
                    hand.delivery.end(hand.manifest(dump))
            wait_until_idle(running)
    said = [record.getMessage() for record in caplog.records if str(dump) in record.getMessage()]

    assert [line.split()[0] for line in said] == ["started", "complete"] * 2
    assert said[-1] == f"complete host={fleet.host.name}.{DOMAIN} dump={dump} already=yes"


def test_who_fails_in_its_handshake_is_seen_to_go(fleet: Fleet, tmp_path: Path, told: Told) -> None:
    """Each `connected` has its `closed`, also that of a stranger who was never let in."""
    with running_receiver(fleet.receiver, tmp_path / "store", level=logging.DEBUG) as running:
        (address,) = running.addresses
        with socket.create_connection((address.host, address.port)) as stranger, suppress(ConnectionResetError):
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while stranger.recv(4096):
                pass
        # A stop that comes before the handshake has failed would be the reason that it fails.
        wait_until_idle(running)
    words = [line.split(maxsplit=2)[2] for line in told()]

    assert words[0] == "connected"
    assert re.fullmatch(r"closed after \d+\.\d s: 0 receipts, 0 B as 0 B", words[1])
    assert len(words) == 2


def test_no_progress_is_shown_after_end(fleet: Fleet, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every frame is worth a line, nothing but receipt and farewell follows END."""
    monkeypatch.setattr(observer, "_EVERY_S", 0.0)
    with running_receiver(fleet.receiver, tmp_path / "store", level=logging.DEBUG) as running:
        outcome = send_bytes(Crash().write() + bytes(5 * limits.MIB), papers_of(fleet.host), running.addresses)
    lines = [line.split(maxsplit=2)[2] for line in told()]

    assert outcome.receipt is not None
    end = next(number for number, line in enumerate(lines) if line.endswith("; END"))
    assert [line for line in lines[:end] if "frames durable" in line]
    assert lines[end + 1 :][0] == "receipt sent"
    assert re.fullmatch(r"closed after \d+\.\d s: 1 receipt, 5\.\d MiB as \d+ B", lines[-1])
    assert len(lines[end + 1 :]) == 2


@pytest.mark.slow
def test_a_cut_dump_is_resumed_before_the_watcher_s_eyes(fleet: Fleet, tmp_path: Path, told: Told) -> None:
    """Who goes on with a dump is seen to go on, from the frame that was acknowledged; the cut connection says what it brought."""
    dump = new_dump_id()
    with running_receiver(fleet.receiver, tmp_path / "store", level=logging.DEBUG) as running:
        for _ in range(2):
            hand = Hand(fleet.host, running.addresses)
            held = hand.open(dump)
            for _ in range(9):
                hand.send(random.Random(1).randbytes(limits.PIECE_BYTES))
            hand.wait_until_acknowledged()
            hand.close()
    lines = [line for line in told() if f"  {dump.short}  opened" in line]

    assert isinstance(held, Accept)
    assert [line.rpartition(", ")[2] for line in lines] == ["size not known", f"goes on at frame {held.held}"]
    assert sum("closed after" in line for line in told()) == 2


@pytest.mark.slow
def test_receive_v_shows_a_transfer_on_standard_error(fleet: Fleet, tmp_path: Path) -> None:
    """The command itself: with -v each step in order, with levels in a column; standard output stays the announcement's."""
    (tmp_path / "core").write_bytes(Crash().write())
    with receiving(fleet.receiver, tmp_path / "store", "-v") as process:
        sent = send_file(tmp_path / "core", str(process.addresses[0]), fleet.host)
        process.logged("closed after")
    steps = re.findall(r"^20\S+ \S+ DEBUG   127\.0\.0\.1:\d+ +\S+ +(\w+)", process.said, re.MULTILINE)

    assert (sent.returncode, sent.stderr) == (0, "")
    assert [step for step in steps if step.isalpha()] == ["connected", "is", "opened", "receipt", "closed"]
    assert re.search(rf"  is web-1\.{DOMAIN}, certificate [0-9a-f]{{16}}, TLSv1\.3 TLS_\w+$", process.said, re.MULTILINE)
    assert re.search(r"^20\S+ \S+ INFO    started host=", process.said, re.MULTILINE)

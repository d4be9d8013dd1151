"""A handler whose own dump has arrived goes on with what waits in the spool: due, alone, and for a bounded time."""

import os
import socket
import subprocess
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import BusyError
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import backlog
from securecore.sender.backlog import deliver_backlog
from securecore.sender.schedule import Schedule, claim, read_schedule, write_schedule
from securecore.sender.spool import Spool, open_spool
from securecore.store.layout import open_store
from securecore.wire.messages import Refusal, Refuse
from tests.support.certificates import Fleet
from tests.support.custody import CORE
from tests.support.kernel import Installed, kernel_arguments
from tests.support.receivers import papers_of, running_receiver, send_bytes
from tests.support.scripted import scripted_receiver
from tests.support.tails import FIRST, keep_tail

NOWHERE: Final = Address("127.0.0.1:9")
Line = tuple[str, dict[str, object]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What would stand in the system's log, without what is not said."""
    said: list[Line] = []

    def log(event: str, **facts: object) -> None:
        said.append((event, {key: value for key, value in facts.items() if value is not None}))

    monkeypatch.setattr(backlog, "log", log)
    return said


def test_what_waits_is_delivered_and_told(fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line]) -> None:
    """One line for each dump, with its place in the receiver's log: behind the entry of the certificate."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    (dump,) = spool.dump_ids()

    deliver_backlog(spool, receiver.addresses, papers)

    told = {"dump": str(dump), "receiver": str(receiver.addresses[0]), "entry": 1, "sent": 4}
    assert lines == [("flushed", told)]
    assert spool.dump_ids() == []


def test_what_was_lost_is_told(fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line], tmp_path: Path) -> None:
    """A store that lost the beginning: so many frames."""
    with open_store(str(tmp_path / "store")) as store:
        keep_tail(spool, store.store_id)

    deliver_backlog(spool, receiver.addresses, papers_of(fleet.host))

    assert [(event, facts["lost"]) for event, facts in lines] == [("flushed", FIRST)]


def test_what_cannot_be_delivered_is_told_and_put_off(fleet: Fleet, spool: Spool, lines: list[Line]) -> None:
    """The receiver has gone again: one line says why, and the timer takes over."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)

    deliver_backlog(spool, [NOWHERE], papers)

    assert [event for event, _ in lines] == ["spool-kept"]
    assert "127.0.0.1:9" in str(lines[0][1]["error"])
    assert read_schedule(spool.fd).failures == 1
    assert len(spool.dump_ids()) == 1


def test_a_receiver_that_asked_for_patience_has_it(fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line]) -> None:
    """However many crashes there are."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    write_schedule(spool.fd, Schedule().after_request(time.time(), 600))

    deliver_backlog(spool, receiver.addresses, papers)

    assert lines == []
    assert len(spool.dump_ids()) == 1


def test_our_own_back_off_keeps_nothing_from_a_receiver_that_is_there(
    fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line]
) -> None:
    """Nobody was there for hours, and the timer waits for an hour: but the handler's own dump has just arrived."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    write_schedule(spool.fd, Schedule(7, int(time.time()) + 3600))

    deliver_backlog(spool, receiver.addresses, papers)

    assert [event for event, _ in lines] == ["flushed"]
    assert spool.dump_ids() == []


def test_another_flush_is_left_alone(fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line]) -> None:
    """Sixteen handlers at once are one flush."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)

    with claim(spool.fd):
        deliver_backlog(spool, receiver.addresses, papers)

    assert lines == []
    assert len(spool.dump_ids()) == 1


def test_its_time_is_bounded(
    fleet: Fleet, receiver: Receiver, spool: Spool, lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handler lingers for as long as a spool is deep."""
    papers = papers_of(fleet.host)
    send_bytes(CORE, papers, [NOWHERE], spool=spool)
    monkeypatch.setattr(limits, "CRASH_FLUSH_S", 0.0)

    deliver_backlog(spool, receiver.addresses, papers)

    assert lines == []
    assert len(spool.dump_ids()) == 1


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a spool to the handler's user")
def test_a_real_handler_takes_the_last_crash_along(fleet: Fleet, tmp_path: Path) -> None:
    """The receiver was down for the first crash; the second one delivers both, as the handler's own user."""
    port = free_port()
    installed = Installed(tmp_path, fleet.host, [Address(f"127.0.0.1:{port}")], (65534, 65533))

    def crash() -> int:
        command = [str(installed.handler), *kernel_arguments()]
        return subprocess.run(command, input=CORE, env={}, cwd="/", check=False, timeout=60).returncode

    first, waiting = crash(), len(installed.spooled())
    with running_receiver(fleet.receiver, tmp_path / "store", port=port):
        second = crash()

    assert (first, waiting) == (10, 1)
    assert (second, installed.spooled()) == (0, [])
    with open_store(str(tmp_path / "store")) as store:
        (host,) = store.host_names()
        assert len(store.dump_ids(host)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "claimed", "left_s"),
    [(0, False, 7200), (60, False, 7200), (9000, False, 9000), (0, True, 0)],
    ids=["nothing asked before", "less", "more", "a flush at work"],
)
def test_what_a_receiver_asks_a_handler_for_is_kept_for_the_timer(
    before: int, claimed: bool, left_s: int, fleet: Fleet, tmp_path: Path
) -> None:
    """It is busy and says for how long: the core is spooled, and no timer dials sooner. Who has asked for more has that."""
    now = int(time.time())
    with scripted_receiver(fleet.receiver, lambda peer: peer.say(Refuse(Refusal.BUSY, "later", 7200))) as scripted:
        installed = Installed(tmp_path, fleet.host, [scripted.address])
        with closing(open_spool(str(installed.spool))) as spool:
            write_schedule(spool.fd, Schedule(asked_until=now + before if before else 0))
            os.chown("schedule.json", *spool.owner, dir_fd=spool.fd)
            with claim(spool.fd) if claimed else nullcontext():
                answer = subprocess.run(
                    [str(installed.handler), *kernel_arguments()], input=CORE, env={}, cwd="/", check=False, timeout=60
                )
            schedule = read_schedule(spool.fd)

    assert answer.returncode == BusyError.exit_code
    assert len(installed.spooled()) == 1
    least = now + left_s if left_s else 0
    assert least <= schedule.asked_until <= least + (60 if left_s else 0)
    assert (schedule.failures, schedule.not_before) == (0, 0)

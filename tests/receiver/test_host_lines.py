"""What the log says of hosts that have proved who they are: all of it on any ordinary day, and never without end."""

import logging
from collections import Counter
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import SecurecoreError
from securecore.names import HostName
from securecore.receiver.host_lines import HostLines
from securecore.receiver.policy import Doors, Policy
from securecore.wire.messages import Accept, Receipt
from tests.support.certificates import DOMAIN, Fleet
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, running_receiver, wait_until_idle

WEB, DB = HostName(f"web-1.{DOMAIN}"), HostName(f"db-2.{DOMAIN}")


def lines_of(caplog: pytest.LogCaptureFixture, host: HostName = WEB) -> list[str]:
    """The log's lines about a host."""
    return [message for message in caplog.messages if f"host={host}" in message]


def test_a_hosts_lines_are_bounded_and_others_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host has its own, of whatever level; an hour later all begin anew."""
    caplog.set_level(logging.INFO, "securecore.receiver")
    monkeypatch.setattr(limits, "HOST_LINES", 3)
    lines = HostLines(lambda: datetime(2026, 11, 26, 9, 14, tzinfo=UTC))
    for number in range(10):
        lines.tell(WEB, logging.INFO if number % 2 else logging.WARNING, f"web {number}")
    lines.tell(DB, logging.INFO, "db")
    assert caplog.messages == ["web 0", "web 1", "web 2", "db"]
    assert [record.levelno for record in caplog.records[:2]] == [logging.WARNING, logging.INFO]
    caplog.clear()
    lines.summarise()
    lines.summarise()
    assert caplog.messages == [f"7 more lines about host={WEB} since 09:14"]
    lines.tell(WEB, logging.INFO, "again")
    assert caplog.messages[-1] == "again"


def test_a_host_fills_no_log_with_what_costs_it_nothing(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump that is here already, offered again and again on one connection, and one that is begun and left again and again."""
    monkeypatch.setattr(limits, "HOST_LINES", 10)
    dump, other = new_dump_id(), new_dump_id()
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        with closing(Hand(fleet.host, receiver.addresses)) as hand:
            assert isinstance(hand.open(dump), Accept)
            hand.send(b"core")
            hand.delivery.end(hand.manifest(dump))
            for _ in range(20):
                assert isinstance(hand.open(dump), Receipt)
        for _ in range(5):
            with closing(Hand(fleet.host, receiver.addresses)) as hand:
                hand.open(other)
        with closing(Hand(fleet.hosts["db-2"], receiver.addresses)) as hand:
            hand.open(new_dump_id())
        wait_until_idle(receiver)
    said = 2 + 2 * 20 + 2 * 5
    assert len(lines_of(caplog)) == 10 + 1
    assert lines_of(caplog)[-1].startswith(f"{said - 10} more lines about host={WEB} since ")
    assert Counter(line.split()[0] for line in lines_of(caplog, DB)) == {"started": 1, "failed": 1}


@pytest.mark.parametrize("policy", [Policy(deny=(str(WEB),)), Policy(doors=Doors(per_host=0))], ids=["denied", "too many"])
def test_strangers_do_not_take_the_lines_of_a_host_that_is_refused(
    policy: Policy, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has proved who it is: what is said of it is one of its own lines, however many have knocked from its address."""
    monkeypatch.setattr(limits, "ALL_STRANGERS_LINES", 0)
    with running_receiver(fleet.receiver, tmp_path / "store", policy=policy) as receiver, ExitStack() as stack:
        with pytest.raises(SecurecoreError, match="refused"):
            stack.enter_context(closing(Hand(fleet.host, receiver.addresses)))
        wait_until_idle(receiver)
    (line,) = lines_of(caplog)
    assert line.startswith(f"failed host={WEB} dump=- peer=127.0.0.1:")

"""Who may come to an enroller, how often, and how much is told of it."""

from datetime import UTC, datetime

import pytest

from securecore.pki import clients
from securecore.pki.clients import Clients, Tally, network_of

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def test_who_comes_too_often_is_known_by_it_within_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own address, and for a minute; others are not concerned."""
    monkeypatch.setattr(clients, "CLIENTS_PER_MINUTE", 2)
    seconds = [600.0]
    door = Clients(lambda: seconds[0])
    came = [door.enter(("192.0.2.1", 1)) for _ in range(3)]
    assert [one.comes_too_often for one in came if one is not None] == [False, False, True]
    other = door.enter(("192.0.2.2", 1))
    assert other is not None
    assert not other.comes_too_often
    seconds[0] += 60
    again = door.enter(("192.0.2.1", 1))
    assert again is not None
    assert not again.comes_too_often


def test_there_are_so_many_at_once_of_an_address_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is hung up on; who leaves makes room."""
    monkeypatch.setattr(clients, "MAX_CLIENTS", 3)
    monkeypatch.setattr(clients, "MAX_CLIENTS_PER_NETWORK", 2)
    door = Clients(lambda: 0.0)
    first = door.enter(("192.0.2.1", 1))
    assert first is not None
    assert door.enter(("192.0.2.1", 2)) is not None
    assert door.enter(("192.0.2.1", 3)) is None
    assert door.enter(("192.0.2.2", 1)) is not None
    assert door.enter(("192.0.2.3", 1)) is None
    assert not door.wait_until_none(0)
    door.leave(first)
    assert door.enter(("192.0.2.3", 1)) is not None


def test_memory_for_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it all others count as one, so a flood of addresses pushes nobody out."""
    monkeypatch.setattr(clients, "MAX_NETWORKS", 2)
    monkeypatch.setattr(clients, "CLIENTS_PER_MINUTE", 1)
    door = Clients(lambda: 0.0)
    came = [door.enter((f"192.0.2.{number}", 1)) for number in range(4)]
    assert [one.comes_too_often for one in came if one is not None] == [False, False, False, True]


def test_an_ipv6_subscriber_is_one_address() -> None:
    """He may use as many as he likes; a zone is no part of it."""
    assert network_of(("2001:db8::1", 1, 0, 0)) == network_of(("2001:db8::ffff", 1, 0, 0)) == "2001:db8::/64"
    assert network_of(("fe80::1%1", 1, 0, 1)) == "fe80::/64"
    assert network_of(("192.0.2.7", 1)) == "192.0.2.7"


def test_what_was_issued_is_always_told_and_refusals_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fills a disk by knocking; all are counted, and the count is told."""
    monkeypatch.setattr(clients, "LINES_PER_HOUR", 2)
    told: list[str] = []
    tally = Tally(told.append, lambda: NOW)
    for number in range(4):
        tally.refused("bad-token", f"no {number}")
        tally.issued(f"yes {number}")
    assert told == ["no 0", "yes 0", "no 1", "yes 1", "yes 2", "yes 3"]
    tally.summarise()
    assert told[-1] == "since 03:04 UTC: 4 bad-token, 4 issued"
    told.clear()
    tally.summarise()
    assert told == []
    tally.refused("bad-token", "no 5")
    assert told == ["no 5"]

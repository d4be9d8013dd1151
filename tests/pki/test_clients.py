"""Who may come to an enroller, how often, and how much is told of it."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from securecore.pki import clients
from securecore.pki.clients import THIS_MACHINE, Clients, Tally, host, stranger_at

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


def test_an_ipv6_site_has_more_than_one_of_its_networks_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and within a minute; another site, and a network of one's own, are not concerned."""
    monkeypatch.setattr(clients, "MAX_CLIENTS_PER_NETWORK", 2)
    monkeypatch.setattr(clients, "MAX_CLIENTS_PER_SITE", 3)
    monkeypatch.setattr(clients, "SITE_CLIENTS_PER_MINUTE", 5)
    door = Clients(lambda: 0.0)
    came = [door.enter((f"2001:db8:1:{address}", 1, 0, 0)) for address in ("1::1", "1::2", "1::3", "2::1")]
    assert [one is None for one in came] == [False, False, True, False]
    assert door.enter(("2001:db8:1:3::1", 1, 0, 0)) is None
    assert door.enter(("2001:db8:2:1::1", 1, 0, 0)) is not None
    for one in came:
        if one is not None:
            door.leave(one)
    late = door.enter(("2001:db8:1:4::1", 1, 0, 0))
    other = door.enter(("2001:db8:2:2::1", 1, 0, 0))
    assert late is not None
    assert other is not None
    assert (late.comes_too_often, other.comes_too_often) == (True, False)


def test_a_site_that_comes_too_often_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its networks are not remembered any more, so that those of others are."""
    monkeypatch.setattr(clients, "SITE_CLIENTS_PER_MINUTE", 10)
    monkeypatch.setattr(clients, "MAX_CLIENTS", 5000)
    monkeypatch.setattr(clients, "MAX_CLIENTS_PER_SITE", 5000)
    door = Clients(lambda: 0.0)
    for number in range(1000):
        door.enter((f"2001:db8:1:{number:x}::1", 1, 0, 0))
    assert len(door._came) == 11


def test_what_was_issued_is_always_told_and_refusals_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fills a disk by knocking; all are counted, and the count is told."""
    monkeypatch.setattr(clients, "STRANGER_LINES", 2)
    told: list[str] = []
    tally = Tally(told.append, lambda: NOW)
    for number in range(4):
        tally.refused("bad-token", f"no {number}", stranger_at(("192.0.2.1", 1)))
        tally.issued(f"yes {number}")
    assert told == ["no 0", "yes 0", "no 1", "yes 1", "yes 2", "yes 3"]
    tally.summarise()
    assert told[-1] == "since 03:04 UTC: 4 bad-token, 4 issued"
    told.clear()
    tally.summarise()
    assert told == []
    tally.refused("bad-token", "no 5", stranger_at(("192.0.2.1", 1)))
    assert told == ["no 5"]


def test_strangers_hide_no_host_and_no_host_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what this machine could not do: each has lines of its own, one address as well as all."""
    monkeypatch.setattr(clients, "STRANGER_LINES", 2)
    monkeypatch.setattr(clients, "STRANGERS_LINES", 5)
    monkeypatch.setattr(clients, "HOST_LINES", 1)
    told: list[str] = []
    tally = Tally(told.append, lambda: NOW)
    for number in range(9):
        for last in range(3):
            tally.refused("bad-token", f"stranger {last}", stranger_at((f"2001:db8:{last}:{number}::1", 1, 0, 0)))
        tally.refused("revoked", "web-1", host("web-1.hosts.test.example"))
    assert Counter(told) == {"stranger 0": 2, "stranger 1": 2, "stranger 2": 1, "web-1": 1}
    told.clear()
    tally.refused("revoked", "db-2", host("db-2.hosts.test.example"))
    tally.refused("unavailable", "the disk is full", THIS_MACHINE)
    assert told == ["db-2", "the disk is full"]

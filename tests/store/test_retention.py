"""What is to go: always the oldest, never what is spared, and no more than a bound asks for."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.limits import GIB
from securecore.store.retention import Due, Held, Retention, select
from securecore.store.rows import format_time

NOW: Final = datetime(2026, 11, 22, 9, 14, 22, tzinfo=UTC)
DAY: Final = timedelta(days=1)


def held(age: timedelta, number: int = 0, host: str = "web", stored_bytes: int = 1) -> Held:
    """Return a dump of that age."""
    return Held(format_time(NOW - age), f"{number:04}", host, stored_bytes)


def went(due: Sequence[Due]) -> list[tuple[str, str]]:
    """Return ids and reasons."""
    return [(each.held.id, each.reason) for each in due]


@st.composite
def stores(draw: st.DrawFn) -> list[Held]:
    """Draw the dumps of a store: few ages, so that many are equal, some of them in the future."""
    drawn = draw(st.lists(st.tuples(st.integers(-2, 20), st.sampled_from("abc"), st.integers(0, 9)), max_size=30))
    return [held(age * DAY, number, host, size) for number, (age, host, size) in enumerate(drawn)]


spans = st.integers(0, 22).map(lambda days: days * DAY)
retentions = st.builds(
    Retention,
    max_age=st.none() | spans,
    max_bytes=st.none() | st.integers(0, 60),
    max_dumps=st.none() | st.integers(0, 20),
    host_bytes=st.none() | st.integers(0, 30),
    host_dumps=st.none() | st.integers(0, 10),
    min_age=spans,
)


def is_spared(dump: Held, retention: Retention) -> bool:
    """Whether a dump is too young to go."""
    return bool(retention.min_age) and dump.received_at > format_time(NOW - retention.min_age)


def is_held_by(dumps: Sequence[Held], max_dumps: int | None, max_bytes: int | None) -> bool:
    """Whether both bounds hold."""
    return (max_dumps is None or len(dumps) <= max_dumps) and (
        max_bytes is None or sum(dump.stored_bytes for dump in dumps) <= max_bytes
    )


@given(stores(), retentions)
def test_what_is_young_is_never_taken(dumps: list[Held], retention: Retention) -> None:
    """Whatever else is said, and whatever bound stays broken."""
    assert not [due for due in select(dumps, retention, NOW) if is_spared(due.held, retention)]


@given(stores(), retentions)
def test_every_bound_holds_or_only_young_dumps_break_it(dumps: list[Held], retention: Retention) -> None:
    """What is left of each host and of all is within its bounds, unless nothing is left there that might go."""
    gone = {due.held for due in select(dumps, retention, NOW)}
    left = [dump for dump in dumps if dump not in gone]
    assert not [
        dump
        for dump in left
        if retention.max_age is not None
        and dump.received_at < format_time(NOW - retention.max_age)
        and not is_spared(dump, retention)
    ]
    for name in "abc":
        of_host = [dump for dump in left if dump.host == name]
        if not is_held_by(of_host, retention.host_dumps, None):
            assert all(is_spared(dump, retention) for dump in of_host)
        if not is_held_by(of_host, None, retention.host_bytes):
            assert all(is_spared(dump, retention) for dump in of_host if dump.stored_bytes)
    if not is_held_by(left, retention.max_dumps, None):
        assert all(is_spared(dump, retention) for dump in left)
    if not is_held_by(left, None, retention.max_bytes):
        assert all(is_spared(dump, retention) for dump in left if dump.stored_bytes)


@given(stores(), st.integers(0, 20), st.integers(0, 60), st.sampled_from(["store", "host"]))
def test_the_oldest_go_and_no_more_than_that(dumps: list[Held], most: int, most_bytes: int, whose: str) -> None:
    """Of those that one bound is about the oldest are taken, and with the youngest of these left the bound would not hold."""
    if whose == "host":
        dumps = [dump for dump in dumps if dump.host == "a"]
    by_number = Retention(max_dumps=most) if whose == "store" else Retention(host_dumps=most)
    by_bytes = Retention(max_bytes=most_bytes) if whose == "store" else Retention(host_bytes=most_bytes)
    oldest_first = sorted(dumps)
    gone = [due.held for due in select(dumps, by_number, NOW)]
    assert gone == oldest_first[: max(len(dumps) - most, 0)]

    gone = [due.held for due in select(dumps, by_bytes, NOW)]
    weighty = [dump for dump in oldest_first if dump.stored_bytes]
    assert gone == weighty[: len(gone)]
    left = weighty[len(gone) :]
    assert is_held_by(left, None, most_bytes)
    if gone:
        assert not is_held_by([gone[-1], *left], None, most_bytes)


@given(stores(), retentions)
def test_once_taken_nothing_more_is_to_go(dumps: list[Held], retention: Retention) -> None:
    """A second vacuum at the same moment finds nothing: the first one stopped when its bounds held, and not before."""
    gone = [due.held for due in select(dumps, retention, NOW)]
    assert gone == sorted(set(gone))
    assert select([dump for dump in dumps if dump not in gone], retention, NOW) == []


@given(stores(), retentions)
def test_the_order_in_which_dumps_are_listed_does_not_matter(dumps: list[Held], retention: Retention) -> None:
    """Nor is there any other luck."""
    assert select(dumps, retention, NOW) == select(dumps[::-1], retention, NOW)


def test_each_reason_in_words() -> None:
    """In the bound's own words, for a person and for the audit log."""
    dumps = [
        held(40 * DAY, 0), held(30 * DAY, 1), held(9 * DAY, 2), held(8 * DAY, 3, "db"), held(7 * DAY, 4, "db", 30 * GIB),
        held(6 * DAY, 5, "db"), held(5 * DAY, 6), held(4 * DAY, 7, "mail", GIB), held(3 * DAY, 8, "mail"), held(2 * DAY, 9),
    ]  # fmt: skip
    retention = Retention(30 * DAY, max_bytes=2 * GIB, max_dumps=4, host_bytes=20 * GIB, host_dumps=3)
    assert went(select(dumps, retention, NOW)) == [
        ("0000", "older than 30d"),
        ("0001", "host has more than 3 dumps"),
        ("0002", "store has more than 4 dumps"),
        ("0003", "host has more than 20GiB"),
        ("0004", "host has more than 20GiB"),
        ("0005", "store has more than 4 dumps"),
    ]
    assert went(select(dumps, Retention(max_bytes=GIB), NOW))[-1] == ("0007", "store has more than 1GiB")
    assert went(select(dumps[:2], Retention(max_dumps=1), NOW)) == [("0000", "store has more than 1 dump")]


def test_a_host_is_brought_to_its_bound_before_the_store_is() -> None:
    """What one host has too much of is not made up for by the older dumps of others."""
    dumps = [held(9 * DAY, 1, "db"), *(held(DAY, number, "web") for number in range(2, 6))]
    assert [due.held.id for due in select(dumps, Retention(max_dumps=3, host_dumps=2), NOW)] == ["0002", "0003"]


def test_what_is_coming_in_counts_for_its_host_and_is_not_taken() -> None:
    """For its own bytes; no other host, and not the store's bounds, are touched by what is never finished."""
    dumps = [held(3 * DAY, 1, "a", 4), held(2 * DAY, 2, "a", 4), held(3 * DAY, 3, "b", 4)]
    coming = [held(DAY, 4, "a", 3), held(5 * DAY, 5, "c", 9)]
    assert went(select(dumps, Retention(host_bytes=10, max_bytes=12), NOW, coming)) == [("0001", "host has more than 10B")]
    assert went(select(dumps, Retention(host_dumps=2, max_dumps=3), NOW, coming)) == []
    assert went(select(dumps, Retention(host_bytes=11, max_bytes=12), NOW, coming)) == []
    everything = select(dumps, Retention(host_bytes=0, max_age=timedelta()), NOW, coming)
    assert {each.held for each in everything} == set(dumps)


@given(stores(), stores(), st.integers(0, 30))
def test_what_is_never_finished_takes_no_more_than_half_of_what_its_host_may_have(
    dumps: list[Held], coming: list[Held], most: int
) -> None:
    """A stolen host that begins dumps without end does not delete all that it had sent before it was stolen."""
    retention = Retention(host_bytes=most)
    without = {each.held for each in select(dumps, retention, NOW)}
    gone = {each.held for each in select(dumps, retention, NOW, coming)}
    assert without <= gone
    for name in {dump.host for dump in gone - without}:
        last = max(dump for dump in gone if dump.host == name)
        left = sum(dump.stored_bytes for dump in dumps if dump.host == name and dump not in gone)
        assert left + last.stored_bytes > most - most // 2


@given(stores(), stores(), st.integers(0, 9), st.integers(0, 30))
def test_more_that_is_coming_in_spares_nothing_that_less_would_not(
    dumps: list[Held], coming: list[Held], more: int, most: int
) -> None:
    """So there is room for the rest of what a host has coming in, as long as more than half of its bound is published."""
    retention = Retention(host_bytes=most)
    gone = {each.held for each in select(dumps, retention, NOW, coming)}
    assert gone <= {each.held for each in select(dumps, retention, NOW, [*coming, held(DAY, 1000, "a", more)])}


def test_dumps_that_are_begun_and_never_ended_delete_half_at_the_most() -> None:
    """By their number none; by their bytes down to half of what the host may have, however many they are."""
    dumps = [held(number * DAY, number, "a", 4) for number in range(1, 6)]
    parts = [held(DAY, 100 + number, "a", 1) for number in range(50)]
    assert select(dumps, Retention(host_dumps=5), NOW, parts) == []
    for number in (10, 20, 21, 50):
        assert [due.held.id for due in select(dumps, Retention(host_bytes=20), NOW, parts[:number])] == ["0005", "0004", "0003"]


def test_what_takes_no_room_is_not_taken_for_room() -> None:
    """A dump given up before its first frame goes by its age or by number, not by bytes: that would free none."""
    dumps = [held(9 * DAY, 1, stored_bytes=0), held(DAY, 2, stored_bytes=10)]
    assert [due.held.id for due in select(dumps, Retention(max_bytes=0), NOW)] == ["0002"]
    assert [due.held.id for due in select(dumps, Retention(max_dumps=1), NOW)] == ["0001"]


def test_a_dump_from_the_future_goes_last_and_is_young_where_the_young_are_spared() -> None:
    """A clock that was wrong for a day does not break a bound for good."""
    dumps = [held(-DAY, 1), held(DAY, 2)]
    assert [due.held.id for due in select(dumps, Retention(max_dumps=0), NOW)] == ["0002", "0001"]
    assert [due.held.id for due in select(dumps, Retention(max_dumps=0, min_age=timedelta(seconds=1)), NOW)] == ["0002"]


@pytest.mark.parametrize("age", [timedelta.max, timedelta(days=800_000)])
def test_an_age_before_all_calendars_is_never_reached(age: timedelta) -> None:
    """A bound that nothing can break takes nothing, and one that spares everything spares everything."""
    assert select([held(DAY)], Retention(max_age=age), NOW) == []
    assert select([held(DAY)], Retention(max_dumps=0, min_age=age), NOW) == []


def test_without_a_bound_nothing_goes() -> None:
    """The youngest age alone asks for nothing."""
    assert not Retention(min_age=DAY).is_bounded
    assert select([held(40 * DAY)], Retention(), NOW) == []
    assert Retention(max_dumps=0).is_bounded

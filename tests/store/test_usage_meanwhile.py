"""Counts of what hosts have, and changes that come meanwhile, or fail: what was followed is what a count finds."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError
from securecore.store import census
from securecore.store import usage as usage_module
from securecore.store.census import Found
from securecore.store.layout import Place, Store
from securecore.store.usage import HostUsage
from tests.support.dumps import WEB, begin, dump_id
from tests.support.yards import CORE, Yard


def test_a_count_and_a_change_of_one_host_wait_for_each_other(yard: Yard) -> None:
    """A dump that is being moved is counted in one place: where it is afterwards."""
    yard.put(1)
    usage = yard.count()
    usage.follow()
    found: list[HostUsage] = []
    counting = threading.Thread(target=lambda: found.append(usage.of(WEB)))
    with yard.store.changing(WEB, dump_id(1), Place.HOSTS, Place.DELETING):
        counting.start()
        source, target = (Path(yard.store.path) / place / str(WEB) for place in ("hosts", "deleting"))
        target.mkdir(parents=True)
        (source / str(dump_id(1))).rename(target / str(dump_id(1)))
        assert found == []
    counting.join()
    assert found == [HostUsage(0, 0, 0, ())]


def test_a_count_that_goes_on_aside_is_the_same_count(yard: Yard) -> None:
    """Who waits for it has it, and who does not finds it later."""
    yard.put(1)
    usage = yard.count()
    assert usage.is_counted_within(WEB, None)
    assert usage.of(WEB) == yard.count().of(WEB)
    assert usage.is_counted_within(WEB, 0.0)


def test_what_cannot_be_counted_is_said_each_time(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refused to list it; nobody takes that for nothing, and it is tried again."""
    usage, find = yard.count(), Store.find_host_directory

    def refuse(*arguments: object) -> int:
        raise StorageError("cannot list it: input/output error")

    monkeypatch.setattr(Store, "find_host_directory", refuse)
    for _ in range(2):
        with pytest.raises(StorageError, match=f"what {WEB} has cannot be counted: cannot list it"):
            usage.is_counted_within(WEB, 20)
    monkeypatch.setattr(Store, "find_host_directory", find)
    assert usage.is_counted_within(WEB, 20)


def test_a_count_ends_with_its_receiver(yard: Yard) -> None:
    """Before the next dump; none is begun afterwards."""
    yard.put(1)
    usage = yard.count()
    with usage._account(WEB).moves:
        assert not usage.is_counted_within(WEB, 0.0)
        assert not usage.stop(0.0)
    assert usage.stop(20)
    assert not usage._account(WEB).is_counted
    with pytest.raises(BusyError):
        usage.is_counted_within(WEB, 20)


def test_no_change_waits_for_a_count(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of many dumps takes minutes: who deletes one of them, begins one or gives one up does not wait for that."""
    for number in (1, 2):
        yard.put(number)
    begin(yard.store, dump_id(3), CORE).close()
    yard.now = time.time() + 10
    usage, is_looking, may_look = yard.count(), threading.Event(), threading.Event()
    usage.follow()
    looked = []

    def look(*arguments: object) -> Found:
        is_looking.set()
        assert may_look.wait(20)
        looked.append(arguments)
        return census.look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(usage_module, "look", look)
    assert not usage.is_counted_within(WEB, 0.0)
    assert is_looking.wait(20)
    yard.set_aside(1)
    yard.give_up(3)
    begin(yard.store, dump_id(4), CORE[: limits.PIECE_BYTES]).close()
    assert looked == []
    assert not usage.is_counted_within(WEB, 0.0)
    may_look.set()
    assert usage.is_counted_within(WEB, 20)
    assert (usage.of(WEB).dumps, usage.of(WEB).coming) == (3, 1)
    assert len(usage.of(WEB).begun_s) == 4  # The deleted one too: who deletes may not begin more.


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_during_a_count_it_finds_what_is_there_at_its_end(
    yard: Yard, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes while the names are read, and before and after each look at a dump, of that dump or another."""
    chance, where = random.Random(seed), dict.fromkeys(range(1, 9), "nowhere")
    for _ in range(20):
        step_of(yard, chance, where)
    usage = yard.followed = yard.count()
    usage.follow()

    def look(*arguments: object) -> Found:
        if chance.random() < 0.5:
            step_of(yard, chance, where)
        found = census.look(*arguments)  # type: ignore[arg-type]
        for _ in range(chance.randrange(3)):
            step_of(yard, chance, where)
        return found

    find, listings = Store.find_host_directory, iter([0, 3])

    def find_host_directory(*arguments: object) -> int | None:
        """Between the lists of published dumps and of those that are coming in."""
        for _ in range(next(listings, 0)):
            step_of(yard, chance, where)
        return find(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "find_host_directory", find_host_directory)
    monkeypatch.setattr(usage_module, "look", look)
    assert usage.is_counted_within(WEB, 60)
    monkeypatch.undo()
    followed, counted = yard.both()
    assert (followed.stored_bytes, followed.dumps, followed.coming) == (counted.stored_bytes, counted.dumps, counted.coming), where
    for _ in range(10):
        step_of(yard, chance, where)
    followed, counted = yard.both()
    assert (followed.stored_bytes, followed.dumps, followed.coming) == (counted.stored_bytes, counted.dumps, counted.coming), where


@pytest.mark.parametrize("moment", ["before its rename", "after its rename"])
@pytest.mark.parametrize("is_counted", [True, False])
def test_a_change_that_fails_costs_no_count(moment: str, is_counted: bool, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dump is looked for where it may be; that the host has many others makes nobody wait, counted or being counted."""
    yard.put(1)
    yard.put(2)
    usage = yard.count()
    usage.follow()

    def change() -> None:
        with usage._changing(WEB, dump_id(1), Place.HOSTS, Place.DELETING):
            if moment == "after its rename":
                source, target = (Path(yard.store.path) / place / str(WEB) for place in ("hosts", "deleting"))
                target.mkdir(parents=True)
                (source / str(dump_id(1))).rename(target / str(dump_id(1)))
            raise BusyError("it is being written")

    def look(host_fd: int, name: str, since: float) -> Found:
        if name == str(dump_id(1)):
            with pytest.raises(BusyError):
                change()
        return census.look(host_fd, name, since)

    if is_counted:
        usage.of(WEB)
        with pytest.raises(BusyError):
            change()
    else:
        monkeypatch.setattr(usage_module, "look", look)
        assert usage.is_counted_within(WEB, 20)
    found = usage.find(WEB)
    assert found is not None
    assert found._replace(begun_s=()) == yard.count().of(WEB)._replace(begun_s=())


def test_what_is_nowhere_to_be_found_is_counted_again(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk does not say either where a dump is after a change that failed, the directories are asked again."""
    yard.put(1)

    def refuse(*arguments: object) -> None:
        raise StorageError("cannot look for it")

    def change() -> None:
        with yard.followed._changing(WEB, dump_id(1), Place.HOSTS, Place.DELETING):
            raise StorageError("input/output error")

    find = Store.find_place
    monkeypatch.setattr(Store, "find_place", refuse)
    with pytest.raises(StorageError):
        change()
    monkeypatch.setattr(Store, "find_place", find)
    assert yard.followed.find(WEB) is None
    assert yard.both()[0] == yard.both()[1]


def step_of(yard: Yard, chance: random.Random, where: dict[int, str]) -> None:
    """Do with one of the dumps what a receiver may do with it there."""
    steps: dict[str, list[tuple[str, Callable[[int], None]]]] = {
        "nowhere": [("incoming", yard.begin)],
        "incoming": [("incoming", yard.grow), ("hosts", yard.give_up), ("deleting", yard.set_aside), ("nowhere", yard.discard)],
        "hosts": [("incoming", yard.take_back), ("deleting", yard.set_aside)],
        "deleting": [("nowhere", yard.purge)],
    }
    number = chance.choice(list(where))
    where[number], step = chance.choice(steps[where[number]])
    step(number)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_what_was_followed_is_what_a_count_finds(yard: Yard, seed: int) -> None:
    """Begun, grown, published, taken back, set aside, put back, removed, in any order that a receiver makes of it."""
    chance, where = random.Random(seed), dict.fromkeys(range(1, 5), "nowhere")
    for _ in range(40):
        step_of(yard, chance, where)
        followed, counted = yard.both()
        assert (followed.stored_bytes, followed.dumps) == (counted.stored_bytes, counted.dumps), where
        assert followed.plain_bytes == yard.plain_of(where), where

"""What each host has in a store: the same whether it was counted from the directories or followed while it changed."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.audit.log import HostLogs
from securecore.dump.reader import scan_frames
from securecore.errors import BusyError, StorageError
from securecore.names import HostName
from securecore.store import census, removal
from securecore.store import usage as usage_module
from securecore.store.account import Amount
from securecore.store.census import Found
from securecore.store.layout import Place, Store, create_store
from securecore.store.recovery import take_back
from securecore.store.usage import HostUsage, Usage, room_of
from securecore.store.writer import IncomingDump
from tests.support.certificates import DOMAIN, Hierarchy
from tests.support.dumps import (
    REPORT,
    WEB,
    Signer,
    begin,
    core_bytes,
    dump_id,
    dump_path,
    frames_of,
    logs_of,
    make_log_signer,
    make_signer,
    store_dump,
)

CORE = core_bytes(3, 40)
DB = HostName(f"db-2.{DOMAIN}")


class Yard:
    """A store whose usage is followed from its beginning."""

    def __init__(self, store: Store, signer: Signer, log: LogSigner) -> None:
        self.store = store
        self.signer = signer
        self.logs: HostLogs = logs_of(store, log)
        self.now = 1_000_000.0
        self.followed = self.count()
        self.followed.follow()
        self.followed.of(WEB)

    def count(self) -> Usage:
        """A usage that knows nothing yet."""
        return Usage(self.store, lambda: self.now, lambda: self.now)

    def put(self, number: int, core: bytes = CORE) -> None:
        """Have a dump published."""
        store_dump(self.store, self.logs, self.signer, dump_id(number), core)

    def begin(self, number: int) -> None:
        """Begin a dump, of which a frame is durable."""
        self._tell(begin(self.store, dump_id(number), CORE[: limits.PIECE_BYTES]))

    def grow(self, number: int) -> None:
        """Add a frame to a dump that is coming in."""
        dump = IncomingDump.resume(self.store, WEB, dump_id(number))
        dump.append(*frames_of(CORE)[0])
        dump.sync()
        self._tell(dump)

    def give_up(self, number: int) -> None:
        """Publish a dump that is coming in as it is."""
        dump = IncomingDump.resume(self.store, WEB, dump_id(number))
        dump.give_up()
        dump.put_receipt(b"receipt")
        dump.publish()

    def take_back(self, number: int) -> None:
        """Have a dump that was given up come in again."""
        take_back(self.store, WEB, dump_id(number))
        self._tell(IncomingDump.resume(self.store, WEB, dump_id(number)))

    def set_aside(self, number: int) -> None:
        """Begin to delete a dump."""
        removal.set_aside(self.store, WEB, dump_id(number))

    def purge(self, number: int) -> None:
        """Delete a dump that was set aside."""
        removal.purge(self.store, WEB, dump_id(number))

    def discard(self, number: int) -> None:
        """Remove a dump that is coming in."""
        removal.remove_incoming(self.store, WEB, dump_id(number))

    def plain_of(self, where: dict[int, str]) -> int:
        """The plaintext of all dumps that are coming in or published, by their own frames."""
        total = 0
        for number, place in where.items():
            if place in ("incoming", "hosts"):
                with (dump_path(self.store, dump_id(number), place) / "core.zst").open("rb") as core:
                    total += sum(scanned.plain for scanned in scan_frames(core.fileno()))
        return total

    def _tell(self, dump: IncomingDump) -> None:
        self.followed.grew(WEB, dump.dump_id, Amount(dump.stored_bytes, dump.plain_bytes))
        dump.close()

    def both(self) -> tuple[HostUsage, HostUsage]:
        """What was followed, and what a count finds now; without the times of what was begun."""
        return self.followed.of(WEB)._replace(begun_s=()), self.count().of(WEB)._replace(begun_s=())


@pytest.fixture
def yard(tmp_path: Path, hierarchy: Hierarchy) -> Iterator[Yard]:
    """A new store with nothing in it."""
    with create_store(str(tmp_path / "store")) as store:
        made = Yard(store, make_signer(hierarchy), make_log_signer())
        yield made
        made.logs.close()


def size_of(yard: Yard, number: int, place: str = "hosts") -> int:
    """The length of a dump's core."""
    return (dump_path(yard.store, dump_id(number), place) / "core.zst").stat().st_size


def test_nothing_is_had_where_nothing_is(yard: Yard) -> None:
    """A host that was never here has nothing, and it is not made by asking."""
    assert yard.count().of(DB) == HostUsage(0, 0, 0, ())
    assert not (Path(yard.store.path) / "hosts" / str(DB)).exists()


def test_published_dumps_count_with_what_they_take_and_stand_for(yard: Yard) -> None:
    """Stored bytes are the core's length, plaintext is what the frames stand for; by following and by counting."""
    yard.put(1)
    yard.put(2, b"")
    expected = HostUsage(size_of(yard, 1) + size_of(yard, 2), len(CORE), 2, ())
    assert yard.both() == (expected, expected)


def test_a_dump_that_comes_in_counts_from_its_first_frame_on(yard: Yard) -> None:
    """What a session tells is taken, and when it is published it counts once."""
    dump = begin(yard.store, dump_id(1), CORE)
    assert yard.followed.of(WEB).dumps == 1
    yard.followed.grew(WEB, dump_id(1), Amount(dump.stored_bytes, dump.plain_bytes))
    yard.followed.grew(WEB, dump_id(1), Amount(dump.stored_bytes, dump.plain_bytes))
    assert yard.followed.of(WEB)[:3] == (dump.stored_bytes, dump.plain_bytes, 1)
    dump.give_up()
    dump.put_receipt(b"receipt")
    dump.publish()
    expected = HostUsage(size_of(yard, 1), len(CORE), 1, ())
    assert yard.both() == (expected, expected)


def test_what_waits_for_its_sender_counts_after_a_restart_with_what_is_certain(yard: Yard) -> None:
    """Its stored bytes are known; its plaintext is not claimed to be more than its frames must stand for."""
    noise = os.urandom(3 * limits.PIECE_BYTES)
    begin(yard.store, dump_id(1), noise).close()
    found = yard.count().of(WEB)
    assert (found.stored_bytes, found.dumps) == (size_of(yard, 1, "incoming"), 1)
    assert 2 * limits.PIECE_BYTES <= found.plain_bytes <= len(noise)


def test_what_is_deleted_no_longer_counts(yard: Yard) -> None:
    """From the moment that it is moved out of sight, published or not; put back, it counts again."""
    yard.put(1)
    begin(yard.store, dump_id(2), CORE).close()
    removal.set_aside(yard.store, WEB, dump_id(1))
    removal.set_aside(yard.store, WEB, dump_id(2))
    assert yard.both() == (HostUsage(0, 0, 0, ()),) * 2
    removal.put_back(yard.store, WEB, dump_id(1))
    assert yard.followed.of(WEB).stored_bytes == size_of(yard, 1)
    assert yard.both()[0] == yard.both()[1]
    removal.purge(yard.store, WEB, dump_id(2))
    assert yard.both()[0] == yard.both()[1]


def test_what_was_given_up_and_is_taken_back_counts_once(yard: Yard) -> None:
    """It is coming in again, with all that it has."""
    dump = begin(yard.store, dump_id(1), CORE)
    dump.give_up()
    dump.put_receipt(b"receipt")
    dump.publish()
    take_back(yard.store, WEB, dump_id(1))
    expected = HostUsage(size_of(yard, 1, "incoming"), len(CORE), 1, (), 1, size_of(yard, 1, "incoming"), len(CORE))
    assert yard.both() == (expected, expected)


def test_what_was_never_acknowledged_and_is_removed_no_longer_counts(yard: Yard) -> None:
    """A dump that is discarded leaves nothing."""
    dump = IncomingDump.begin(yard.store, WEB, dump_id(1), REPORT)
    assert yard.followed.of(WEB).dumps == 1
    dump.discard()
    assert yard.both() == (HostUsage(0, 0, 0, ()),) * 2


def test_a_change_that_failed_is_found_out_by_counting(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a dump is after a rename that was not made durable, the directories say."""
    yard.put(1)

    def refuse(source: object, target: object, **places: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError):
        removal.set_aside(yard.store, WEB, dump_id(1))
    monkeypatch.undo()
    # Somebody has cleared up by hand since.
    yard.put(2)
    expected = HostUsage(size_of(yard, 1) + size_of(yard, 2), 2 * len(CORE), 2, ())
    assert yard.both() == (expected, expected)


def test_dumps_begun_within_an_hour_are_known_after_a_restart(yard: Yard) -> None:
    """By the time of their report; what is older, or seems to be from the future, is not held against the host."""
    for number, age in ((1, 30.0), (2, 3599.0), (3, 3601.0), (4, -60.0)):
        yard.put(number)
        path = dump_path(yard.store, dump_id(number))
        os.utime(path / "report.json", (yard.now - age,) * 2)
        os.utime(path / "core.zst", (yard.now - age + 5,) * 2)
    begin(yard.store, dump_id(5), CORE).close()
    path = dump_path(yard.store, dump_id(5), "incoming")
    for name in ("report.json", "core.zst"):
        os.utime(path / name, (yard.now - 10,) * 2)
    assert yard.count().of(WEB).begun_s == (3599.0, 30.0, 10.0)


def test_a_dump_leaves_the_hour_and_is_begun_but_once(yard: Yard) -> None:
    """Resuming, publishing and deleting begin nothing."""
    yard.put(1)
    yard.now += 1800
    begin(yard.store, dump_id(2), CORE).close()
    IncomingDump.resume(yard.store, WEB, dump_id(2)).close()
    removal.set_aside(yard.store, WEB, dump_id(1))
    assert yard.followed.of(WEB).begun_s == (1800.0, 0.0)
    yard.now += 1801
    assert yard.followed.of(WEB).begun_s == (1801.0,)


@pytest.mark.parametrize("is_counting", [False, True])
def test_what_is_begun_again_within_the_hour_was_begun_when_it_was_first(
    is_counting: bool, yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it was kept, so its host tries once more, perhaps while it is being counted; after the hour that counts again."""
    usage = yard.count() if is_counting else yard.followed
    usage.follow()

    tries = iter(range(3))

    def begin_often(*arguments: object) -> int | None:
        for _ in tries:
            begin(yard.store, dump_id(1), CORE).close()
            yard.discard(1)
            yard.now += 60
        return find(*arguments)  # type: ignore[arg-type]

    find = Store.find_host_directory
    if is_counting:
        monkeypatch.setattr(Store, "find_host_directory", begin_often)
    else:
        begin_often(yard.store, Place.HOSTS, WEB)
    assert usage.of(WEB).begun_s == (180.0,)
    yard.now += 3600 - 180
    begin(yard.store, dump_id(1), CORE).close()
    assert usage.of(WEB).begun_s == (0.0,)


def test_what_is_held_of_one_dump(yard: Yard) -> None:
    """Wherever it stands, and whether its host was counted or not."""
    yard.put(1)
    dump = begin(yard.store, dump_id(2), CORE)
    yard.followed.grew(WEB, dump_id(2), Amount(7, 8))
    assert yard.followed.held(WEB, dump_id(1)) == Amount(size_of(yard, 1), len(CORE))
    assert yard.followed.held(WEB, dump_id(2)) == Amount(7, 8)
    assert yard.count().held(WEB, dump_id(2)).stored_bytes == dump.stored_bytes
    assert yard.followed.held(WEB, dump_id(3)) == Amount()


def test_damaged_and_strange_things_keep_no_host_from_being_counted(yard: Yard) -> None:
    """A core that is missing or no core, and names that are no dump's."""
    yard.put(1)
    yard.put(2)
    yard.put(3)
    expected = HostUsage(size_of(yard, 1) + 5, len(CORE), 3, ())
    (dump_path(yard.store, dump_id(2)) / "core.zst").unlink()
    (dump_path(yard.store, dump_id(3)) / "core.zst").write_bytes(b"short")
    (Path(yard.store.path) / "hosts" / str(WEB) / "stranger").mkdir()
    assert yard.count().of(WEB)._replace(begun_s=()) == expected


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
def test_a_change_that_fails_costs_no_count(
    moment: str, is_counted: bool, yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_room_of_a_file_system_is_what_statvfs_says(yard: Yard) -> None:
    """In bytes and in inodes, free and in all."""
    room, found = room_of(yard.store), os.statvfs(yard.store.path)
    assert (room.total_bytes, room.total_inodes) == (found.f_blocks * found.f_frsize, found.f_files)
    assert 0 <= room.free_bytes <= room.total_bytes

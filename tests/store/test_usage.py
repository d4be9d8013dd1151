"""What each host has in a store: the same whether it was counted from the directories or followed while it changed."""

import os
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.store import removal
from securecore.store.account import Amount
from securecore.store.layout import Place, Store
from securecore.store.recovery import take_back
from securecore.store.usage import HostUsage, room_of
from securecore.store.writer import IncomingDump
from tests.support.certificates import DOMAIN
from tests.support.dumps import REPORT, WEB, begin, dump_id, dump_path
from tests.support.yards import CORE, Yard

DB = HostName(f"db-2.{DOMAIN}")


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


def test_the_room_of_a_file_system_is_what_statvfs_says(yard: Yard) -> None:
    """In bytes and in inodes, free and in all."""
    room, found = room_of(yard.store), os.statvfs(yard.store.path)
    assert (room.total_bytes, room.total_inodes) == (found.f_blocks * found.f_frsize, found.f_files)
    assert 0 <= room.free_bytes <= room.total_bytes

"""The state of storm limits on disk: shared, locked for an instant, worth nothing more than advice."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BrokenError, StorageError
from securecore.sender import storm_limits, storms
from securecore.sender.admission import StormLimit
from securecore.sender.buckets import State, Untaken
from securecore.sender.kernel_log import Skips
from securecore.sender.spool import Spool
from tests.support.storm_states import ADMISSION, CRASH, NOW, admit, state_of, untaken


def test_the_state_lasts_from_one_handler_to_the_next(spool: Spool) -> None:
    """Three are taken, and then none until there is room again."""
    assert [admit(spool) for _ in range(5)] == [None] * 3 + ["program"] * 2
    assert admit(spool, now=NOW + 60) is None


def test_programs_are_told_apart_by_their_files(spool: Spool) -> None:
    """Another inode, or the same one on another device, is another program; another name is not."""
    for _ in range(3):
        admit(spool)

    assert admit(spool, CRASH._replace(executable="/another/name", comm="other")) == "program"
    assert admit(spool, CRASH._replace(executable_inode=2)) is None
    assert admit(spool, CRASH._replace(executable_device=9)) is None
    assert admit(spool, CRASH._replace(executable_device=None)) is None


def test_nobody_can_use_up_the_limit_of_another_users_program(spool: Spool) -> None:
    """Who crashes a shell or an interpreter again and again keeps no core of a service that runs the same file from being taken."""
    assert [admit(spool, CRASH._replace(uid=1000)) for _ in range(4)] == [None] * 3 + ["program"]
    assert admit(spool) is None


def test_the_file_is_its_owners_only_and_nothing_is_left_beside_it(spool: Spool, tmp_path: Path) -> None:
    """0600, whole, without the name that it had while it was written."""
    admit(spool)

    assert state_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert State.parse(state_of(tmp_path).read_bytes()).users.keys() == {"33"}
    assert sorted(os.listdir(tmp_path / "spool")) == ["FORMAT", "dumps", "storms.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 4096, b"x" * 100_000], ids=["empty", "torn", "zeroes", "long"])
def test_a_damaged_state_is_moved_aside_and_said(content: bytes, spool: Spool, tmp_path: Path) -> None:
    """Once, and whoever asks again begins with nothing counted; the last damaged one is kept for whoever wants to look at it."""
    damaged = tmp_path / "spool" / "storms.json.damaged"
    damaged.write_bytes(b"an earlier one")
    state_of(tmp_path).write_bytes(content)
    with pytest.raises(BrokenError, match=r"storms\.json is damaged, and is storms\.json\.damaged now"):
        admit(spool)

    assert damaged.read_bytes() == content
    assert [admit(spool) for _ in range(4)] == [None] * 3 + ["program"]


def test_a_state_cut_at_every_offset_is_damaged_or_whole(spool: Spool, tmp_path: Path) -> None:
    """No beginning of one is taken for another state; the spaces behind it are nothing but room."""
    admit(spool)
    data = state_of(tmp_path).read_bytes().rstrip()
    state_of(tmp_path).write_bytes(data)
    assert admit(spool) is None
    data = state_of(tmp_path).read_bytes().rstrip()
    for cut in range(len(data)):
        state_of(tmp_path).write_bytes(data[:cut])
        with pytest.raises(BrokenError):
            admit(spool)
        assert not state_of(tmp_path).exists()


def test_a_disk_that_cannot_read_costs_no_count(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read error is no reason to forget what was counted: the state stays as it is, and is there again when the disk is."""
    for _ in range(5):
        admit(spool)
    before = state_of(tmp_path).read_bytes()

    def fail(fd: int, length: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "read", fail)
        for step in (lambda: admit(spool), lambda: storms.count_declined(spool.fd), lambda: storms.find_last_record(spool.fd, "b")):
            with pytest.raises(StorageError, match="input/output error"):
                step()

    assert sorted(os.listdir(tmp_path / "spool")) == ["FORMAT", "dumps", "storms.json"]
    assert state_of(tmp_path).read_bytes() == before
    assert admit(spool) == "program"


def damage_of(spool: Spool) -> None:
    """Have a crash meet what stands in the state's place, and be judged all the same."""
    with pytest.raises(BrokenError):
        admit(spool)
    assert admit(spool) is None


def test_nothing_that_stands_in_its_place_is_followed(spool: Spool, tmp_path: Path) -> None:
    """A symbolic link, a hard link or a FIFO at either name is moved aside or replaced; what it leads to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    state, aside = state_of(tmp_path), tmp_path / "spool" / ".storms.json.new"
    state.symlink_to(precious)
    aside.symlink_to(precious)
    damage_of(spool)
    state.unlink()
    os.link(precious, state)
    os.link(precious, aside)
    damage_of(spool)
    state.unlink()
    os.mkfifo(state)
    os.mkfifo(aside)
    damage_of(spool)

    assert precious.read_bytes() == b"precious"
    assert state.is_file()
    assert not state.is_symlink()


def test_a_directory_in_its_place_is_refused_in_words(spool: Spool, tmp_path: Path) -> None:
    """The caller takes the crash then."""
    state_of(tmp_path).mkdir()
    with pytest.raises(StorageError, match=r"cannot keep storms\.json"):
        admit(spool)


def test_what_stands_where_a_damaged_state_goes_is_replaced_or_refused(spool: Spool, tmp_path: Path) -> None:
    """A link itself, never what it leads to; with a directory there the damaged state stays, and the crash is taken."""
    precious, damaged = tmp_path / "precious", tmp_path / "spool" / "storms.json.damaged"
    precious.write_bytes(b"precious")
    damaged.symlink_to(precious)
    state_of(tmp_path).write_bytes(b"{")
    damage_of(spool)
    assert (precious.read_bytes(), damaged.is_symlink(), damaged.read_bytes()) == (b"precious", False, b"{")

    damaged.unlink()
    damaged.mkdir()
    state_of(tmp_path).write_bytes(b"{")
    with pytest.raises(StorageError, match=r"cannot keep storms\.json: is a directory"):
        admit(spool)


def test_a_disk_that_refuses_leaves_the_state_as_it_was(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the crash would have counted is counted by a later one."""
    for _ in range(5):
        admit(spool)
    before = state_of(tmp_path).read_bytes()

    def refuse(fd: int, data: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        with pytest.raises(StorageError):
            admit(spool, now=NOW + 60)
    assert state_of(tmp_path).read_bytes() == before
    assert storms.admit(spool.fd, ADMISSION, CRASH, lambda: NOW + 60).untaken.suppressed == 2


def test_how_the_limits_stand_is_told_without_a_change(spool: Spool, tmp_path: Path) -> None:
    """All that is counted for whichever dump, and who has no place left at that moment."""
    assert storms.look(spool.fd, ADMISSION, lambda: NOW) == storms.Standing(Untaken(), (), None)
    for _ in range(5):
        admit(spool)
    for number in range(8):
        admit(spool, CRASH._replace(uid=34, executable_inode=number))
        admit(spool, CRASH._replace(uid=34, executable_inode=number))
    storms.count_declined(spool.fd, lambda: NOW + 5)
    storms.lose(spool.fd, ADMISSION, CRASH._replace(uid=99), Untaken(), lambda: NOW + 6)
    before = state_of(tmp_path).read_bytes()
    found = storms.look(spool.fd, ADMISSION, lambda: NOW)

    assert found.waiting == Untaken(2, 7, declined=1, lost=1, untaken_since=int(NOW))
    assert found.used_up == ("program 8:1:33", "user 34")
    assert storms.look(spool.fd, ADMISSION, lambda: NOW + 3600).used_up == ()
    assert storms.look(spool.fd, ADMISSION._replace(host=StormLimit(1, 60)), lambda: NOW).used_up[-1] == "host"
    assert state_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.write_bytes(b"{"), "is damaged: the next crash begins anew"),
        (lambda state: state.mkdir(), "is no file: no crash is limited"),
        (lambda state: state.symlink_to("/dev/null"), "is no file: no crash is limited"),
        (lambda state: state.with_name("storms.json.damaged").touch(), r"storms\.json\.damaged lies there"),
    ],
)
def test_a_state_that_is_no_use_is_told_and_left(
    spoil: Callable[[Path], object], words: str, spool: Spool, tmp_path: Path
) -> None:
    """The next handler moves aside what is damaged, and not whoever looks."""
    spoil(state_of(tmp_path))
    before = sorted(os.listdir(tmp_path / "spool"))
    problem = storms.look(spool.fd, ADMISSION).problem

    assert re.search(words, problem or "")
    assert sorted(os.listdir(tmp_path / "spool")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have a file of another user")
def test_a_state_that_is_another_users_is_told(spool: Spool, tmp_path: Path) -> None:
    """As one that root has copied back: the handler could not read it."""
    admit(spool)
    os.chown(state_of(tmp_path), 4711, 4711)

    assert storms.look(spool.fd, ADMISSION).problem == "storms.json belongs to uid 4711, not 0: no crash is limited or counted"


def test_who_keeps_the_lock_keeps_nobody(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that was stopped while it held the state costs the next ones a bounded wait."""
    monkeypatch.setattr(storm_limits, "STORM_LOCK_S", 0.05)
    other = os.open(tmp_path / "spool", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(StorageError, match="locked by another process"):
        admit(spool)
    os.close(other)

    assert admit(spool) is None


def test_a_flush_and_a_writer_of_entries_are_not_in_the_way(spool: Spool, tmp_path: Path) -> None:
    """They hold other locks, for as long as they like."""
    dumps = os.open(tmp_path / "spool" / "dumps", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(dumps, fcntl.LOCK_EX)
    try:
        assert admit(spool) is None
    finally:
        os.close(dumps)


def test_a_dump_that_is_lost_takes_no_count_with_it_and_no_place(spool: Spool) -> None:
    """The next one after the pause tells what it would have told, and of it."""
    for _ in range(7):
        admit(spool)
    found = storms.admit(spool.fd, ADMISSION, CRASH, lambda: NOW + 60).untaken
    storms.lose(spool.fd, ADMISSION, CRASH, found, lambda: NOW + 61)

    assert found.suppressed == 4
    assert storms.admit(spool.fd, ADMISSION, CRASH, lambda: NOW + 60 + storm_limits.LOST_PAUSE_S).untaken == found._replace(lost=1)


def test_declined_crashes_are_counted_for_whichever_dump_comes_next(spool: Spool) -> None:
    """With the time of the first."""
    seconds = iter((NOW, NOW + 1, NOW + 2))
    for _ in range(3):
        storms.count_declined(spool.fd, lambda: next(seconds))

    assert untaken(spool) == Untaken(declined=3, untaken_since=int(NOW))
    assert untaken(spool) == Untaken()


def test_skipped_crashes_are_counted_once(spool: Spool) -> None:
    """Each handler reads the whole log again; what was there at the first look belongs to nobody's dumps."""
    storms.count_skips(spool.fd, "boot-1", Skips(100, ((90, 7),)), lambda: NOW)
    storms.count_skips(spool.fd, "boot-1", Skips(120, ((90, 7), (110, 1), (115, 20))), lambda: NOW)
    storms.count_skips(spool.fd, "boot-1", Skips(120, ((90, 7), (110, 1), (115, 20))), lambda: NOW)
    first = untaken(spool)
    # A handler that read before another one, and counts after it.
    storms.count_skips(spool.fd, "boot-1", Skips(118, ((110, 1), (115, 20))), lambda: NOW)
    storms.count_skips(spool.fd, "boot-1", Skips(121, ((115, 20), (121, 1))), lambda: NOW)

    assert (first.skipped_by_kernel, first.untaken_since) == (21, int(NOW))
    assert untaken(spool).skipped_by_kernel == 1


def test_how_far_the_log_was_read_is_known_and_when(spool: Spool) -> None:
    """By boot; a clock that was set back puts no look off."""
    assert storms.find_last_record(spool.fd, "boot-1", lambda: NOW) == (-1, False)
    storms.count_skips(spool.fd, "boot-1", Skips(100, ()), lambda: NOW)

    assert storms.find_last_record(spool.fd, "boot-1", lambda: NOW + limits.KERNEL_LOG_EVERY_S - 1) == (100, True)
    assert storms.find_last_record(spool.fd, "boot-1", lambda: NOW + limits.KERNEL_LOG_EVERY_S) == (100, False)
    assert storms.find_last_record(spool.fd, "boot-1", lambda: NOW - 1) == (100, False)
    assert storms.find_last_record(spool.fd, "boot-2", lambda: NOW) == (-1, False)


def test_the_log_of_another_boot_counts_from_its_beginning(spool: Spool) -> None:
    """Its numbers begin anew; all of it was written since this host has handlers."""
    storms.count_skips(spool.fd, "boot-1", Skips(100, ()), lambda: NOW)
    storms.count_skips(spool.fd, "boot-2", Skips(50, ((3, 4), (50, 1))), lambda: NOW)
    storms.count_skips(spool.fd, "boot-2", Skips(50, ((3, 4), (50, 1))), lambda: NOW)

    assert untaken(spool).skipped_by_kernel == 5


# Many at once, each in a process of its own, as handlers are; killed ones leave nothing half done.
_CRASHES = """
import json, os, sys
from securecore.report import CrashReport
from securecore.sender import storms
from securecore.sender.admission import Admission, StormLimit

spool = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
admission = Admission(program=StormLimit(3, 60), user=StormLimit(20, 60))
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    crash = CrashReport(uid=33, executable_device=8, executable_inode=number % 5)
    verdict = storms.admit(spool, admission, crash, lambda: 1795000000.0)
    print(json.dumps([verdict.limit, sum(verdict.untaken[:-1])]), flush=True)
"""


@pytest.mark.slow
def test_counts_add_up_over_many_handlers_at_once(spool: Spool, tmp_path: Path) -> None:
    """Eight processes, 25 crashes each: no crash is taken beyond the limits, and taken, counted and left are all of them."""
    command = [sys.executable, "-c", _CRASHES, str(tmp_path / "spool")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [json.loads(line) for process in processes for line in process.communicate()[0].splitlines()]
    taken = [counted for limit, counted in lines if limit is None]
    state = State.parse(state_of(tmp_path).read_bytes())
    left = sum(bucket.suppressed for kind in (state.programs, state.users) for bucket in kind.values())

    assert len(lines) == 200
    assert len(taken) == 15
    assert len(taken) + sum(taken) + left == 200


@pytest.mark.slow
def test_a_handler_that_is_killed_leaves_a_whole_state(spool: Spool, tmp_path: Path) -> None:
    """At whatever moment: the state is that of before or of after, and the lock is free."""
    for lines in range(1, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", _CRASHES, str(tmp_path / "spool")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        for _ in range(lines + 1):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        State.parse(state_of(tmp_path).read_bytes())

    assert admit(spool, CRASH._replace(executable_inode=77, uid=5)) is None

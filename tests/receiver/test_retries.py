"""A disk that stays full: a dump is read from end to end less and less often, and at once by who starts anew."""

import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from securecore import limits
from securecore.audit import log as audit_log
from securecore.dump import directory
from securecore.errors import BusyError, StorageError
from securecore.receiver.retries import Retries
from securecore.store.writer import IncomingDump
from tests.support.disk import refuse
from tests.support.dumps import WEB, Keys, dump_id, log_of
from tests.support.old_dumps import ID, SENT, Life, published

TRIES = (1, 2, 4, 8, 16, 24, 32)
"""The looks that read the dump, by their numbers."""


def test_looks_are_let_pass_by_twos_powers_up_to_a_bound() -> None:
    """After the first failure the next look tries again, and never does one come more than CARETAKER_MOST_LOOKS later."""
    retries, tried = Retries[str](), []
    for look in range(1, 34):
        retries.begin_look({"dump"})
        if retries.is_due("dump"):
            tried.append(look)
            with pytest.raises(StorageError), retries.trying("dump"):
                raise StorageError("no space left on device")
    assert tuple(tried) == TRIES
    assert tried[-1] - tried[-2] == limits.CARETAKER_MOST_LOOKS


def test_one_that_was_done_or_is_gone_begins_anew() -> None:
    """A success forgets the failures before it, and so does a look that does not find the dump any more; others keep theirs."""
    retries = Retries[str]()
    for _ in range(3):
        for key in ("done", "gone", "other"):
            with pytest.raises(StorageError), retries.trying(key):
                raise StorageError("no space left on device")
    with retries.trying("done"):
        pass
    retries.begin_look({"done", "other"})
    assert [retries.is_due(key) for key in ("done", "gone", "other")] == [True, True, False]


def test_a_sender_that_comes_back_is_no_failure() -> None:
    """It ends the try, and the next look is as due as this one was."""
    retries = Retries[str]()
    with pytest.raises(BusyError), retries.trying("dump"):
        raise BusyError("its sender is here")
    assert retries.is_due("dump")


def finish(life: Life, keys: Keys) -> None:
    """Bring the dump to its manifest, and no further."""
    dump = IncomingDump.resume(life.store, WEB, ID)
    dump.finish(keys.host.sign(keys.host.manifest(ID, life.store.store_id, SENT)))
    dump.close()


def reading_looks(life: Life, looks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Have the caretaker look so often, and return the numbers of the looks that read a core."""
    reads, look, real = set[int](), 0, os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("core.zst"):
            reads.add(look)
        return real(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        while look < looks:
            look += 1
            life.caretaker.look()
    return tuple(sorted(reads))


@pytest.mark.parametrize("prepare", [finish, lambda life, keys: None], ids=["finished", "given up"])
def test_a_full_disk_has_a_dump_read_seven_times_at_32_looks(
    prepare: Callable[[Life, Keys], None], life: Life, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each of them, all of it. When there is room again, the next try is the last; a restart does not wait for it."""
    prepare(life, keys)
    log_of(life.logs, WEB)  # Opened while there is room.
    with monkeypatch.context() as patch:
        patch.setattr(audit_log.directory if prepare is finish else directory, "write_all", refuse)
        assert reading_looks(life, 32, monkeypatch) == TRIES
    assert reading_looks(life, 7, monkeypatch) == ()
    assert reading_looks(life, 1, monkeypatch) == (1,)
    assert published(life)[0] == SENT
    life.end()


def test_a_restart_tries_at_once(life: Life, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the failures is kept."""
    finish(life, keys)
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_all", refuse)
        reading_looks(life, 20, monkeypatch)
    life.end()
    young = Life(life.path, keys, datetime.now(UTC))
    young.caretaker.look()
    assert published(young)[0] == SENT
    young.end()


def test_a_dump_that_waits_keeps_no_other(life: Life, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often one is tried says nothing of another one."""
    log_of(life.logs, WEB)  # Opened while there is room.
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_all", refuse)
        reading_looks(life, 9, monkeypatch)
    other = dump_id(2)
    IncomingDump.begin(life.store, WEB, other, b"{}").close()
    os.utime(life.path / f"incoming/{WEB}/{other}/core.zst", (1, 1))
    life.caretaker.look()
    assert life.store.incoming() == [(WEB, ID)]
    life.end()

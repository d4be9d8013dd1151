"""Many who append to one log at once: those that come while a write is on its way to the disk share the next one."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.audit.appends import Append
from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.entry import CERTIFICATE, parse_entry
from securecore.audit.introductions import Introduction
from securecore.audit.log import HostLog
from securecore.audit.log_files import scan_lines
from securecore.audit.proof import verify_receipt
from securecore.errors import Bug, StorageError
from tests.support.certificates import Hierarchy
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id, make_log_signer, make_signer, opened
from tests.support.entries import received

ORIGIN = origin_of(LOG_NAME, WEB)


class Gate:
    """Holds the first write to the disk back until it is opened, and counts all of them."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.calls: list[str] = []
        self.fails_at = 0
        """Which call of fdatasync the disk refuses; the first is 1."""
        self._fsync, self._fdatasync = os.fsync, os.fdatasync

    def fsync(self, fd: int) -> None:
        """Stand in for os.fsync."""
        self.calls.append("fsync")
        self._fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Stand in for os.fdatasync."""
        self.calls.append("fdatasync")
        self.reached.set()
        assert self.opened.wait(60)
        if self.calls.count("fdatasync") == self.fails_at:
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(fd)


class Crowd:
    """Threads that append to one log, the first of them alone in its write while the others come."""

    def __init__(self, log: HostLog, gate: Gate) -> None:
        self.log = log
        self._gate = gate
        self.receipts: dict[int, list[bytes]] = {}
        self.errors: dict[int, BaseException] = {}
        self._came = threading.Semaphore(0)
        self._add, log._waiting.add = log._waiting.add, self._note  # type: ignore[method-assign]

    def append(self, *works: Callable[[], list[bytes]]) -> None:
        """Do these, each on a thread; they come in this order."""
        threads = []
        for number, work in enumerate(works):
            threads.append(threading.Thread(target=self._do, args=(number, work)))
            threads[-1].start()
            assert self._came.acquire(timeout=60)
            assert self._gate.reached.wait(60)
        self._gate.opened.set()
        for thread in threads:
            thread.join()

    def _note(self, append: Append) -> None:
        self._add(append)
        self._came.release()

    def _do(self, number: int, work: Callable[[], list[bytes]]) -> None:
        try:
            self.receipts[number] = work()
        except (Bug, StorageError, MemoryError, RuntimeError) as error:
            self.errors[number] = error


@pytest.fixture
def signer() -> LogSigner:
    """The receiver's log key."""
    return make_log_signer()


@pytest.fixture
def gate() -> Gate:
    """A gate before the disk."""
    return Gate()


@pytest.fixture
def crowd(tmp_path: Path, signer: LogSigner, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    """Threads before a new log."""
    (tmp_path / "log").mkdir(mode=0o700)
    with opened(tmp_path / "log") as fd:
        log = HostLog.open(fd, ORIGIN, signer)
    monkeypatch.setattr(os, "fsync", gate.fsync)
    monkeypatch.setattr(os, "fdatasync", gate.fdatasync)
    yield Crowd(log, gate)
    log.close()


def appending(crowd: Crowd, entry: bytes) -> Callable[[], list[bytes]]:
    """Return what appends an entry."""
    return lambda: crowd.log.append_all([entry])


def introducing(crowd: Crowd, number: int, certificate: bytes) -> Callable[[], list[bytes]]:
    """Return what appends the entry of a dump, under a certificate."""
    return lambda: crowd.log.append_all([received(number)], Introduction(WEB, dump_id(number), certificate, NOW))


def index_of(receipt: bytes, signer: LogSigner) -> int:
    """Return the index of the entry that a receipt proves, under a checkpoint of which that is the last."""
    found = verify_receipt(receipt, ORIGIN, signer.public_key)
    assert found.checkpoint.size == found.leaf_index + 1
    return found.leaf_index


def test_those_that_come_meanwhile_share_the_next_writes(crowd: Crowd, gate: Gate, signer: LogSigner) -> None:
    """Of nine dumps that end at once the first is alone, the other eight are one write; each has its own receipt."""
    crowd.append(*(appending(crowd, received(number)) for number in range(9)))
    assert crowd.errors == {}
    assert [index_of(crowd.receipts[number][0], signer) for number in range(9)] == list(range(9))
    assert gate.calls == ["fdatasync", "fsync", "fsync"] * 2


def test_what_cannot_follow_is_refused_alone(crowd: Crowd, gate: Gate, signer: LogSigner) -> None:
    """An entry that contradicts one before it in the same write is a bug of its own thread, and keeps nothing from the others."""
    works = [received(0), received(1), received(1), received(2)]
    crowd.append(*(appending(crowd, entry) for entry in works))
    assert {number: type(error) for number, error in crowd.errors.items()} == {2: Bug}
    assert [index_of(crowd.receipts[number][0], signer) for number in (0, 1, 3)] == [0, 1, 2]
    assert gate.calls == ["fdatasync", "fsync", "fsync"] * 2


def test_a_disk_that_refuses_refuses_all_of_them(crowd: Crowd, gate: Gate) -> None:
    """Who shares a write shares its failure: none is given a receipt, none waits for ever, and the log is not used any more."""
    gate.fails_at = 2
    crowd.append(*(appending(crowd, received(number)) for number in range(5)))
    assert list(crowd.receipts) == [0]
    assert {number: type(error) for number, error in crowd.errors.items()} == dict.fromkeys(range(1, 5), StorageError)
    assert crowd.log.has_failed


def test_a_certificate_that_several_introduce_has_one_entry(
    crowd: Crowd, gate: Gate, hierarchy: Hierarchy, signer: LogSigner
) -> None:
    """Each of the dumps comes under a certificate that the log does not know: it does from the first of them on."""
    certificate = make_signer(hierarchy).made.certificate.public_bytes(Encoding.DER)

    crowd.append(appending(crowd, received(0)), *(introducing(crowd, number, certificate) for number in range(1, 5)))
    assert crowd.errors == {}
    assert [index_of(crowd.receipts[number][0], signer) for number in range(5)] == [0, 2, 3, 4, 5]
    events = [parse_entry(line.data)["event"] for line in scan_lines(crowd.log._entries)]
    assert events.count(CERTIFICATE) == 1


def failing_once(crowd: Crowd, entry: bytes, error: BaseException) -> Callable[[Append, Sequence[Append]], None]:
    """Return what prepares an append, and once fails at the one of *entry* when another stands before it."""
    prepare, errors = crowd.log._prepare, [error]

    def fail(append: Append, before: Sequence[Append]) -> None:
        if append.entries == [entry] and before and errors:
            raise errors.pop()
        prepare(append, before)

    return fail


def test_want_of_memory_is_the_matter_of_whose_append_it_is(
    crowd: Crowd, gate: Gate, signer: LogSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no memory to look at one append, its own thread is told, whichever of them came to write for all."""
    monkeypatch.setattr(crowd.log, "_prepare", failing_once(crowd, received(2), MemoryError()))
    crowd.append(*(appending(crowd, received(number)) for number in range(4)))
    assert {number: type(error) for number, error in crowd.errors.items()} == {2: MemoryError}
    assert [index_of(crowd.receipts[number][0], signer) for number in (0, 1, 3)] == [0, 1, 2]


def test_an_error_that_nobody_foresaw_leaves_nobody_waiting(
    crowd: Crowd, gate: Gate, signer: LogSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes to write for all and fails at another one's append fails alone: the others keep their places in the queue."""
    monkeypatch.setattr(crowd.log, "_prepare", failing_once(crowd, received(3), RuntimeError()))
    crowd.append(*(appending(crowd, received(number)) for number in range(4)))
    assert [type(error) for error in crowd.errors.values()] == [RuntimeError]
    assert sorted(index_of(found[0], signer) for found in crowd.receipts.values()) == [0, 1, 2]

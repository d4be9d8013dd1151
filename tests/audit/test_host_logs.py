"""The logs of all hosts: opened once each, served to many at once, and a bounded number of them open."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.log import HostLogs
from securecore.audit.proof import verify_receipt
from securecore.errors import SecurecoreError, StorageError
from securecore.names import HostName
from tests.support.dumps import LOG_NAME, WEB, log_of
from tests.support.entries import ENTRIES, received


@pytest.fixture
def logs(tmp_path: Path, signer: LogSigner) -> Iterator[HostLogs]:
    """The logs of several hosts under tmp_path."""

    def open_directory(host: HostName) -> int:
        (tmp_path / str(host)).mkdir(exist_ok=True)
        return os.open(tmp_path / str(host), os.O_RDONLY | os.O_DIRECTORY)

    made = HostLogs(signer, open_directory)
    yield made
    made.close()


def test_logs_are_opened_once_each(logs: HostLogs, signer: LogSigner) -> None:
    """A host's log is opened when first asked for, is that host's, and is handed out again."""
    other = HostName("db-2.hosts.test.example")
    assert log_of(logs, WEB) is log_of(logs, WEB)
    assert log_of(logs, other).origin == origin_of(LOG_NAME, other)
    verify_receipt(log_of(logs, other).append(ENTRIES[0]), origin_of(LOG_NAME, other), signer.public_key)
    assert log_of(logs, WEB).size == 0


def test_a_failed_log_is_opened_again(logs: HostLogs) -> None:
    """After a disk error the next asker gets a log that works."""
    first = log_of(logs, WEB)
    first.append(ENTRIES[0])
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, first._entries)
    os.close(full)
    with pytest.raises(StorageError):
        first.append(ENTRIES[1])
    again = log_of(logs, WEB)
    assert again is not first
    again.append(ENTRIES[1])
    assert again.size == 2


def test_one_hosts_log_serves_many_threads_at_once(logs: HostLogs) -> None:
    """Sixteen dumps of one host at a time: each gets its receipt, and the log is opened once."""
    entries = [received(number) for number in range(100, 164)]
    receipts: list[bytes] = []
    problems: list[Exception] = []

    def commit(own: list[bytes]) -> None:
        try:
            for entry in own:
                with logs.using(WEB) as log:
                    receipts.append(log.append(entry))
        except SecurecoreError as error:
            problems.append(error)

    first = log_of(logs, WEB)
    threads = [threading.Thread(target=commit, args=(entries[start::16],)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert len(receipts) == len(entries)
    assert log_of(logs, WEB) is first
    assert first.size == len(entries)


def test_logs_that_nobody_uses_are_closed_beyond_a_number(tmp_path: Path, signer: LogSigner) -> None:
    """A fleet of any size needs a bounded number of descriptors, and a log in use is never taken away."""
    hosts = [HostName(f"h{number}.hosts.test.example") for number in range(20)]

    def open_directory(host: HostName) -> int:
        (tmp_path / str(host)).mkdir(exist_ok=True)
        return os.open(tmp_path / str(host), os.O_RDONLY | os.O_DIRECTORY)

    few = HostLogs(signer, open_directory, keep_open=3)
    before = len(os.listdir("/proc/self/fd"))
    with few.using(hosts[0]) as held:
        for host in hosts[1:]:
            with few.using(host) as log:
                log.append(ENTRIES[0])
        during = len(os.listdir("/proc/self/fd"))
        held.append(ENTRIES[0])
    again = log_of(few, hosts[1])

    assert during - before <= 2 * 4
    assert again.size == 1
    few.close()
    with pytest.raises(StorageError, match="closed"):
        log_of(few, hosts[2])


def test_a_hundred_hosts_in_turn_open_each_log_once(tmp_path: Path, signer: LogSigner) -> None:
    """To open a log is linear in its entries: that a fleet's hosts take turns must not make it the cost of each dump."""
    opened: list[HostName] = []

    def open_directory(host: HostName) -> int:
        opened.append(host)
        (tmp_path / str(host)).mkdir(exist_ok=True)
        return os.open(tmp_path / str(host), os.O_RDONLY | os.O_DIRECTORY)

    hosts = [HostName(f"h{number}.hosts.test.example") for number in range(100)]
    logs = HostLogs(signer, open_directory)
    for host in [*hosts, *hosts]:
        log_of(logs, host)
    logs.close()
    assert opened == hosts

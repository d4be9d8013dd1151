"""What a log keeps of refusals: an entry an hour for each code, which counts the others, and not a try for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from securecore.audit.entry import parse_entry
from securecore.audit.log import HostLogs
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.receiver.refusals import NotAdmitted, RefusalNotes
from securecore.store.layout import Store, create_store
from securecore.wire.messages import Refusal
from tests.support.certificates import DOMAIN
from tests.support.dumps import NOW, WEB, dump_id, log_of, logs_of, make_log_signer

DB = HostName(f"db-2.{DOMAIN}")


@dataclass
class Bench:
    """Notes of refusals over real logs, and a clock that the test moves."""

    store: Store
    logs: HostLogs
    now: float = 0.0

    def __post_init__(self) -> None:
        self.notes = RefusalNotes(self.store, self.logs, self._moment, lambda: self.now)

    def _moment(self) -> datetime:
        return NOW

    def note(self, host: HostName = WEB, code: Refusal = Refusal.QUOTA) -> None:
        """Have a host refused."""
        self.notes.note(host, dump_id(1), NotAdmitted(code, "no room"))

    def others(self, host: HostName = WEB) -> list[tuple[object, object]]:
        """The codes of a host's entries, and how many refusals each counts beside its own."""
        path = Path(self.store.path) / "audit" / str(host) / "entries.jsonl"
        entries = [parse_entry(line) for line in path.read_bytes().splitlines()]
        return [(entry["code"], entry["others"]) for entry in entries]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An empty store with its logs."""
    with create_store(str(tmp_path / "noted")) as store:
        logs = logs_of(store, make_log_signer())
        yield Bench(store, logs)
        logs.close()


def test_a_log_gets_one_entry_an_hour_for_a_code_and_counts_the_others(bench: Bench) -> None:
    """A host that asks again and again cannot fill its log; each host and each code has its own entry."""
    for at in (0.0, 1.0, 3599.0, 3600.0, 7199.0, 7200.0):
        bench.now = at
        bench.note()
    bench.note(code=Refusal.STORAGE)
    bench.note(DB)
    assert bench.others() == [(205, 0), (205, 2), (205, 1), (202, 0)]
    assert bench.others(DB) == [(205, 0)]


def test_a_log_that_takes_no_entry_is_not_tried_by_each_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is tried once an hour; what found no room is counted by the first entry that does."""
    bench.note()
    bench.note()
    tries = []

    def refuse_once(entry: bytes) -> bytes:
        tries.append(entry)
        raise StorageError("cannot write: no space left on device")

    monkeypatch.setattr(log_of(bench.logs, WEB), "append", refuse_once)
    bench.now = 3600.0
    bench.note()
    bench.note()
    monkeypatch.undo()
    bench.now = 7200.0
    bench.note()
    assert len(tries) == 1
    assert "refusal not audited" in caplog.text
    assert bench.others() == [(205, 0), (205, 3)]

"""What a host's log says of its dumps as they come: under which certificate, and which of them go on."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.audit.log import HostLog, HostLogs
from securecore.certs.chain import fingerprint, load_pem_certificates
from securecore.dump.compression import Compressor
from securecore.errors import StorageError
from securecore.merkle import leaf_hash, root_of
from securecore.names import HostName
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.server import Receiver
from securecore.store.layout import Store, create_store
from securecore.store.recovery import open_incoming
from securecore.wire.messages import Accept
from tests.support.certificates import DOMAIN, Fleet
from tests.support.dumps import NOW, REPORT, WEB, Keys, Signer, core_bytes, dump_id, frames_of, logs_of
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, wait_until_idle

CORE = core_bytes(2, 40)
NOISE = random.Random(2).randbytes(limits.PIECE_BYTES)
DB = HostName(f"db-2.{DOMAIN}")


@dataclass
class Bench:
    """Arrivals over real logs, and a clock that the test moves."""

    store: Store
    logs: HostLogs
    signer: Signer
    now: float = 0.0

    def __post_init__(self) -> None:
        self.arrivals = Arrivals(self.logs, lambda: NOW, lambda: self.now)

    def come(self, number: int, host: HostName = WEB, *, frames: int = 1) -> None:
        """Have the host open a dump of which so many frames are held."""
        with closing(open_incoming(self.store, host, dump_id(number), REPORT)) as dump:
            for frame in frames_of(CORE)[dump.frames : frames]:
                dump.append(*frame)
            dump.sync()
            self.arrivals.note(dump, self.signer.made.der)

    def said(self, host: HostName = WEB, event: str = "resumed") -> list[dict[str, Any]]:
        """What the log says."""
        path = Path(self.store.path) / "audit" / str(host) / "entries.jsonl"
        return [entry for entry in map(json.loads, path.read_bytes().splitlines()) if entry["event"] == event]


@pytest.fixture
def bench(tmp_path: Path, keys: Keys) -> Iterator[Bench]:
    """An empty store with its logs."""
    with create_store(str(tmp_path / "noted")) as store:
        logs = logs_of(store, keys.log)
        yield Bench(store, logs, keys.host)
        logs.close()


def test_going_on_is_written_with_what_is_held(bench: Bench) -> None:
    """A dump that begins has no such entry; one that goes on says of how many frames, and nothing of where its sender is."""
    bench.come(1, frames=0)
    assert bench.said() == []
    bench.come(2, frames=2)
    (entry,) = bench.said()
    assert entry == {
        "version": 1,
        "event": "resumed",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(2)),
        "host": str(WEB),
        "frames": 2,
        "others": 0,
    }


def test_a_dump_has_one_entry_an_hour_and_the_others_are_counted(bench: Bench) -> None:
    """Whoever reconnects in a loop fills no log; the next entry of the host says how often it was."""
    for at in (0.0, 1.0, 3599.0, 3600.0, 3601.0):
        bench.now = at
        bench.come(1)
    bench.come(2)
    bench.come(1, DB)
    assert [(entry["dump"], entry["others"]) for entry in bench.said()] == [
        (str(dump_id(1)), 0),
        (str(dump_id(1)), 2),
        (str(dump_id(2)), 1),
    ]
    assert [entry["others"] for entry in bench.said(DB)] == [0]


def test_a_host_has_so_many_entries_an_hour_however_many_dumps_it_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more is remembered of it."""
    monkeypatch.setattr(limits, "MAX_RESUMED_ENTRIES", 3)
    for number in (1, 2, 3, 4, 5):
        bench.come(number)
    bench.now = 3600.0
    bench.come(6)
    assert [entry["others"] for entry in bench.said()] == [0, 0, 0, 2]


def test_a_log_that_takes_no_entry_keeps_the_dump_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to come under a certificate that is not on record; what had no entry has one at the next try."""
    bench.come(1)
    bench.come(1)

    def refuse(*arguments: object) -> list[bytes]:
        raise StorageError("cannot write: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HostLog, "append_all", refuse)
        with pytest.raises(StorageError):
            bench.come(2)
    bench.come(2)
    assert [(entry["dump"], entry["others"]) for entry in bench.said()] == [(str(dump_id(1)), 0), (str(dump_id(2)), 1)]


def test_a_certificate_is_on_record_before_anything_of_its_dump_is_held(
    fleet: Fleet, receiver: Receiver, tmp_path: Path
) -> None:
    """From ACCEPT on: what is given up later came under a certificate that the log names. A dump that goes on says so."""
    dump, commands = new_dump_id(), tmp_path / "store" / "audit" / str(WEB) / "entries.jsonl"
    with closing(Hand(fleet.hosts["web-1"], receiver.addresses)) as hand:
        hand.open(dump)
        (entry,) = map(json.loads, commands.read_bytes().splitlines())
        hand.send(NOISE)
    wait_until_idle(receiver)
    with closing(Hand(fleet.hosts["web-1"], receiver.addresses)) as again:
        assert again.open(dump) == Accept(1, root_of([leaf_hash(bytes(Compressor().frame(NOISE)))]), 0, b"")
    _, resumed = map(json.loads, commands.read_bytes().splitlines())
    assert (entry["event"], entry["dump"], entry["key"]) == ("certificate", str(dump), "first")
    (leaf, *_) = load_pem_certificates((fleet.hosts["web-1"] / "cert.pem").read_bytes())
    assert (entry["certificate"], entry["serial"]) == (fingerprint(leaf), f"{leaf.serial_number:x}")
    assert (resumed["event"], resumed["dump"], resumed["frames"]) == ("resumed", str(dump), 1)

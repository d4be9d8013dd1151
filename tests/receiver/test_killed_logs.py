"""All that a receiver writes into its logs, ended at every one of its calls: what was acknowledged is there, and it verifies."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from securecore.audit.checkpoint import LogSigner
from securecore.certs.identity_directory import load_log_key
from securecore.certs.profiles import HOST
from securecore.names import DumpId, HostName
from securecore.receiver import findings
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.commit import Committer, read_signed
from securecore.receiver.control import take_core
from securecore.receiver.deletion import Order, delete
from securecore.receiver.findings import Finding
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.refusals import NotAdmitted, RefusalNotes
from securecore.store.crls import CrlFile
from securecore.store.layout import Place, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from securecore.wire.messages import Refusal
from tests.support.certificates import DOMAIN, Fleet, Hierarchy, Made, mint
from tests.support.disk import Disk, run_until
from tests.support.dumps import REPORT, Signer, dump_id, frames_of, logs_of
from tests.support.kill_points import IS_LONG
from tests.support.stores import DB, WEB, Commands

pytestmark = pytest.mark.slow

CORE: Final = b"a core of one frame"
FIRST, SECOND, THIRD, OTHER = map(dump_id, range(1, 5))
KILLED, TORN, POWER_CUT = "killed", "killed within a write", "without power"
_LOGS: Final = re.compile(r" (audit|crls)\b")
WIDE: Final = "receiver"
"""Where the receiver-wide log stands among the hosts' logs."""


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


class Life:
    """One life of a receiver on a store; each act returns when somebody is told that it is done."""

    def __init__(self, path: Path, fleet: Fleet, renewed: bytes) -> None:
        """*renewed* is another certificate (DER) of web-1's."""
        key, self._statement = load_log_key(fleet.receiver)
        self._root = (fleet.receiver / "ca.pem").read_bytes()
        self.store = open_store(str(path))
        signer = LogSigner(f"collector.{DOMAIN}/securecore", key)
        self.logs = logs_of(self.store, signer)
        self.keeper = LogKeeper(self.store, signer, now)
        self.keeper.follow(self.logs)
        self.crl = CrlFile.of((fleet.receiver / "crl.pem").read_bytes())
        self._committer = Committer(self.store, self.logs, now, lambda certificate: self.crl)
        self._arrivals = Arrivals(self.logs, now)
        self._refusals = RefusalNotes(self.store, self.logs, now)
        self._signers = {host: signer_of(fleet.hosts[short], host) for host, short in ((WEB, "web-1"), (DB, "db-2"))}
        self._incoming: list[IncomingDump] = []
        self._renewed = renewed

    def start(self) -> None:
        """Do what a start does."""
        self.keeper.begin()
        assert [error for _, error in self._committer.roll_forward() if error is not None] == []
        self.store.put_log_key(self._statement, self._root)

    def arrive(self, host: str, dump: DumpId, certificate: bytes | None = None) -> IncomingDump:
        """Take all frames of a dump that are not here yet; the sender is told that they are durable."""
        incoming = open_incoming(self.store, HostName(host), dump, REPORT)
        self._incoming.append(incoming)
        self._arrivals.note(incoming, certificate or self._signers[host].made.der)
        for frame in frames_of(CORE)[incoming.frames :]:
            incoming.append(*frame)
        incoming.sync()
        return incoming

    def receive(self, host: str, dump: DumpId) -> None:
        """Take a dump to its receipt."""
        try:
            incoming = self.arrive(host, dump)
        except AlreadyStored:
            return
        signer = self._signers[host]
        token = signer.sign(signer.manifest(dump, self.store.store_id, CORE))
        self._committer.finish(incoming, read_signed(token), REPORT, signer.made.der, self.crl)

    def receive_by_another_list(self) -> None:
        """Take a dump whose certificate was judged by revocation lists that the store has not met."""
        self.crl = CrlFile.of(self.crl.pem + b"\n")
        self.receive(WEB, SECOND)

    def arrive_renewed(self) -> None:
        """Take frames under another certificate of a host, with another key; the second time the dump goes on."""
        self.arrive(WEB, THIRD, self._renewed)

    def extract_and_look(self) -> None:
        """Hand a core out, and say it in the receiver-wide log with all else that has changed, as is done each minute."""
        self.extract()
        self.keeper.look()

    def extract(self) -> None:
        """Hand a core out."""
        os.close(take_core(self.store, self.logs, HostName(WEB), FIRST, 0, now()))

    def refuse(self) -> None:
        """Refuse a host."""
        self._refusals.note(HostName(WEB), None, NotAdmitted(Refusal.QUOTA, "over its quota"))

    def record(self) -> None:
        """Write down what somebody has verified."""
        findings.record(self.store, self.logs, HostName(WEB), [Finding(FIRST, None)], 0, "root", now())

    def delete(self) -> None:
        """Delete a dump; whoever asks again may find that it is done."""
        if self.store.find_place(HostName(WEB), SECOND) is Place.HOSTS:
            delete(self.store, self.logs, HostName(WEB), SECOND, Order(0, "root", None), now())

    def end(self) -> None:
        """Give back what the operating system takes from a process that ends."""
        for incoming in self._incoming:
            incoming.close()
        self.keeper._drop()
        self.logs.close()
        self.store.close()


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def signer_of(identity: Path, host: str) -> Signer:
    """Return what a host of the fleet signs with."""
    leaf, *above = x509.load_pem_x509_certificates((identity / "cert.pem").read_bytes())
    return Signer(Made(leaf, load_pem_private_key((identity / "key.pem").read_bytes(), None), tuple(above)), HostName(host))


ACTS: Final[dict[str, Callable[[Life], object]]] = {
    "a first start": Life.start,
    "a host's first dump": lambda life: life.receive(WEB, FIRST),
    "another host's": lambda life: life.receive(DB, OTHER),
    "an extraction": Life.extract,
    "a refusal": Life.refuse,
    "a verification": Life.record,
    "a start behind a kill": Life.start,
    "a renewed certificate": Life.arrive_renewed,
    "a dump that goes on": Life.arrive_renewed,
    "a dump under other revocation lists": Life.receive_by_another_list,
    "a deletion": Life.delete,
    "an extraction and the minute's look": Life.extract_and_look,
}
"""What a receiver does, one behind the other, each in a life of its own that is killed at its end."""


class Logs(NamedTuple):
    """All logs of a store: their lines, by host."""

    lines: dict[str, list[bytes]]

    @classmethod
    def of(cls, store: Path) -> "Logs":
        """Return those in a store; what a crash has left of a line is none."""
        return cls({path.parent.name: path.read_bytes().split(b"\n")[:-1] for path in store.glob("audit/*/entries.jsonl")})

    def since(self, before: "Logs") -> list[tuple[str, str, str]]:
        """Return host, event and dump of the hosts' entries that were added; fails when one that was there is not."""
        added = []
        for host, lines in before.lines.items():
            assert self.lines[host][: len(lines)] == lines, f"{host}: what was acknowledged is not there"
        for host, lines in self.lines.items():
            if host != WIDE:
                new = map(json.loads, lines[len(before.lines.get(host, [])) :])
                added += [(host, entry["event"], entry["dump"]) for entry in new]
        return added


class Scene(NamedTuple):
    """Who lives on the stores of a test."""

    fleet: Fleet
    renewed: bytes

    @contextmanager
    def living(self, store: Path, act: Callable[[Life], object]) -> Iterator[Life]:
        """Give a life that has started, unless that is what it is about to do."""
        life = Life(store, self.fleet, self.renewed)
        try:
            if act is not Life.start:
                life.start()
            yield life
        finally:
            life.end()

    def live(self, store: Path, act: Callable[[Life], object]) -> list[str]:
        """Start, and do one thing; return the calls by which that changed the store."""
        calls: list[str] = []
        with self.living(store, act) as life:
            disk = Disk(store)
            disk.before = calls.append
            with pytest.MonkeyPatch.context() as patch:
                disk.watch(patch)
                act(life)
            disk.close()
        return calls

    def end_within(self, store: Path, act: Callable[[Life], object], at: int, how: str) -> Path:
        """Start, do one thing, and end before its call of that number; return the store as it is left."""
        with self.living(store, act) as life:
            disk = Disk(store)
            disk.is_tearing = how == TORN
            assert run_until(at, disk, lambda: act(life) or True) is None
        left = store
        if how == POWER_CUT:
            left = store.with_name(f"{store.name}-left")
            disk.restore(left)
        disk.close()
        return left


@pytest.fixture
def scene(fleet: Fleet, hierarchy: Hierarchy) -> Scene:
    """The fleet's receiver and hosts."""
    return Scene(fleet, mint(HOST, issuer=hierarchy.hosts, dns=[WEB]).der)


@pytest.mark.parametrize("how", [KILLED, TORN, POWER_CUT])
@pytest.mark.parametrize("what", ACTS)
def test_ended_anywhere_the_logs_verify_and_hold_what_was_acknowledged(
    what: str, how: str, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a restart, `audit verify` finds nothing, and beside what was acknowledged before stands at most what was under way.

    When that is done again it is there, and what says where a dump stands, or under which certificate, is there once.
    """
    act, begun, whole = ACTS[what], tmp_path / "begun", tmp_path / "whole"
    create_store(str(begun)).close()
    for done in list(ACTS.values())[: list(ACTS).index(what)]:
        scene.live(begun, done)
    shutil.copytree(begun, whole)
    calls = scene.live(whole, act)
    before, wanted = Logs.of(begun), Logs.of(whole).since(Logs.of(begun))
    fatal = chosen(calls, how)
    assert fatal

    for at in fatal:
        shutil.copytree(begun, tmp_path / str(at))
        left = scene.end_within(tmp_path / str(at), act, at, how)
        scene.live(left, Life.start)
        assert (calls[at - 1], audit(left, scene, capsys)) == (calls[at - 1], "")
        added = Logs.of(left).since(before)
        assert (calls[at - 1], added) == (calls[at - 1], wanted[: len(added)])

        scene.live(left, act)
        assert (calls[at - 1], audit(left, scene, capsys)) == (calls[at - 1], "")
        added = [one for one in Logs.of(left).since(before) if one in wanted or one[1] != "resumed"]
        assert (calls[at - 1], list(dict.fromkeys(added))) == (calls[at - 1], wanted)
        once = [one for one in added if one[1] in ("certificate", "received", "deleted")]
        assert (calls[at - 1], len(once)) == (calls[at - 1], len(set(once)))
        shutil.rmtree(left)


def chosen(calls: list[str], how: str) -> list[int]:
    """Return the numbers of the calls to end before: every one that concerns a log or kept revocation lists.

    Without power it is every write; in the long run every call, elsewhere too (test_commit.py ends a reception at each of them).
    """
    writes = [at for at, call in enumerate(calls, 1) if call.startswith("write ") and _LOGS.search(call)]
    if how == TORN:
        return writes
    if IS_LONG:
        return list(range(1, len(calls) + 1))
    return writes if how == POWER_CUT else [at for at, call in enumerate(calls, 1) if _LOGS.search(call)]


def audit(store: Path, scene: Scene, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `audit verify` says of a store with which something is wrong; nothing where nothing is."""
    ran = Commands(store, scene.fleet, capsys).audit()
    return f"{ran.out}{ran.err}" if ran.code else ""

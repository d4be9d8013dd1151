"""A receiver's store whose process ends at any call, time and again: what was promised is there, and nothing else is called whole.

The model knows what each sender was told; what the disk holds is read by code of its own, as docs/store.md has it.
"""

import json
import shutil
import tempfile
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from securecore.audit.log import HostLog
from securecore.dump import directory
from securecore.errors import SecurecoreError
from securecore.names import DumpId
from securecore.receiver.commit import Committer, read_signed
from securecore.receiver.log_keeper import LogKeeper
from securecore.store.growing_core import GrowingCore
from securecore.store.layout import create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.certificates import Hierarchy
from tests.support.dumps import NOW, REPORT, WEB, Signer, core_bytes, dump_id, frames_of, logs_of, make_log_signer, make_signer
from tests.support.formats import tree_root
from tests.support.power import End, Killed, Loss, Power, Survivors, contents, ends, examples, hunt, scratch

CORES: Final = {dump_id(number): core_bytes(whole, 40 + number) for number, whole in enumerate((0, 1, 3), start=1)}
FRAMES: Final = {dump: frames_of(core) for dump, core in CORES.items()}
dumps: Final = st.sampled_from(list(CORES))


class Model:
    """What has been promised."""

    def __init__(self) -> None:
        self.acknowledged = dict.fromkeys(CORES, 0)
        """Frames that a sender was told to be durable."""
        self.receipts: dict[DumpId, bytes] = {}
        self.finished: set[DumpId] = set()
        """Dumps whose END was heard; only such a one may be published."""
        self.signed: list[bytes] = []
        """The longest log that was ever under a checkpoint."""


class Reception(RuleBasedStateMachine):
    """Sessions, one at a time, on a store that is started again after every end."""

    def __init__(self, signer: Signer, log_key: Any) -> None:
        super().__init__()
        self.signer, self.log_key = signer, log_key
        self.directory = scratch()
        create_store(str(self.directory / "store")).close()
        self.power = Power(self.directory / "store")
        self.model = Model()
        self.backup: tuple[Path, Model] | None = None
        self.is_sound = True
        self.incoming: IncomingDump | None = None
        self._open()
        self._start(None)

    def _open(self) -> None:
        self.store = open_store(str(self.power.root))
        self.logs = logs_of(self.store, self.log_key)
        self.keeper = LogKeeper(self.store, self.log_key, lambda: NOW)
        self.keeper.follow(self.logs)
        self.committer = Committer(self.store, self.logs, lambda: NOW)

    def _leave(self) -> None:
        """Give back what the system takes from a process that ends."""
        if self.incoming is not None:
            self.incoming.close()
            self.incoming = None
        self.keeper._drop()
        self.logs.close()
        self.store.close()

    def _attempt(self, act: Callable[[], None], end: End | None) -> None:
        """Act, and be ended as *end* says; then start again, which may be ended too, and once more."""
        self.power.end_within(end)
        try:
            act()
            self.power.end_within(None)
        except Killed:
            self._leave()
            self.power.restart(end.loss if end is not None else Loss.KILLED)
            self._open()
            self._start(None)

    def _start(self, end: End | None) -> None:
        """Do what a start does: roll forward; nothing that a crash leaves may stand in its way."""

        def roll() -> None:
            self.keeper.begin()
            assert [error for _, error in self.committer.roll_forward() if error is not None] == []

        self._attempt(roll, end)

    @rule(end=ends(30), loss=st.sampled_from(Loss))
    def restart(self, end: End | None, loss: Loss) -> None:
        """The process ends between two calls, and again while it starts."""
        self._leave()
        self.power.restart(loss)
        self._open()
        self._start(end)

    @rule(dump=dumps, end=ends(20), frames=st.integers(0, 4), by=st.integers(1, 4), stays=st.booleans())
    def receive(self, dump: DumpId, end: End | None, frames: int, by: int, stays: bool) -> None:
        """A sender opens a dump, sends so many frames, acknowledged in groups, and goes; what came by then is kept."""

        def act() -> None:
            incoming = self._take(dump)
            if incoming is None:
                return
            for frame in FRAMES[dump][incoming.frames :][:frames]:
                incoming.append(*frame)
                if incoming.frames % by == 0:
                    self._sync(incoming)
            if stays:
                self._sync(incoming)
            incoming.close()

        self._attempt(act, end)

    @rule(dump=dumps, end=ends(45))
    def finish(self, dump: DumpId, end: End | None) -> None:
        """A sender sends all that is missing, and END; it hears the receipt, if it comes to that."""

        def act() -> None:
            incoming = self._take(dump)
            if incoming is None:
                return
            for frame in FRAMES[dump][incoming.frames :]:
                incoming.append(*frame)
            self.model.finished.add(dump)
            manifest = self.signer.manifest(dump, self.store.store_id, CORES[dump])
            receipt = self.committer.finish(incoming, read_signed(self.signer.sign(manifest)), REPORT, self.signer.made.der)
            self._receipted(dump, receipt)

        self._attempt(act, end)

    @rule(end=ends(10))
    def look(self, end: End | None) -> None:
        """The receiver says in the receiver-wide log what has changed."""
        self._attempt(self.keeper.look, end)

    def _take(self, dump: DumpId) -> IncomingDump | None:
        """Open a dump as a session does; None when the answer was its receipt."""
        try:
            incoming = self.incoming = open_incoming(self.store, WEB, dump, REPORT)
        except AlreadyStored as stored:
            self._receipted(dump, stored.receipt)
            return None
        if incoming.has_manifest:
            self._receipted(dump, self.committer.commit(incoming))
            return None
        self._acknowledge(dump, incoming)
        return incoming

    def _sync(self, incoming: IncomingDump) -> None:
        incoming.sync()
        self._acknowledge(incoming.dump_id, incoming)

    def _acknowledge(self, dump: DumpId, incoming: IncomingDump) -> None:
        assert incoming.frames >= self.model.acknowledged[dump]
        self.model.acknowledged[dump] = incoming.frames

    def _receipted(self, dump: DumpId, receipt: bytes) -> None:
        assert self.model.receipts.setdefault(dump, receipt) == receipt

    @rule()
    def back_up(self) -> None:
        """An operator copies the store."""
        self.backup = Path(tempfile.mkdtemp(dir=self.directory)) / "store", deepcopy(self.model)
        shutil.copytree(self.power.root, self.backup[0])

    @rule(end=ends(30))
    def restore(self, end: End | None) -> None:
        """And puts an older copy in its place: what was promised since is lost, and all else goes on."""
        if self.backup is None:
            return
        copy, model = self.backup
        place = Path(tempfile.mkdtemp(dir=self.directory)) / "store"
        shutil.copytree(copy, place)
        self._leave()
        self.model = deepcopy(model)
        self.power.replace(place)
        self._open()
        self._start(end)

    @invariant()
    def all_promises_hold(self) -> None:
        """On the disk as it is, and on what a power cut would leave of it this instant."""
        check(self.model, contents(self.power.root))
        check(self.model, self.power.survivors())

    def teardown(self) -> None:
        """Every dump can be finished in the end, and nothing temporary is left."""
        try:
            for dump in CORES:
                self.finish(dump, None)
            self.look(None)
            self.all_promises_hold()
            assert set(self.model.receipts) == set(CORES)
            left = [name for name in contents(self.power.root) if name.endswith(".new") or name.startswith(f"incoming/{WEB}/")]
            assert left == []
        finally:
            self._leave()
            self.power.close()
            shutil.rmtree(self.directory)


def check(model: Model, found: Survivors) -> None:
    """Hold a store's files against the model."""
    published = {name.split("/")[2] for name in found if name.startswith(f"hosts/{WEB}/") and name.count("/") == 2}
    for dump, frames in FRAMES.items():
        stored = b"".join(frame for frame, _ in frames)
        place = f"hosts/{WEB}/{dump}" if str(dump) in published else f"incoming/{WEB}/{dump}"
        core = found.get(f"{place}/core.zst") or b""
        promised = b"".join(frame for frame, _ in frames[: model.acknowledged[dump]])
        assert core.startswith(promised), "frames that were acknowledged are there"
        assert not promised or found.get(f"{place}/report.json") == REPORT
        assert stored.startswith(core) or core.startswith(stored), "and nothing but what was sent"
        if dump in model.receipts:
            assert str(dump) in published, "a receipt has its dump"
            assert found[f"{place}/receipt"] == model.receipts[dump]
        if str(dump) in published:
            assert dump in model.finished
            assert core.startswith(stored), "what is published is whole"
            assert json.loads(payload(found[f"{place}/manifest.jws"] or b""))["outcome"] == "complete"
    check_log(model, found, published)
    check_wide_log(model, found, published)


def check_log(model: Model, found: Survivors, published: set[str]) -> None:
    """The log only grows, says of each dump once that it was received, and of each that is published or has a receipt."""
    checkpoint = (found.get(f"audit/{WEB}/checkpoint") or b"").split(b"\n")
    entries = (found.get(f"audit/{WEB}/entries.jsonl") or b"").splitlines()
    signed = entries[: int(checkpoint[1])] if len(checkpoint) > 1 else []
    assert signed[: len(model.signed)] == model.signed
    model.signed = signed
    received = [fields["dump"] for fields in map(json.loads, signed) if fields["event"] == "received"]
    assert len(received) == len(set(received))
    assert published <= set(received), "a visible dump has its entry"
    for receipt in model.receipts.values():
        extra, index = (receipt.split(b"\n")[number].split(b" ")[1] for number in (1, 2))
        assert signed[int(index)] == b64decode(extra)


def check_wide_log(model: Model, found: Survivors, published: set[str]) -> None:
    """It names the host of every dump, says nothing of its log that this is not, and is what the log's entries say."""
    checkpoint = (found.get("audit/receiver/checkpoint") or b"").split(b"\n")
    entries = (found.get("audit/receiver/entries.jsonl") or b"").splitlines()
    signed = entries[: int(checkpoint[1])] if len(checkpoint) > 1 else []
    assert len(checkpoint) == 1 or tree_root(signed) == b64decode(checkpoint[2])
    said = [json.loads(entry) for entry in signed]
    assert said or not published
    for entry in said:
        assert entry["size"] <= len(model.signed)
        assert entry["root"] == tree_root(model.signed[: entry["size"]]).hex()
    assert [entry["size"] for entry in said] == sorted({entry["size"] for entry in said})
    for entry in map(json.loads, model.signed):
        if entry["event"] != "received":
            continue
        assert entry["wide_root"] == tree_root(signed[: entry["wide_size"]]).hex()
        assert entry["wide_size"] <= len(signed)


def payload(token: bytes) -> bytes:
    """Return what a JWS says."""
    part = token.split(b".")[1]
    return urlsafe_b64decode(part + b"=" * (-len(part) % 4))


@pytest.fixture(scope="module")
def machine(hierarchy: Hierarchy) -> Callable[[], Reception]:
    """Makes machines that share their keys."""
    signer, log_key = make_signer(hierarchy), make_log_signer()
    return lambda: Reception(signer, log_key)


@pytest.mark.slow
def test_what_was_promised_is_there_whenever_the_process_ends(machine: Callable[[], Reception]) -> None:
    """For any order of sessions, ends, starts and old backups."""
    run_state_machine_as_test(machine, settings=examples(120, 12))


PLANTED: Final[dict[str, tuple[object, str]]] = {
    "a frame is acknowledged before it is durable": (GrowingCore, "sync"),
    "no name is ever made durable": (directory, "sync"),
    "an entry is signed before it is durable": (HostLog, "_sync_entries"),
    "a receipt is given for a dump that is not published": (IncomingDump, "publish"),
    "a receipt is given to a host that the receiver-wide log does not name": (LogKeeper, "note"),
}
"""What is left out: a function, by where it stands."""


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, machine: Callable[[], Reception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each breaks the model at some end."""
    monkeypatch.setattr(*PLANTED[bug], lambda *arguments: None)
    with pytest.raises((AssertionError, SecurecoreError)):
        run_state_machine_as_test(machine, settings=hunt(100, 15))

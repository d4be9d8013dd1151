"""The whole commit, ended before each of its system calls: what was promised is there, and it can always be finished."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import parse_entry
from securecore.audit.proof import verify_receipt
from securecore.dump.reader import open_container
from securecore.errors import BrokenError, StorageError
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.commit import Committer, ManifestRefused
from securecore.receiver.log_keeper import LogKeeper
from securecore.store.crls import CrlFile, read_crl
from securecore.store.layout import Place, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.receiver import test_deletion, test_giving_up_interrupted
from tests.support.disk import Disk, Killed, run_until
from tests.support.dumps import (
    LOG_NAME,
    NOW,
    REPORT,
    WEB,
    Keys,
    Signer,
    begin,
    core_bytes,
    dump_id,
    dump_path,
    frames_of,
    log_of,
    logs_of,
)
from tests.support.formats import read_note, tree_root
from tests.support.stores import flip

CORE = core_bytes(2, 40)
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)
ENDS = [sum(len(frame) for frame, _ in FRAMES[: count + 1]) for count in range(len(FRAMES))]
"""Bytes of the first frame, the first two, and so on."""

CRL = CrlFile.of(b"the revocation lists in force")

ID = dump_id(1)
INCOMING, PUBLISHED, AUDIT, WIDE = f"incoming/{WEB}/{ID}", f"hosts/{WEB}/{ID}", f"audit/{WEB}", "audit/receiver"


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


class Life:
    """One life of a receiver: what a start does, then what a session does for one dump, and what it has promised."""

    def __init__(self, path: Path, keys: Keys) -> None:
        self.store = open_store(str(path))
        self.logs = logs_of(self.store, keys.log)
        self.keeper = LogKeeper(self.store, keys.log, lambda: NOW)
        self.keeper.follow(self.logs)
        self.committer = Committer(self.store, self.logs, lambda: NOW, lambda certificate: CRL)
        self.arrivals = Arrivals(self.logs, lambda: NOW)
        self.incoming: IncomingDump | None = None
        self.acknowledged: int | None = None
        """Frames that a sender was told to be durable; None while it was told nothing."""
        self._host = keys.host

    def start(self) -> None:
        """Roll forward, and see that it was done."""
        self.keeper.begin()
        waiting = [f"{ID} of {WEB}" for path in Path(self.store.path).glob("incoming/*/*/manifest.jws")]
        assert self.committer.roll_forward() == [(name, None) for name in waiting]
        assert list(Path(self.store.path).glob("incoming/*/*/manifest.jws")) == []

    def receive(self, on_promise: Callable[[str], None] = lambda promise: None) -> bytes:
        """Take the dump as a session does; *on_promise* is told of what the sender is about to hear."""
        try:
            dump = self.incoming = open_incoming(self.store, WEB, ID, REPORT)
        except AlreadyStored as stored:
            return stored.receipt
        self.arrivals.note(dump, self._host.made.der)
        self.acknowledged = dump.frames
        for frame in FRAMES[dump.frames :]:
            dump.append(*frame)
            dump.sync()
            on_promise("ACK")
            self.acknowledged = dump.frames
        receipt = self.committer.finish(dump, token_of(self, self._host), REPORT, self._host.made.der, CRL)
        on_promise("RECEIPT")
        return receipt

    def end(self) -> None:
        """Give back what the operating system takes from a process that ends."""
        if self.incoming is not None:
            self.incoming.close()
        self.keeper._drop()
        self.logs.close()
        self.store.close()


def token_of(life: Life, signer: Signer) -> bytes:
    """Return the signed manifest of the dump."""
    return signer.sign(signer.manifest(ID, life.store.store_id, CORE))


def live(life: Life) -> bytes:
    """Start and receive, under the store's lock."""
    lock = life.store.lock()
    try:
        life.start()
        receipt = life.receive()
        life.keeper.look()
        return receipt
    finally:
        os.close(lock.fd)


def check_end(path: Path, keys: Keys, receipt: bytes) -> None:
    """One published dump with all its bytes, the receipt that was given out, one entry in the log, and nothing left over."""
    with open_store(str(path)) as store:
        with store.open_dump(WEB, ID) as files:
            core = files.open_core()
            plain = b"".join(open_container(core).pieces())
            os.close(core)
            assert (files.is_published, plain, files.read_receipt(), files.read_report()) == (True, CORE, receipt, REPORT)
            assert set(os.listdir(files.fd)) == {"core.zst", "report.json", "manifest.jws", "receipt"}
        assert store.incoming() == []
        assert verify_receipt(receipt, origin_of(LOG_NAME, WEB), keys.log.public_key).fields["dump"] == str(ID)
        entries = [parse_entry(line) for line in (path / AUDIT / "entries.jsonl").read_bytes().splitlines()]
        events = [entry["event"] for entry in entries]
        assert (events[0], events[-1], {*events[1:-1]} - {"resumed"}) == ("certificate", "received", set())
        assert entries[-1]["crl_sha256"] == CRL.sha256
        assert read_crl(store, CRL.sha256) == CRL.pem


def check_wide_log(path: Path, keys: Keys) -> None:
    """It names every host with a dump, and says of a host's log nothing that this is not."""
    place = path / WIDE
    lines = (path / AUDIT / "entries.jsonl").read_bytes().split(b"\n") if (path / AUDIT / "entries.jsonl").exists() else []
    said = []
    if (place / "checkpoint").exists():
        note = read_note((place / "checkpoint").read_bytes(), LOG_NAME.encode(), keys.log.public_key)
        entries = (place / "entries.jsonl").read_bytes().split(b"\n")[: note.size] if note.size else []
        assert (len(entries), tree_root(entries)) == (note.size, note.root)
        said = [json.loads(entry) for entry in entries]
    for entry in said:
        assert (entry["host"], tree_root(lines[: entry["size"]]).hex()) == (str(WEB), entry["root"])
    assert said or not (path / PUBLISHED).exists()


def check_published_has_receipt(path: Path) -> None:
    """What counts as received can prove it."""
    with open_store(str(path)) as store:
        if store.find_place(WEB, ID) is Place.HOSTS:
            with store.open_dump(WEB, ID) as files:
                assert files.read_receipt()


@pytest.mark.slow
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call(loses_power: bool, tmp_path: Path, keys: Keys) -> None:
    """Ended anywhere, and once more in the recovery, the next life has every acknowledged frame and finishes the dump.

    A process that is killed leaves all that it wrote; a power cut only what was made durable.
    """
    fatal, finished = 0, False
    while not finished:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        create_store(str(path)).close()
        acknowledged, finished = 0, True
        for number, deadline in enumerate((fatal, 1 + fatal % 13, None)):
            life, disk = Life(path, keys), Disk(path)
            receipt = run_until(deadline, disk, lambda life=life: live(life))
            if receipt is None:
                finished = finished and deadline != fatal
            life.end()
            if loses_power:
                path = tmp_path / f"store-{fatal}-{number}"
                disk.restore(path)
            disk.close()
            check_published_has_receipt(path)
            check_wide_log(path, keys)
            if life.acknowledged is not None:
                assert life.acknowledged >= acknowledged, fatal
                acknowledged = life.acknowledged
            if receipt is not None:
                check_end(path, keys, receipt)
        assert receipt is not None
    assert fatal > 40


Survivors = dict[str, bytes | None]


def core_of(before: Survivors) -> bytes:
    """Return what is left of the incoming core."""
    return before.get(f"{INCOMING}/core.zst") or b""


def has_report(before: Survivors) -> bool:
    """Whether the report is there under its name, with all the directories that lead to it."""
    return before.get(f"{INCOMING}/report.json") == REPORT


def has_whole_core(before: Survivors) -> bool:
    """Whether all frames are there, and something behind them."""
    return core_of(before).startswith(STORED) and len(core_of(before)) > len(STORED)


def has_published(before: Survivors) -> bool:
    """Whether the dump is in its new place, and there alone."""
    return {name for name in before if str(ID) in name} == {
        PUBLISHED, *(f"{PUBLISHED}/{name}" for name in ("core.zst", "report.json", "manifest.jws", "receipt"))
    }  # fmt: skip


PROMISES: dict[str, tuple[str, Callable[[Survivors], bool]]] = {
    "the first acknowledgement of a frame (ACK, or held in ACCEPT)": ("ACK", has_report),
    "any acknowledgement of a frame": ("ACK", lambda before: core_of(before) in {STORED[:end] for end in ENDS}),
    "manifest.jws has its name": (f"link {INCOMING}/manifest.jws", has_whole_core),
    "the entry is written": (
        f"write {AUDIT}/entries.jsonl",
        lambda before: bool(before.get(f"{INCOMING}/manifest.jws")) and before.get(f"crls/{CRL.sha256}.pem") == CRL.pem,
    ),
    "the checkpoint is replaced": (
        f"rename {AUDIT}/checkpoint",
        lambda before: '"event":"received"' in text_of(before, f"{AUDIT}/entries.jsonl"),
    ),
    "receipt has its name": (
        f"link {INCOMING}/receipt",
        lambda before: text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "2",
    ),
    "the receiver-wide log says a checkpoint of a host's log": (
        f"write {WIDE}/entries.jsonl",
        lambda before: text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "2",
    ),
    "the first receipt of a host has its name": (
        f"link {INCOMING}/receipt",
        lambda before: (
            str(WEB) in text_of(before, f"{WIDE}/entries.jsonl") and text_of(before, f"{WIDE}/checkpoint").split("\n")[1] == "1"
        ),
    ),
    "the dump is renamed from incoming to hosts": (f"rename {PUBLISHED}", lambda before: bool(before.get(f"{INCOMING}/receipt"))),
    "RECEIPT is sent": ("RECEIPT", has_published),
}
"""By the first column of the table in docs/store.md: the call, or what a sender hears, and what must have been durable before."""


def text_of(before: Survivors, name: str) -> str:
    """Return a file's text, empty when it is lost."""
    return (before.get(name) or b"").decode()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[list[tuple[str, Survivors]]]:
    """Every call of a reception from begin to publish, in order, and what a power cut just before it leaves."""
    path = tmp_path_factory.mktemp("recorded") / "store"
    create_store(str(path)).close()
    steps: list[tuple[str, Survivors]] = []
    life, disk = Life(path, keys), Disk(path)

    def record(call: str) -> None:
        steps.append((call, disk.survivors()))

    disk.before = record
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        life.receive(record)
    life.end()
    yield steps
    disk.close()


def documented_promises() -> list[str]:
    """Return the first column of the table of docs/store.md, without its code marks."""
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text("utf-8")
    rows = text.partition("| Before | is durable |")[2].partition("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().replace("`", "") for row in rows]


def test_every_documented_promise_is_held_here() -> None:
    """docs/store.md promises what is tested below, and nothing else."""
    assert documented_promises() == [*PROMISES, *test_giving_up_interrupted.PROMISES, *test_deletion.PROMISES]


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_durable_when(promise: str, recorded: list[tuple[str, Survivors]]) -> None:
    """Whenever this happens, a power cut in that instant leaves what docs/store.md promises."""
    name, holds = PROMISES[promise]
    found = [before for call, before in recorded if call == name]
    if AUDIT in name:
        found = found[1:]  # The first time it is the certificate's entry.

    assert [holds(before) for before in found] == [True] * (len(FRAMES) if name == "ACK" else 1)


def test_a_certificate_is_durable_before_anything_of_its_dump(recorded: list[tuple[str, Survivors]]) -> None:
    """Its entry, under a checkpoint, whenever a sender hears of a frame; the dump's own then adds no write to the disk."""
    told = [before for call, before in recorded if call == "ACK"]
    for before in told:
        assert text_of(before, f"{AUDIT}/entries.jsonl").count('"event":"certificate"') == 1
        assert text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "1"


def test_each_acknowledgement_covers_its_frame(recorded: list[tuple[str, Survivors]]) -> None:
    """The n-th acknowledgement finds n frames durable, not fewer."""
    assert [core_of(before) for call, before in recorded if call == "ACK"] == [STORED[:end] for end in ENDS]


def test_the_rename_is_made_durable_in_both_directories(recorded: list[tuple[str, Survivors]]) -> None:
    """First where the dump is now, so that it is never in neither; then where it was."""
    calls = [call for call, _ in recorded]
    assert calls[calls.index(f"rename {PUBLISHED}") + 1 :] == [f"fsync hosts/{WEB}", f"fsync incoming/{WEB}", "RECEIPT"]


def test_a_start_finishes_what_can_be_finished_and_tells_the_rest(tmp_path: Path, keys: Keys) -> None:
    """Every finished dump is published; one whose manifest does not hold stays, is named, and keeps nobody else waiting."""
    create_store(str(tmp_path / "store")).close()
    life = Life(tmp_path / "store", keys)
    liar, honest, logged = dump_id(2), dump_id(3), dump_id(4)
    for number in (liar, honest, logged):
        incoming = begin(life.store, number, CORE)
        manifest = keys.host.manifest(number, life.store.store_id, CORE)
        incoming.finish(keys.host.sign(manifest._replace(size=manifest.size + 1) if number == liar else manifest))
        if number == logged:
            with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
                patch.setattr(IncomingDump, "put_receipt", stop)
                stack.enter_context(pytest.raises(Killed))
                life.committer.commit(incoming)
        incoming.close()

    done = dict(life.committer.roll_forward())

    error = done.pop(f"{liar} of {WEB}")
    assert error is not None
    assert "another size" in error.message
    assert done == {f"{honest} of {WEB}": None, f"{logged} of {WEB}": None}
    assert life.store.incoming() == [(WEB, liar)]
    assert sorted(str(found) for found in life.store.dump_ids(WEB)) == sorted(map(str, (honest, logged)))
    entries = (tmp_path / "store" / AUDIT / "entries.jsonl").read_text()
    assert [entries.count(f'"event":"{event}"') for event in ("certificate", "received")] == [1, 2]
    for number in (honest, logged):
        receipt = (dump_path(life.store, number) / "receipt").read_bytes()
        assert verify_receipt(receipt, origin_of(LOG_NAME, WEB), keys.log.public_key).fields["dump"] == str(number)
    life.end()


def test_frames_that_changed_after_the_manifest_are_not_committed(tmp_path: Path, keys: Keys) -> None:
    """A commit that is taken up again holds the manifest against the frames once more: no entry says of others that they came."""
    create_store(str(tmp_path / "store")).close()
    life = Life(tmp_path / "store", keys)
    incoming = begin(life.store, ID, CORE)
    incoming.finish(token_of(life, keys.host))
    incoming.close()
    flip(tmp_path / "store" / INCOMING / "core.zst", ENDS[1] - 1)
    resumed = open_incoming(life.store, WEB, ID, REPORT)
    with pytest.raises(BrokenError, match="another root") as raised:
        life.committer.commit(resumed)
    assert not isinstance(raised.value, ManifestRefused), "the fault is not the sender's, which may come again"
    resumed.close()
    assert life.store.incoming() == [(WEB, ID)]
    assert log_of(life.logs, WEB).size == 0
    life.end()


def stop(*arguments: object) -> None:
    """Stand in for a call that a crash comes before."""
    raise Killed


@pytest.mark.parametrize("found", [CRL, None], ids=["believed", "not believed now"])
def test_a_commit_that_is_taken_up_again_refers_to_no_lists_that_speak_against_it(
    found: CrlFile | None, tmp_path: Path, keys: Keys
) -> None:
    """By which lists its certificate was judged nobody knows any more: those of now are named if they let it in, else none."""
    create_store(str(tmp_path / "store")).close()
    life = Life(tmp_path / "store", keys)
    asked: list[bytes] = []
    committer = Committer(life.store, life.logs, lambda: NOW, lambda certificate: asked.append(certificate) or found)
    incoming = begin(life.store, ID, CORE)
    incoming.finish(token_of(life, keys.host))
    incoming.close()
    assert committer.roll_forward() == [(f"{ID} of {WEB}", None)]
    entry = parse_entry((tmp_path / "store" / AUDIT / "entries.jsonl").read_bytes().splitlines()[-1])
    assert (entry["event"], entry["crl_sha256"]) == ("received", CRL.sha256 if found is not None else None)
    assert asked == [keys.host.made.der]
    assert (tmp_path / "store" / "crls").exists() == (found is not None)
    life.end()


def test_a_disk_that_does_not_take_the_lists_leaves_the_dump_to_another_try(tmp_path: Path, keys: Keys) -> None:
    """No manifest is stored, no entry is written; the frames are there when the sender comes again."""
    create_store(str(tmp_path / "store")).close()
    life = Life(tmp_path / "store", keys)
    (tmp_path / "store" / "crls").write_bytes(b"no directory")
    with pytest.raises(StorageError, match="not a directory"):
        life.receive()
    life.end()
    assert not (tmp_path / "store" / INCOMING / "manifest.jws").exists()
    assert '"event":"received"' not in (tmp_path / "store" / AUDIT / "entries.jsonl").read_text()
    (tmp_path / "store" / "crls").unlink()
    again = Life(tmp_path / "store", keys)
    check_end(tmp_path / "store", keys, again.receive())
    again.end()

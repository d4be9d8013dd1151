"""The whole commit, ended before each of its system calls: what was promised is there, and it can always be finished."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import parse_entry
from securecore.audit.proof import verify_receipt
from securecore.dump.reader import open_container
from securecore.errors import BrokenError, StorageError
from securecore.receiver.commit import Committer, ManifestRefused
from securecore.store.crls import CrlFile, read_crl
from securecore.store.layout import Place, create_store, open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import IncomingDump
from tests.support.commits import AUDIT, CORE, CRL, ENDS, ID, INCOMING, PUBLISHED, WIDE, Life, live, token_of
from tests.support.disk import Disk, Killed, run_until
from tests.support.dumps import LOG_NAME, NOW, REPORT, WEB, Keys, begin, dump_id, dump_path, log_of
from tests.support.formats import read_note, tree_root
from tests.support.stores import flip


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


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

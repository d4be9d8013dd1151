"""The whole commit, killed before each of its system calls: what was promised is there, and it can always be finished."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.entry import received_entry
from securecore.audit.proof import verify_receipt
from securecore.dump.reader import open_container
from securecore.store.layout import Place, create_store, open_store
from securecore.store.recovery import open_incoming, sweep_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.certificates import Hierarchy
from tests.support.dumps import (
    LOG_NAME,
    NOW,
    REPORT,
    WEB,
    Signer,
    core_bytes,
    dump_id,
    frames_of,
    log_of,
    logs_of,
    make_log_signer,
    make_signer,
)

CORE = core_bytes(2, 40)
FRAMES = frames_of(CORE)
ID = dump_id(1)
CALLS = ("write", "fsync", "fdatasync", "link", "unlink", "rename", "mkdir", "ftruncate")


class Killed(BaseException):
    """The process ends here; no handler of errors sees it."""


class Machine:
    """Counts the calls that change the disk, and dies before the one with a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int | None) -> None:
        self.calls = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), fatal))

    def _watched(self, real: Callable[..., Any], fatal: int | None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == fatal:
                raise Killed
            return real(*arguments, **options)

        return call


class Session:
    """What one life of a receiver does for one dump, and what it has promised."""

    def __init__(self, path: str, log_signer: LogSigner, signer: Signer) -> None:
        self.store = open_store(path)
        self.logs = logs_of(self.store, log_signer)
        self.signer = signer
        self.incoming: IncomingDump | None = None
        self.acknowledged: int | None = None
        """Frames that a sender was told to be durable; None while it was told nothing."""

    def roll_forward(self) -> None:
        for host, identifier in sweep_incoming(self.store).finished:
            self.incoming = IncomingDump.resume(self.store, host, identifier)
            self.commit()

    def receive(self) -> bytes:
        try:
            self.incoming = open_incoming(self.store, WEB, ID, REPORT)
        except AlreadyStored as stored:
            return stored.receipt
        self.acknowledged = self.incoming.frames
        for frame in FRAMES[self.incoming.frames :]:
            self.incoming.append(*frame)
            self.incoming.sync()
            self.acknowledged = self.incoming.frames
        self.incoming.finish(self.signer.sign(self.signer.manifest(ID, self.store.store_id, CORE)))
        return self.commit()

    def commit(self) -> bytes:
        incoming = self.incoming
        assert incoming is not None
        if not incoming.has_receipt:
            log = log_of(self.logs, WEB)
            index = log.find(ID)
            if index is None:
                manifest = self.signer.manifest(ID, self.store.store_id, CORE)
                token, size = incoming.read_manifest(), incoming.container_bytes
                receipt = log.append(received_entry(NOW, manifest, token, stored_bytes=size, certificate="3fa2"))
            else:
                receipt = log.receipt_for(index)
            incoming.put_receipt(receipt)
        receipt = incoming.read_receipt()
        incoming.publish()
        return receipt

    def end(self) -> None:
        """Give back what the operating system takes from a process that ends."""
        if self.incoming is not None:
            self.incoming.close()
        self.logs.close()
        self.store.close()


def live(session: Session) -> bytes:
    lock = session.store.lock()
    try:
        session.roll_forward()
        return session.receive()
    finally:
        os.close(lock.fd)


def check_end(path: str, log_signer: LogSigner, receipt: bytes) -> None:
    """One published dump with all its bytes, the receipt that was given out, one entry in the log, and nothing left over."""
    with open_store(path) as store:
        with store.open_dump(WEB, ID) as files:
            core = files.open_core()
            plain = b"".join(open_container(core).pieces())
            os.close(core)
            assert (files.is_published, plain, files.read_receipt(), files.read_report()) == (True, CORE, receipt, REPORT)
            assert set(os.listdir(files.fd)) == {"core.zst", "report.json", "manifest.jws", "receipt"}
        assert store.incoming() == []
        assert verify_receipt(receipt, origin_of(LOG_NAME, WEB), log_signer.public_key).fields["dump"] == str(ID)
        entries = Path(store.path) / "audit" / str(WEB) / "entries.jsonl"
        assert entries.read_bytes().count(b"\n") == 1


@pytest.mark.slow
def test_killed_before_every_call(tmp_path: Path, hierarchy: Hierarchy) -> None:
    """Killed anywhere, and once more during the recovery, the next life holds every acknowledged frame and finishes the dump."""
    log_signer, signer = make_log_signer(), make_signer(hierarchy)
    fatal, finished = 0, False
    while not finished:
        fatal += 1
        path = str(tmp_path / f"store-{fatal}")
        create_store(path).close()
        acknowledged, finished = 0, True
        for deadline in (fatal, 1 + fatal % 13, None):
            session = Session(path, log_signer, signer)
            with pytest.MonkeyPatch.context() as patch:
                Machine(patch, deadline)
                try:
                    receipt = live(session)
                except Killed:
                    receipt = None
                    finished = finished and deadline != fatal
            with open_store(path) as store:
                if store.find_place(WEB, ID) is Place.HOSTS:
                    with store.open_dump(WEB, ID) as files:
                        assert files.read_receipt(), fatal
            session.end()
            if session.acknowledged is not None:
                assert session.acknowledged >= acknowledged, fatal
                acknowledged = session.acknowledged
            if receipt is not None:
                check_end(path, log_signer, receipt)
    assert fatal > 40

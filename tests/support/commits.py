"""One dump's way into a store in the test's own process: what a start does, what a session does, and what has been promised."""

import os
from collections.abc import Callable
from pathlib import Path

from securecore.receiver.arrivals import Arrivals
from securecore.receiver.commit import Committer, read_signed
from securecore.receiver.log_keeper import LogKeeper
from securecore.store.crls import CrlFile
from securecore.store.layout import open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored, IncomingDump
from tests.support.dumps import NOW, REPORT, WEB, Keys, Signer, core_bytes, dump_id, frames_of, logs_of

CORE = core_bytes(2, 40)
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)
ENDS = [sum(len(frame) for frame, _ in FRAMES[: count + 1]) for count in range(len(FRAMES))]
"""Bytes of the first frame, the first two, and so on."""

CRL = CrlFile.of(b"the revocation lists in force")

ID = dump_id(1)
INCOMING, PUBLISHED, AUDIT, WIDE = f"incoming/{WEB}/{ID}", f"hosts/{WEB}/{ID}", f"audit/{WEB}", "audit/receiver"


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
        receipt = self.committer.finish(dump, read_signed(token_of(self, self._host)), REPORT, self._host.made.der, CRL)
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

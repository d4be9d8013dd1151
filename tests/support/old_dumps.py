"""A dump whose sender has gone away, and the receiver that finds it eight days later."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securecore.audit.checkpoint import origin_of
from securecore.audit.proof import verify_receipt
from securecore.dump.reader import open_container
from securecore.errors import SecurecoreError
from securecore.merkle import leaf_hash, root_of
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.caretaker import Caretaker
from securecore.receiver.commit import Committer, read_signed
from securecore.receiver.presence import Presence
from securecore.store.layout import open_store
from securecore.store.recovery import open_incoming
from securecore.store.writer import AlreadyStored
from tests.support.dumps import (
    LOG_NAME,
    REPORT,
    WEB,
    Keys,
    core_bytes,
    dump_id,
    frames_of,
    log_of,
    logs_of,
)
from tests.support.entries import ARRIVALS

CORE = core_bytes(2, 40)
FRAMES = frames_of(CORE)
SENT = CORE[: 1 << 20]
"""What has come before the sender went away: one frame."""
ROOT = root_of([leaf_hash(FRAMES[0][0])])
ID = dump_id(1)
INCOMING, PUBLISHED = f"incoming/{WEB}/{ID}", f"hosts/{WEB}/{ID}"
AFTER = timedelta(days=7)
LATER = datetime.now(UTC) + timedelta(days=8)
"""When everything that a test writes is old."""


class Life:
    """One life of a receiver, eight days later, and what it does for one dump."""

    def __init__(self, path: Path, keys: Keys, now: datetime = LATER) -> None:
        self.path = path
        self.store = open_store(str(path))
        self.logs = logs_of(self.store, keys.log)
        self.presence = Presence()
        self.committer = Committer(self.store, self.logs, lambda: now)
        self.abandonment = Abandonment(self.store, self.logs, lambda: now)
        self.caretaker = Caretaker(self.store, self.committer, self.abandonment, self.presence, AFTER, lambda: now)
        self.keys = keys

    def start(self) -> list[SecurecoreError]:
        """Roll forward and look once, as a start does; return what stood in the way."""
        errors = [error for _, error in self.committer.roll_forward() if error is not None]
        self.caretaker.look()
        return errors

    def come_back(self) -> int:
        """Take the dump back and return how many frames are held, as a session does before ACCEPT."""
        self.abandonment.revoke(WEB, ID, REPORT)
        dump = open_incoming(self.store, WEB, ID, REPORT)
        try:
            return dump.frames
        finally:
            dump.close()

    def complete(self, on_accept: Callable[[int], None] = lambda frames: None) -> bytes:
        """Take the dump back, the frames that are missing, and END; return the receipt."""
        self.abandonment.revoke(WEB, ID, REPORT)
        try:
            dump = open_incoming(self.store, WEB, ID, REPORT)
        except AlreadyStored as stored:
            return stored.receipt
        try:
            if dump.has_manifest:
                return self.committer.commit(dump)
            on_accept(dump.frames)
            for frame in FRAMES[dump.frames :]:
                dump.append(*frame)
            dump.sync()
            token = self.keys.host.sign(self.keys.host.manifest(ID, self.store.store_id, CORE))
            return self.committer.finish(dump, read_signed(token), REPORT, self.keys.host.made.der)
        finally:
            dump.close()

    def end(self) -> None:
        """Give back what the operating system takes from a process that ends."""
        self.logs.close()
        self.store.close()

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the host's log, but for those of arrivals."""
        log = log_of(self.logs, WEB)
        receipts = [log.receipt_for(index) for index in range(log.size)]
        found = [verify_receipt(text, log.origin, self.keys.log.public_key).fields for text in receipts]
        return [fields for fields in found if fields["event"] not in ARRIVALS]


def published(life: Life) -> tuple[bytes, set[str], dict[str, Any]]:
    """Return the plaintext of the published dump, its files, and what its receipt proves."""
    with life.store.open_dump(WEB, ID) as files:
        assert files.is_published
        core = files.open_core()
        try:
            plain = b"".join(open_container(core).pieces())
        finally:
            os.close(core)
        receipt = verify_receipt(files.read_receipt() or b"", origin_of(LOG_NAME, WEB), life.keys.log.public_key)
        return plain, set(os.listdir(files.fd)), receipt.fields

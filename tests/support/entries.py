"""Entries of audit logs, as tests append them."""

from typing import Final

from securecore.audit.entry import Held, deleted_entry, extracted_entry, incomplete_entry
from securecore.names import StoreId
from tests.support.dumps import NOW, WEB, dump_id

ARRIVALS: Final = ("certificate", "resumed")
"""The events that say how dumps come, and nothing of what becomes of them."""


def received(number: int) -> bytes:
    """Return the entry that says that a dump was received."""
    return f'{{"dump":"{dump_id(number)}","event":"received","time":"t"}}'.encode()


def received_as(number: int, digest: bytes) -> bytes:
    """Return the same, of a manifest with this digest."""
    return f'{{"dump":"{dump_id(number)}","event":"received","manifest_sha256":"{digest.hex()}","time":"t"}}'.encode()


def incomplete(number: int, root: bytes) -> bytes:
    """Return the entry of a dump that was given up with frames of this root."""
    held = Held(1, 10, root, bytes(32), 50)
    return incomplete_entry(NOW, dump_id(number), WEB, StoreId.make(bytes(16)), held, last_at=NOW)


def deleted(number: int) -> bytes:
    """Return a tombstone."""
    return deleted_entry(NOW, dump_id(number), WEB, uid=0, user="root", reason=None)


ENTRIES: Final = [received(0), received(1), extracted_entry(NOW, dump_id(0), WEB, uid=0, user="root"), received(3)]

"""One host's audit log in a directory: opened, written, and asked what is signed."""

from pathlib import Path

from securecore.audit.checkpoint import LogSigner, origin_of, verify_checkpoint
from securecore.audit.log import HostLog
from tests.support.dumps import LOG_NAME, WEB, dump_id, opened
from tests.support.entries import ENTRIES

ORIGIN = origin_of(LOG_NAME, WEB)


def index_of(log: HostLog, number: int) -> int | None:
    """Return where a dump stands in the log."""
    standing = log.standing(dump_id(number))
    return standing.index if standing is not None else None


def open_log(place: Path, signer: LogSigner) -> HostLog:
    """Open web-1's log in a directory."""
    with opened(place) as fd:
        return HostLog.open(fd, ORIGIN, signer)


def write_log(place: Path, signer: LogSigner, entries: list[bytes] = ENTRIES) -> list[bytes]:
    """Append *entries* one by one and return their receipts."""
    log = open_log(place, signer)
    receipts = [log.append(entry) for entry in entries]
    log.close()
    return receipts


def signed_size(place: Path, signer: LogSigner) -> int:
    """Return how many entries the checkpoint signs."""
    return verify_checkpoint((place / "checkpoint").read_bytes(), ORIGIN, signer.public_key).size

"""Handing a log over to the next log key: what the key before signed last is kept, and signed anew by the one in use.

The tree goes on as it was: no entry is written for it, and a checkpoint of the new key has the size and the root of the last one of
the old key. That one stays beside it, under the old key's id, and whoever verifies the log holds it against it.
"""

from securecore import limits
from securecore.audit.checkpoint import Checkpoint, LogSigner, find_signer, key_id, parse_checkpoint, verify_checkpoint
from securecore.audit.log_files import CHECKPOINT
from securecore.audit.statement import LogKey
from securecore.dump import directory
from securecore.errors import BrokenError


def last_checkpoint_name(origin: str, public_key: bytes) -> str:
    """Return under which name the last checkpoint that a key has signed is kept, once another has taken its place."""
    return f"{CHECKPOINT}-{key_id(origin, public_key).hex()}"


def hand_over(directory_fd: int, origin: str, signer: LogSigner) -> None:
    """Have *signer* sign what the log in a directory says last, durably, if it was signed by a key before it; else do nothing.

    May be interrupted at any instant and done again. The caller holds the store's lock, and nobody appends meanwhile. Raises
    BrokenError when the old key's signature does not hold, or when that key had handed the log over before with another checkpoint:
    what it signs since is not the receiver's. StorageError when the disk refuses.
    """
    note = directory.read_file(CHECKPOINT, directory_fd, limits.MAX_CHECKPOINT_BYTES) if signer.earlier else None
    if note is None:
        return
    checkpoint = parse_checkpoint(note)
    before = find_signer(checkpoint, (signer.public_key, *signer.earlier))
    if before is None or before == signer.public_key:
        return  # Of a key that is neither, whoever opens the log says so.
    verify_checkpoint(note, origin, before)
    name = last_checkpoint_name(origin, before)
    kept = directory.read_file(name, directory_fd, limits.MAX_CHECKPOINT_BYTES)
    if kept is None:
        directory.write_new_file(name, directory_fd, note)
    elif kept != note:
        raise BrokenError("checkpoint is signed by a log key that has handed this log over before")
    directory.replace_file(CHECKPOINT, directory_fd, signer.sign(origin, checkpoint.size, checkpoint.root))


def read_last_checkpoints(directory_fd: int, origin: str, log_key: LogKey) -> list[Checkpoint]:
    """Return what each key before the one in use has signed last of the log in a directory, where that is kept.

    Raises BrokenError for one that does not hold, or is of a key that is not among them; StorageError when it cannot be read.
    """
    names = {last_checkpoint_name(origin, key): key for key in log_key.earlier}
    found = []
    for name in sorted(directory.names_in(directory_fd)):
        if not name.startswith(f"{CHECKPOINT}-"):
            continue
        note = directory.read_file(name, directory_fd, limits.MAX_CHECKPOINT_BYTES)
        if name not in names:
            why = f": {log_key.cut}" if log_key.cut is not None else ""
            raise BrokenError(f"{name} is of a key outside of the chain of log keys{why}")
        found.append(verify_checkpoint(note or b"", origin, names[name]))
    return found

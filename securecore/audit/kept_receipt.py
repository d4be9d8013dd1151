"""Receipts that somebody has kept: read from wherever they stand, and verified by anybody who has the root.

A host keeps what it was given in its spool's receipts.jsonl, one JSON object a line, with the statement of the key that signed it
(docs/store.md); a store has each as a tlog-proof, and so may whoever was handed one. Neither the store nor its receiver is needed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import chain
from typing import IO, Any, Final, NamedTuple

from securecore import limits
from securecore.audit.checkpoint import find_signer, parse_checkpoint
from securecore.audit.entry import Value, parse_entry
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.statement import LogKey, verify_statement
from securecore.audit.succession import Succession, verify_successions
from securecore.certs.chain import Anchors
from securecore.errors import BrokenError, SecurecoreError
from securecore.names import Address, HostName, NameRefused

_PROOF_BEGINS: Final = b"c2sp.org/tlog-proof@v1\n"
_PAPERS: Final = ("receipt", "log_key", "successions")


class Kept(NamedTuple):
    """A receipt as it was read; nothing of it is verified."""

    where: str
    """File and line where it begins."""
    proof: bytes
    statement: bytes | None
    """The log key's statement that was kept with it; None where there is none."""
    said: Mapping[str, Any]
    """What else its line says; empty where there is nothing but the proof."""
    successions: bytes = b""
    """How the receiver's log keys took one another's place, by notes that were kept with it."""


class Unread(NamedTuple):
    """What stands where a receipt should, and is none."""

    where: str
    problem: str
    is_torn: bool
    """Whether it may be what a crash has left of the last line, or a line that is being written: then it was never a receipt."""


class Witness(NamedTuple):
    """A kept receipt that holds: what the log *origin* was, by the word of its receiver."""

    where: str
    origin: str
    receiver: HostName
    host: HostName
    receipt: Receipt
    hashes: tuple[bytes, ...]
    """The proof's, from the leaf's sibling up."""
    key: bytes
    """The public key that has signed it."""
    successions: tuple[Succession, ...] = ()
    """What was kept with it of the receiver's log keys."""


class Origin(NamedTuple):
    """Whose log an origin names."""

    key_name: str
    """The log key's: ``RECEIVER/securecore``."""
    host: HostName

    @property
    def receiver(self) -> str:
        """The receiver's name."""
        return self.key_name.partition("/")[0]


def read_kept(file: IO[bytes], name: str) -> Iterator[Kept | Unread]:
    """Yield the receipts in *file*, in order, in memory that does not grow with it; *name* is what messages call the file.

    By its content it is taken for tlog-proofs, one behind the other, or for a receipt log. Blank lines of a log are passed over. A
    last line without its newline counts if it is whole. Raises OSError when the file cannot be read.
    """
    lines = _lines(file)
    first = next(lines, None)
    if first is not None:
        read = _read_proofs if first[1] == _PROOF_BEGINS else _read_log
        yield from read(chain([first], lines), name)


def parse_line(line: bytes, where: str) -> Kept:
    """Return the receipt in a line of a receipt log; raises BrokenError when there is none, or the line says anything twice.

    Not checked: that it proves a thing.
    """
    if len(line) > limits.MAX_KEPT_RECEIPT_BYTES:
        raise BrokenError("the line is too long for a receipt")
    try:
        fields = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BrokenError("the line is not JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("receipt"), str):
        raise BrokenError("the line has no receipt in it")
    proof, statement = fields["receipt"], fields.get("log_key")
    said = {name: value for name, value in fields.items() if name not in _PAPERS}
    notes = fields.get("successions", "")
    if not isinstance(notes, str):
        raise BrokenError("the line has successions that are no text")
    # What JSON can hold and a file of text cannot is for the proof's own checks to refuse.
    encoded = statement.encode("utf-8", "surrogatepass") if isinstance(statement, str) else None
    return Kept(where, proof.encode("utf-8", "surrogatepass"), encoded, said, notes.encode("utf-8", "surrogatepass"))


def find_origin(kept: Kept) -> Origin | None:
    """Return whose log a receipt says that it is of; None when it says none of a host's. Not checked: any signature."""
    try:
        return _split(parse_checkpoint(parse_proof(kept.proof).checkpoint).origin)
    except BrokenError:
        return None


def find_entry(kept: Kept) -> tuple[int | None, Mapping[str, Value]]:
    """Return which entry a receipt says that it proves, its index and its fields; None and nothing when it says none.

    Not checked: that it proves it.
    """
    try:
        proof = parse_proof(kept.proof)
        return proof.leaf_index, parse_entry(proof.extra or b"")
    except BrokenError:
        return None, {}


class ReceiptVerifier:
    """Verifies kept receipts up to one root; remembers the statements that it has met, for most receipts come with the same."""

    def __init__(self, anchors: Anchors, log_key: LogKey | None = None) -> None:
        self._anchors = anchors
        self._log_key = log_key
        """What a receipt without a statement is checked with."""
        self._met: dict[bytes, LogKey | str] = {}
        self._read: dict[bytes, tuple[Succession, ...] | str] = {}

    def verify(self, kept: Kept) -> Witness:
        """Return what a receipt is a witness of.

        1. It has the form of a proof, and its checkpoint is of a host's log.
        2. The log key's statement was a receiver's under the root when it was made, and the log is that receiver's.
        3. The entry leads to the checkpoint's root, and the key has signed that (verify_receipt).
        4. The entry is of that host, and the line says of the receipt what it proves.
        5. The successions that were kept with it are of keys of that name, and hold (verify_succession).

        Raises BrokenError, or the judge's Refusal. Not checked: revocation, that the log still is what it was, and that its key
        is one of those of other receipts (lineage.py).
        """
        proof = parse_proof(kept.proof)
        checkpoint = parse_checkpoint(proof.checkpoint)
        origin = checkpoint.origin
        key_name, host = _split(origin)
        log_key = self._find_key(kept.statement)
        if log_key.name != key_name:
            raise BrokenError(f"it is of log {origin[:300]!a}, and its key is {log_key.name}'s")
        receipt = verify_receipt(kept.proof, origin, log_key.public_key, log_key.earlier)
        if receipt.fields.get("host") != str(host):
            raise BrokenError(f"its entry is of host {receipt.fields.get('host')!a:.100}, in the log of {host}")
        _check_said(kept.said, receipt, log_key)
        key = find_signer(checkpoint, (log_key.public_key, *log_key.earlier)) or log_key.public_key
        successions = self._find_successions(kept.successions, key_name)
        return Witness(kept.where, origin, log_key.receiver.name, host, receipt, proof.hashes, key, successions)

    def _find_successions(self, notes: bytes, key_name: str) -> tuple[Succession, ...]:
        digest = sha256(notes).digest()
        if digest not in self._read:
            try:
                self._read[digest] = verify_successions(notes)
            except BrokenError as error:
                self._read[digest] = f"what was kept with it of log keys does not hold: {error.message}"
        found = self._read[digest]
        if isinstance(found, str):
            raise BrokenError(found)
        if any(one.name != key_name for one in found):
            raise BrokenError("what was kept with it of log keys is another receiver's")
        return found

    def _find_key(self, token: bytes | None) -> LogKey:
        if token is None:
            if self._log_key is None:
                raise BrokenError("the log key's statement is not with it, and none was named (--log-key)")
            return self._log_key
        digest = sha256(token).digest()
        if digest not in self._met:
            try:
                self._met[digest] = verify_statement(token, self._anchors)
            except SecurecoreError as error:
                self._met[digest] = f"the log key's statement does not hold: {error.message}"
        found = self._met[digest]
        if isinstance(found, str):
            raise BrokenError(found)
        return found


def _split(origin: str) -> Origin:
    """Return whose log *origin* names; raises BrokenError when it is no host's."""
    key_name, _, host = origin.rpartition("/")
    try:
        return Origin(key_name, HostName(host))
    except NameRefused as error:
        raise BrokenError(f"it is of log {origin[:300]!a}, which is no host's") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; raises BrokenError for a name that it has twice, of which readers take the first, or the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BrokenError("the line says something twice")
    return fields


def _check_said(said: Mapping[str, Any], receipt: Receipt, log_key: LogKey) -> None:
    """Check that what a line says of its receipt is what that proves; raises BrokenError naming the first difference."""
    fields = receipt.fields
    proved = {
        "dump": fields.get("dump"),
        "host": fields.get("host"),
        "origin": receipt.checkpoint.origin,
        "index": receipt.leaf_index,
        "received_at": fields.get("time"),
    }
    for name, value in proved.items():
        # False, 0.0 and 0 are one to Python, and not to who reads the line next.
        if name in said and (type(said[name]), said[name]) != (type(value), value):
            raise BrokenError(f"its line says {name} is {said[name]!a:.100}, it proves {value!a:.100}")
    if "receiver" in said and not _is_of(str(said["receiver"]), log_key):
        raise BrokenError(f"its line says it came from {said['receiver']!a:.100}, it is {log_key.receiver.name}'s")


def _is_of(address: str, log_key: LogKey) -> bool:
    try:
        return log_key.is_of(Address(address).host_without_zone)
    except NameRefused:
        return False


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1 on, and its newline; of one that is too long the beginning, which is too long too."""
    most, number = limits.MAX_KEPT_RECEIPT_BYTES + 1, 0
    while line := file.readline(most):
        number += 1
        yield number, line
        while len(line) == most and not line.endswith(b"\n"):
            line = file.readline(most)


def _read_log(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Kept | Unread]:
    for number, line in lines:
        if line == b"\n":
            continue
        where = f"{name}:{number}"
        try:
            yield parse_line(line, where)
        except BrokenError as error:
            is_torn = not line.endswith(b"\n") and len(line) <= limits.MAX_KEPT_RECEIPT_BYTES
            yield Unread(where, "the last line is not whole" if is_torn else error.message, is_torn)


def _read_proofs(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Kept]:
    began, text = 0, b""
    for number, line in lines:
        if line == _PROOF_BEGINS:
            if began:
                yield Kept(f"{name}:{began}", text, None, {})
            began, text = number, line
        elif len(text) <= limits.MAX_RECEIPT_BYTES:
            text += line
    yield Kept(f"{name}:{began}", text, None, {})

"""Evidence: entries of an audit log, checkpoints, proofs, the statement of a log key.

What must be signed to be looked at closer is signed here with the log's or the receiver's key.
"""

import base64
import io
import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from hashlib import sha256
from typing import Final

from securecore.audit import entry
from securecore.audit.bundle import Bundle, read_bundle
from securecore.audit.checkpoint import key_id, origin_of, parse_checkpoint, verify_checkpoint
from securecore.audit.proof import TlogProof, parse_proof, verify_receipt
from securecore.audit.statement import encode_payload, verify_statement
from securecore.certs import jws
from securecore.certs.judge import Refusal
from securecore.dump.manifest import Manifest
from securecore.errors import BrokenError
from securecore.merkle import leaf_hash, node_hash
from securecore.names import DumpId
from tests.fuzz.fleet import chain_of, fleet, log_key, log_signer
from tests.fuzz.target import Target, check_words
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id
from tests.support.wire import STORE

_ORIGIN: Final = origin_of(LOG_NAME, WEB)
_DIGESTS: Final = {entry.RECEIVED: "manifest_sha256", entry.INCOMPLETE: "root", entry.DELETED: ""}


def check_entry(data: bytes) -> None:
    """An entry is refused, or it is the one encoding of flat fields; what it says of where a dump stands is what is in it."""
    try:
        fields = entry.parse_entry(data)
    except BrokenError:
        assert entry.find_statement(data) is None
        return
    assert entry.encode(fields) == data
    assert b"\n" not in data
    found = entry.find_statement(data)
    if found is None:
        assert fields["event"] not in _DIGESTS or not _is_dump_id(fields.get("dump"))
        return
    assert (fields["event"], fields["dump"]) == (found.event, str(found.dump))
    assert not found.digest or found.digest.hex() == fields[_DIGESTS[found.event]]
    assert found.follows(found.event, found.digest, found.damaged_bytes) == (found.event == entry.DELETED)
    try:
        held = entry.parse_incomplete(fields, found.dump, WEB, STORE)
    except BrokenError as error:
        check_words(error)
        return
    assert (found.event, found.digest, held.frames) == (entry.INCOMPLETE, held.root, fields["frames"])


def _is_dump_id(text: object) -> bool:
    try:
        DumpId.parse(str(text))
    except ValueError:
        return False
    return True


@cache
def _entry() -> bytes:
    manifest = Manifest(dump_id(1), WEB, STORE, "complete", 4096, 4096, 1, bytes(32), bytes(32), 1, 2, "securecore 0.1")
    digest = sha256(b"certificate").hexdigest()
    return entry.received_entry(NOW, manifest, b"a token", stored_bytes=99, certificate=digest, program="a\u00e9\n", signal=11)


def entry_seeds() -> Iterator[bytes]:
    """Entries of each kind."""
    yield _entry()
    held = entry.Held(1, 4096, bytes(range(32)), bytes(32), 99)
    yield entry.incomplete_entry(NOW, dump_id(2), WEB, STORE, held, last_at=NOW, program="x\n", signal=11)
    yield entry.deleted_entry(NOW, dump_id(2), WEB, uid=0, user="root", reason="no longer needed")
    yield entry.extracted_entry(NOW, dump_id(2), WEB, uid=0, user=None)
    yield entry.extracted_entry(NOW, dump_id(2), WEB, uid=1000, user="\x1b[2J")


def check_checkpoint(data: bytes) -> None:
    """A note is refused, or it is the one spelling of its parts; and only what the log's key signed is believed.

    The first byte says what follows: a note, or a text that the log's key signs.
    """
    if not data:
        return
    note = data[1:] if data[0] % 2 == 0 else _note(data[1:])
    try:
        checkpoint = parse_checkpoint(note)
    except BrokenError as error:
        check_words(error)
        return
    origin, size, root = checkpoint.text.decode().split("\n")[:3]
    assert (origin, size, root) == (checkpoint.origin, str(checkpoint.size), base64.b64encode(checkpoint.root).decode())
    lines = [f"— {line.name} {base64.b64encode(line.key_id + line.signature).decode()}\n" for line in checkpoint.signatures]
    assert note == checkpoint.text + b"\n" + "".join(lines).encode()
    try:
        verified = verify_checkpoint(note, _ORIGIN, log_signer().public_key)
    except BrokenError as error:
        check_words(error)
        return
    assert (verified, origin) == (checkpoint, _ORIGIN)
    assert data[0] % 2 or checkpoint.text == _text(7)


def _text(size: int) -> bytes:
    return log_signer().sign(_ORIGIN, size, bytes(range(32))).partition(b"\n\n")[0] + b"\n"


def _note(text: bytes) -> bytes:
    """Return any text, signed as a checkpoint is."""
    signature = key_id(_ORIGIN, log_signer().public_key) + log_key().sign(text)
    return text + f"\n— {_ORIGIN} {base64.b64encode(signature).decode()}\n".encode()


def checkpoint_seeds() -> Iterator[bytes]:
    """Notes with one signature and with two, and texts to sign."""
    note = log_signer().sign(_ORIGIN, 7, bytes(range(32)))
    yield b"\0" + note
    yield b"\0" + note + "— somebody+else AAAAAAAA\n".encode().replace(b"+", b"/")
    yield b"\1" + _text((1 << 63) - 1)
    yield b"\1" + _text(0) + b"extension line\n"


def check_proof(data: bytes) -> None:
    """A proof is refused, or it is the one spelling of its parts; and only an entry under a signed root is believed.

    The first byte says what follows: a proof; the entry of one that is made for it, in a tree of two; or the hashes of one.
    """
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    hashes = [rest[at : at + 32] for at in range(0, len(rest), 32)]
    proof = (rest, _receipt(rest), _receipt(_entry(), hashes))[kind]
    try:
        parts = parse_proof(proof)
    except BrokenError as error:
        check_words(error)
        return
    assert parts.encode() == proof
    try:
        receipt = verify_receipt(proof, _ORIGIN, log_signer().public_key)
    except BrokenError as error:
        check_words(error)
        return
    assert receipt.entry == parts.extra == entry.encode(receipt.fields)
    # Two leaves: this one and its sibling.
    assert receipt.checkpoint.root == node_hash(leaf_hash(receipt.entry), _SIBLING)
    assert (receipt.leaf_index, receipt.checkpoint.size) == (0, 2)
    assert kind == 1 or receipt.entry == _entry()


_SIBLING: Final = leaf_hash(b"another entry")


def _receipt(line: bytes, hashes: "list[bytes] | None" = None) -> bytes:
    """Return the proof of an entry that is the first of two, with these hashes instead of its sibling's."""
    root = node_hash(leaf_hash(line), _SIBLING)
    return TlogProof(0, tuple([_SIBLING] if hashes is None else hashes), log_signer().sign(_ORIGIN, 2, root), line).encode()


def proof_seeds() -> Iterator[bytes]:
    """A receipt, its entry, its path, and a proof without an entry."""
    yield b"\0" + _receipt(_entry())
    yield b"\0" + parse_proof(_receipt(_entry()))._replace(extra=None, leaf_index=1 << 62).encode()
    yield b"\1" + _entry()
    yield b"\2" + _SIBLING
    yield b"\2" + _SIBLING * 63


def check_statement(data: bytes) -> None:
    """A statement that a receiver signed is refused, or names that receiver's log and holds a key of 32 bytes."""
    token = jws.sign(data, fleet().receiver.key_pem, chain_of(fleet().receiver), jws.LOG_KEY_TYP)
    try:
        stated = verify_statement(token, fleet().anchors)
    except (BrokenError, Refusal) as error:
        check_words(error)
        return
    fields = json.loads(data)
    assert stated.name == LOG_NAME == fields["name"]
    assert stated.public_key == base64.b64decode(fields["public_key"])
    assert len(stated.public_key) == 32
    assert stated.issued_at == datetime.fromisoformat(fields["issued_at"])
    assert stated.receiver.not_before <= stated.issued_at <= stated.receiver.not_after
    assert data == encode_payload(stated.name, stated.public_key, fields["issued_at"])


def statement_seeds() -> Iterator[bytes]:
    """The receiver's statement, and moments of every form."""
    odd = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-11-22")
    for moment in ("2026-11-22T09:14:22Z", "2026-11-22T09:14:22.123+01:00", *odd):
        yield encode_payload(LOG_NAME, log_signer().public_key, moment)
    yield encode_payload("other.example/securecore", bytes(31), "2026-11-22T09:14:22Z")


def check_bundle(data: bytes) -> None:
    """A bundle is refused, or it is the one encoding of its members, each of which is bounded and has its name."""
    _check_bundle(data)
    _check_bundle(_with_sums(data))


def _with_sums(data: bytes) -> bytes:
    """Return what looks like a tar with the right checksum in each header; hardly a mutated one has it."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def _check_bundle(data: bytes) -> None:
    file = io.BytesIO(data)
    try:
        found = read_bundle(file)
    except BrokenError as error:
        check_words(error)
        return
    assert found.encode() == data
    assert file.read() == b""
    members = dict(found.members())
    assert list(members)[:3] == ["FORMAT", "log-key.jws", "receipt"]
    assert set(members) <= {"FORMAT", "log-key.jws", "receipt", "deletion", "manifest.jws", "report.json", _lists_name(found)}


def _lists_name(bundle: Bundle) -> str:
    if bundle.lists is None:
        return ""
    assert len(bytes.fromhex(bundle.lists[0])) == 32
    return f"crls/{bundle.lists[0]}.pem"


def bundle_seeds() -> Iterator[bytes]:
    """The least that there can be, and one with all its members."""
    yield Bundle(b"", b"").encode()
    yield Bundle(b"key", _receipt(_entry()), b"gone", b"token", b"{}", (sha256(b"pem").hexdigest(), b"pem")).encode()


ENTRY = Target(
    check_entry,
    entry_seeds,
    ("audit.entry.parse_entry", "audit.entry.find_statement", "audit.entry.parse_incomplete"),
    is_json=True,
)
CHECKPOINT = Target(check_checkpoint, checkpoint_seeds, ("audit.checkpoint.parse_checkpoint", "audit.checkpoint.verify_checkpoint"))
PROOF = Target(check_proof, proof_seeds, ("audit.proof.parse_proof", "audit.proof.verify_receipt"), is_json=True)
STATEMENT = Target(check_statement, statement_seeds, ("audit.statement.verify_statement",), is_json=True)
BUNDLE = Target(check_bundle, bundle_seeds, ("audit.bundle.read_bundle",), max_bytes=10_240)

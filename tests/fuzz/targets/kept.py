"""Evidence that lies outside a log: receipts that somebody has kept, and what the receiver-wide log says of hosts' logs.

What must be signed to be looked at closer is signed here with the log's or the receiver's key.
"""

import io
import json
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any, Final

from securecore.audit import entry
from securecore.audit.checkpoint import origin_of
from securecore.audit.kept_receipt import Kept, ReceiptVerifier, Witness, find_entry, find_origin, parse_line, read_kept
from securecore.audit.proof import TlogProof
from securecore.audit.statement import encode_payload
from securecore.audit.wide_log import SAID, Tree, parse_said, said_entry
from securecore.audit.wide_verification import Said
from securecore.certs import jws
from securecore.certs.judge import Refusal
from securecore.cli.receipts import _cells, _row
from securecore.dump.manifest import Manifest
from securecore.errors import BrokenError
from securecore.merkle import leaf_hash, node_hash
from securecore.names import HostName
from tests.fuzz.fleet import chain_of, fleet, log_signer
from tests.fuzz.target import Target, check_words
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id
from tests.support.wire import STORE

_ORIGIN: Final = origin_of(LOG_NAME, WEB)
_BESIDE: Final = leaf_hash(b"another entry")
_PROOF_BEGINS: Final = b"c2sp.org/tlog-proof@v1\n"


def check_kept(data: bytes) -> None:
    """A receipt is refused, or its entry is one that the key has signed for that host, and its line says that very thing of it.

    The first byte says what follows: a file of receipts; what a line says beside a good receipt; or the entry of a receipt that is
    made for it.
    """
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    if kind == 0:
        _check_file(rest)
        return
    said = _object(rest) if kind == 1 else {}
    if said is not None:
        line = json.dumps(said | _papers(_entry() if kind == 1 else rest)).encode()
        _check(parse_line(line, "here"), _entry() if kind == 1 else rest)


def _check_file(data: bytes) -> None:
    found = list(read_kept(io.BytesIO(data), "kept"))
    if data.startswith(_PROOF_BEGINS):
        assert b"".join(one.proof for one in found if isinstance(one, Kept)) == data
    else:
        # No line is passed over in silence but blank ones.
        assert [one.where for one in found] == [f"kept:{number}" for number, line in enumerate(data.split(b"\n"), 1) if line]
    for one in found:
        if isinstance(one, Kept):
            _check(one, _entry())
        else:
            assert one.problem.isprintable()
            assert not one.is_torn or not data.endswith(b"\n")


def _check(kept: Kept, line: bytes) -> None:
    """Hold what is made of a receipt to the one entry that was signed."""
    _check_shown(kept)
    # One verifier would remember each statement that it has met, and a fuzzer makes many.
    verifier = _verifier() if kept.statement == _statement() else ReceiptVerifier(fleet().anchors)
    try:
        witness = verifier.verify(kept)
    except (BrokenError, Refusal) as error:
        check_words(error)
        return
    assert (witness.receipt.entry, witness.receipt.leaf_index, witness.receipt.checkpoint.size) == (line, 0, 2)
    assert (witness.origin, witness.host, witness.hashes) == (_ORIGIN, WEB, (_BESIDE,))
    assert find_origin(kept) == (LOG_NAME, WEB)
    assert find_entry(kept) == (0, witness.receipt.fields)
    _check_said(kept.said, witness)


def _check_said(said: Any, witness: Witness) -> None:
    """A later reader may go by the line alone: what it says must be the same value of the same type, by JSON's own writing."""
    fields = witness.receipt.fields
    proved = {"dump": fields.get("dump"), "host": str(WEB), "origin": _ORIGIN, "index": 0, "received_at": fields["time"]}
    for name in proved.keys() & said.keys():
        assert json.dumps(said[name]) == json.dumps(proved[name]), name


def _check_shown(kept: Kept) -> None:
    """Whatever it is, `receipts list` has a line for it."""
    row = _row(kept)
    json.dumps(row)
    assert all(cell.isprintable() and cell for cell in _cells(row))


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


@cache
def _entry() -> bytes:
    manifest = Manifest(dump_id(1), WEB, STORE, "complete", 4096, 4096, 1, bytes(32), bytes(32), 1, 2, "securecore 0.1")
    return entry.received_entry(NOW, manifest, b"a token", stored_bytes=99, certificate="0" * 64)


def _proof(line: bytes) -> bytes:
    """Return the proof of an entry that is the first of two."""
    note = log_signer().sign(_ORIGIN, 2, node_hash(leaf_hash(line), _BESIDE))
    return TlogProof(0, (_BESIDE,), note, line).encode()


@cache
def _verifier() -> ReceiptVerifier:
    return ReceiptVerifier(fleet().anchors)


@cache
def _statement() -> bytes:
    payload = encode_payload(LOG_NAME, log_signer().public_key, NOW.isoformat())
    return jws.sign(payload, fleet().receiver.key_pem, chain_of(fleet().receiver), jws.LOG_KEY_TYP)


def _papers(line: bytes) -> dict[str, str]:
    return {"receipt": _proof(line).decode(), "log_key": _statement().decode()}


def _said() -> dict[str, Any]:
    """Return what a sender writes into a line beside the papers."""
    fields = json.loads(_entry())
    said = {"dump": fields["dump"], "host": str(WEB), "origin": _ORIGIN, "index": 0, "received_at": fields["time"]}
    return said | {"receiver": "127.0.0.1:4455", "checked_at": 1, "gone": "a\n", "instead_of": str(dump_id(2))}


def kept_seeds() -> Iterator[bytes]:
    """A line and a proof, alone, twice and torn; what lines say; and entries to sign."""
    line, proof = json.dumps(_said() | _papers(_entry())).encode() + b"\n", _proof(_entry())
    yield from (b"\0" + data for data in (line, line[:-1], b"\n" + line + line[:40], proof, proof + proof[:-1]))
    yield b"\1" + json.dumps(_said()).encode()
    for receiver in ("[::1]:4455", "[fe80::1%eth0]:1", "collector:1"):
        yield b"\1" + json.dumps({"receiver": receiver}).encode()
    yield b"\2" + _entry()
    yield b"\2" + entry.extracted_entry(NOW, dump_id(2), WEB, uid=0, user="\x1b[2J")
    for moment in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", ""):
        yield b"\2" + entry.encode(json.loads(_entry()) | {"time": moment})


def check_wide_entry(data: bytes) -> None:
    """An entry says a checkpoint of a host's log, or it is none of that kind, or refused; what it says is what is in it."""
    try:
        found = parse_said(data)
    except BrokenError as error:
        check_words(error)
        return
    fields = json.loads(data)
    if found is None:
        assert fields["event"] != SAID
        return
    host, tree = found
    assert (fields["event"], fields["host"], fields["size"], fields["root"]) == (SAID, str(host), tree.size, tree.root.hex())
    # What reads the log keeps many of them, in a packed form.
    said = Said()
    said.add(host, tree)
    assert (said.hosts, list(said.of(host))) == ([host], [tree])
    moment = entry.find_time(fields)
    if fields.keys() == {"event", "host", "root", "size", "time", "version"} and moment is not None:
        same = {"time": entry.timestamp(moment), "version": 1}
        assert json.loads(said_entry(moment, host, tree)) == fields | same


def wide_entry_seeds() -> Iterator[bytes]:
    """Entries of the least and the largest logs, one with more in it, and one of another event."""
    root, longest = bytes(range(32)), HostName(".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]))
    for host, size in chain(((WEB, size) for size in (0, 1, (1 << 63) - 1)), [(longest, 7)]):
        yield said_entry(NOW, host, Tree(size, root))
    yield entry.encode(json.loads(said_entry(NOW, WEB, Tree(1, root))) | {"more": None, "version": 2})
    yield entry.extracted_entry(NOW, dump_id(2), WEB, uid=0, user="root")


KEPT_RECEIPT = Target(
    check_kept,
    kept_seeds,
    ("audit.kept_receipt.parse_line", "audit.kept_receipt.ReceiptVerifier.verify", "cli.receipts._cells"),
    max_bytes=10_240,
    is_json=True,
)
WIDE_ENTRY = Target(check_wide_entry, wide_entry_seeds, ("audit.wide_log.parse_said",), is_json=True)

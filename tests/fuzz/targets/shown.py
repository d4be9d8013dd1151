"""What is shown of stored and given files, without being believed: rows of `list` and `audit log`, `pki inspect`."""

import base64
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from securecore.audit import entry
from securecore.certs import jws
from securecore.cli.audit import _cells, _row
from securecore.errors import BrokenError, PkiError
from securecore.pki.inspection import describe
from securecore.store.layout import Store, create_store
from securecore.store.rows import STATE_COMPLETE, row_of
from tests.fuzz.files import scratch
from tests.fuzz.fleet import chain_of, fleet, log_signer
from tests.fuzz.target import Target, check_words
from tests.fuzz.targets.audit import ENTRY
from tests.support.certificates import make_crl
from tests.support.dumps import NOW, WEB, Signer, core_bytes, dump_id, dump_path, logs_of, store_dump

_FILES: Final = ("report.json", "manifest.jws", "receipt")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_DUMP: Final = dump_id(1)


@cache
def _store() -> tuple[Store, Path]:
    """Return a store with one dump, and the dump's directory."""
    store = create_store(str(scratch("store") / "store"))
    logs = logs_of(store, log_signer())
    store_dump(store, logs, Signer(fleet().host), _DUMP, core_bytes(0, 8))
    logs.close()
    return store, dump_path(store, _DUMP)


def check_row(data: bytes) -> None:
    """A dump is listed whatever stands in its files, and as complete only with a manifest that says so.

    The first byte says which file the rest is, or what the receipt's entry is.
    """
    if not data:
        return
    store, directory = _store()
    kind, content = data[0] % 4, data[1:]
    name, content = ("receipt", _proof_of(content)) if kind == 3 else (_FILES[kind], content)
    kept = (directory / name).read_bytes()
    (directory / name).write_bytes(content)
    try:
        with store.open_dump(WEB, _DUMP) as files:
            row = row_of(files)
    finally:
        (directory / name).write_bytes(kept)
    assert _MOMENT.fullmatch(row.received_at)
    datetime.fromisoformat(row.received_at).astimezone(UTC)
    assert row.id == str(_DUMP)
    assert kind == 1 or row.state == STATE_COMPLETE
    if kind == 1 and row.state == STATE_COMPLETE:
        assert content.count(b".") == 2


def _proof_of(line: bytes) -> bytes:
    return b"c2sp.org/tlog-proof@v1\nextra " + base64.b64encode(line) + b"\nindex 0\n"


def row_seeds() -> Iterator[bytes]:
    """The files of a dump, and entries of every time."""
    _, directory = _store()
    yield from (bytes([kind]) + (directory / name).read_bytes() for kind, name in enumerate(_FILES))
    borders = ("0001-01-01T00:00:00+23:59", "0900-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59")
    for moment in ("2026-11-22T09:14:22.123Z", *borders, "x"):
        yield b"\3" + json.dumps({"time": moment}).encode()


def check_log_row(data: bytes) -> None:
    """An entry of a log is shown as printable text, whoever wrote it."""
    try:
        fields = entry.parse_entry(data)
    except BrokenError as error:
        check_words(error)
        return
    cells = _cells(_row(0, WEB, fields))
    assert all(type(cell) is str and cell.isprintable() for cell in cells)


def check_inspection(data: bytes) -> None:
    """A file is described in what JSON can hold, or refused in one line; a private key is never in it."""
    try:
        described = describe(data, "the file")
    except PkiError as error:
        check_words(error)
        return
    assert described
    text = json.dumps(described)
    assert "PRIVATE KEY-----" not in text
    assert all(type(one["kind"]) is str for one in described)


def inspection_seeds() -> Iterator[bytes]:
    """Everything that `pki inspect` knows."""
    hierarchy = fleet().hierarchy
    yield fleet().host.pem + hierarchy.hosts.pem
    yield fleet().receiver.der
    yield make_crl(hierarchy.hosts, now=NOW, revoked={7: (NOW.replace(microsecond=0), "keyCompromise")})
    yield fleet().host.key_pem
    yield b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    yield jws.sign(b'{"a": [1]}', fleet().host.key_pem, chain_of(fleet().host), "any+jws")


ROW = Target(check_row, row_seeds, ("store.rows.row_of",), is_json=True)
LOG_ROW = Target(check_log_row, ENTRY.seeds, ("cli.audit._cells",), is_json=True)
INSPECTION = Target(check_inspection, inspection_seeds, ("pki.inspection.describe",))

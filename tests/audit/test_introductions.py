"""A host's certificates in its log: each once, with what it is, and whether its key is another than the one before."""

import json
import os
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.introductions import Introduction
from securecore.audit.log import HostLog
from securecore.audit.proof import verify_receipt
from securecore.certs.profiles import HOST
from securecore.errors import BrokenError
from tests.support.certificates import Hierarchy, Made, mint
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id, make_log_signer, opened
from tests.support.entries import received

ORIGIN = origin_of(LOG_NAME, WEB)


class Log:
    """A log that is opened again for every step."""

    def __init__(self, path: Path, signer: LogSigner) -> None:
        self.path, self.signer = path, signer
        path.mkdir()

    def introduce(self, made: Made, number: int, *entries: bytes) -> list[bytes]:
        """Introduce a certificate with a dump, and with entries."""
        with opened(self.path) as fd:
            log = HostLog.open(fd, ORIGIN, self.signer)
            try:
                return log.append_all(entries, Introduction(WEB, dump_id(number), made.der, NOW))
            finally:
                log.close()

    def entries(self) -> list[dict[str, Any]]:
        """Return what the log says."""
        return [json.loads(line) for line in (self.path / "entries.jsonl").read_bytes().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """An empty log."""
    return Log(tmp_path / "log", make_log_signer())


def make(hierarchy: Hierarchy) -> Made:
    """A host's certificate with a key of its own."""
    return mint(HOST, issuer=hierarchy.hosts, dns=[str(WEB)], now=NOW)


def test_a_certificate_is_introduced_with_what_it_is(log: Log, hierarchy: Hierarchy) -> None:
    """Fingerprint, serial number, end and key, and with which dump it came first."""
    made = make(hierarchy)
    assert log.introduce(made, 1) == []
    (entry,) = log.entries()
    key = made.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert entry == {
        "version": 1,
        "event": "certificate",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "certificate": sha256(made.der).hexdigest(),
        "serial": f"{made.certificate.serial_number:x}",
        "not_after": made.certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "key_sha256": sha256(key).hexdigest(),
        "key": "first",
    }


def test_a_certificate_has_one_entry(log: Log, hierarchy: Hierarchy) -> None:
    """However often it comes, and when another one came in between; also after opening again."""
    old, new = make(hierarchy), make(hierarchy)
    for number, made in enumerate((old, old, new, old, new)):
        log.introduce(made, number)
    assert [entry["dump"] for entry in log.entries()] == [str(dump_id(0)), str(dump_id(2))]


def test_a_known_certificate_costs_no_write(log: Log, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made durable where there is nothing to say, in a log that is open."""
    made = make(hierarchy)
    log.introduce(made, 1)
    with opened(log.path) as fd:
        opened_log = HostLog.open(fd, ORIGIN, log.signer)
    with monkeypatch.context() as patch:
        for name in ("fdatasync", "fsync", "write"):
            patch.setattr(os, name, None)
        assert opened_log.append_all([], Introduction(WEB, dump_id(2), made.der, NOW)) == []
    opened_log.close()


def test_it_is_said_whether_the_key_is_another_one(log: Log, hierarchy: Hierarchy) -> None:
    """Held against the certificate before: a renewal keeps the key, a new identity does not."""
    first, other = make(hierarchy), make(hierarchy)
    renewed = mint(HOST, issuer=hierarchy.hosts, dns=[str(WEB)], now=NOW + timedelta(days=1), key=first.key)
    for number, made in enumerate((first, renewed, other)):
        log.introduce(made, number)
    assert [entry["key"] for entry in log.entries()] == ["first", "kept", "rotated"]


def test_it_stands_before_the_entries_that_it_comes_with_and_shares_their_writes(
    log: Log, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch, and the receipts are those of the entries."""
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or fdatasync(fd))
    (receipt,) = log.introduce(make(hierarchy), 1, received(1))
    found = verify_receipt(receipt, ORIGIN, log.signer.public_key)
    assert (found.entry, found.leaf_index, found.checkpoint.size) == (received(1), 1, 2)
    assert [entry["event"] for entry in log.entries()] == ["certificate", "received"]
    assert len(synced) == 1


def test_what_is_no_certificate_is_not_introduced(log: Log) -> None:
    """Nothing is written, and the log goes on."""
    with opened(log.path) as fd:
        opened_log = HostLog.open(fd, ORIGIN, log.signer)
    with pytest.raises(BrokenError, match="can't be read"):
        opened_log.append_all([received(1)], Introduction(WEB, dump_id(1), b"rubbish", NOW))
    assert opened_log.size == 0
    opened_log.append(received(1))
    opened_log.close()


@pytest.mark.parametrize("entry", [b'{"event":"certificate","time":"t"}', b'{"certificate":7,"event":"certificate","time":"t"}'])
def test_an_entry_that_says_nothing_of_its_certificate_introduces_none(entry: bytes, log: Log, hierarchy: Hierarchy) -> None:
    """It is an entry like any other."""
    with opened(log.path) as fd:
        opened_log = HostLog.open(fd, ORIGIN, log.signer)
        opened_log.append(entry)
        opened_log.close()
    log.introduce(make(hierarchy), 1)
    assert [entry.get("key") for entry in log.entries()] == [None, "first"]

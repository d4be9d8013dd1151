"""Dumps for tests: small cores, their frames, signed manifests, and whole stored dumps made by the real code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from securecore import limits
from securecore.audit import entry
from securecore.audit.checkpoint import LogSigner
from securecore.audit.log import HostLog, HostLogs
from securecore.certs import jws
from securecore.certs.profiles import HOST
from securecore.dump.compression import Compressor
from securecore.dump.manifest import COMPLETE, MANIFEST_TYP, Manifest
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, HostName, StoreId
from securecore.report import CrashReport
from securecore.store.layout import Store
from securecore.store.writer import IncomingDump
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, Hierarchy, Made, mint

WEB: Final = HostName(HOST_NAME)
LOG_NAME: Final = f"{RECEIVER_NAME}/securecore"
REPORT: Final = CrashReport(
    program="nginx", signal=11, pid=4711, build_id="4f1c", executable="/usr/sbin/nginx", crashed_at=1
).encode()
NOW: Final = datetime(2026, 11, 22, 9, 14, 22, 123456, tzinfo=UTC)


def dump_id(number: int) -> DumpId:
    """Return the id with a given number in its last bytes."""
    return DumpId.make(1_000_000 + number, number.to_bytes(10, "big"))


def core_bytes(whole_pieces: int = 2, tail: int = 100) -> bytes:
    """Return plaintext that compresses to almost nothing: zero pieces and text pieces in turn, then a short one."""
    pieces = [bytes([65 * (index % 2)]) * limits.PIECE_BYTES for index in range(whole_pieces)]
    return b"".join(pieces) + b"tail" * (tail // 4)


def frames_of(core: bytes) -> list[tuple[bytes, int]]:
    """Return each piece's frame and plaintext length."""
    compressor = Compressor()
    pieces = [core[at : at + limits.PIECE_BYTES] for at in range(0, len(core), limits.PIECE_BYTES)]
    return [(bytes(compressor.frame(piece)), len(piece)) for piece in pieces]


@dataclass
class Signer:
    """What a host signs its manifests with."""

    made: Made
    host: HostName = WEB

    def manifest(
        self, identifier: DumpId, store: StoreId, core: bytes, *, outcome: str = COMPLETE, report: bytes = REPORT
    ) -> Manifest:
        """Return the manifest of a dump of *core*."""
        frames = frames_of(core)
        return Manifest(
            dump=identifier,
            host=self.host,
            store=store,
            outcome=outcome,
            predicted_size=None,
            size=len(core),
            frames=len(frames),
            root=root_of(leaf_hash(frame) for frame, _ in frames),
            report_sha256=sha256(report).digest(),
            started_at=int(NOW.timestamp() * 1000) - 50,
            ended_at=int(NOW.timestamp() * 1000),
            sender="securecore test",
        )

    def sign(self, manifest: Manifest) -> bytes:
        """Return the manifest as a JWS."""
        return jws.sign(manifest.encode(), self.made.key_pem, [self.made.der, _der(self.made)], MANIFEST_TYP)


def make_signer(hierarchy: Hierarchy, host: HostName = WEB) -> Signer:
    """Return the signer of a host whose certificate is valid around NOW."""
    return Signer(mint(HOST, issuer=hierarchy.hosts, dns=[str(host)], now=NOW), host)


def make_log_signer() -> LogSigner:
    """Return a new log key under the test receiver's name."""
    return LogSigner(LOG_NAME, Ed25519PrivateKey.generate())


@dataclass
class Keys:
    """What a receiver signs its log with, and a host its manifests."""

    log: LogSigner
    host: Signer


def logs_of(store: Store, signer: LogSigner) -> HostLogs:
    """Return the audit logs of a store."""
    return HostLogs(signer, lambda host: store.audit_directory(host, create=True))


def begin(store: Store, identifier: DumpId, core: bytes, report: bytes = REPORT, host: HostName = WEB) -> IncomingDump:
    """Return an incoming dump with all frames of *core*, durable."""
    incoming = IncomingDump.begin(store, host, identifier, report)
    for frame, plain in frames_of(core):
        incoming.append(frame, plain)
    incoming.sync()
    return incoming


def log_of(logs: HostLogs, host: HostName) -> HostLog:
    """Return a host's log for a test that has so few of them that none is closed behind its back."""
    with logs.using(host) as log:
        return log


def store_dump(store: Store, logs: HostLogs, signer: Signer, identifier: DumpId, core: bytes, *, outcome: str = COMPLETE) -> bytes:
    """Store a dump as a receiver does and return its receipt."""
    incoming = begin(store, identifier, core, host=signer.host)
    manifest = signer.manifest(identifier, store.store_id, core, outcome=outcome)
    token = signer.sign(manifest)
    incoming.finish(token)
    fingerprint = sha256(signer.made.der).hexdigest()
    line = entry.received_entry(NOW, manifest, token, stored_bytes=incoming.container_bytes, certificate=fingerprint)
    receipt = log_of(logs, signer.host).append(line)
    incoming.put_receipt(receipt)
    incoming.publish()
    return receipt


def dump_path(store: Store, identifier: DumpId, place: str = "hosts", host: HostName = WEB) -> Path:
    """Return where a dump's directory stands."""
    return Path(store.path) / place / str(host) / str(identifier)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _der(made: Made) -> bytes:
    return made.above[0].public_bytes(Encoding.DER)

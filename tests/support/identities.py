"""Identity directories with any certificate in them: what a stranger, a thief or a careless CA would hold."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.profiles import RECEIVER
from securecore.names import HostName
from securecore.pki.issue import log_statement
from tests.support.certificates import RECEIVER_NAME, Hierarchy, Made, make_crl, make_key, mint


def write_identity(directory: Path, made: Made, roots: bytes) -> Path:
    """Write an identity directory with any certificate, and the chain above it but for its root."""
    directory.mkdir()
    (directory / "ca.pem").write_bytes(roots)
    chain = [made.pem, *(above.public_bytes(Encoding.PEM) for above in made.above if above.subject != above.issuer)]
    (directory / "cert.pem").write_bytes(b"".join(chain))
    (directory / "key.pem").write_bytes(made.key_pem)
    (directory / "key.pem").chmod(0o600)
    return directory


def write_receiver_identity(directory: Path, hierarchy: Hierarchy, *, revoked: Made | None = None) -> Path:
    """Write the identity directory of an honest receiver at 127.0.0.1, whose lists name *revoked*."""
    receiver = mint(RECEIVER, issuer=hierarchy.receivers, ips=["127.0.0.1"])
    authorities = (hierarchy.root, hierarchy.hosts, hierarchy.receivers)
    write_identity(directory, receiver, b"".join(made.pem for made in authorities))
    now = datetime.now(UTC)
    serials = {} if revoked is None else {revoked.certificate.serial_number: (now, "keyCompromise")}
    lists = [make_crl(hierarchy.root), make_crl(hierarchy.hosts, revoked=serials), make_crl(hierarchy.receivers)]
    (directory / "crl.pem").write_bytes(b"".join(lists))
    log_key = Made(receiver.certificate, make_key("ed25519"))
    (directory / "log-key.pem").write_bytes(log_key.key_pem)
    (directory / "log-key.pem").chmod(0o600)
    chain = [receiver.der, hierarchy.receivers.der]
    public = log_key.key.public_key().public_bytes_raw()
    (directory / "log-key.jws").write_bytes(log_statement(HostName(RECEIVER_NAME), public, receiver.key_pem, chain, now))
    return directory

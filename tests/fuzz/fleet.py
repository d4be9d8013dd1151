"""The PKI that the targets judge by: the same keys, names and times in every process, so that a finding stays one."""

from datetime import timedelta
from functools import cache
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.audit.checkpoint import LogSigner
from securecore.certs.chain import Anchors
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA, ROOT_CA
from tests.support.certificates import Hierarchy, Made, mint
from tests.support.dumps import LOG_NAME, NOW

BORN: Final = NOW - timedelta(days=1)


class Fleet(NamedTuple):
    """A hierarchy, one host, one receiver."""

    hierarchy: Hierarchy
    host: Made
    receiver: Made

    @property
    def anchors(self) -> Anchors:
        """What a receiver's ca.pem holds."""
        return self.hierarchy.anchors


def key(number: int) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a number."""
    return ec.derive_private_key(number, ec.SECP256R1())


@cache
def fleet() -> Fleet:
    """Return the fleet of this process."""
    root = mint(ROOT_CA, key=key(1), serial=1, subject="root", now=BORN)
    hosts = mint(HOSTS_CA, issuer=root, key=key(2), serial=2, subject="hosts CA", now=BORN)
    receivers = mint(RECEIVERS_CA, issuer=root, key=key(3), serial=3, subject="receivers CA", now=BORN)
    host = mint(HOST, issuer=hosts, key=key(4), serial=4, now=BORN)
    receiver = mint(RECEIVER, issuer=receivers, key=key(5), serial=5, ips=["127.0.0.1", "::1"], now=BORN)
    return Fleet(Hierarchy(root, hosts, receivers), host, receiver)


@cache
def log_key() -> Ed25519PrivateKey:
    """Return the receiver's log key."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@cache
def log_signer() -> LogSigner:
    """Return what signs the receiver's logs."""
    return LogSigner(LOG_NAME, log_key())


def chain_of(made: Made) -> list[bytes]:
    """Return what a signer of a statement shows: its certificate and its issuing CA's."""
    return [made.der, made.above[0].public_bytes(Encoding.DER)]

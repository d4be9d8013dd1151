"""From a name and a public key to a certificate in the ledger: the steps that every way of issuing shares.

Whoever issues holds the PKI's lock. A certificate is minted and judged, what is to be delivered is written where nobody looks yet,
then the certificate is recorded, then delivered; so nothing is delivered that could not be revoked by name.
"""

from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.judge import Purpose, Refusal, judge
from securecore.certs.profiles import Profile
from securecore.errors import PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory, certificate_pem, issue_fields
from securecore.pki.ledger import Fields, Issued, State
from securecore.pki.minting import Address, Authority, mint_leaf
from securecore.pki.staging import (
    PUBLIC_MODE,
    StagedDirectory,
    StagedFile,
    disk_errors,
    give_to_owner_of,
    sync_directory,
    write_new,
)


class Subject(NamedTuple):
    """Whom a leaf certificate is for: its names, the first of which is its holder's, and a server's addresses."""

    profile: Profile
    names: tuple[HostName, ...]
    addresses: tuple[Address, ...] = ()

    @property
    def name(self) -> HostName:
        """The holder's name."""
        return self.names[0]


def mint_judged(
    pki: PkiDirectory,
    state: State,
    subject: Subject,
    public_key: ec.EllipticCurvePublicKey,
    issuer: Authority,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """Return a certificate that the judge believes; nothing is written.

    *state* is that of the ledger under the lock. Raises PkiError as mint_leaf does, when *issuer* is not the CA that signs now or
    was revoked, and for a certificate that a receiver or sender would refuse, such as one of a fleet whose root has expired.
    """
    _check_signs(state, subject.profile, issuer)
    leaf = mint_leaf(
        subject.profile, pki.organisation, subject.names, subject.addresses, public_key, issuer, now, days
    )
    purpose, above = Purpose(subject.profile.name), [issuer.certificate.public_bytes(Encoding.DER)]
    try:
        judge(leaf.public_bytes(Encoding.DER), above, pki.anchors(), purpose, now)
    except Refusal as error:
        raise PkiError(f"the certificate would be refused by every other end: {error.message}", hint=error.hint) from error
    return leaf


def deliver(
    pki: PkiDirectory,
    leaf: x509.Certificate,
    subject: Subject,
    issuer: Authority,
    staged: StagedDirectory | StagedFile,
    now: datetime,
) -> None:
    """Record a certificate, then publish what holds it; one that then nobody has is marked as discarded."""
    serial = f"{leaf.serial_number:x}"
    record(pki, leaf, subject, issuer, {}, now)
    try:
        staged.publish()
    finally:
        if not staged.is_published:
            pki.ledger.append(now, "discard", {"serial": serial})


def record(
    pki: PkiDirectory, leaf: x509.Certificate, subject: Subject, issuer: Authority, why: Fields, now: datetime
) -> None:
    """Keep a certificate and record it, in one line of the ledger with *why* it was issued."""
    names, addresses = [str(name) for name in subject.names], [str(one) for one in subject.addresses]
    keep(pki, leaf)
    fields = issue_fields(leaf, subject.profile.name, issuer.certificate, names, addresses)
    pki.ledger.append(now, "issue", {**fields, **why})


def keep(pki: PkiDirectory, certificate: x509.Certificate) -> None:
    """Write a certificate into issued/, name and all durable, for the ledger must not say more than is there; raises StorageError.

    It is given to the owner of the PKI directory, whoever runs us.
    """
    path = pki.path / "issued" / f"{certificate.serial_number:x}.pem"
    write_new(path, certificate_pem(certificate), PUBLIC_MODE)
    with disk_errors(path):
        give_to_owner_of(path, pki.path)
        sync_directory(path.parent)


def _check_signs(state: State, profile: Profile, issuer: Authority) -> None:
    """The CA was unlocked before the lock was taken: meanwhile a rotation may have replaced it, or somebody revoked it."""
    serial, name = issuer.certificate.serial_number, profile.signed_by
    if state.succession(name).current != serial:
        raise PkiError(f"the {name} was replaced at this moment, and its successor signs now", hint="run the command again")
    revoked_at = state.issued[serial].revoked_at
    if revoked_at is not None:
        words = f"the {name} was revoked on {revoked_at:%Y-%m-%d}, and every receiver refuses what it signs"
        raise PkiError(words, hint="replace it: pki/runbooks/rotate-ca.md")


def others_of(issued: dict[int, Issued], subject: Subject, now: datetime) -> tuple[Issued, ...]:
    """Return the certificates of the same kind and first name that are valid at *now*."""
    return tuple(
        one
        for one in issued.values()
        if one.profile == subject.profile.name and one.names[:1] == (str(subject.name),) and one.state(now) == "valid"
    )

"""Signing for a key that stays where it is: a first certificate by request, or a further one for the key of the newest.

Both deliver a reply (reply.py), which `securecore pki install` puts into the identity directory beside the key.
"""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from securecore.certs.chain import fingerprint, load_pem_certificates
from securecore.certs.private_file import read_public
from securecore.certs.profiles import Profile
from securecore.errors import BrokenError, PkiError
from securecore.limits import MAX_CERTIFICATE_BYTES
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.holders import find_newest, subject_of
from securecore.pki.issue import Issuance
from securecore.pki.keys import AskPassphrase
from securecore.pki.known_keys import check_key
from securecore.pki.ledger import Issued
from securecore.pki.recording import Subject, deliver, mint_judged, others_of
from securecore.pki.reply import encode_reply
from securecore.pki.revocation import check_not_behind
from securecore.pki.signing_request import MAX_REQUEST_BYTES, requested_key
from securecore.pki.staging import PUBLIC_MODE, check_free, stage_file


def sign(
    pki: PkiDirectory,
    subject: Subject,
    public_key: ec.EllipticCurvePublicKey,
    out: Path,
    ask_passphrase: AskPassphrase,
    now: datetime,
    days: int | None = None,
) -> Issuance:
    """Certify the key of a request and write the reply to *out*; *days* is the profile's default when None.

    Raises PkiError when *out* exists, a name is outside the fleet's domain or *days* out of bounds, and when the key was revoked or
    is another's; NotFoundError, ConfigError,
    StorageError or BrokenError when the PKI directory is not whole.
    """
    check_free(out)
    issuer = pki.authority(subject.profile.signed_by, ask_passphrase)
    with pki.lock():
        state = pki.ledger.follow()
        check_not_behind(pki)
        check_key(state, public_key, subject, now)
        leaf = mint_judged(pki, state, subject, public_key, issuer, now, subject.profile.default_days if days is None else days)
        reply = encode_reply(pki, leaf, issuer.certificate, subject)
        with stage_file(out, reply, PUBLIC_MODE) as staged:
            deliver(pki, leaf, subject, issuer, staged, now)
    return Issuance(leaf, out, subject, others_of(state.issued, subject, now))


def renew(
    pki: PkiDirectory,
    name: HostName,
    profile: Profile | None,
    out: Path,
    ask_passphrase: AskPassphrase,
    now: datetime,
    days: int | None = None,
) -> Issuance:
    """Certify the key of a name's newest certificate again, for the same names and addresses, and write the reply to *out*.

    The one before stays valid until it expires. Raises like sign and find_newest, and PkiError when that certificate was revoked.
    """
    newest = find_newest(pki.ledger.follow(), name, profile)
    if newest.revoked_at is not None:
        words = f"the newest certificate of {str(name)!r} was revoked on {newest.revoked_at:%Y-%m-%d} ({newest.reason})"
        hint = "make a new key: `securecore pki rekey`, or `securecore pki request` on the machine itself"
        raise PkiError(f"{words}: its key is not certified again", hint=hint)
    return sign(pki, subject_of(newest), _key_of(pki, newest), out, ask_passphrase, now, days)


def read_request(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key of the request in a file; raises like requested_key and read_public."""
    return requested_key(read_public(path, MAX_REQUEST_BYTES), what=str(path))


def _key_of(pki: PkiDirectory, one: Issued) -> ec.EllipticCurvePublicKey:
    certificate = issued_certificate(pki, one)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BrokenError(f"certificate {one.serial:x} is not one that this PKI makes")
    return key


def issued_certificate(pki: PkiDirectory, one: Issued) -> x509.Certificate:
    """Return a certificate that the ledger has; raises BrokenError where the file is another one, and as read_public."""
    path = pki.path / "issued" / f"{one.serial:x}.pem"
    (certificate,) = load_pem_certificates(read_public(path, 2 * MAX_CERTIFICATE_BYTES), 1, what=str(path))
    if fingerprint(certificate) != one.fingerprint:
        words = f"{path}: not the certificate that the ledger has under this serial number"
        raise BrokenError(words, hint="restore it from a backup")
    return certificate

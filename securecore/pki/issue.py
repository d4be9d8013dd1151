"""Issuing: from a name to an identity directory, ready to be carried to its machine.

The order of work: unlock the CA, then, under the PKI's lock, make key and certificate, let the judge look at it, write everything
into a temporary directory, record the certificate in the ledger, rename the directory into place. Whatever fails, a rerun starts
afresh. A certificate that was recorded but not delivered is marked as discarded; after a power cut in that very moment it stays
listed as valid, though its key is gone.
"""

import base64
import ipaddress
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs import jws
from securecore.certs.identity_directory import CA, CERTIFICATE, CRL, KEY, LOG_KEY, LOG_STATEMENT
from securecore.certs.private_file import read_public
from securecore.certs.profiles import ENROLLER, HOST, RECEIVER, Profile
from securecore.errors import PkiError
from securecore.limits import MAX_CRL_BYTES
from securecore.names import HostName, NameRefused
from securecore.pki.directory import PkiDirectory, certificate_pem
from securecore.pki.holders import find_newest, subject_of
from securecore.pki.keys import AskPassphrase, make_key, make_log_key, private_pem
from securecore.pki.ledger import Issued, format_time
from securecore.pki.minting import Address
from securecore.pki.recording import Subject, deliver, mint_judged, others_of
from securecore.pki.revocation import check_not_behind
from securecore.pki.staging import PRIVATE_MODE, PUBLIC_MODE, StagedDirectory, check_free, stage

LOG_NAME: Final = "{receiver}/securecore"
"""The name of a receiver's log key in its statement and in checkpoints."""


class Issuance(NamedTuple):
    """What was issued: the leaf, where it is (a directory, or the file of a reply), and the name's other valid certificates."""

    certificate: x509.Certificate
    out: Path
    subject: Subject
    others: tuple[Issued, ...]


def issue_host(
    pki: PkiDirectory, name: HostName, out: Path, ask_passphrase: AskPassphrase, now: datetime, days: int = HOST.default_days
) -> Issuance:
    """Make a host's key, certificate and identity directory *out*.

    Raises PkiError when *out* exists, the name is outside the fleet's domain or *days* out of bounds; NotFoundError, ConfigError,
    StorageError or BrokenError when the PKI directory is not whole.
    """
    return _issue(pki, Subject(HOST, (name,)), out, ask_passphrase, now, days)


def issue_receiver(
    pki: PkiDirectory,
    name: HostName,
    addresses: Sequence[HostName | Address],
    out: Path,
    ask_passphrase: AskPassphrase,
    now: datetime,
    days: int = RECEIVER.default_days,
) -> Issuance:
    """Make a receiver's keys, certificate, log-key statement and identity directory *out*; raises like issue_host.

    The certificate holds *name* first, then *addresses*, each once.
    """
    return _issue(pki, server_subject(RECEIVER, name, addresses), out, ask_passphrase, now, days)


def issue_enroller(
    pki: PkiDirectory,
    name: HostName,
    addresses: Sequence[HostName | Address],
    out: Path,
    ask_passphrase: AskPassphrase,
    now: datetime,
    days: int = ENROLLER.default_days,
) -> Issuance:
    """Make the key, certificate and identity directory *out* of a server that enrols hosts; as issue_receiver."""
    return _issue(pki, server_subject(ENROLLER, name, addresses), out, ask_passphrase, now, days)


def rekey(
    pki: PkiDirectory,
    name: HostName,
    profile: Profile | None,
    out: Path,
    ask_passphrase: AskPassphrase,
    now: datetime,
    days: int | None = None,
) -> Issuance:
    """Make a new identity directory, with new keys, for the names and addresses of a name's newest certificate.

    A receiver's log key is new too. *profile* says which, where the name is a host's and a receiver's. Raises like issue_host, and
    as find_newest.
    """
    subject = subject_of(find_newest(pki.ledger.follow(), name, profile))
    return _issue(pki, subject, out, ask_passphrase, now, subject.profile.default_days if days is None else days)


def server_subject(profile: Profile, name: HostName, addresses: Sequence[HostName | Address]) -> Subject:
    """Return the subject of a receiver or an enroller: *name* first, then *addresses*, each once."""
    names = (one for one in addresses if isinstance(one, HostName))
    numbers = (one for one in addresses if not isinstance(one, HostName))
    return Subject(profile, tuple(dict.fromkeys((name, *names))), tuple(dict.fromkeys(numbers)))


def parse_address(text: str) -> HostName | Address:
    """Return the name or address, an IPv6 one with or without brackets, that senders will dial; raises PkiError.

    Refused are addresses that no sender can dial or no certificate hold: unspecified, multicast, with a zone (RFC 4007).
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        try:
            return HostName(text.strip().lower())
        except NameRefused as error:
            hint = "a full DNS name such as collector.example.org, or an address such as 192.0.2.7 or 2001:db8::7"
            raise PkiError(f"not an address of a receiver: {text[:300]!a}", hint=hint) from error
    if address.is_unspecified or address.is_multicast or "%" in bare:
        hint = "name the address that senders connect to, not the one to listen on"
        raise PkiError(f"no sender can dial {bare[:100]!a}", hint=hint)
    return address


def log_statement(receiver: HostName, public_key: bytes, key_pem: bytes, chain_der: Sequence[bytes], now: datetime) -> bytes:
    """Return the JWS in which a receiver's TLS key vouches for its log key (32 bytes, Ed25519)."""
    statement = {
        "type": "securecore/log-key",
        "version": 1,
        "name": LOG_NAME.format(receiver=receiver),
        "public_key": base64.b64encode(public_key).decode("ascii"),
        "issued_at": format_time(now),
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return jws.sign(payload, key_pem, chain_der, jws.LOG_KEY_TYP)


def _issue(
    pki: PkiDirectory, subject: Subject, out: Path, ask_passphrase: AskPassphrase, now: datetime, days: int
) -> Issuance:
    check_free(out)
    # Before the lock: somebody who is still typing a passphrase must not hold up the timer that signs CRLs.
    issuer = pki.authority(subject.profile.signed_by, ask_passphrase)
    with pki.lock():
        state = pki.ledger.follow()
        check_not_behind(pki)
        key = make_key()
        leaf = mint_judged(pki, state, subject, key.public_key(), issuer, now, days)
        with stage(out) as staged:
            key_pem = private_pem(key)
            staged.write(KEY, key_pem, PRIVATE_MODE)
            staged.write(CERTIFICATE, certificate_pem(leaf, issuer.certificate), PUBLIC_MODE)
            anchors = pki.anchors()
            helpers = () if subject.profile is HOST else anchors.intermediates
            staged.write(CA, certificate_pem(*anchors.roots, *helpers), PUBLIC_MODE)
            if subject.profile is RECEIVER:
                _write_receiver_parts(pki, staged, subject.name, key_pem, [leaf, issuer.certificate], now)
            deliver(pki, leaf, subject, issuer, staged, now)
    return Issuance(leaf, out, subject, others_of(state.issued, subject, now))


def _write_receiver_parts(
    pki: PkiDirectory, staged: StagedDirectory, name: HostName, key_pem: bytes, chain: Sequence[x509.Certificate], now: datetime
) -> None:
    """Write what a receiver has beside key, certificate and CAs: the CRLs as they are, the log key and its statement."""
    staged.write(CRL, read_public(pki.crl_path, MAX_CRL_BYTES), PUBLIC_MODE)
    log_key = make_log_key()
    staged.write(LOG_KEY, private_pem(log_key), PRIVATE_MODE)
    chain_der = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    statement = log_statement(name, log_key.public_key().public_bytes_raw(), key_pem, chain_der, now)
    staged.write(LOG_STATEMENT, statement, PUBLIC_MODE)

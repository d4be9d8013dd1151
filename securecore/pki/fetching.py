"""What a receiver believes, fetched from an enroller: the fleet's CAs and CRLs, whole or not at all, and never older ones."""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from securecore.certs.chain import PARSE_ERRORS, Anchors, fingerprint, is_signed_by, load_anchors, load_pem_certificates, one_line
from securecore.certs.identity_directory import CA, CERTIFICATE, CRL, MAX_CA_BYTES, MAX_CHAIN_BYTES, check_directory
from securecore.certs.identity_lock import IdentityLock
from securecore.certs.judge import Purpose
from securecore.certs.private_file import read_public
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, NotFoundError, PkiError
from securecore.limits import MAX_CRL_BYTES
from securecore.names import Address
from securecore.pki.dialling import dial, fetch_anchors
from securecore.pki.directory import certificate_pem
from securecore.pki.enrolling import note_enroller
from securecore.pki.enrolment import Request
from securecore.pki.install import purpose_of
from securecore.pki.staging import PUBLIC_MODE, replace


class Fetched(NamedTuple):
    """What a receiver has now: whether anything of it is new, and how many CAs and lists there are."""

    is_new: bool
    cas: int
    lists: int


def fetch(address: Address, identity: Path, now: datetime, *, is_dropping: bool = False) -> Fetched:
    """Put the fleet's CAs and CRLs into a receiver's identity directory, where they are newer than what it has.

    No root is taken that it does not believe, no CA that these have not signed, no list that is older. A CA that it has is let go
    of only with *is_dropping*: otherwise somebody could have it forget a CA, and its list, to bring both back with an older list.
    From then on the identity knows that address as the one to ask.
    Raises PkiError, ConfigError for what is not taken, and for a directory that is not a receiver's, with nothing changed;
    UntrustedError, RefusedError, BusyError, UnreachableError, PeerError; StorageError.
    """
    with IdentityLock(identity):
        fetched = _fetch(address, identity, now, is_dropping=is_dropping)
        note_enroller(identity, address)
    return fetched


def _fetch(address: Address, identity: Path, now: datetime, *, is_dropping: bool) -> Fetched:
    check_directory(identity)
    _check_receiver(identity)
    present = load_anchors(read_public(identity / CA, MAX_CA_BYTES), what=str(identity / CA))
    helpers = (*present.intermediates, *fetch_anchors(address).intermediates)
    trusted = Anchors(present.roots, helpers)
    with dial(address, trusted, None, now) as opened:
        answer = opened.ask(Request("lists"))
    fetched = load_anchors(answer.ca.encode("ascii"), what=f"the ca.pem of {address}")
    kept = _check_anchors(fetched, present, is_dropping=is_dropping)
    lists = _check_lists(identity, answer.crl.encode("ascii"), kept, present)
    ca_pem, crl_pem = certificate_pem(*kept.roots, *kept.intermediates), answer.crl.encode("ascii")
    is_new = read_public(identity / CA, MAX_CA_BYTES) != ca_pem or _read_crl(identity) != crl_pem
    if is_new:
        # In this order the directory can be loaded at every moment: a list of a CA that ca.pem lacks could not.
        for name, data in ((CA, _joined(present, kept)), (CRL, crl_pem), (CA, ca_pem)):
            replace(identity / name, data, PUBLIC_MODE)
    return Fetched(is_new, len(kept.roots) + len(kept.intermediates), lists.count)


def _check_receiver(identity: Path) -> None:
    """Raise PkiError when the directory is a host's or an enroller's, who have no use for what is fetched here."""
    path = identity / CERTIFICATE
    leaf = load_pem_certificates(read_public(path, MAX_CHAIN_BYTES), what=str(path))[0]
    try:
        purpose = purpose_of(leaf)
    except PARSE_ERRORS as error:
        raise ConfigError(f"{path}: its leaf can't be read: {one_line(error)}") from error
    if purpose is not Purpose.RECEIVER:
        hint = "a host believes the root alone, and an enroller goes by its PKI's ledger; name a receiver's directory"
        raise PkiError(f"{identity} has the certificate of a {purpose.value}, and only a receiver looks at CRLs", hint=hint)


def _check_anchors(fetched: Anchors, present: Anchors, *, is_dropping: bool) -> Anchors:
    """Return the CAs that a receiver is to have; raises PkiError."""
    if any(root not in present.roots for root in fetched.roots):
        words = "the enroller has a root that this receiver does not believe"
        raise PkiError(words, hint="a new root is carried by hand: pki/runbooks/root-key-lost.md")
    for one in fetched.intermediates:
        if not any(is_signed_by(one, root) for root in present.roots):
            raise PkiError(f"the enroller has a CA that no root here has signed: {fingerprint(one)}")
    gone = [one for one in present.intermediates if one not in fetched.intermediates]
    if gone and not is_dropping:
        words = f"the enroller does not have {len(gone)} of the CAs that this receiver believes: {fingerprint(gone[0])}"
        raise PkiError(words, hint="if a rotation was finished (pki/runbooks/rotate-ca.md), give --drop once")
    return Anchors(present.roots, fetched.intermediates)


def _check_lists(identity: Path, crl_pem: bytes, kept: Anchors, present: Anchors) -> RevocationLists:
    """Return the lists that a receiver is to have: one of each CA, none older than it has; raises PkiError, ConfigError."""
    lists = RevocationLists.parse(crl_pem, kept)
    if lists.count < len(kept.roots) + len(kept.intermediates):
        raise PkiError("the enroller's crl.pem lacks the list of a CA", hint="run `securecore pki crl` where the PKI is")
    data = _read_crl(identity)
    if data:
        lists.check_not_older_than(RevocationLists.parse(data, present), kept)
    return lists


def _read_crl(identity: Path) -> bytes:
    try:
        return read_public(identity / CRL, MAX_CRL_BYTES)
    except NotFoundError:
        return b""


def _joined(present: Anchors, kept: Anchors) -> bytes:
    return certificate_pem(*present.roots, *dict.fromkeys((*present.intermediates, *kept.intermediates)))

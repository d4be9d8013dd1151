"""Putting a reply into the identity directory that holds its key.

Everything is checked before anything is written, and each file is replaced in one step: first what is believed (ca.pem, crl.pem),
then key and certificate, last the statement of a receiver's log key, which the new key has to sign. Before that the reply itself
is put into the directory, and it goes last: whatever interrupts it, finish() or to install the same reply again finishes it.
Between the renames of a new key and of its certificate, microseconds apart, the two do not fit: who loads them in that moment is
told so, and a handler keeps its core in the spool.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.chain import Anchors, common_name, fingerprint, is_signed_by, load_anchors, load_pem_certificates
from securecore.certs.conformance import find_extension
from securecore.certs.identity_directory import (
    CA,
    CERTIFICATE,
    CRL,
    KEY,
    LOG_KEY,
    LOG_STATEMENT,
    MAX_CA_BYTES,
    MAX_CHAIN_BYTES,
    MAX_KEY_BYTES,
    check_directory,
    load_ed25519_key,
    load_key,
)
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, judge
from securecore.certs.private_file import read_private, read_public
from securecore.certs.profiles import ENROLLER, RECEIVER
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, NotFoundError, PkiError
from securecore.limits import MAX_CRL_BYTES
from securecore.pki.directory import certificate_pem
from securecore.pki.issue import log_statement
from securecore.pki.keys import make_log_key, private_pem
from securecore.pki.reply import MAX_REPLY_BYTES, Reply, parse_reply
from securecore.pki.request import NEXT_KEY, REQUEST
from securecore.pki.staging import PRIVATE_MODE, PUBLIC_MODE, disk_errors, give_to_owner_of, prepared, replace, stage_file

REPLY: Final = "reply.pem"
"""The file of an identity directory with the reply that is being installed."""


class Installed(NamedTuple):
    """What is in the directory now."""

    judgement: Judgement
    is_new_key: bool
    """Whether a key that waited has taken the place of another one."""
    lacks_log_key: bool = False
    """Whether it is a receiver's whose log key is lost: its statement is there, and stays."""
    was_there: bool = False
    """Whether an earlier run had put it there, so that nothing was left to do."""


def install(identity: Path, data: bytes, now: datetime, root_fingerprint: str | None = None, *, what: str = "reply") -> Installed:
    """Put a reply into an identity directory, whose lock the caller holds; *what* names its file in messages.

    The root of a first reply is believed for its sake, and must have *root_fingerprint* (64 hexadecimal digits) when that is given;
    beside a ca.pem that is there already another root is believed only with it. A reply with any other root, or with a CA that its
    root did not sign, is refused whole. ca.pem keeps what it has; of crl.pem a newer one stays. Raises PkiError for an unexpected
    root, when no key there is the certificate's and when the directory has a newer certificate; the judge's Refusal when the
    certificate would not be believed; ConfigError, NotFoundError and StorageError.
    """
    check_directory(identity)
    reply = parse_reply(data, what=what)
    key_path = _find_key(identity, reply.leaf, what)
    purpose = purpose_of(reply.leaf)
    judgement = judge(_der(reply.leaf), [_der(reply.issuer)], reply.anchors, purpose, now)
    _check_root(identity, judgement, root_fingerprint, what)
    _check_company(reply, judgement, what)
    _check_not_older(identity, reply.leaf, what)
    is_receiver = purpose is Purpose.RECEIVER
    believed = _joined_anchors(identity, reply.anchors, is_host=purpose is Purpose.HOST)
    crl_pem = _newer_lists(identity, reply, load_anchors(believed), what) if is_receiver else None
    replace(identity / REPLY, data, PUBLIC_MODE)
    replace(identity / CA, believed, PUBLIC_MODE)
    if crl_pem is not None:
        replace(identity / CRL, crl_pem, PUBLIC_MODE)
    is_new_key = key_path.name == NEXT_KEY
    _replace_pair(identity, certificate_pem(reply.leaf, reply.issuer), is_new_key=is_new_key)
    lacks_log_key = is_receiver and _is_log_key_lost(identity)
    if is_receiver and not lacks_log_key:
        _state_log_key(identity, judgement, reply, now)
    if not (identity / NEXT_KEY).exists():
        with disk_errors(identity / REQUEST):
            (identity / REQUEST).unlink(missing_ok=True)
    _remove_reply(identity)
    return Installed(judgement, is_new_key, lacks_log_key)


def finish(identity: Path, now: datetime) -> Installed | None:
    """Finish what install() was interrupted in; None where nothing was left to do, or what is left is of no use any more.

    The caller holds the directory's lock. The reply's root was checked when it was put there; by now it is one of ca.pem, or
    nothing but the reply has been written. Of no use is a reply that is older than the certificate, for a key that is not there, or
    expired: it is removed. Raises as install does for anything else, the judge's Refusal for one that is not valid yet included.
    """
    path = identity / REPLY
    with disk_errors(path):
        if not path.exists():
            return None
    before = _read_certificate(identity)
    try:
        done = install(identity, read_public(path, MAX_REPLY_BYTES), now, what=str(path))
    except (PkiError, Refusal) as error:
        # A clock that is behind is set right some time, and then the reply is the only certificate for a key that was exchanged.
        if isinstance(error, Refusal) and error.reason is Reason.NOT_YET_VALID:
            raise
        _remove_reply(identity)
        return None
    return None if _read_certificate(identity) == before else done


def _read_certificate(identity: Path) -> bytes:
    try:
        return read_public(identity / CERTIFICATE, MAX_CHAIN_BYTES)
    except NotFoundError:
        return b""


def _remove_reply(identity: Path) -> None:
    with disk_errors(identity / REPLY):
        (identity / REPLY).unlink(missing_ok=True)


def _find_key(identity: Path, leaf: x509.Certificate, what: str) -> Path:
    """Return the file with the certificate's key: the one in use, or else the one that waits."""
    for path in (identity / KEY, identity / NEXT_KEY):
        if path.exists() and load_key(path).public_key() == leaf.public_key():
            return path
    hint = "is it the reply to this machine's request? `securecore pki inspect` shows whose it is"
    raise PkiError(f"{what}: its certificate is for a key that is not in {identity}", hint=hint)


def purpose_of(leaf: x509.Certificate) -> Purpose:
    """Return what a certificate is for by its own word; the judge has the last one."""
    usage = find_extension(leaf, x509.ExtendedKeyUsage)
    for profile in (ENROLLER, RECEIVER):
        if usage is not None and profile.extended_oids[-1] in usage:
            return Purpose(profile.name)
    return Purpose.HOST


def _check_root(identity: Path, judgement: Judgement, wanted: str | None, what: str) -> None:
    root = judgement.chain[-1]
    mark = fingerprint(root)
    if wanted is not None:
        if mark != wanted:
            words = f"{what}: its root has the fingerprint {mark}, not the one that you gave"
            raise PkiError(words, hint="ask whoever signed it")
        return
    path = identity / CA
    if path.exists() and root not in _load_ca(path).roots:
        hint = f"if you are sure of the fleet's new root: --ca-fingerprint {mark}"
        raise PkiError(f"{what}: its root is not among those of {path}", hint=hint)


def _check_company(reply: Reply, judgement: Judgement, what: str) -> None:
    """Nothing rides along: the one root was checked, it has signed every CA beside it, and only a receiver is given lists."""
    root = judgement.chain[-1]
    hint = "somebody has added to it on its way: have it signed again, and bring it over another way"
    if reply.anchors.roots != (root,):
        raise PkiError(f"{what}: it holds another root beside the one that its certificate comes from", hint=hint)
    for one in reply.anchors.intermediates:
        if not is_signed_by(one, root):
            raise PkiError(f"{what}: it holds the CA {common_name(one.subject)}, which its root did not sign", hint=hint)
    if reply.crl_pem and judgement.purpose is not Purpose.RECEIVER:
        raise PkiError(f"{what}: it holds CRLs, which a reply for a {judgement.purpose.value} does not have", hint=hint)


def _check_not_older(identity: Path, leaf: x509.Certificate, what: str) -> None:
    path = identity / CERTIFICATE
    if not path.exists():
        return
    present = load_pem_certificates(read_public(path, MAX_CHAIN_BYTES), what=str(path))[0]
    if present.not_valid_before_utc > leaf.not_valid_before_utc:
        words = f"{what}: the certificate in {identity} is newer, it was made {present.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        raise PkiError(words, hint="install the reply that was made last")


def _joined_anchors(identity: Path, replied: Anchors, *, is_host: bool) -> bytes:
    """Return what ca.pem is to hold: what it has, and what of the reply is missing there; a host believes roots alone."""
    path = identity / CA
    present = _load_ca(path) if path.exists() else Anchors((), ())
    roots = dict.fromkeys((*present.roots, *replied.roots))
    helpers = dict.fromkeys((*present.intermediates, *(() if is_host else replied.intermediates)))
    return certificate_pem(*roots, *helpers)


def _load_ca(path: Path) -> Anchors:
    return load_anchors(read_public(path, MAX_CA_BYTES), what=str(path))


def _newer_lists(identity: Path, reply: Reply, anchors: Anchors, what: str) -> bytes | None:
    """Return the reply's CRLs, None when newer ones are in the directory; raises when they are not one of each CA in the reply."""
    replied, path = RevocationLists.parse(reply.crl_pem, anchors), identity / CRL
    if replied.count < len(reply.anchors.roots) + len(reply.anchors.intermediates):
        raise PkiError(f"{what}: a CRL is missing: the file is cut off", hint="bring it over once more")
    try:
        present = RevocationLists.parse(read_public(path, MAX_CRL_BYTES), anchors)
    except (ConfigError, NotFoundError):
        return reply.crl_pem
    try:
        replied.check_not_older_than(present, anchors)
    except ConfigError:
        return None
    return reply.crl_pem


def _replace_pair(identity: Path, chain_pem: bytes, *, is_new_key: bool) -> None:
    if not is_new_key:
        replace(identity / CERTIFICATE, chain_pem, PUBLIC_MODE)
        return
    with prepared(identity / CERTIFICATE, chain_pem, PUBLIC_MODE) as certificate, disk_errors(identity):
        # A receiver that is not root reads its key as that key's owner, whoever asked for a new one.
        give_to_owner_of(identity / NEXT_KEY, identity / KEY)
        os.rename(identity / NEXT_KEY, identity / KEY)
        certificate.take_place()


def _is_log_key_lost(identity: Path) -> bool:
    """Return whether there was a log key; a new one must follow it on record, and its statement is what that needs."""
    return (identity / LOG_STATEMENT).exists() and not (identity / LOG_KEY).exists()


def _state_log_key(identity: Path, judgement: Judgement, reply: Reply, now: datetime) -> None:
    """Have the key in use vouch for the log key, which is made with a receiver's first certificate."""
    if not (identity / LOG_KEY).exists():
        with stage_file(identity / LOG_KEY, private_pem(make_log_key()), PRIVATE_MODE) as staged:
            give_to_owner_of(staged.path, identity / KEY)
            staged.publish()
    log_key = load_ed25519_key(identity / LOG_KEY)
    key_pem = read_private(identity / KEY, MAX_KEY_BYTES)
    chain_der = [_der(reply.leaf), _der(reply.issuer)]
    statement = log_statement(judgement.name, log_key.public_key().public_bytes_raw(), key_pem, chain_der, now)
    replace(identity / LOG_STATEMENT, statement, PUBLIC_MODE)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)

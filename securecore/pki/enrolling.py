"""On the machine itself: enrol it, and renew its certificate, at an enroller. A token never leaves the machine, nor does a key."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509

from securecore.certs.chain import PARSE_ERRORS, Anchors, fingerprint, load_anchors, load_pem_certificates
from securecore.certs.conformance import find_extension
from securecore.certs.identity_directory import (
    CA,
    CERTIFICATE,
    KEY,
    MAX_CA_BYTES,
    MAX_CHAIN_BYTES,
    load_identity,
    load_key,
)
from securecore.certs.identity_lock import IdentityLock
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, alternative_names, judge
from securecore.certs.private_file import read_public
from securecore.certs.profiles import HOST
from securecore.errors import ConfigError, NotFoundError, PkiError, RefusedError, SecurecoreError, UntrustedError
from securecore.limits import KIB
from securecore.names import Address, NameRefused
from securecore.pki.dialling import Channel, dial, fetch_anchors
from securecore.pki.enrolment import Request, TokenUsedError
from securecore.pki.install import Installed, finish, install
from securecore.pki.request import call_off, request, request_locked
from securecore.pki.signing_request import MAX_REQUEST_BYTES, make_request, request_der
from securecore.pki.staging import PUBLIC_MODE, replace
from securecore.pki.tokens import Secret, make_mac

ENROLLER: Final = "enroller"
"""The file of an identity directory that says where it was enrolled, or renewed last, and so where it is renewed; of a receiver's,
where its CAs and CRLs were fetched last."""

_MAX_ADDRESS_BYTES: Final = KIB


class Standing(NamedTuple):
    """Whose certificate an identity directory has now, and what was put there, None where nothing was due."""

    own: Judgement
    installed: Installed | None


def enroll(address: Address, root_fingerprint: str, secret: Secret, identity: Path, now: datetime) -> Installed:
    """Enrol this machine: make its key in an identity directory, new or not, and put the certificate beside it.

    To do it again finishes what was interrupted, and does nothing where the token was used for the certificate that is here, or for
    one from which it comes by renewals.
    Raises UntrustedError when the enroller can't prove that it is one of the fleet with that root (64 hexadecimal digits);
    RefusedError and BusyError when it says no; what request, install and IdentityLock raise; UnreachableError, PeerError;
    ClockError.
    """
    with IdentityLock(identity) as lock:
        return _enroll(address, root_fingerprint, secret, identity, now, lock)


def _enroll(
    address: Address, root_fingerprint: str, secret: Secret, identity: Path, now: datetime, lock: IdentityLock
) -> Installed:
    present = _present_name(identity)
    finished = finish(identity, now)
    if finished is not None and fingerprint(finished.judgement.chain[-1]) == root_fingerprint:
        note_enroller(identity, address)
        return finished
    anchors = fetch_anchors(address)
    roots = [root for root in anchors.roots if fingerprint(root) == root_fingerprint]
    if not roots:
        words = f"{address} does not belong to the fleet whose root has the fingerprint {root_fingerprint}"
        raise UntrustedError(words, hint="compare the fingerprint with the one that was printed where the PKI is")
    believed = Anchors(tuple(roots), anchors.intermediates)
    with dial(address, believed, None, now) as opened:
        made = request_locked(identity, lock)
        asking = partial(_asking, secret, request_der(read_public(made.path, MAX_REQUEST_BYTES)), present)
        try:
            reply = opened.ask(asking(opened)).reply
        except RefusedError as refused:
            call_off(identity, made)
            own = _certified_by(refused, identity, now) or _renewed_from(refused, address, believed, identity, now, asking)
            if own is None:
                raise
            note_enroller(identity, address)
            return Installed(own, is_new_key=False, was_there=True)
    # Before the certificate: a machine that has one renews it where this file says.
    note_enroller(identity, address)
    return install(identity, reply.encode("ascii"), now, root_fingerprint, what=f"the reply of {address}")


def _asking(secret: Secret, csr: bytes, present: str | None, opened: Channel) -> Request:
    """Return the request of a token's holder to one enroller."""
    return Request("enroll", secret.id, csr, make_mac(secret.key, csr, opened.leaf_der), present)


def note_enroller(identity: Path, address: Address) -> None:
    """Have an identity renewed at an address from now on; raises StorageError."""
    path, line = identity / ENROLLER, f"{address}\n".encode("ascii")
    try:
        if read_public(path, _MAX_ADDRESS_BYTES) == line:
            return
    except (ConfigError, NotFoundError):
        pass  # It is too long, or not there: either way another takes its place.
    replace(path, line, PUBLIC_MODE)


def _certified_by(refused: RefusedError, identity: Path, now: datetime) -> Judgement | None:
    """Return the certificate here when that is what the token was used for, by an earlier run; else None.

    Raises as find_own does.
    """
    path = identity / CERTIFICATE
    if not isinstance(refused, TokenUsedError) or not path.exists():
        return None
    leaf = load_pem_certificates(read_public(path, MAX_CHAIN_BYTES), what=str(path))[0]
    return find_own(identity, now) if f"{leaf.serial_number:x}" == refused.serial else None


def _renewed_from(
    refused: RefusedError, address: Address, anchors: Anchors, identity: Path, now: datetime, asking: Callable[[Channel], Request]
) -> Judgement | None:
    """Return the certificate here when it comes by renewals from what the token was used for, as the enroller says; else None.

    The same is asked once more, with that certificate shown. Before, it is not: who enrols again because his certificate is of no
    use any more would be hung up on for it.
    """
    if not isinstance(refused, TokenUsedError):
        return None
    try:
        own = find_own(identity, now)
        if own.chain[-1] not in anchors.roots:
            return None
        with dial(address, anchors, identity, now) as opened:
            opened.ask(asking(opened))
    except TokenUsedError as again:
        return own if again.serial == f"{own.serial:x}" else None
    except SecurecoreError:
        pass  # What the first no said is said then.
    return None


def find_own(identity: Path, now: datetime) -> Judgement:
    """Return whose certificate a host's identity directory has.

    Raises the judge's Refusal, for an expired one with the way out; ConfigError, NotFoundError, StorageError.
    """
    loaded = load_identity(identity)
    try:
        return judge(loaded.chain_der[0], loaded.chain_der[1:], loaded.anchors, Purpose.HOST, now)
    except Refusal as refusal:
        if refusal.reason is not Reason.EXPIRED:
            raise
        hint = "get a new token (`securecore pki token` where the PKI is), then `securecore enroll` on this directory"
        raise PkiError(refusal.message, hint=hint) from refusal


def is_due(own: Judgement, now: datetime) -> bool:
    """Whether a third of a certificate's life is left, or less."""
    return own.not_after - now <= (own.not_after - own.not_before) / 3


def renew(address: Address, identity: Path, now: datetime, *, is_rekey: bool = False) -> Installed:
    """Renew a host's certificate, for the same key or with *is_rekey* for a new one; raises as enroll and find_own do.

    Where a renewal was interrupted while it was installed, that one is finished instead. The identity is renewed at *address* from
    then on.
    """
    with IdentityLock(identity):
        return _finish_at(address, identity, now) or _renew(address, identity, now, is_rekey=is_rekey)


def renew_when_due(
    identity: Path, now: datetime, address: Address | None = None, *, is_rekey: bool = False, is_forced: bool = False
) -> Standing:
    """Renew a host's certificate as renew does, at *address* or where it was renewed last, when that is due or *is_forced*.

    Raises as renew and read_enroller do.
    """
    with IdentityLock(identity):
        # One that was interrupted comes before all else: until it is finished, key and certificate may not fit.
        done = _finish_at(address, identity, now)
        if done is None:
            own = find_own(identity, now)
            if not (is_forced or is_due(own, now)):
                return Standing(own, None)
            done = _renew(address or read_enroller(identity), identity, now, is_rekey=is_rekey)
        return Standing(done.judgement, done)


def _finish_at(address: Address | None, identity: Path, now: datetime) -> Installed | None:
    """Finish what was interrupted, if anything was, and have the identity renewed at *address* from now on where one is given."""
    finished = finish(identity, now)
    if finished is not None and address is not None:
        note_enroller(identity, address)
    return finished


def _renew(address: Address, identity: Path, now: datetime, *, is_rekey: bool) -> Installed:
    find_own(identity, now)
    anchors = Anchors(_known_roots(identity), fetch_anchors(address).intermediates)
    with dial(address, anchors, identity, now) as opened:
        if is_rekey:
            csr = request_der(read_public(request(identity).path, MAX_REQUEST_BYTES))
        else:
            csr = request_der(make_request(load_key(identity / KEY)))
        reply = opened.ask(Request("renew", csr=csr)).reply
    done = install(identity, reply.encode("ascii"), now, what=f"the reply of {address}")
    note_enroller(identity, address)
    return done


def read_enroller(identity: Path, hint: str = "give --to HOST:PORT") -> Address:
    """Return where an identity was enrolled, or fetched for; raises NotFoundError where that is not known, ConfigError."""
    path = identity / ENROLLER
    try:
        return Address(read_public(path, _MAX_ADDRESS_BYTES).decode("ascii").strip())
    except NotFoundError as error:
        raise NotFoundError(f"{path}: not there, so it is not known whom to ask", hint=hint) from error
    except (UnicodeDecodeError, NameRefused) as error:
        raise ConfigError(f"{path}: holds no address", hint=f"it has one line, HOST:PORT; or {hint}") from error


def _known_roots(identity: Path) -> tuple[x509.Certificate, ...]:
    return load_anchors(read_public(identity / CA, MAX_CA_BYTES), what=str(identity / CA)).roots


def _present_name(identity: Path) -> str | None:
    """Return whose certificate a directory has already, whatever its dates; None where it has none yet.

    Raises PkiError when it is not a host's: the directory is a receiver's or an enroller's.
    """
    path = identity / CERTIFICATE
    if not path.exists():
        return None
    leaf = load_pem_certificates(read_public(path, MAX_CHAIN_BYTES), what=str(path))[0]
    try:
        usage = find_extension(leaf, x509.ExtendedKeyUsage)
        if usage is not None and list(usage) == HOST.extended_oids:
            return str(alternative_names(leaf, Purpose.HOST)[0][0])
    except (Refusal, *PARSE_ERRORS):
        pass  # Said below: whatever it is, it makes nobody a host.
    raise PkiError(f"{identity} has a certificate that is not a host's", hint="name a directory of its own for the host")

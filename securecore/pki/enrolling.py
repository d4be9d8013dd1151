"""On the machine itself: enrol it, renew its certificate, fetch what a receiver believes; all from an enroller.

Each is two connections. The first believes nobody and fetches the fleet's CAs, which are public. Of these only a root counts that
is known already, by its fingerprint or from ca.pem; the second connection is verified with it, by OpenSSL and by our judge, before
anything is said. A token never leaves the machine, nor does a key.
"""

import ipaddress
import ssl
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509

from securecore import tls
from securecore.certs.chain import PARSE_ERRORS, Anchors, fingerprint, is_signed_by, load_anchors, load_pem_certificates
from securecore.certs.conformance import find_extension
from securecore.certs.identity_directory import (
    CA,
    CERTIFICATE,
    CRL,
    KEY,
    MAX_CA_BYTES,
    MAX_CHAIN_BYTES,
    check_directory,
    load_identity,
    load_key,
)
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, alternative_names, judge
from securecore.certs.private_file import read_public
from securecore.certs.profiles import HOST
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, NotFoundError, PeerError, PkiError, RefusedError, UntrustedError
from securecore.limits import KIB, MAX_CRL_BYTES
from securecore.names import Address, NameRefused
from securecore.pki import channel
from securecore.pki.directory import certificate_pem
from securecore.pki.enrolment import ALPN, Answer, Request, TokenUsedError, encode_request, parse_answer
from securecore.pki.install import Installed, finish, install
from securecore.pki.limits import ANSWER_DEADLINE_S, MAX_ANSWER_BYTES, REQUEST_DEADLINE_S
from securecore.pki.request import call_off, request
from securecore.pki.signing_request import MAX_REQUEST_BYTES, make_request, request_der
from securecore.pki.staging import PUBLIC_MODE, replace
from securecore.pki.tokens import Secret, make_mac

ENROLLER: Final = "enroller"
"""The file of an identity directory that says where it was enrolled, or renewed last, and so where it is renewed."""

_MAX_ADDRESS_BYTES: Final = KIB


class Fetched(NamedTuple):
    """What a receiver has now: whether anything of it is new, and how many CAs and lists there are."""

    is_new: bool
    cas: int
    lists: int


class _Channel(NamedTuple):
    """A verified enroller: where it is, which certificate it has shown, and the connection."""

    address: Address
    secured: ssl.SSLSocket
    leaf_der: bytes

    def ask(self, asked: Request) -> Answer:
        """Return the answer to the one request; raises as parse_answer and channel do."""
        return _ask(self.secured, self.address, asked)


def enroll(address: Address, root_fingerprint: str, secret: Secret, identity: Path, now: datetime) -> Installed:
    """Enrol this machine: make its key in an identity directory, new or not, and put the certificate beside it.

    To do it again finishes what was interrupted, and does nothing where the token was used for the certificate that is here.
    Raises UntrustedError when the enroller can't prove that it is one of the fleet with that root (64 hexadecimal digits);
    RefusedError and BusyError when it says no; what request and install raise; UnreachableError, PeerError, ClockError.
    """
    present = _present_name(identity)
    finished = finish(identity, now)
    if finished is not None and fingerprint(finished.judgement.chain[-1]) == root_fingerprint:
        note_enroller(identity, address)
        return finished
    anchors = _fetch_anchors(address)
    roots = [root for root in anchors.roots if fingerprint(root) == root_fingerprint]
    if not roots:
        words = f"{address} does not belong to the fleet whose root has the fingerprint {root_fingerprint}"
        raise UntrustedError(words, hint="compare the fingerprint with the one that was printed where the PKI is")
    believed = Anchors(tuple(roots), anchors.intermediates)
    with _open(address, believed, None) as secured:
        opened = _judged(address, secured, believed, now)
        made = request(identity)
        csr = request_der(read_public(made.path, MAX_REQUEST_BYTES))
        asked = Request("enroll", secret.id, csr, make_mac(secret.key, csr, opened.leaf_der), present)
        try:
            reply = opened.ask(asked).reply
        except RefusedError as refused:
            call_off(identity, made)
            own = _certified_by(refused, identity, now)
            if own is None:
                raise
            note_enroller(identity, address)
            return Installed(own, is_new_key=False, was_there=True)
    # Before the certificate: a machine that has one renews it where this file says.
    note_enroller(identity, address)
    return install(identity, reply.encode("ascii"), now, root_fingerprint, what=f"the reply of {address}")


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
    finished = finish(identity, now)
    if finished is not None:
        note_enroller(identity, address)
        return finished
    find_own(identity, now)
    roots = _known_roots(identity)
    anchors = Anchors(roots, _fetch_anchors(address).intermediates)
    with _open(address, anchors, identity) as secured:
        opened = _judged(address, secured, anchors, now)
        if is_rekey:
            csr = request_der(read_public(request(identity).path, MAX_REQUEST_BYTES))
        else:
            csr = request_der(make_request(load_key(identity / KEY)))
        reply = opened.ask(Request("renew", csr=csr)).reply
    done = install(identity, reply.encode("ascii"), now, what=f"the reply of {address}")
    note_enroller(identity, address)
    return done


def read_enroller(identity: Path) -> Address:
    """Return where an identity was enrolled; raises NotFoundError where that is not known, ConfigError."""
    path = identity / ENROLLER
    try:
        return Address(read_public(path, _MAX_ADDRESS_BYTES).decode("ascii").strip())
    except NotFoundError as error:
        raise NotFoundError(f"{path}: not there, so it is not known where to renew", hint="give --to HOST:PORT") from error
    except (UnicodeDecodeError, NameRefused) as error:
        raise ConfigError(f"{path}: holds no address", hint="one line, HOST:PORT; or give --to") from error


def fetch(address: Address, identity: Path, now: datetime, *, is_dropping: bool = False) -> Fetched:
    """Put the fleet's CAs and CRLs into a receiver's identity directory, where they are newer than what it has.

    No root is taken that it does not believe, no CA that these have not signed, no list that is older. A CA that it has is let go
    of only with *is_dropping*: otherwise somebody could have it forget a CA, and its list, to bring both back with an older list.
    Raises PkiError, ConfigError for what is not taken, with nothing changed; UntrustedError, RefusedError, BusyError,
    UnreachableError, PeerError; StorageError.
    """
    check_directory(identity)
    present = load_anchors(read_public(identity / CA, MAX_CA_BYTES), what=str(identity / CA))
    helpers = (*present.intermediates, *_fetch_anchors(address).intermediates)
    trusted = Anchors(present.roots, helpers)
    with _open(address, trusted, None) as secured:
        answer = _judged(address, secured, trusted, now).ask(Request("lists"))
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


def _fetch_anchors(address: Address) -> Anchors:
    """Return the CAs that whoever answers at an address calls the fleet's; nothing in it is believed yet."""
    context = tls.enrolment_context(ALPN, None)
    with channel.connect(address, context, REQUEST_DEADLINE_S) as secured:
        pem = _ask(secured, address, Request("roots"), 2 * MAX_CA_BYTES).ca
    try:
        return load_anchors(pem.encode("ascii"), what=f"the CAs of {address}")
    except ConfigError as error:
        raise PeerError(error.message) from error


def _open(address: Address, anchors: Anchors, identity: Path | None) -> ssl.SSLSocket:
    """Return a connection that OpenSSL has verified with the roots of *anchors* and the dialled name."""
    pem = certificate_pem(*anchors.roots).decode("ascii")
    context = tls.enrolment_context(ALPN, pem, None if identity is None else str(identity))
    return channel.connect(address, context, REQUEST_DEADLINE_S)


def _judged(address: Address, secured: ssl.SSLSocket, anchors: Anchors, now: datetime) -> _Channel:
    """Return the channel to an enroller, judged by us as well; raises UntrustedError for anybody else, and a wrong name."""
    leaf_der = secured.getpeercert(binary_form=True) or b""
    try:
        judgement = judge(leaf_der, [], anchors, Purpose.ENROLLER, now)
    except Refusal as refusal:
        words = f"{address} is not an enroller that we trust: {refusal.message}"
        raise UntrustedError(words, hint="`securecore pki issue enroller` makes the only kind that is trusted") from refusal
    names, addresses = alternative_names(judgement.chain[0], Purpose.ENROLLER)
    dialled = _plain_host(address)
    if dialled not in (*map(str, names), *addresses):
        raise UntrustedError(f"{address} is not the enroller that we trust: its certificate is for another name")
    return _Channel(address, secured, leaf_der)


def _plain_host(address: Address) -> str:
    """Return a dialled host as a certificate writes it."""
    host = address.host_without_zone
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()


def _ask(secured: ssl.SSLSocket, address: Address, asked: Request, most: int = MAX_ANSWER_BYTES) -> Answer:
    """Send the one request of a connection and return its answer, of *most* bytes."""
    peer = str(address)
    try:
        channel.send(secured, encode_request(asked), REQUEST_DEADLINE_S)
        line = channel.read_line(secured, most, 2 * ANSWER_DEADLINE_S, peer)
    except OSError as error:
        raise tls.explain(error, peer, channel.ROLE, ALPN) from error
    return parse_answer(line, peer)


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

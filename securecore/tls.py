"""The two TLS contexts, and what their failures mean in words.

TLS 1.3 only, mutual certificates, ALPN ``securecore/1``. The contexts are made from scratch: ``ssl.create_default_context`` would
load the system's CAs, and trust in them. A reload makes a new context; a live one is never changed (docs/operations.md).

Two settings are less obvious. ``num_tickets = 0``: a resumed session would skip the judgement of the client's certificate.
``suppress_ragged_eofs=False``: without it a cut TCP connection reads as a clean end.
"""

import os
import socket
import ssl
import stat

from securecore.declarations import Any, Final
from securecore.errors import (
    ClockError,
    ConfigError,
    PeerError,
    RefusedError,
    SecurecoreError,
    UnreachableError,
    UntrustedError,
)

ALPN: Final = "securecore/1"

_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h (since 1.1.0), which Python's ssl has no name for."""


def sender_context(identity: str) -> ssl.SSLContext:
    """Return a client context for the identity directory *identity*: pins its ca.pem, presents its cert.pem.

    Raises ConfigError when a file is missing, unreadable, of loose mode or does not fit. Not checked here: the receiver's profile
    beyond OpenSSL's purpose and name checks; the receipt's evidence judges its certificate in full.
    """
    context = _client_context()
    present(context, identity)
    _anchor(context, identity)
    return context


def anchored_context(identity: str) -> ssl.SSLContext:
    """Return a client context that pins ca.pem of *identity*, and presents no certificate yet; raises as sender_context does."""
    context = _client_context()
    _anchor(context, identity)
    return context


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    restrict(context)
    return context


def receiver_context(identity: str) -> ssl.SSLContext:
    """Return a server context for *identity* that demands a client certificate; raises as sender_context does.

    Not checked here: the client's profile, its name, the dates in its chain, and revocation; the receiver judges these before it
    says READY.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    # An alert could not say which clock is wrong, nor by how much: a host that is too early must hear NOT_YET_VALID and keep its
    # dump. The judge holds every date of the chain against the clock, and the second judge does it again.
    context.verify_flags |= _NO_CHECK_TIME
    context.num_tickets = 0
    return context


def enroller_context(identity: str, alpn: str) -> ssl.SSLContext:
    """Return a server context for *identity* that asks for a client certificate and goes on without; raises as sender_context does.

    As receiver_context, whoever it lets in: for a protocol whose requests are judged one by one.
    """
    context = receiver_context(identity)
    context.set_alpn_protocols([alpn])
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def enrolment_context(alpn: str, roots_pem: str | None, identity: str | None = None) -> ssl.SSLContext:
    """Return a client context for a server of *alpn*: pins *roots_pem*, and presents the certificate of *identity* where given.

    Without roots nothing is verified: whatever comes is what anybody on the way may have written. Raises as sender_context does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    restrict(context, alpn)
    if roots_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=roots_pem)
    if identity is not None:
        present(context, identity)
    return context


def restrict(context: ssl.SSLContext, alpn: str = ALPN) -> None:
    """Have a context speak TLS 1.3 and one protocol, and take no certificate that breaks RFC 5280."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([alpn])
    context.verify_flags |= ssl.VERIFY_X509_STRICT


def _harden(context: ssl.SSLContext, identity: str) -> None:
    restrict(context)
    present(context, identity)
    _anchor(context, identity)


def _anchor(context: ssl.SSLContext, identity: str) -> None:
    """Have a context believe the roots of an identity."""
    try:
        context.load_verify_locations(cafile=os.path.join(identity, "ca.pem"))
    except OSError as error:
        raise _unfit(identity, error) from error


def present(context: ssl.SSLContext, identity: str) -> None:
    """Have a context present an identity's certificate; raises as sender_context does."""
    key = os.path.join(identity, "key.pem")
    check_private(key)
    try:
        context.load_cert_chain(os.path.join(identity, "cert.pem"), key, password=_no_passphrase)
    except OSError as error:
        raise _unfit(identity, error) from error


def _unfit(identity: str, error: OSError) -> ConfigError:
    if isinstance(error, ssl.SSLError):
        return ConfigError(f"identity {identity}: {_reason(error)}", hint="issue the identity again, or restore its files")
    return ConfigError(f"identity {identity}: ca.pem, cert.pem or key.pem: {error.strerror}")


def _no_passphrase() -> bytes:
    # Without this OpenSSL would ask at the terminal; a daemon or a crash handler has none.
    raise ConfigError("identity's key.pem is encrypted", hint="a handler and a receiver need a key that they can read alone")


def check_private(path: str) -> None:
    """Raise ConfigError unless *path* is a regular file that only its owner may read or write (mode & 077 == 0)."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: not a regular file")
    if found.st_mode & 0o077:
        raise ConfigError(f"{path}: mode is {found.st_mode & 0o777:04o}, others may read the key", hint=f"chmod 600 {path}")


def secure(
    context: ssl.SSLContext,
    plain: socket.socket,
    *,
    server_name: str | None = None,
    deadline_s: float,
    peer: str = "the other end",
    alpn: str = ALPN,
) -> ssl.SSLSocket:
    """Return *plain* wrapped in TLS, the handshake done within *deadline_s* in all; *server_name* is None at the receiver.

    *peer* is what messages call the other end, *alpn* the protocol; of another one than ours no profile is looked at.

    Raises OSError or ssl.SSLError (see ``explain``); PeerError when the other end did not agree on our protocol: Python does not
    enforce ALPN by itself; UntrustedError when a receiver's certificate departs from the fixed parts of its profile.
    """
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(deadline_s)
    # As bytes: for text, Python would load its IDNA tables first, at a crash handler's expense.
    sni = None if server_name is None else server_name.encode("ascii")
    secured = context.wrap_socket(plain, server_side=sni is None, server_hostname=sni, suppress_ragged_eofs=False)
    if secured.selected_alpn_protocol() != alpn:
        secured.close()
        raise PeerError(f"{peer} does not speak {alpn}")
    departure = None if sni is None or alpn != ALPN else _find_departure(secured)
    if departure is not None:
        secured.close()
        words = f"{peer} is not the receiver that we trust: its certificate is not as its profile wants it: {departure}"
        raise UntrustedError(words, hint="`securecore pki issue receiver` makes the only kind that is trusted")
    return secured


# Parts that every receiver's certificate holds byte for byte (certs/profiles.py; a test compares), with what it means that one is
# missing. OpenSSL takes a certificate without them, and a crash handler has no time to load a parser before it may send. That they
# are there proves little by itself, since a CA may put any bytes anywhere; it adds a condition to OpenSSL's, and takes none away.
_RECEIVER_PARTS: Final = (
    ("its extended key usage is not serverAuth alone", bytes.fromhex("0603551d25040c300a06082b06010505070301")),
    ("its key usage is not digitalSignature alone", bytes.fromhex("0603551d0f0101ff040403020780")),
    ("it does not say that its holder is no CA", bytes.fromhex("0603551d130101ff04023000")),
    ("its key is not an ECDSA key on P-256", bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")),
)


def _find_departure(secured: ssl.SSLSocket) -> str | None:
    """Return the first way in which the receiver's certificate departs from what its profile fixes, or None.

    Not checked: number and spelling of its names, its lifetime, its signature's hash; pki/refusals.md says why that is no harm.
    """
    der, fields = secured.getpeercert(binary_form=True) or b"", secured.getpeercert() or {}
    for words, part in _RECEIVER_PARTS:
        if part not in der:
            return words
    # OpenSSL takes a wildcard for the name that was dialled.
    names: Any = fields.get("subjectAltName", ())
    if any("*" in name for kind, name in names if kind == "DNS"):
        return "it is for a wildcard name"
    return None


# Of any certificate in the chain, be it the receiver's, its CA's or the root (internal_verify in crypto/x509/x509_vfy.c).
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WHICH: Final = "`securecore pki inspect` at the receiver shows which certificate it is"

# What OpenSSL says when it refuses a receiver's certificate (x509_vfy.h), where we have better words.
_VERIFY_WORDS: Final = {
    _EXPIRED: "a certificate in its chain has expired by the clock here",
    18: "its certificate is self-signed",
    19: "its certificate does not lead to our root",
    20: "its certificate does not lead to our root",
    21: "its certificate does not lead to our root",
    25: "it was signed by a CA below ours",
    26: "its certificate is not a receiver's",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
    79: "it was signed by somebody who is no CA",
}

_RULE: Final = "this host's certificate breaks a rule that the receiver's log names"

# TLS 1.3 alerts (RFC 8446 section 6.2) that a receiver's TLS sends about our certificate, by OpenSSL's names for them. One alert
# stands for many reasons (ssl_x509err2alert in ssl/statem/statem_lib.c), and the words may claim no more than all of these share:
# unknown_ca is another CA, a missing one, one that may not sign; certificate_unknown is whatever has no alert of its own.
_ALERT_WORDS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands a client certificate and this host sent none",
    "TLSV1_ALERT_UNKNOWN_CA": "this host's certificate does not lead to a root that it trusts",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this host's certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "this host's certificate was revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "this host's certificate is not a host's",
    "SSLV3_ALERT_BAD_CERTIFICATE": _RULE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _RULE,
    "TLSV1_ALERT_ACCESS_DENIED": "access denied",
}

# How OpenSSL says that there is no version in common, by whose turn it was to notice.
_NO_VERSION: Final = ("NO_PROTOCOLS_AVAILABLE", "UNSUPPORTED_PROTOCOL")


def explain(error: OSError, peer: str, role: str = "receiver", alpn: str = ALPN) -> SecurecoreError:
    """Return what a failed connection to *peer*, which should be a *role*, means; the exception to raise from *error*."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _NOT_YET_VALID:
            hint = f"compare this machine's clock; {_WHICH}"
            return ClockError(f"{peer}: a certificate in its chain is not yet valid", hint=hint)
        words = _VERIFY_WORDS.get(error.verify_code, error.verify_message)
        hint = "check --to and the identity's ca.pem"
        if error.verify_code == _EXPIRED:
            hint = f"compare this machine's clock; if it is right, {_WHICH}"
        return UntrustedError(f"{peer} is not the {role} that we trust: {words}", hint=hint)
    if isinstance(error, ssl.SSLError):
        reason = reason_of(error)
        if reason in _ALERT_WORDS:
            hint = f"the {role}'s log says which rule; `securecore pki inspect` shows the certificate"
            return RefusedError(f"refused by {peer}: {_ALERT_WORDS[reason]}", hint=hint)
        if "ALERT_NO_APPLICATION_PROTOCOL" in reason or "PROTOCOL_VERSION" in reason or reason in _NO_VERSION:
            return PeerError(f"{peer} does not speak {alpn} over TLS 1.3")
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
            return PeerError(f"{peer} does not speak TLS 1.3")
        # A receiver whose end of the connection was cut within a record says decode_error (ssl/record/rec_layer_s3.c).
        if isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF" in reason or "ALERT_DECODE_ERROR" in reason:
            return UnreachableError(f"{peer} closed the connection")
        return PeerError(f"{peer}: TLS failed: {_reason(error)}")
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{peer} did not answer in time")
    reason = str(error.strerror or error)
    hint = f"see that the {role} runs, and that the address is right"
    return UnreachableError(f"{peer}: {reason[:1].lower()}{reason[1:]}", hint=hint)


def reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's name for what went wrong, such as UNSUPPORTED_PROTOCOL.

    Python fills ``reason`` from a table of its own, and 3.11's lacks some of OpenSSL 3's, such as the alert for another ALPN name;
    then the name is made from the text, which is ``[LIBRARY] words (_ssl.c:LINE)``.
    """
    if error.reason:
        return error.reason
    text = str(error).partition(" (_ssl.c:")[0]
    return (text.partition("] ")[2] or text).replace(" ", "_").upper()


def _reason(error: ssl.SSLError) -> str:
    return reason_of(error).replace("_", " ").lower()

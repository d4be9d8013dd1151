"""The words for each way in which TLS fails: the tables in full, for what cannot be made to happen on a connection."""

import socket
import ssl

import pytest

from securecore import tls
from securecore.errors import ClockError, PeerError, RefusedError, SecurecoreError, UnreachableError, UntrustedError
from tests.support.tls_ends import told


def verification_error(code: int) -> ssl.SSLCertVerificationError:
    """Return what Python raises for one of OpenSSL's verify codes."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "what OpenSSL says"
    return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (10, "a certificate in its chain has expired by the clock here"),
        (18, "its certificate is self-signed"),
        (19, "its certificate does not lead to our root"),
        (20, "its certificate does not lead to our root"),
        (21, "its certificate does not lead to our root"),
        (25, "it was signed by a CA below ours"),
        (26, "its certificate is not a receiver's"),
        (62, "its certificate is for another name"),
        (64, "its certificate is for another address"),
        (79, "it was signed by somebody who is no CA"),
        (7, "what OpenSSL says"),
    ],
)
def test_words_for_verify_codes(code: int, words: str) -> None:
    """X509_V_ERR_... of x509_vfy.h; what we have no better words for is said in OpenSSL's."""
    error = tls.explain(verification_error(code), "peer:1")
    assert told(error) == (UntrustedError, f"peer:1 is not the receiver that we trust: {words}")


def test_a_verify_code_for_the_clock() -> None:
    """X509_V_ERR_CERT_NOT_YET_VALID is the one code that is not about trust."""
    assert told(tls.explain(verification_error(9), "peer:1")) == (ClockError, "peer:1: a certificate in its chain is not yet valid")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "it demands a client certificate and this host sent none"),
        ("TLSV1_ALERT_UNKNOWN_CA", "this host's certificate does not lead to a root that it trusts"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "this host's certificate has expired"),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "this host's certificate was revoked"),
        ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "this host's certificate is not a host's"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "this host's certificate breaks a rule that the receiver's log names"),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "this host's certificate breaks a rule that the receiver's log names"),
        ("TLSV1_ALERT_ACCESS_DENIED", "access denied"),
    ],
)
def test_words_for_alerts_about_our_certificate(reason: str, words: str) -> None:
    """RFC 8446 section 6.2: the receiver has said no, and asking again unchanged will not help."""
    error = tls.explain(ssl_error(reason), "peer:1")
    assert told(error) == (RefusedError, f"refused by peer:1: {words}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[SSL] tlsv1 alert no application protocol (_ssl.c:1006)", "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"),
        ("[X509] unknown certificate type (_ssl.c:4171)", "UNKNOWN_CERTIFICATE_TYPE"),
        ("unknown error (_ssl.c:3102)", "UNKNOWN_ERROR"),
        ("", ""),
    ],
)
def test_a_reason_that_python_has_no_name_for_is_read_from_the_text(text: str, reason: str) -> None:
    """Which names are missing depends on the Python and the OpenSSL."""
    error = ssl.SSLError(1, text)
    error.reason = None  # type: ignore[assignment]  # as Python's own have it, whatever its stubs say

    assert tls.reason_of(error) == reason


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("UNSUPPORTED_PROTOCOL", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("BAD_SIGNATURE", PeerError, "peer:1: TLS failed: bad signature"),
        ("NO_PROTOCOLS_AVAILABLE", PeerError, "peer:1 does not speak securecore/1 over TLS 1.3"),
        ("WRONG_VERSION_NUMBER", PeerError, "peer:1 does not speak TLS 1.3"),
        ("HTTP_REQUEST", PeerError, "peer:1 does not speak TLS 1.3"),
        ("UNEXPECTED_MESSAGE", PeerError, "peer:1 does not speak TLS 1.3"),
        ("RECORD_LAYER_FAILURE", PeerError, "peer:1 does not speak TLS 1.3"),
        ("UNEXPECTED_EOF_WHILE_READING", UnreachableError, "peer:1 closed the connection"),
        ("TLSV1_ALERT_INTERNAL_ERROR", PeerError, "peer:1: TLS failed: tlsv1 alert internal error"),
    ],
)
def test_words_for_other_failures_of_tls(reason: str, kind: type[SecurecoreError], words: str) -> None:
    """Another protocol, a cut, and whatever else OpenSSL calls by a name."""
    assert told(tls.explain(ssl_error(reason), "peer:1")) == (kind, words)


def ssl_error(reason: str) -> ssl.SSLError:
    """Return what Python raises for one of OpenSSL's reasons."""
    error = ssl.SSLError(1, "what OpenSSL says")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "peer:1: name or service not known"),
        (OSError(113, "No route to host"), "peer:1: no route to host"),
        (TimeoutError("timed out"), "peer:1 did not answer in time"),
        (OSError("no number"), "peer:1: no number"),
    ],
)
def test_words_for_failures_of_the_network(error: OSError, words: str) -> None:
    """All of them are worth another try."""
    assert told(tls.explain(error, "peer:1")) == (UnreachableError, words)

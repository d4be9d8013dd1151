"""Why a TLS handshake with a client has failed, in words."""

import ssl
from typing import Final

from securecore import tls

_WORDS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "client sent no certificate",
    "UNSUPPORTED_PROTOCOL": "client does not speak TLS 1.3",
    "HTTP_REQUEST": "client speaks plain HTTP and no TLS",
    "HTTPS_PROXY_REQUEST": "client speaks plain HTTP and no TLS",
    "WRONG_VERSION_NUMBER": "client does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": "client went away during the TLS handshake",
}
"""OpenSSL's reasons (ssl/ssl_err.c) for what strangers do most, in the words of this project."""


def handshake_words(error: OSError) -> str:
    """Return why a handshake failed, in words for the operator of the receiver."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate refused by TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = tls.reason_of(error)
        if "_ALERT_" in reason:
            return f"client ended the TLS handshake with the alert {_plain(reason.partition('_ALERT_')[2])}"
        return _WORDS.get(reason) or f"TLS handshake failed: {_plain(reason)}"
    if isinstance(error, TimeoutError):
        return "TLS handshake was not finished in time"
    return f"connection failed: {error.strerror or error}"


def _plain(reason: str) -> str:
    return reason.replace("_", " ").lower()

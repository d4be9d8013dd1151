"""One request and one answer over TLS: what client and server of enrolment share below the words."""

import socket
import ssl
import time
from typing import Final

from securecore import tls
from securecore.errors import PeerError, UnreachableError
from securecore.names import Address
from securecore.pki.enrolment import ALPN

ROLE: Final = "enroller"

_CHUNK: Final = 64 * 1024


def connect(address: Address, context: ssl.SSLContext, deadline_s: float) -> ssl.SSLSocket:
    """Return a connection to an enroller, verified as *context* says; raises what tls.explain makes of a failure, and PeerError."""
    try:
        plain = _connect(address, deadline_s)
    except OSError as error:
        raise tls.explain(error, str(address), ROLE, ALPN) from error
    try:
        return tls.secure(
            context, plain, server_name=address.host_without_zone, deadline_s=deadline_s, peer=str(address), alpn=ALPN
        )
    except OSError as error:
        plain.close()
        raise tls.explain(error, str(address), ROLE, ALPN) from error


def read_line(secured: ssl.SSLSocket, most: int, deadline_s: float, peer: str) -> bytes:
    """Return what comes before a newline, the last byte that the other end may have sent, within *deadline_s* in all.

    Raises PeerError when more than *most* bytes come, or anything after the line; UnreachableError when it ends before its newline;
    OSError.
    """
    deadline = time.monotonic() + deadline_s
    data = bytearray()
    while not data.endswith(b"\n"):
        secured.settimeout(_left(deadline))
        chunk = secured.recv(min(_CHUNK, most + 2 - len(data)))
        if not chunk:
            raise UnreachableError(f"{peer} closed the connection before the end of its line")
        data += chunk
        if b"\n" in chunk[:-1]:
            raise PeerError(f"{peer} said more than one line")
        if len(data) > most + 1:
            raise PeerError(f"{peer} said a line of more than {most} bytes")
    return bytes(data[:-1])


def send(secured: ssl.SSLSocket, data: bytes, deadline_s: float) -> None:
    """Send bytes within *deadline_s* in all; raises OSError."""
    deadline = time.monotonic() + deadline_s
    view = memoryview(data)
    while view:
        secured.settimeout(_left(deadline))
        view = view[secured.send(view[:_CHUNK]) :]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _connect(address: Address, deadline_s: float) -> socket.socket:
    """Return a connection to the first place that an address stands for and that answers."""
    deadline = time.monotonic() + deadline_s
    failure = OSError("it has no address")
    # As bytes: text goes through Python's IDNA codec, which answers a label of 64 letters with an error that is no OSError.
    for family, _, _, _, where in socket.getaddrinfo(address.host.encode("ascii"), address.port, type=socket.SOCK_STREAM):
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(_left(deadline))
            plain.connect(where)
        except OSError as error:
            plain.close()
            failure = error
        else:
            return plain
    raise failure

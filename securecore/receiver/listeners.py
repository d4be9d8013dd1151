"""The sockets that a receiver listens on, and how addresses of both families are written.

What an operator names is what is listened on, no more and no less: a name stands for every address that it has, and an IPv6 address
never takes IPv4 as well (``[::]`` included, whatever net.ipv6.bindv6only says). So one peer is written in one way in the log: no
address is ever an IPv4 one in an IPv6 coat.
"""

import errno
import os
import socket
from contextlib import ExitStack
from typing import Any, Final

from securecore.errors import ConfigError
from securecore.names import Address

_BACKLOG: Final = 128
"""Connections that the kernel holds while none is accepted: twice the 64 senders of the design's load budget."""

SocketAddress = tuple[Any, ...]
"""What the socket module takes and gives: host and port, and for IPv6 flow and zone."""

_HINTS: Final = {
    errno.EADDRINUSE: "is another receiver running there?",
    errno.EACCES: "ports below 1024 are root's; name another, as in 4455",
}


def listen(address: Address) -> list[socket.socket]:
    """Return a non-blocking listener for each address that *address* stands for, the ports chosen by the kernel where it says 0.

    An address that was in use a moment ago can be had at once, connections in TIME_WAIT notwithstanding. Raises ConfigError when
    one of them cannot be had; then none is.
    """
    with ExitStack() as undo:
        listeners = [undo.enter_context(_listen(address, *found)) for found in _resolve(address)]
        undo.pop_all()
    return listeners


def bound_address(listener: socket.socket) -> Address:
    """Return where a listener listens, with the port that the kernel chose."""
    return Address(written(listener.getsockname()))


def written(where: SocketAddress) -> str:
    """Return a socket's address as HOST:PORT, IPv6 in brackets and, on a link, with its zone."""
    host, port = where[:2]
    if ":" not in host:
        return f"{host}:{port}"
    return f"[{host}%{_zone(where[3])}]:{port}" if where[3] else f"[{host}]:{port}"


def _zone(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)  # The link has gone meanwhile.


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Return family and socket address, with an IPv6 address's zone, of everything that *address* stands for, each once."""
    try:
        # As bytes: text goes through Python's IDNA codec, which answers a label of 64 letters with an error that is no OSError.
        host = address.host.encode("ascii")
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {address}: {reason}", hint="name an address of this machine") from error
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))


def _listen(address: Address, family: socket.AddressFamily, where: SocketAddress) -> socket.socket:
    try:
        listener = socket.create_server(where, family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        place = f"{address}" if str(address) == written(where) else f"{address}, which is {written(where)}"
        hint = _HINTS.get(error.errno or 0, "name an address of this machine")
        raise ConfigError(f"cannot listen on {place}: {reason}", hint=hint) from error
    listener.setblocking(False)
    return listener


def drain(wakeup: socket.socket) -> None:
    """Take all that has come on a non-blocking socket, which only wakes up who polls it."""
    try:
        while wakeup.recv(4096):
            pass
    except BlockingIOError:
        pass

"""What the receivers of the bench note, told by a connection that is written here byte for byte."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.peers import FirstByteServer

from securecore import tls
from securecore.names import DumpId
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import HEADER_BYTES, Data, Open
from securecore.wire.states import End
from tests.support.certificates import Fleet

ANSWER_S = 60


@pytest.fixture
def server(fleet: Fleet) -> Iterator[FirstByteServer]:
    """A server that waits for one connection."""
    server = FirstByteServer(Path(fleet.receiver))
    server.expect(stall=False)
    yield server
    server.close()


def open_dump(server: FirstByteServer, fleet: Fleet) -> tuple[socket.socket, Connection]:
    """Return a connection at which a dump is opened."""
    plain = socket.create_connection((server.address.host, server.address.port))
    name = server.address.host
    secured = tls.secure(tls.sender_context(str(fleet.host)), plain, server_name=name, deadline_s=ANSWER_S)
    connection = Connection(End.SENDER)
    hear(secured, connection)
    secured.sendall(connection.send(Open(DumpId.make(1, bytes(10)), b"{}", None)))
    hear(secured, connection)
    return secured, connection


def hear(secured: socket.socket, connection: Connection) -> None:
    """Take the next message in."""
    while connection.next_message() is NEED_DATA:
        connection.receive(secured.recv(65536))


def test_the_first_byte_of_a_frame_counts_and_not_its_last(server: FirstByteServer, fleet: Fleet) -> None:
    """What is promised is the time to the first payload byte: the rest of its frame need not have come."""
    secured, connection = open_dump(server, fleet)
    with secured:
        secured.sendall(connection.send(Data(bytes(1000)))[: HEADER_BYTES + 1])
        server.finish(ANSWER_S)

    assert server.arrived is not None


def test_a_header_is_no_payload(server: FirstByteServer, fleet: Fleet) -> None:
    """Who announces a frame has sent nothing of it."""
    secured, connection = open_dump(server, fleet)
    with secured:
        secured.sendall(connection.send(Data(bytes(1000)))[:HEADER_BYTES])
    server.finish(ANSWER_S)

    assert server.arrived is None

"""A property that does not hold, so that it can be seen that the fuzzer finds what is there to be found."""

from collections.abc import Iterator
from typing import Final

from securecore.errors import PeerError
from securecore.wire.messages import Ack, decode_body, decode_header
from tests.fuzz.target import Target


def check_planted(data: bytes) -> None:
    """No bytes are an ACK: false, but to meet one takes a header, a required field, its length, and a number of that length."""
    try:
        kind, length = decode_header(data.ljust(5, b"\0"))
        message = decode_body(kind, data[5 : 5 + length])
    except PeerError:
        return
    assert not isinstance(message, Ack)


def planted_seeds() -> Iterator[bytes]:
    """Nothing that looks like a message."""
    yield b"\0"


TARGETS: Final = {"planted": Target(check_planted, planted_seeds, ("wire.messages.decode_body",), 64)}

"""A verified connection to an enroller, for one request.

Whatever is asked takes two connections. The first believes nobody and fetches the fleet's CAs, which are public. Of these only a
root counts that is known already, by its fingerprint or from ca.pem; the second connection is verified with it, by OpenSSL and by
our judge, before anything is said.
"""

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from securecore import tls
from securecore.certs.chain import Anchors, load_anchors
from securecore.certs.identity_directory import MAX_CA_BYTES
from securecore.certs.judge import Purpose, Refusal, alternative_names, judge
from securecore.errors import ConfigError, PeerError, UntrustedError
from securecore.names import Address
from securecore.pki import channel
from securecore.pki.directory import certificate_pem
from securecore.pki.enrolment import ALPN, Answer, Request, encode_request, parse_answer
from securecore.pki.limits import ANSWER_DEADLINE_S, MAX_ANSWER_BYTES, REQUEST_DEADLINE_S


class Channel(NamedTuple):
    """A verified enroller: where it is, which certificate it has shown, and the connection."""

    address: Address
    secured: ssl.SSLSocket
    leaf_der: bytes

    def ask(self, asked: Request) -> Answer:
        """Return the answer to the one request; raises as parse_answer and channel do."""
        return _ask(self.secured, self.address, asked)


@contextmanager
def dial(address: Address, anchors: Anchors, identity: Path | None, now: datetime) -> Iterator[Channel]:
    """Give a connection to an enroller that OpenSSL and we have verified with the roots of *anchors* and the dialled name.

    The certificate of *identity* is shown where one is given. Raises UntrustedError for anybody but an enroller, and one of another
    name; UnreachableError, PeerError, ClockError; ConfigError for an identity that can't be loaded.
    """
    pem = certificate_pem(*anchors.roots).decode("ascii")
    context = tls.enrolment_context(ALPN, pem, None if identity is None else str(identity))
    with channel.connect(address, context, REQUEST_DEADLINE_S) as secured:
        yield _judged(address, secured, anchors, now)


def fetch_anchors(address: Address) -> Anchors:
    """Return the CAs that whoever answers at an address calls the fleet's; nothing in it is believed yet. Raises as dial."""
    context = tls.enrolment_context(ALPN, None)
    with channel.connect(address, context, REQUEST_DEADLINE_S) as secured:
        pem = _ask(secured, address, Request("roots"), 2 * MAX_CA_BYTES).ca
    try:
        return load_anchors(pem.encode("ascii"), what=f"the CAs of {address}")
    except ConfigError as error:
        raise PeerError(error.message) from error


def _judged(address: Address, secured: ssl.SSLSocket, anchors: Anchors, now: datetime) -> Channel:
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
    return Channel(address, secured, leaf_der)


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

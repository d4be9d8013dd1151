"""Certificates, CRLs and signed statements: bytes from which an identity follows.

A mutated certificate has no good signature, and a judge that sees a bad one looks no further. So most inputs say which element of
a good certificate or CRL to replace by what, and the CA signs the result: the judge meets what a CA gone astray would sign.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from securecore import limits
from securecore.certs import jws
from securecore.certs.chain import load_anchors, load_pem_certificates
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, judge
from securecore.certs.revocation import RevocationLists
from securecore.errors import BrokenError, ConfigError
from securecore.names import HostName
from tests.fuzz.fleet import chain_of, fleet, key
from tests.fuzz.target import Target, check_words
from tests.support.certificates import general_names, make_crl, tlv
from tests.support.der import Element, elements, paths, pem, replaced, signed
from tests.support.dumps import NOW

_AS_IT_IS: Final = 0x7F
"""Instead of an element's number: what follows is the whole, and nobody signs it."""

_SAN: Final = bytes.fromhex("0603551d11")
_EXTENDED_KEY_USAGE: Final = bytes.fromhex("0603551d25")
_BASIC_CONSTRAINTS: Final = bytes.fromhex("0603551d13")
_EXTENDED_USE: Final = {
    Purpose.HOST: bytes.fromhex("300a06082b06010505070302"),
    Purpose.RECEIVER: bytes.fromhex("300a06082b06010505070301"),
}
"""ExtKeyUsageSyntax of id-kp-clientAuth and id-kp-serverAuth: RFC 5280 section 4.2.1.12."""


def _body(der: bytes) -> Element:
    """Return what is signed of a certificate or CRL."""
    return elements(elements(der)[0].content)[0]


@cache
def _ways(der: bytes) -> list[tuple[tuple[int, ...], Element]]:
    return list(paths(_body(der)))[:_AS_IT_IS]


def _changed(der: bytes, data: bytes, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """Return what *data* makes of a certificate or CRL: the first byte says which element, and the rest stands in its place."""
    number, new = data[0] & 0x7F, data[1:]
    if number == _AS_IT_IS:
        return new
    ways = _ways(der)
    return signed(replaced(_body(der), ways[number % len(ways)][0], new), signer)


def _every_element(der: bytes, mark: int = 0) -> Iterator[bytes]:
    """Yield inputs that change nothing, one for each element."""
    for number, (_, element) in enumerate(_ways(der)):
        yield bytes([mark | number]) + element.whole
    yield bytes([mark | _AS_IT_IS]) + der


def check_certificate(data: bytes) -> None:
    """A leaf is refused, or it is exactly what its subjectAltName says and for exactly its purpose, by a second look at its DER.

    The first byte's highest bit chooses between host and receiver.
    """
    if not data:
        return
    purpose = Purpose.RECEIVER if data[0] & 0x80 else Purpose.HOST
    made = fleet().receiver if data[0] & 0x80 else fleet().host
    der = _changed(made.der, data, key(3 if data[0] & 0x80 else 2))
    try:
        judgement = judge(der, [], fleet().anchors, purpose, NOW)
    except Refusal as refusal:
        check_words(refusal)
        return
    _check_identity(der, judgement)


def _check_identity(der: bytes, judgement: Judgement) -> None:
    body = elements(_body(der).content)
    extensions = {parts[0].whole: parts[-1].content for parts in _extensions(body)}
    names = elements(elements(extensions[_SAN])[0].content)
    hosts = [name.content.decode("ascii") for name in names if name.tag == 0x82]
    assert str(judgement.name) == hosts[0]
    assert all(str(HostName(host)) == host for host in hosts)
    if judgement.purpose is Purpose.HOST:
        assert [(name.tag, name.content) for name in names] == [(0x82, hosts[0].encode())]
    assert {name.tag for name in names} <= {0x82, 0x87}
    assert extensions[_EXTENDED_KEY_USAGE] == _EXTENDED_USE[judgement.purpose]
    assert extensions[_BASIC_CONSTRAINTS] == b"\x30\x00"
    assert len(extensions) == len(_extensions(body)) == 6
    assert judgement.serial == int.from_bytes(body[1].content, "big", signed=True) > 0
    assert judgement.not_before <= NOW <= judgement.not_after


def _extensions(body: list[Element]) -> list[list[Element]]:
    (wrapper,) = (part for part in body if part.tag == 0xA3)
    return [elements(extension.content) for extension in elements(elements(wrapper.content)[0].content)]


_NAMES: Final[list[bytes | list[str | bytes]]] = [
    ["WEB.example.org"], ["*.example.org"], ["a.example.org", "b.example.org"], ["web-1.other.example"], [""],
    [b"../../etc.example.org"], [b"a\0.example.org"], [b"\xc3\xa9.example.org"],
    tlv(0x30, tlv(0x86, b"https://a.example")), tlv(0x30, tlv(0x87, bytes(5))), tlv(0x30, tlv(0xA4, tlv(0x30, b""))),
    tlv(0x30, tlv(0xA0, tlv(0x06, b"\x2a\x03") + tlv(0xA0, tlv(0x0C, b"a")))), b"\x30\x80\x00\x00",
]  # fmt: skip


def certificate_seeds() -> Iterator[bytes]:
    """Every element of a host's and of a receiver's certificate, and names of every kind."""
    for mark, made in ((0, fleet().host), (0x80, fleet().receiver)):
        yield from _every_element(made.der, mark)
        ways = _ways(made.der)
        (number,) = (at for at, (_, element) in enumerate(ways) if element.tag == 0x30 and element.content.startswith(_SAN))
        for names in _NAMES:
            value = names if isinstance(names, bytes) else general_names(names)
            yield bytes([mark | number]) + tlv(0x30, _SAN + tlv(0x04, value))


def check_anchors(data: bytes) -> None:
    """A ca.pem is refused in one line, or every root in it names and has signed itself and nothing in it is too large.

    Bit 7 of the first byte says that the rest is the file itself, else it changes the root's certificate.
    """
    if not data:
        return
    text = data[1:] if data[0] & 0x80 else pem("CERTIFICATE", _changed(fleet().hierarchy.root.der, data, key(1)))
    with suppress(ConfigError):
        assert len(load_pem_certificates(text)) <= limits.MAX_CHAIN
    try:
        anchors = load_anchors(text)
    except ConfigError as error:
        check_words(error)
        return
    assert anchors.roots
    assert all(root.subject == root.issuer for root in anchors.roots)


def anchor_seeds() -> Iterator[bytes]:
    """A ca.pem, its parts, and every element of a root."""
    hierarchy = fleet().hierarchy
    made = [hierarchy.root, hierarchy.hosts, hierarchy.receivers]
    yield b"\x80" + b"".join(one.pem for one in made)
    yield b"\x80text before\r\n" + hierarchy.root.pem.replace(b"\n", b"\r\n") + b"behind"
    yield b"\x80" + hierarchy.hosts.pem
    yield b"\x80" + hierarchy.root.pem[:-30]
    yield from _every_element(hierarchy.root.der)


_EARLIER: Final = NOW.replace(microsecond=0)


def check_revocation(data: bytes) -> None:
    """A CRL is refused, or the serial numbers that stand in it, by a second look at its DER, are those that are revoked.

    Bit 7 of the first byte says that the rest is the file itself, else it changes the hosts CA's list.
    """
    if not data:
        return
    changed = b"" if data[0] & 0x80 else _changed(_crl(), data, key(2))
    text = data[1:] if data[0] & 0x80 else pem("X509 CRL", changed) + _root_crl()
    try:
        lists = RevocationLists.parse(text, fleet().anchors)
    except ConfigError as error:
        check_words(error)
        return
    assert all(line.isprintable() for line in lists.warnings(NOW))
    lists.check_not_older_than(lists, fleet().anchors)
    reason = None
    try:
        lists.check(_judgement(), NOW)
    except Refusal as refusal:
        check_words(refusal)
        reason = refusal.reason
    if changed:
        serials = _serials(changed)
        assert (reason is Reason.REVOKED) == (fleet().host.certificate.serial_number in serials)


@cache
def _judgement() -> Judgement:
    return judge(fleet().host.der, [], fleet().anchors, Purpose.HOST, NOW)


@cache
def _crl() -> bytes:
    revoked = {7: (_EARLIER, "keyCompromise"), 1 << 150: (_EARLIER, "unspecified")}
    made = make_crl(fleet().hierarchy.hosts, now=_EARLIER, revoked=revoked)
    return _der_of(made)


def _der_of(crl_pem: bytes) -> bytes:
    return base64.b64decode(b"".join(crl_pem.split(b"\n")[1:-2]))


@cache
def _root_crl() -> bytes:
    return make_crl(fleet().hierarchy.root, now=_EARLIER)


def _serials(der: bytes) -> set[int]:
    """Return the serial numbers of a CRL that parsed: of the SEQUENCE behind the times (RFC 5280 section 5.1)."""
    parts = elements(_body(der).content)
    times = [at for at, part in enumerate(parts) if part.tag in (0x17, 0x18)]
    behind = parts[times[-1] + 1 :]
    lists = behind[0].content if behind and behind[0].tag == 0x30 else b""
    return {int.from_bytes(elements(entry.content)[0].content, "big", signed=True) for entry in elements(lists)}


def revocation_seeds() -> Iterator[bytes]:
    """A crl.pem, every element of a list, and lists that revoke the host."""
    yield b"\x80" + make_crl(fleet().hierarchy.hosts, now=_EARLIER) + _root_crl()
    yield b"\x80" + _root_crl() + b"text\n" + _root_crl()
    yield from _every_element(_crl())
    (number,) = (at for at, (path, element) in enumerate(_ways(_crl())) if element.tag == 0x17 and path == (4,))
    # The time that stands for "no end" (RFC 5280 section 4.1.2.5), and the earliest.
    for moment in (b"99991231235959Z", b"00010101000000Z", b"19500101000000Z"):
        yield bytes([number]) + tlv(0x18, moment)
    entry = tlv(0x30, tlv(0x02, b"\x04") + tlv(0x17, b"261122091422Z"))
    (number,) = (at for at, (path, element) in enumerate(_ways(_crl())) if len(path) == 1 and element.content.count(b"Z\x30\x0c"))
    yield bytes([number]) + tlv(0x30, entry)
    yield bytes([number]) + tlv(0x30, entry * 2)


def check_token(data: bytes) -> None:
    """A token is refused, or it is the one spelling of its parts; and only what the key signed verifies.

    The first byte says what follows: a token, the header of one that is signed, or the payload of one.
    """
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    token = rest if kind == 0 else _signed_token(rest, b"payload") if kind == 1 else _signed_token(_header(), rest)
    try:
        parts = jws.parse(token, limits.MAX_MANIFEST_BYTES)
    except BrokenError as error:
        check_words(error)
        assert kind != 2 or not rest
        return
    header = {"alg": "ES256", "typ": parts.typ, "x5c": [base64.b64encode(der).decode() for der in parts.chain_der]}
    spelt = [json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), parts.payload, parts.signature]
    assert token == b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in spelt)
    try:
        jws.verify(token, _TYP, limits.MAX_MANIFEST_BYTES)
    except BrokenError as error:
        check_words(error)
        assert kind != 2
        return
    assert parts.typ == _TYP
    assert x509.load_der_x509_certificate(parts.chain_der[0]).public_key() == fleet().host.key.public_key()
    if kind == 0:
        assert parts.signed == _token().rpartition(b".")[0]


_TYP: Final = "securecore-fuzz+jws"


@cache
def _token() -> bytes:
    return jws.sign(b"payload", fleet().host.key_pem, chain_of(fleet().host), _TYP)


@cache
def _header() -> bytes:
    return base64.urlsafe_b64decode(_token().split(b".")[0] + b"==")


def _signed_token(header: bytes, payload: bytes) -> bytes:
    """Return a token with any header and payload, signed by the host's key as jws.sign does."""
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    r, s = decode_dss_signature(fleet().host.key.sign(body, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def token_seeds() -> Iterator[bytes]:
    """A token, a header, payloads."""
    yield b"\0" + _token()
    yield b"\1" + _header()
    others = {"alg": "ES256", "typ": _TYP, "x5c": [base64.b64encode(fleet().receiver.der).decode("ascii")]}
    yield b"\1" + json.dumps(others, separators=(",", ":")).encode()
    yield b"\2{}"
    yield b"\2" + bytes(range(256))


CERTIFICATE = Target(check_certificate, certificate_seeds, ("certs.judge.judge", "certs.judge.alternative_names"))
ANCHORS = Target(check_anchors, anchor_seeds, ("certs.chain.load_pem_certificates", "certs.chain.load_anchors"))
REVOCATION = Target(
    check_revocation, revocation_seeds, ("certs.revocation.RevocationLists.parse", "certs.revocation.RevocationLists.check")
)
TOKEN = Target(check_token, token_seeds, ("certs.jws.parse", "certs.jws.verify"), is_json=True)

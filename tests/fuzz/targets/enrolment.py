"""What is said where hosts enrol: lines, requests for certificates, replies, and the words that a person brings."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securecore.cli.authority.options import root_fingerprint, serial_number
from securecore.errors import BusyError, ConfigError, PeerError, PkiError, SecurecoreError
from securecore.limits import MAX_RETRY_AFTER_S
from securecore.names import Address
from securecore.pki.enrolling import read_enroller
from securecore.pki.enrolment import (
    Answer,
    Denied,
    Request,
    encode_answer,
    encode_denial,
    encode_request,
    parse_answer,
    parse_request,
)
from securecore.pki.reply import parse_reply
from securecore.pki.signing_request import requested_key, requested_key_of_der
from securecore.pki.tokens import parse_token
from tests.fuzz.files import scratch
from tests.fuzz.fleet import Fleet, fleet, key
from tests.fuzz.target import Target, check_begins, check_words
from tests.support.certificates import make_crl
from tests.support.der import Element, elements, paths, pem, replaced, signed
from tests.support.dumps import NOW

_ID: Final = "5f3c0a1b2c3d4e5f"


def check_request(data: bytes) -> None:
    """A client's line is refused, or it is the one encoding of a request, every field of which is of its form."""
    try:
        request = parse_request(data)
    except PeerError as error:
        check_words(error)
        return
    assert encode_request(request) == data + b"\n"
    fields = json.loads(data)
    assert base64.b64encode(request.csr).decode() == fields.get("csr", "")
    assert (request.op == "enroll") == bool(re.fullmatch("[0-9a-f]{16}", request.token)) == (len(request.mac) == 32)
    assert request.mac.hex() == fields.get("mac", "")


def request_seeds() -> Iterator[bytes]:
    """Each operation."""
    for request in (
        Request("roots"),
        Request("lists"),
        Request("enroll", _ID, b"\x30\x00", bytes(range(32))),
        Request("enroll", _ID, b"\x30\x01x", bytes(range(32)), "web-1.hosts.test.example"),
        Request("renew", csr=_csr()),
    ):
        yield encode_request(request)[:-1]


def check_answer(data: bytes) -> None:
    """An enroller's line is refused, or it is the one encoding of an answer, or a no in printable words that says when to come."""
    try:
        answer = parse_answer(data, "enroller")
    except SecurecoreError as error:
        _check_no(error)
        return
    assert encode_answer(answer) == data + b"\n"
    assert all(text.isascii() for text in answer)


def _check_no(error: SecurecoreError) -> None:
    check_words(error)
    assert (error.hint or "").isprintable()
    after = error.retry_after_s if isinstance(error, BusyError) else 0
    assert type(after) is int
    assert 0 <= after <= MAX_RETRY_AFTER_S


def answer_seeds() -> Iterator[bytes]:
    """Each answer, and each kind of no."""
    for answer in (Answer(ca="-----BEGIN\n"), Answer(ca="a", crl="b"), Answer(reply="-----BEGIN\n")):
        yield encode_answer(answer)[:-1]
    for denied in (
        Denied("bad-token", "no token"),
        Denied("token-used", "it was used", hint="ask for another", serial=0xA1),
        Denied("busy", "too many", retry_after_s=60),
    ):
        yield encode_denial(denied)[:-1]


@cache
def _csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key(6), hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


_AS_IT_IS: Final = 0x7F
_IS_PEM: Final = 0x80


def _body(der: bytes) -> Element:
    return elements(elements(der)[0].content)[0]


def check_signing_request(data: bytes) -> None:
    """A request is refused in one line, or the key that is taken of it stands in it, has signed it, and is on P-256.

    Bit 7 of the first byte says that the rest is PEM; else it numbers an element that the rest replaces, signed anew, or is 127.
    """
    if not data:
        return
    try:
        if data[0] & _IS_PEM:
            found, der = requested_key(data[1:], what="request.pem"), _der_in(data[1:])
        else:
            der = _changed(data)
            found = requested_key_of_der(der, what="request.pem")
    except PkiError as error:
        check_words(error)
        check_begins(error, "request.pem: ")
        return
    info, _, signature = elements(elements(der)[0].content)
    assert found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == elements(info.content)[2].whole
    assert isinstance(found.curve, ec.SECP256R1)
    algorithm = x509.load_der_x509_csr(der).signature_hash_algorithm
    assert algorithm is not None
    found.verify(signature.content[1:], info.whole, ec.ECDSA(algorithm))


def _changed(data: bytes) -> bytes:
    if data[0] == _AS_IT_IS:
        return data[1:]
    ways = list(paths(_body(_csr())))
    return signed(replaced(_body(_csr()), ways[data[0] % len(ways)][0], data[1:]), key(6))


def _der_in(text: bytes) -> bytes:
    assert text.count(b"-----BEGIN ") == 1
    return x509.load_pem_x509_csr(text).public_bytes(Encoding.DER)


def signing_request_seeds() -> Iterator[bytes]:
    """Every element of a request, the whole of it, and its PEM."""
    for number, (_, element) in enumerate(paths(_body(_csr()))):
        yield bytes([number]) + element.whole
    yield bytes([_AS_IT_IS]) + _csr()
    text = pem("CERTIFICATE REQUEST", _csr())
    yield from (bytes([_IS_PEM]) + one for one in (text, b"words\n" + text, text + text[:40]))


def check_reply(data: bytes) -> None:
    """A reply is refused in one line, or its blocks are certificates, then lists, all of which it is said to have."""
    try:
        reply = parse_reply(data, what="reply.pem")
    except (ConfigError, PkiError) as error:
        check_words(error)
        check_begins(error, "reply.pem: ")
        return
    labels = re.findall(rb"-----BEGIN ([^-]*)-----", data)
    certificates = labels.count(b"CERTIFICATE")
    assert labels == [b"CERTIFICATE"] * certificates + [b"X509 CRL"] * reply.crl_pem.count(b"-----BEGIN X509 CRL-----")
    assert certificates == 1 + len(reply.anchors.roots) + len(reply.anchors.intermediates)
    assert reply.issuer in (*reply.anchors.roots, *reply.anchors.intermediates)
    assert reply.anchors.roots
    assert data.endswith(reply.crl_pem)


def reply_seeds() -> Iterator[bytes]:
    """A host's, a receiver's with lists, and what is none."""
    made: Fleet = fleet()
    root, hosts, receivers = made.hierarchy.root, made.hierarchy.hosts, made.hierarchy.receivers
    lists = b"".join(make_crl(one, now=NOW) for one in (root, hosts))
    yield made.host.pem + hosts.pem + root.pem
    yield made.receiver.pem + receivers.pem + root.pem + hosts.pem + lists
    yield made.host.pem + root.pem + lists + hosts.pem
    yield made.host.pem + hosts.pem


def check_words_brought(data: bytes) -> None:
    """A token, a fingerprint, a serial number or an enroller's address is refused in one line, or read in its one meaning.

    The first byte says which of them the rest is. A token is not repeated, whatever is wrong with it.
    """
    if not data:
        return
    checks = (_check_token, _check_fingerprint, _check_serial_number, _check_address)
    try:
        checks[data[0] % len(checks)](data[1:])
    except (ConfigError, PkiError) as error:
        check_words(error)


def _check_token(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        secret = parse_token(text)
    except PkiError as error:
        _check_silent(error, text.strip())
        raise
    digits = text.strip().removeprefix("securecore-token-")
    assert re.fullmatch("[0-9a-f]{64}", digits)
    assert secret.key == hashlib.sha256(bytes.fromhex(digits)).digest()
    assert re.fullmatch("[0-9a-f]{16}", secret.id)
    assert digits not in repr(secret)
    assert secret.key.hex() not in repr(secret)


def _check_silent(error: PkiError, text: str) -> None:
    assert len(text) <= len("not a token") or text not in error.message


def _check_fingerprint(data: bytes) -> None:
    mark = root_fingerprint(data.decode("utf-8", "replace"))
    assert re.fullmatch("[0-9a-f]{64}", mark)
    assert root_fingerprint(":".join(re.findall("..", mark)).upper()) == mark


def _check_serial_number(data: bytes) -> None:
    number = serial_number(data.decode("utf-8", "replace"))
    assert 0 <= number < 1 << 256
    assert serial_number(f"0x{number:X}") == number


def _check_address(data: bytes) -> None:
    path = scratch("enroller")
    (path / "enroller").write_bytes(data)
    address = read_enroller(path)
    assert Address(str(address)) == address


def seeds_brought() -> Iterator[bytes]:
    """Each as it is printed, and what is nearly one."""
    text = b"securecore-token-" + b"5a" * 32
    tokens = (text, text + b"\n", b" " + text, text[:-1], text + b"0", text.upper(), text.replace(b"5a", b"\xd9\xa5a"))
    yield from (b"\0" + one for one in tokens)
    yield from (b"\1" + one for one in (b"5f" * 32, b":".join([b"5F"] * 32), b"5f" * 31, b" " + b"5f" * 32))
    yield from (b"\2" + one for one in (b"a1", b"0xA1", b"a1:b2", b"", b"5f" * 32, b"5f" * 33))
    yield from (b"\3" + one for one in (b"enrol.acme.example:4456\n", b"[2001:db8::1]:4456", b"192.0.2.1:1", b"x", b"\xff"))


REQUEST = Target(check_request, request_seeds, ("pki.enrolment.parse_request",), is_json=True)
ANSWER = Target(check_answer, answer_seeds, ("pki.enrolment.parse_answer",), is_json=True)
SIGNING_REQUEST = Target(
    check_signing_request, signing_request_seeds,
    ("pki.signing_request.requested_key", "pki.signing_request.requested_key_of_der"), 2048,
)  # fmt: skip
REPLY = Target(check_reply, reply_seeds, ("pki.reply.parse_reply",), 8192)
BROUGHT = Target(
    check_words_brought, seeds_brought,
    ("pki.tokens.parse_token", "pki.enrolling.read_enroller", "cli.authority.options.root_fingerprint",
     "cli.authority.options.serial_number"), 512,
)  # fmt: skip

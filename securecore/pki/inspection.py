"""What a file of certificates, CRLs, signed statements or keys holds, as data for people and programs.

Nothing here is judged or believed: a file is described as it stands, hostile ones included, so every text from a file is escaped.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from securecore import limits
from securecore.certs import jws
from securecore.certs.chain import PARSE_ERRORS, fingerprint, one_line
from securecore.certs.conformance import find_extension, key_uses
from securecore.errors import BrokenError, PkiError
from securecore.pki.ledger import format_time

MAX_FILE_BYTES: Final = limits.MAX_CRL_BYTES
"""The largest file that there is to inspect is a CRL."""

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_MAX_BLOCKS: Final = 64
_MAX_ENTRIES: Final = 1000

Description = dict[str, object]


def describe(data: bytes, what: str) -> list[Description]:
    """Return a description of each thing in a PEM, DER or JWS file, in order, at least one, each with its ``kind``.

    Raises PkiError when the file holds nothing that is known or a part that does not parse.
    """
    blocks = [(match.group(1), match.group(0)) for match in _BLOCK.finditer(data)]
    if len(blocks) > _MAX_BLOCKS:
        raise PkiError(f"{what}: {len(blocks)} parts, at most {_MAX_BLOCKS} are shown")
    try:
        if blocks:
            return [_describe_block(label, block) for label, block in blocks]
        for parse in _WHOLE_FILES:
            found = parse(data)
            if found is not None:
                return found
    except PARSE_ERRORS as error:
        raise PkiError(f"{what}: a part of it can't be read: {one_line(error)}") from error
    hint = "a certificate or CRL (PEM or DER), a chain, or a signed statement such as log-key.jws"
    raise PkiError(f"{what}: nothing in it is known here", hint=hint)


def _describe_block(label: bytes, block: bytes) -> Description:
    if label == b"CERTIFICATE":
        return _describe_certificate(x509.load_pem_x509_certificate(block))
    if label == b"X509 CRL":
        return _describe_crl(x509.load_pem_x509_crl(block))
    if label == b"ENCRYPTED PRIVATE KEY":
        return {"kind": "private-key", "key": None, "locked": True}
    if label.endswith(b"PRIVATE KEY"):
        key = serialization.load_pem_private_key(block, password=None)
        return {"kind": "private-key", "key": _key_words(key.public_key()), "locked": False}
    return {"kind": "unknown", "label": label.decode("ascii")}


def _der_certificate(data: bytes) -> list[Description] | None:
    try:
        return [_describe_certificate(x509.load_der_x509_certificate(data))]
    except PARSE_ERRORS:
        return None


def _der_crl(data: bytes) -> list[Description] | None:
    try:
        return [_describe_crl(x509.load_der_x509_crl(data))]
    except PARSE_ERRORS:
        return None


def _statement(data: bytes) -> list[Description] | None:
    """Return a JWS and the certificates of its signer; the signature is checked, the signer is not."""
    try:
        token = jws.parse(data.strip(), limits.MAX_MANIFEST_BYTES)
    except BrokenError:
        return None
    try:
        jws.verify(data.strip(), token.typ, limits.MAX_MANIFEST_BYTES)
        matches = True
    except BrokenError:
        matches = False
    try:
        payload = json.loads(token.payload)
    except (ValueError, RecursionError):
        payload = None
    certificates = [_describe_certificate(x509.load_der_x509_certificate(der)) for der in token.chain_der]
    first: Description = {"kind": "signed-statement", "type": token.typ, "signature_matches": matches, "payload": payload}
    return [first, *certificates]


_WHOLE_FILES: Final[tuple[Callable[[bytes], list[Description] | None], ...]] = (_der_certificate, _der_crl, _statement)


def _describe_certificate(certificate: x509.Certificate) -> Description:
    basic = find_extension(certificate, x509.BasicConstraints)
    usage = find_extension(certificate, x509.KeyUsage)
    extended = find_extension(certificate, x509.ExtendedKeyUsage)
    names = find_extension(certificate, x509.SubjectAlternativeName)
    constraints = find_extension(certificate, x509.NameConstraints)
    permitted = [] if constraints is None else constraints.permitted_subtrees or []
    return {
        "kind": "certificate",
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": format_time(certificate.not_valid_before_utc),
        "not_after": format_time(certificate.not_valid_after_utc),
        "key": _key_words(certificate.public_key()),
        "ca": basic is not None and basic.ca,
        "key_usage": None if usage is None else key_uses(usage),
        "extended_key_usage": None if extended is None else [_use(oid) for oid in extended],
        "alternative_names": None if names is None else [_general_name(name) for name in names],
        "permitted_names": [_general_name(name) for name in permitted],
        "fingerprint": fingerprint(certificate),
    }


def _describe_crl(crl: x509.CertificateRevocationList) -> Description:
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = None
    return {
        "kind": "crl",
        "issuer": crl.issuer.rfc4514_string(),
        "number": number,
        "this_update": format_time(crl.last_update_utc),
        "next_update": None if crl.next_update_utc is None else format_time(crl.next_update_utc),
        "count": len(crl),
        "revoked": [_describe_entry(crl[index]) for index in range(min(len(crl), _MAX_ENTRIES))],
    }


def _describe_entry(entry: x509.RevokedCertificate) -> Description:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        reason = "unspecified"
    moment: datetime = entry.revocation_date_utc
    return {"serial": f"{entry.serial_number:x}", "revoked_at": format_time(moment), "reason": reason}


def _key_words(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ECDSA P-256" if isinstance(key.curve, ec.SECP256R1) else f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "Ed448" if isinstance(key, ed448.Ed448PublicKey) else type(key).__name__


def _use(oid: x509.ObjectIdentifier) -> str:
    names = {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}
    return names.get(oid, oid.dotted_string)


def _general_name(name: x509.GeneralName) -> str:
    kinds = {x509.DNSName: "dns", x509.IPAddress: "ip", x509.UniformResourceIdentifier: "uri", x509.RFC822Name: "email"}
    value = name.value
    text = value if isinstance(value, str) else value.rfc4514_string() if isinstance(value, x509.Name) else str(value)
    return f"{kinds.get(type(name), type(name).__name__)}:{text}"

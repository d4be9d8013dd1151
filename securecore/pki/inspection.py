"""What a file of certificates, CRLs, signed statements or keys holds, as data for people and programs.

Nothing here is believed: a file is described as it stands, hostile ones included, so every text from a file is escaped. Of a
certificate it is said how it departs from the profiles that it might be meant for: for those who bring their own CA.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from securecore import limits
from securecore.certs import jws
from securecore.certs.chain import PARSE_ERRORS, fingerprint, is_signed_by, one_line
from securecore.certs.conformance import departures, find_extension, key_uses
from securecore.certs.judge import Purpose, Refusal, alternative_names, check_name_constraints
from securecore.certs.profiles import ENROLLER, EXTENDED_USES, HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA, ROOT_CA, Profile
from securecore.errors import BrokenError, PkiError
from securecore.pki.ledger import format_time

MAX_FILE_BYTES: Final = limits.MAX_CRL_BYTES
"""The largest file that there is to inspect is a CRL."""

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_BEGIN: Final = b"-----BEGIN "
_MAX_BLOCKS: Final = 64
_MAX_ENTRIES: Final = 1000

Description = dict[str, object]


def describe(data: bytes, what: str) -> list[Description]:
    """Return a description of each thing in a PEM, DER or JWS file, in order, at least one, each with its ``kind``.

    Raises PkiError when the file holds nothing that is known or a part that does not parse.
    """
    # Before they are looked for: each beginning without an end has the rest of the file searched for it.
    if (begun := data.count(_BEGIN)) > _MAX_BLOCKS:
        raise PkiError(f"{what}: {begun} parts, at most {_MAX_BLOCKS} are shown")
    blocks = [(match.group(1), match.group(0)) for match in _BLOCK.finditer(data)]
    try:
        if blocks:
            together = [x509.load_pem_x509_certificate(block) for label, block in blocks if label == b"CERTIFICATE"]
            return [_describe_block(label, block, together) for label, block in blocks]
        for parse in _WHOLE_FILES:
            found = parse(data)
            if found is not None:
                return found
    except PARSE_ERRORS as error:
        raise PkiError(f"{what}: a part of it can't be read: {one_line(error)}") from error
    hint = "a certificate or CRL (PEM or DER), a chain, or a signed statement such as log-key.jws"
    raise PkiError(f"{what}: nothing in it is known here", hint=hint)


def _describe_block(label: bytes, block: bytes, together: Sequence[x509.Certificate]) -> Description:
    if label == b"CERTIFICATE":
        return _describe_certificate(x509.load_pem_x509_certificate(block), together)
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
        certificate = x509.load_der_x509_certificate(data)
        return [_describe_certificate(certificate, [certificate])]
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
    chain = [x509.load_der_x509_certificate(der) for der in token.chain_der]
    certificates = [_describe_certificate(certificate, chain) for certificate in chain]
    first: Description = {"kind": "signed-statement", "type": token.typ, "signature_matches": matches, "payload": payload}
    return [first, *certificates]


_WHOLE_FILES: Final[tuple[Callable[[bytes], list[Description] | None], ...]] = (_der_certificate, _der_crl, _statement)


def _describe_certificate(certificate: x509.Certificate, together: Sequence[x509.Certificate]) -> Description:
    """Describe one; its issuer, if it is in the file, is among *together*."""
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
        "profiles": _fitness(certificate, together),
    }


def _fitness(certificate: x509.Certificate, together: Sequence[x509.Certificate]) -> dict[str, list[str]]:
    """Return how a certificate departs from each profile that it might be meant for; an empty list is a profile that it meets.

    What concerns its issuer (key identifier, name constraint) is held against that one, where it is at hand. Not checked: dates,
    and who believes it.
    """
    issuer = next((one for one in together if is_signed_by(certificate, one)), None)
    basic = find_extension(certificate, x509.BasicConstraints)
    if basic is not None and basic.ca:
        meant = [ROOT_CA] if certificate.subject == certificate.issuer else [HOSTS_CA, RECEIVERS_CA]
        return {profile.name: _departures(certificate, profile, issuer) for profile in meant}
    usage = find_extension(certificate, x509.ExtendedKeyUsage)
    meant = [HOST, RECEIVER]
    if usage is not None and not set(ENROLLER.extended_oids).isdisjoint(set(usage) - set(RECEIVER.extended_oids)):
        meant = [ENROLLER]
    found = {}
    for profile in meant:
        purpose = Purpose(profile.name)
        found[profile.name] = _departures(certificate, profile, issuer)
        try:
            hosts, _ = alternative_names(certificate, purpose)
            if issuer is not None:
                check_name_constraints(issuer, hosts)
        except Refusal as error:
            found[profile.name].append(error.message)
    return found


def _departures(certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate | None) -> list[str]:
    found: list[str] = []
    try:
        found.extend(departures(certificate, profile, issuer))
    except PARSE_ERRORS as error:
        found.append(f"a part of it can't be read: {one_line(error)}")
    return found


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
    names = {known: name for name, known in EXTENDED_USES.items()}
    return names.get(oid, oid.dotted_string)


def _general_name(name: x509.GeneralName) -> str:
    kinds = {x509.DNSName: "dns", x509.IPAddress: "ip", x509.UniformResourceIdentifier: "uri", x509.RFC822Name: "email"}
    value = name.value
    text = value if isinstance(value, str) else value.rfc4514_string() if isinstance(value, x509.Name) else str(value)
    return f"{kinds.get(type(name), type(name).__name__)}:{text}"

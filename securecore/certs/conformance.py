"""Does a certificate hold exactly what its profile says?

The issuer asks before it hands one out, the judge before it believes one.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from securecore.certs.profiles import BACKDATED_S, EXTENSION_OIDS, MAX_SERIAL, Profile

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_KEY_USES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
}
_SHORT_NAMES = {
    "basic_constraints": "basicConstraints",
    "key_usage": "keyUsage",
    "extended_key_usage": "extendedKeyUsage",
    "name_constraints": "nameConstraints",
    "subject_alternative_name": "subjectAltName",
    "subject_key_identifier": "subjectKeyIdentifier",
    "authority_key_identifier": "authorityKeyIdentifier",
}


def find_extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Return the extension of one kind, or None; raises chain.PARSE_ERRORS when the extensions don't parse."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def key_uses(usage: x509.KeyUsage) -> list[str]:
    """Return the names of the bits that are set, in bit order (RFC 5280 section 4.2.1.3)."""
    uses = [name for name, attribute in _KEY_USES.items() if getattr(usage, attribute)]
    if usage.key_agreement:
        uses += [name for name, is_set in (("encipherOnly", usage.encipher_only), ("decipherOnly", usage.decipher_only)) if is_set]
    return uses


def find_departure(certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate) -> str | None:
    """Return the first way in which *certificate* departs from *profile*, in words, or None; raises as departures() does."""
    return next(departures(certificate, profile, issuer), None)


def departures(certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate | None) -> Iterator[str]:
    """Yield each way in which *certificate* departs from *profile*, in words.

    *issuer* is the certificate whose key signed it (itself for a root); without it the two's key identifiers are not compared.
    Raises chain.PARSE_ERRORS when a field can't be read. Not checked: signatures, the present time, the names in subjectAltName
    (only that the extension is there), and the common name, which nobody reads. Source: RFC 5280 sections 4.1 and 4.2, and the
    profile.
    """
    yield from _in_body(certificate, profile)
    yield from _in_extension_list(certificate, profile)
    yield from _in_constraints(certificate, profile)
    yield from _in_key_identifier(certificate, issuer)


def _in_body(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    """Version, serial, key, signature algorithm and lifetime."""
    if certificate.version is not x509.Version.v3:
        yield "it is not an X.509 version 3 certificate"
    if not 0 < certificate.serial_number <= MAX_SERIAL:
        yield "its serial number is not a positive number of at most 20 octets"
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        yield "its key is not an ECDSA key on P-256"
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        yield "it is not signed with ECDSA and SHA-256"
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if not timedelta(0) < lifetime <= timedelta(days=profile.max_days, seconds=BACKDATED_S):
        yield f"it is made to live {lifetime.days} days, at most {profile.max_days} are allowed"


def _in_extension_list(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    """Exactly the profile's extensions, each as critical as the profile says."""
    words = {oid: _SHORT_NAMES[name] for name, oid in EXTENSION_OIDS.items()}
    found = {extension.oid: extension.critical for extension in certificate.extensions}
    for oid, critical in profile.criticality.items():
        if oid not in found:
            yield f"it has no {words[oid]} extension"
        elif found[oid] is not critical:
            yield f"its {words[oid]} extension is {'not ' if critical else ''}critical"
    for oid in found:
        if oid not in profile.criticality:
            yield f"it has an extension that a {profile.name} certificate does not have: {words.get(oid, oid.dotted_string)}"


def _in_constraints(certificate: x509.Certificate, profile: Profile) -> Iterator[str]:
    """basicConstraints, keyUsage, extendedKeyUsage and nameConstraints by value; one that is absent was told of already."""
    basic = find_extension(certificate, x509.BasicConstraints)
    if basic is not None and (basic.ca is not profile.is_ca or basic.path_length != profile.path_length):
        yield f"its basicConstraints are CA:{str(basic.ca).upper()}, path length {basic.path_length}"
    usage = find_extension(certificate, x509.KeyUsage)
    uses = None if usage is None else key_uses(usage)
    if uses is not None and uses != list(profile.key_usage):
        yield f"its key usage is {' '.join(uses) or 'empty'} and not {' '.join(profile.key_usage)}"
    extended = find_extension(certificate, x509.ExtendedKeyUsage)
    if extended is not None and profile.extended_key_usage and list(extended) != profile.extended_oids:
        yield f"its extended key usage is not exactly {' '.join(profile.extended_key_usage)}"
    names = find_extension(certificate, x509.NameConstraints)
    if names is not None:
        permitted = names.permitted_subtrees or []
        if names.excluded_subtrees or len(permitted) != 1 or not isinstance(permitted[0], x509.DNSName) or not permitted[0].value:
            yield "its name constraints are not exactly one permitted DNS domain"


def _in_key_identifier(certificate: x509.Certificate, issuer: x509.Certificate | None) -> Iterator[str]:
    """The authority key identifier is the issuer's subject key identifier (RFC 5280 section 4.2.1.1), and nothing beside it."""
    authority = find_extension(certificate, x509.AuthorityKeyIdentifier)
    if authority is None:
        return
    if authority.authority_cert_issuer is not None or authority.authority_cert_serial_number is not None:
        yield "its authorityKeyIdentifier holds more than a key identifier"
    if issuer is None:
        return
    subject = find_extension(issuer, x509.SubjectKeyIdentifier)
    if subject is None or authority.key_identifier != subject.digest:
        yield "its authorityKeyIdentifier is not its issuer's subjectKeyIdentifier"

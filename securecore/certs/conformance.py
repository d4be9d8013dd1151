"""Does a certificate hold exactly what its profile says?

The issuer asks before it hands one out, the judge before it believes one.
"""

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
    """Return the first way in which *certificate* departs from *profile*, in words, or None.

    *issuer* is the certificate whose key signed it (itself for a root). Raises chain.PARSE_ERRORS when a field can't be read. Not
    checked: signatures, the present time, the names in subjectAltName (only that the extension is there), and the common name,
    which nobody reads. Source: RFC 5280 sections 4.1 and 4.2, and the profile.
    """
    return (
        _find_bad_body(certificate, profile)
        or _find_bad_extension_list(certificate, profile)
        or _find_bad_constraints(certificate, profile)
        or _find_bad_key_identifier(certificate, issuer)
    )


def _find_bad_body(certificate: x509.Certificate, profile: Profile) -> str | None:
    """Version, serial, key, signature algorithm and lifetime."""
    if certificate.version is not x509.Version.v3:
        return "it is not an X.509 version 3 certificate"
    if not 0 < certificate.serial_number <= MAX_SERIAL:
        return "its serial number is not a positive number of at most 20 octets"
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return "its key is not an ECDSA key on P-256"
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return "it is not signed with ECDSA and SHA-256"
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if not timedelta(0) < lifetime <= timedelta(days=profile.max_days, seconds=BACKDATED_S):
        return f"it is made to live {lifetime.days} days, at most {profile.max_days} are allowed"
    return None


def _find_bad_extension_list(certificate: x509.Certificate, profile: Profile) -> str | None:
    """Exactly the profile's extensions, each as critical as the profile says."""
    words = {oid: _SHORT_NAMES[name] for name, oid in EXTENSION_OIDS.items()}
    found = {extension.oid: extension.critical for extension in certificate.extensions}
    for oid, critical in profile.criticality.items():
        if oid not in found:
            return f"it has no {words[oid]} extension"
        if found[oid] is not critical:
            return f"its {words[oid]} extension is {'not ' if critical else ''}critical"
    for oid in found:
        if oid not in profile.criticality:
            return f"it has an extension that a {profile.name} certificate does not have: {words.get(oid, oid.dotted_string)}"
    return None


def _find_bad_constraints(certificate: x509.Certificate, profile: Profile) -> str | None:
    """basicConstraints, keyUsage, extendedKeyUsage and nameConstraints by value; all are present as the profile wants them."""
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if basic.ca is not profile.is_ca or basic.path_length != profile.path_length:
        return f"its basicConstraints are CA:{str(basic.ca).upper()}, path length {basic.path_length}"
    uses = key_uses(certificate.extensions.get_extension_for_class(x509.KeyUsage).value)
    if uses != list(profile.key_usage):
        return f"its key usage is {' '.join(uses) or 'empty'} and not {' '.join(profile.key_usage)}"
    extended = find_extension(certificate, x509.ExtendedKeyUsage)
    if (extended is None and profile.extended_key_usage) or (extended is not None and list(extended) != profile.extended_oids):
        return f"its extended key usage is not exactly {' '.join(profile.extended_key_usage)}"
    names = find_extension(certificate, x509.NameConstraints)
    if names is not None:
        permitted = names.permitted_subtrees or []
        if names.excluded_subtrees or len(permitted) != 1 or not isinstance(permitted[0], x509.DNSName) or not permitted[0].value:
            return "its name constraints are not exactly one permitted DNS domain"
    return None


def _find_bad_key_identifier(certificate: x509.Certificate, issuer: x509.Certificate) -> str | None:
    """The authority key identifier is the issuer's subject key identifier (RFC 5280 section 4.2.1.1), and nothing beside it."""
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = find_extension(issuer, x509.SubjectKeyIdentifier)
    if authority.authority_cert_issuer is not None or authority.authority_cert_serial_number is not None:
        return "its authorityKeyIdentifier holds more than a key identifier"
    if subject is None or authority.key_identifier != subject.digest:
        return "its authorityKeyIdentifier is not its issuer's subjectKeyIdentifier"
    return None

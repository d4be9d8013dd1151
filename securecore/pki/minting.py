"""From a profile to a signed certificate or CRL: values in, values out, no disk.

Everything minted is compared with its profile once more before it is returned, so that a mistake here stays here.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from securecore.certs.conformance import find_departure, find_extension, key_uses
from securecore.certs.profiles import BACKDATED_S, MAX_ALTERNATIVE_NAMES, MAX_COMMON_NAME, RECEIVER, RECEIVERS_CA, ROOT_CA, Profile
from securecore.errors import Bug, PkiError
from securecore.names import HostName

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CRL_DAYS: Final = 30
"""Life of the hosts CA's CRL: re-signed by a timer each day or week, a month of it forgives a broken timer."""

RECEIVERS_CRL_DAYS: Final = RECEIVER.default_days
"""Life of the receivers CA's CRL: its key may be off-line too, and comes back to renew receivers. That is due when a third of their
certificates' life is left, and so is a list that lives as long; no sender looks at it, so a shorter life would keep nobody out."""

ROOT_CRL_DAYS: Final = 365
"""Life of the root's CRL: the root's key is kept off-line, and bringing it out each month would make it less so."""

MIN_LEAF_LIFE: Final = timedelta(hours=1)
"""A certificate that would end sooner, because its issuer does, is not worth installing."""


@dataclass(frozen=True)
class Authority:
    """A CA that can sign: its certificate and the key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Revoked:
    """A revoked certificate as a CRL lists it."""

    serial: int
    time: datetime
    reason: str


def crl_days(authority: str) -> int:
    """Return how long a CRL of a CA lives, by the CA's name."""
    # A name may say which CA of a rotation is meant (NEXT, PREVIOUS): the profile stands before that.
    lives = {ROOT_CA.name: ROOT_CRL_DAYS, RECEIVERS_CA.name: RECEIVERS_CRL_DAYS}
    return lives.get(authority.partition(" ")[0], CRL_DAYS)


def mint_root(profile: Profile, organisation: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return a self-signed root for *key*."""
    subject = _ca_subject(profile, organisation, key)
    begin, end = _validity(profile, None, now, profile.default_days)
    builder = _builder(profile, subject, subject, key.public_key(), begin, end)
    builder = _add(builder, profile, x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()))
    certificate = builder.sign(key, hashes.SHA256())
    return _checked(certificate, profile, certificate)


def mint_ca(
    profile: Profile, organisation: str, domain: str, key: ec.EllipticCurvePrivateKey, issuer: Authority, now: datetime
) -> x509.Certificate:
    """Return an issuing CA's certificate for *key*; constrained to *domain* if the profile constrains names."""
    subject = _ca_subject(profile, organisation, key)
    begin, end = _validity(profile, issuer.certificate, now, profile.default_days)
    builder = _builder(profile, subject, issuer.certificate.subject, key.public_key(), begin, end)
    builder = _add(builder, profile, x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()))
    if "name_constraints" in profile.extensions:
        builder = _add(builder, profile, x509.NameConstraints([x509.DNSName(domain)], None))
    return _checked(builder.sign(issuer.key, hashes.SHA256()), profile, issuer.certificate)


def mint_leaf(
    profile: Profile,
    organisation: str,
    names: Sequence[HostName],
    addresses: Sequence[Address],
    public_key: ec.EllipticCurvePublicKey,
    issuer: Authority,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """Return a host's or receiver's certificate for *public_key*, alive for *days* or as long as its issuer, whichever is less.

    Raises PkiError when *days* is outside the profile's bounds, when the issuer is about to end, when a name lies outside the
    issuer's name constraint, and when there are more names than the profile allows.
    """
    if len(names) + len(addresses) > MAX_ALTERNATIVE_NAMES:
        raise PkiError(f"{len(names) + len(addresses)} names and addresses, at most {MAX_ALTERNATIVE_NAMES} fit into a certificate")
    check_permitted(names, issuer.certificate)
    begin, end = _validity(profile, issuer.certificate, now, days)
    subject = _leaf_subject(organisation, names[0])
    builder = _builder(profile, subject, issuer.certificate.subject, public_key, begin, end)
    builder = _add(builder, profile, x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()))
    general = [*(x509.DNSName(str(name)) for name in names), *(x509.IPAddress(address) for address in addresses)]
    builder = _add(builder, profile, x509.SubjectAlternativeName(general))
    return _checked(builder.sign(issuer.key, hashes.SHA256()), profile, issuer.certificate)


def mint_crl(
    issuer: Authority, number: int, this_update: datetime, days: int, revoked: Iterable[Revoked]
) -> x509.CertificateRevocationList:
    """Return a full CRL; the caller sees to it that *number* and *this_update* are greater than those of the last one."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(this_update + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(one.time)
        if one.reason != "unspecified":  # RFC 5280 section 5.3.1: the reason is left out rather than given as unspecified.
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(one.reason)), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256())


def _builder(
    profile: Profile,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    """Return a builder with everything that comes from the profile alone; the serial number has 159 random bits."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    builder = _add(builder, profile, x509.BasicConstraints(profile.is_ca, profile.path_length))
    builder = _add(builder, profile, _key_usage(profile))
    if profile.extended_key_usage:
        builder = _add(builder, profile, x509.ExtendedKeyUsage(profile.extended_oids))
    return _add(builder, profile, x509.SubjectKeyIdentifier.from_public_key(public_key))


def _add(builder: x509.CertificateBuilder, profile: Profile, extension: x509.ExtensionType) -> x509.CertificateBuilder:
    return builder.add_extension(extension, critical=profile.criticality[extension.oid])


def _key_usage(profile: Profile) -> x509.KeyUsage:
    uses = set(profile.key_usage)
    usage = x509.KeyUsage(
        digital_signature="digitalSignature" in uses,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign="keyCertSign" in uses,
        crl_sign="cRLSign" in uses,
        encipher_only=False,
        decipher_only=False,
    )
    if key_uses(usage) != list(profile.key_usage):
        raise Bug(f"the {profile.name} profile wants a key usage that is not written yet: {profile.key_usage}")
    return usage


def _ca_subject(profile: Profile, organisation: str, key: ec.EllipticCurvePrivateKey) -> x509.Name:
    """Return a CA's name, unique by its key: two CAs of one name, as during a rotation, would confuse every chain builder."""
    mark = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
    label = f"securecore {profile.name.removesuffix('-ca')} CA {mark}"
    return _name(organisation, label)


def _leaf_subject(organisation: str, name: HostName) -> x509.Name:
    """Return a leaf's subject: the common name is for people and never read; a name too long for it is left out."""
    return _name(organisation, str(name) if len(str(name)) <= MAX_COMMON_NAME else None)


def _name(organisation: str, label: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)]
    if label is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, label))
    return x509.Name(attributes)


def _validity(profile: Profile, issuer: x509.Certificate | None, now: datetime, days: int) -> tuple[datetime, datetime]:
    """Return notBefore and notAfter in whole seconds: backdated for slow clocks, and inside the issuer's own validity."""
    if not 1 <= days <= profile.max_days:
        raise PkiError(f"a {profile.name} certificate lives 1 to {profile.max_days} days, not {days}")
    second = now.replace(microsecond=0)
    begin, end = second - timedelta(seconds=BACKDATED_S), second + timedelta(days=days)
    if issuer is None:
        return begin, end
    if second < issuer.not_valid_before_utc:
        raise PkiError(
            f"the CA is not valid before {issuer.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC", hint="this machine's clock is behind"
        )
    begin, end = max(begin, issuer.not_valid_before_utc), min(end, issuer.not_valid_after_utc)
    if end - second < MIN_LEAF_LIFE:
        hint = "a CA that has ended can't be prolonged; make a new one: pki/runbooks/create-root.md"
        raise PkiError(f"the CA itself ends on {issuer.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC", hint=hint)
    return begin, end


def check_permitted(names: Sequence[HostName], issuer: x509.Certificate) -> None:
    """Raise PkiError for what every verifier would refuse: a name outside the issuer's name constraint."""
    constraints = find_extension(issuer, x509.NameConstraints)
    subtrees = [] if constraints is None else constraints.permitted_subtrees or []
    domains = [subtree.value for subtree in subtrees if isinstance(subtree, x509.DNSName)]
    for name in names:
        if domains and not any(str(name) == domain or str(name).endswith(f".{domain}") for domain in domains):
            raise PkiError(f"{str(name)!r} lies outside {', '.join(domains)!r}, the only domain that this CA may sign hosts for")


def _checked(certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate) -> x509.Certificate:
    departure = find_departure(certificate, profile, issuer)
    if departure is not None:
        raise Bug(f"the {profile.name} certificate that was just made is refused: {departure}")
    return certificate

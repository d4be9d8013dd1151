"""Certificates for tests, good and hostile, and a whole fleet made by the real code.

A hostile certificate is a good one with one thing wrong: ``mint(HOST, issuer=..., eku=[...])`` follows the profile in everything
that is not overridden. ``make_fleet`` runs the real code of ``pki init`` and ``pki issue``, without a passphrase; it takes a few
milliseconds.
"""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from securecore.certs.chain import Anchors
from securecore.certs.profiles import ENROLLER, HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA, ROOT_CA, Profile
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory
from securecore.pki.issue import issue_host, issue_receiver, parse_address

NOW: Final = datetime.now(UTC).replace(microsecond=0)
"""When tests make their PKIs, unless they say otherwise: as the run began, in whole seconds, as certificates have it."""

DOMAIN: Final = "hosts.test.example"
ORGANISATION: Final = "Test"
HOST_NAME: Final = f"web-1.{DOMAIN}"
RECEIVER_NAME: Final = f"collector.{DOMAIN}"
ENROLLER_NAME: Final = f"enrol.{DOMAIN}"

STARTED: Final = datetime.now(UTC)
"""The moment of every certificate and list that is minted without another one: the tests that judge them hold on to it too, so
that a long run does not judge by an earlier clock than it mints by."""

Key = Any
"""A private key of any type; the hostile ones are of types that the product does not know."""


@dataclass(frozen=True)
class Made:
    """A certificate with its private key and the chain above it, nearest first."""

    certificate: x509.Certificate
    key: Key
    above: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate's PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key's unencrypted PKCS#8 PEM."""
        pem: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem


@dataclass(frozen=True)
class Hierarchy:
    """A root and its two issuing CAs, with their keys."""

    root: Made
    hosts: Made
    receivers: Made

    @property
    def anchors(self) -> Anchors:
        """What a receiver's ca.pem holds."""
        return Anchors((self.root.certificate,), (self.hosts.certificate, self.receivers.certificate))


@dataclass(frozen=True)
class Fleet:
    """A PKI directory with the identity directories of one receiver and of hosts, by short name."""

    pki: PkiDirectory
    receiver: Path
    hosts: Mapping[str, Path]

    @property
    def host(self) -> Path:
        """The first host's identity directory."""
        return next(iter(self.hosts.values()))


def make_fleet(
    directory: Path,
    *,
    hosts: Sequence[str] = ("web-1", "db-2"),
    receiver: str = "collector",
    addresses: Sequence[str] = ("127.0.0.1", "::1"),
    domain: str = DOMAIN,
    now: datetime | None = None,
) -> Fleet:
    """Make a PKI, a receiver's identity and hosts' identities under *directory* with the real code."""
    moment = now or datetime.now(UTC)
    pki = create_pki(directory / "pki", ORGANISATION, domain, None, moment)
    receiver_directory = directory / receiver
    issue_receiver(
        pki, HostName(f"{receiver}.{domain}"), [parse_address(one) for one in addresses], receiver_directory, no_passphrase, moment
    )
    made = {}
    for host in hosts:
        made[host] = directory / host
        issue_host(pki, HostName(f"{host}.{domain}"), made[host], no_passphrase, moment)
    return Fleet(pki, receiver_directory, made)


def no_passphrase() -> bytes:
    """Stand in for the question that is never asked."""
    raise AssertionError("no key of this PKI is locked")


def make_hierarchy(*, now: datetime | None = None, domain: str = DOMAIN, suffix: str = "") -> Hierarchy:
    """Make a root and its issuing CAs in memory; the same *suffix* gives the same names with other keys."""
    root = mint(ROOT_CA, subject=f"root{suffix}", now=now)
    hosts = mint(HOSTS_CA, issuer=root, subject=f"hosts CA{suffix}", permitted=[domain], now=now)
    return Hierarchy(root, hosts, mint(RECEIVERS_CA, issuer=root, subject=f"receivers CA{suffix}", now=now))


def make_key(key_type: str = "p256") -> Key:
    """Return a new private key: p256, p384, rsa2048 or ed25519."""
    if key_type == "rsa2048":
        return rsa.generate_private_key(65537, 2048)
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}[key_type])


def mint(
    profile: Profile,
    *,
    issuer: Made | None = None,
    now: datetime | None = None,
    key: Key | None = None,
    key_type: str = "p256",
    subject: str | None = None,
    issuer_name: str | None = None,
    dns: Sequence[str | bytes] | None = None,
    ips: Sequence[str] = (),
    san_der: bytes | None = None,
    eku: Sequence[x509.ObjectIdentifier] | None = None,
    ku: Collection[str] | None = None,
    ca: bool | None = None,
    path_length: int | None = None,
    permitted: Sequence[str] = (DOMAIN,),
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    serial: int | None = None,
    serial_der: bytes | None = None,
    hash_algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = None,
    critical: Mapping[str, bool] | None = None,
    omit: Collection[str] = (),
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    authority_key_id: bytes | None = None,
) -> Made:
    """Return a certificate of a profile, self-signed without an issuer, with each given thing instead of the profile's.

    *dns* are the dNSNames, any bytes; *san_der* is the whole extension value instead. *critical* and *omit* name extensions as the
    profile does. *serial_der* are the content octets of the serial number, two at most, for those that no builder takes.
    """
    moment = (now or STARTED).replace(microsecond=0)
    own_key = key or make_key(key_type)
    signer = own_key if issuer is None else issuer.key
    default = {HOST.name: HOST_NAME, RECEIVER.name: RECEIVER_NAME, ENROLLER.name: ENROLLER_NAME}.get(profile.name, profile.name)
    subject_name = _name(default if subject is None else subject)
    above = subject_name if issuer is None else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(above if issuer_name is None else _name(issuer_name))
        .public_key(own_key.public_key())
        .serial_number(_SMALL_SERIAL[len(serial_der)] if serial_der else serial or x509.random_serial_number())
        .not_valid_before(not_before or moment - timedelta(minutes=5))
        .not_valid_after(not_after or moment + timedelta(days=profile.default_days))
    )
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    if authority_key_id is not None:
        authority_id = x509.AuthorityKeyIdentifier(authority_key_id, None, None)
    values: dict[str, x509.ExtensionType] = {
        "basic_constraints": x509.BasicConstraints(
            ca=profile.is_ca if ca is None else ca, path_length=profile.path_length if path_length is None else path_length
        ),
        "key_usage": _key_usage(profile.key_usage if ku is None else ku),
        "extended_key_usage": x509.ExtendedKeyUsage(profile.extended_oids if eku is None else eku or [_UNUSED]),
        "name_constraints": x509.NameConstraints([x509.DNSName(domain) for domain in permitted], None),
        "subject_alternative_name": x509.UnrecognizedExtension(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME, san_der or general_names([default] if dns is None else dns, ips)
        ),
        "subject_key_identifier": x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()),
        "authority_key_identifier": authority_id,
    }
    for name, is_critical in profile.extensions.items():
        if name not in omit:
            builder = builder.add_extension(values[name], critical=(critical or {}).get(name, is_critical))
    for extension, is_critical in extra:
        builder = builder.add_extension(extension, critical=is_critical)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hash_algorithm or hashes.SHA256()
    certificate = builder.sign(signer, algorithm)
    if serial_der is not None:
        certificate = x509.load_der_x509_certificate(_with_serial(certificate, serial_der, signer))
    return Made(certificate, own_key, () if issuer is None else (issuer.certificate, *issuer.above))


def mint_der_with_serial(profile: Profile, issuer: Made, serial_der: bytes) -> bytes:
    """Return the DER of a leaf with these serial content octets (one or two), unparsed: some of them no library loads."""
    made = mint(profile, issuer=issuer, serial=_SMALL_SERIAL[len(serial_der)])
    return _with_serial(made.certificate, serial_der, issuer.key)


def mint_der_of_version_1(issuer: Made) -> bytes:
    """Return the DER of a host's certificate in version 1, which has no extensions at all."""
    certificate = mint(HOST, issuer=issuer).certificate
    parts = [part for part in _elements(_content(certificate.tbs_certificate_bytes)) if part[0] not in (0xA0, 0xA3)]
    return _signed(tlv(0x30, b"".join(parts)), issuer.key)


def general_names(dns: Sequence[str | bytes], ips: Sequence[str] = ()) -> bytes:
    """Return GeneralNames with these dNSNames, any bytes, and iPAddresses."""
    names = [tlv(0x82, name if isinstance(name, bytes) else name.encode("ascii")) for name in dns]
    names += [tlv(0x87, ipaddress.ip_address(address).packed) for address in ips]
    return tlv(0x30, b"".join(names))


def tlv(tag: int, content: bytes) -> bytes:
    """Return one DER element."""
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def make_crl(
    issuer: Made,
    *,
    number: int | None = 1,
    now: datetime | None = None,
    days: float = 30,
    revoked: Mapping[int, tuple[datetime, str]] | None = None,
    key: Key | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """Return a CRL as PEM: *revoked* maps serial numbers to date and RFC 5280 reason; *key* signs instead of the issuer's."""
    moment = (now or STARTED).replace(microsecond=0)
    signer = key or issuer.key
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(moment)
        .next_update(moment + timedelta(days=days))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, is_critical in extra:
        builder = builder.add_extension(extension, critical=is_critical)
    for serial, (date, reason) in (revoked or {}).items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
        if reason != "unspecified":
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


_UNUSED: Final = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
_SMALL_SERIAL: Final = {1: 0x11, 2: 0x1122}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _key_usage(uses: Collection[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digitalSignature" in uses,
        content_commitment="nonRepudiation" in uses,
        key_encipherment="keyEncipherment" in uses,
        data_encipherment="dataEncipherment" in uses,
        key_agreement="keyAgreement" in uses,
        key_cert_sign="keyCertSign" in uses,
        crl_sign="cRLSign" in uses,
        encipher_only=False,
        decipher_only=False,
    )


def _with_serial(certificate: x509.Certificate, content: bytes, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the DER with another serial number of the same length, signed again."""
    old = tlv(0x02, _SMALL_SERIAL[len(content)].to_bytes(len(content), "big"))
    return _signed(certificate.tbs_certificate_bytes.replace(old, tlv(0x02, content), 1), signer)


def _signed(body: bytes, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate over a TBSCertificate."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256, RFC 5758 section 3.2
    return tlv(0x30, body + algorithm + tlv(0x03, b"\x00" + signer.sign(body, ec.ECDSA(hashes.SHA256()))))


def _content(element: bytes) -> bytes:
    """Return the content octets of a DER element."""
    octets = element[1] & 0x7F if element[1] & 0x80 else 0
    return element[2 + octets :]


def _elements(content: bytes) -> list[bytes]:
    """Return the DER elements that follow one another in some content."""
    found = []
    while content:
        octets = content[1] & 0x7F if content[1] & 0x80 else 0
        length = int.from_bytes(content[2 : 2 + octets], "big") if octets else content[1]
        found.append(content[: 2 + octets + length])
        content = content[2 + octets + length :]
    return found

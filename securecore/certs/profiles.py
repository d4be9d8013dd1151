"""The six certificate profiles: what each certificate of the hierarchy holds, and nothing else.

The issuer mints by them and the judge judges by them, so there is one statement of each fact in the code. The same facts stand in
``pki/profiles/*.toml`` for people and auditors, with their sources; a test compares the two field by field, both ways. Profiles are
few and fixed on purpose: an option here would be a way to mint a certificate that the judge must then refuse.
"""

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

KEY_TYPE: Final = "ecdsa-p256"
"""The only key that OpenSSL, GnuTLS, Go and the cryptography library all verify with a DNS name constraint (measured)."""

SIGNATURE: Final = "ecdsa-sha256"

BACKDATED_S: Final = 300
"""notBefore lies this far in the past, because clocks differ: five minutes is what Istio, Vault and Kerberos settle on."""

MAX_SERIAL: Final = (1 << 159) - 1
"""A positive INTEGER of at most 20 octets: RFC 5280 section 4.1.2.2."""

MAX_COMMON_NAME: Final = 64
"""ub-common-name and ub-organization-name of RFC 5280 appendix A.1."""

MAX_ALTERNATIVE_NAMES: Final = 32
"""Names and addresses of one receiver: several networks, both address families, a few aliases."""

ENROLLER_OID: Final = x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.30013.29614.50654.20344.47778.3258203.9674131")
"""Our own extended key usage, that of a server which enrols hosts: UUID 753d73ae-c5de-4f78-baa2-31b75b939d93 in seven numbers below
the arc that Microsoft keeps for such ("Obtaining an Object Identifier from Microsoft"). The one number of 128 bits below 2.25 that
ITU-T X.667 makes of a UUID is more than GnuTLS reads (measured, 3.7.9: the whole extension is an error)."""

EXTENDED_USES: Final = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "securecoreEnroller": ENROLLER_OID,
}

EXTENSION_OIDS: Final = {
    "basic_constraints": ExtensionOID.BASIC_CONSTRAINTS,
    "key_usage": ExtensionOID.KEY_USAGE,
    "extended_key_usage": ExtensionOID.EXTENDED_KEY_USAGE,
    "name_constraints": ExtensionOID.NAME_CONSTRAINTS,
    "subject_alternative_name": ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    "subject_key_identifier": ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    "authority_key_identifier": ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


@dataclass(frozen=True)
class Profile:
    """One kind of certificate.

    *signed_by* is the profile of the issuer. *extensions* maps each extension to its criticality; a certificate holds exactly
    these. *path_length* is None for a leaf, and *alternative_names* gives each permitted kind (dns, ip) with its least and greatest
    number. *extended_key_usage* is the whole list, in order; empty means that the extension is absent.
    """

    name: str
    signed_by: str
    default_days: int
    max_days: int
    path_length: int | None
    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...]
    alternative_names: dict[str, tuple[int, int]]
    extensions: dict[str, bool]

    @property
    def is_ca(self) -> bool:
        """Whether certificates of this profile sign others."""
        return self.path_length is not None

    @property
    def extended_oids(self) -> list[x509.ObjectIdentifier]:
        """The extended key usage as object identifiers, in order."""
        return [EXTENDED_USES[use] for use in self.extended_key_usage]

    @property
    def criticality(self) -> dict[x509.ObjectIdentifier, bool]:
        """The extensions by object identifier, with their criticality."""
        return {EXTENSION_OIDS[name]: critical for name, critical in self.extensions.items()}


_CA_EXTENSIONS: Final = {
    "basic_constraints": True,
    "key_usage": True,
    "subject_key_identifier": False,
    "authority_key_identifier": False,
}
_LEAF_EXTENSIONS: Final = {
    "basic_constraints": True,
    "key_usage": True,
    "extended_key_usage": False,
    "subject_alternative_name": False,
    "subject_key_identifier": False,
    "authority_key_identifier": False,
}
_CA_USES: Final = ("keyCertSign", "cRLSign")

ROOT_CA: Final = Profile(
    name="root-ca",
    signed_by="root-ca",
    default_days=3652,
    max_days=3652,
    path_length=1,
    key_usage=_CA_USES,
    extended_key_usage=(),
    alternative_names={},
    extensions=_CA_EXTENSIONS,
)
HOSTS_CA: Final = Profile(
    name="hosts-ca",
    signed_by="root-ca",
    default_days=1826,
    max_days=1826,
    path_length=0,
    key_usage=_CA_USES,
    extended_key_usage=("clientAuth",),
    alternative_names={},
    extensions={**_CA_EXTENSIONS, "extended_key_usage": False, "name_constraints": True},
)
RECEIVERS_CA: Final = Profile(
    name="receivers-ca",
    signed_by="root-ca",
    default_days=1826,
    max_days=1826,
    path_length=0,
    key_usage=_CA_USES,
    extended_key_usage=("serverAuth",),
    alternative_names={},
    extensions={**_CA_EXTENSIONS, "extended_key_usage": False},
)
HOST: Final = Profile(
    name="host",
    signed_by="hosts-ca",
    default_days=90,
    max_days=397,
    path_length=None,
    key_usage=("digitalSignature",),
    extended_key_usage=("clientAuth",),
    alternative_names={"dns": (1, 1)},
    extensions=_LEAF_EXTENSIONS,
)
RECEIVER: Final = Profile(
    name="receiver",
    signed_by="receivers-ca",
    default_days=90,
    max_days=397,
    path_length=None,
    key_usage=("digitalSignature",),
    extended_key_usage=("serverAuth",),
    alternative_names={"dns": (1, MAX_ALTERNATIVE_NAMES), "ip": (0, MAX_ALTERNATIVE_NAMES)},
    extensions=_LEAF_EXTENSIONS,
)
ENROLLER: Final = Profile(
    name="enroller",
    signed_by="receivers-ca",
    default_days=90,
    max_days=397,
    path_length=None,
    key_usage=("digitalSignature",),
    # Beside serverAuth, without which OpenSSL takes no server for one: a receiver has serverAuth alone, so neither is the other.
    extended_key_usage=("serverAuth", "securecoreEnroller"),
    alternative_names={"dns": (1, MAX_ALTERNATIVE_NAMES), "ip": (0, MAX_ALTERNATIVE_NAMES)},
    extensions=_LEAF_EXTENSIONS,
)
PROFILES: Final = {profile.name: profile for profile in (ROOT_CA, HOSTS_CA, RECEIVERS_CA, HOST, RECEIVER, ENROLLER)}

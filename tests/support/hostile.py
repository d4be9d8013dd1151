"""Hostile certificates as tables: one thing wrong in each, the reason that the judge gives for it, and words of its message.

``mint(HOST, issuer=..., **overrides)`` makes one. tests/certs holds them against the judge, tests/receiver and tests/sender show
them in real handshakes, and tests/pki holds them against pki/refusals.md.
"""

from datetime import timedelta
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from securecore.certs.judge import Reason
from securecore.certs.profiles import ENROLLER_OID
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME, STARTED, tlv

NOW: Final = STARTED
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
ANY: Final = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
UNKNOWN_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.99999.7")


class Hostile(NamedTuple):
    """What is wrong with a certificate, as an argument of mint, and what the judge says to it."""

    overrides: dict[str, Any]
    reason: Reason
    words: str


HOSTS: Final = {
    # purpose
    "no-extended-key-usage": Hostile({"omit": ["extended_key_usage"]}, Reason.WRONG_PURPOSE, "does not say what it is for"),
    "server-auth-only": Hostile({"eku": [SERVER]}, Reason.WRONG_PURPOSE, "is for serverAuth: exactly clientAuth"),
    "any-extended-key-usage": Hostile({"eku": [ANY]}, Reason.WRONG_PURPOSE, "anyExtendedKeyUsage"),
    "client-and-server-auth": Hostile({"eku": [CLIENT, SERVER]}, Reason.WRONG_PURPOSE, "clientAuth, serverAuth"),
    "client-auth-twice": Hostile({"eku": [CLIENT, CLIENT]}, Reason.WRONG_PURPOSE, "clientAuth, clientAuth"),
    "unknown-use": Hostile({"eku": [CLIENT, UNKNOWN_OID]}, Reason.WRONG_PURPOSE, "1.3.6.1.4.1.99999.7"),
    "ca-as-leaf": Hostile({"ca": True}, Reason.WRONG_PURPOSE, "a CA's own certificate"),
    # names
    "path-traversal": Hostile({"dns": ["../../etc/cron.d/x"]}, Reason.BAD_NAME, "'../../etc/cron.d/x'"),
    "dot-dot": Hostile({"dns": [".."]}, Reason.BAD_NAME, "not a host name"),
    "wildcard": Hostile({"dns": [f"*.{DOMAIN}"]}, Reason.BAD_NAME, "not a host name"),
    "option-like": Hostile({"dns": ["-rf"]}, Reason.BAD_NAME, "not a host name"),
    "option-like-in-the-domain": Hostile({"dns": [f"-rf.{DOMAIN}"]}, Reason.BAD_NAME, "not a host name"),
    "slash-in-name": Hostile({"dns": [f"a/b.{DOMAIN}"]}, Reason.BAD_NAME, "not a host name"),
    "empty-name": Hostile({"dns": [""]}, Reason.BAD_NAME, "not a host name"),
    "single-label": Hostile({"dns": ["web-1"]}, Reason.BAD_NAME, "not a host name"),
    "upper-case": Hostile({"dns": [HOST_NAME.upper()]}, Reason.BAD_NAME, "not a host name"),
    "trailing-dot": Hostile({"dns": [HOST_NAME + "."]}, Reason.BAD_NAME, "not a host name"),
    "nul-in-name": Hostile({"dns": [b"web-1\x00.hosts.test.example"]}, Reason.BAD_NAME, "not a host name"),
    "newline-in-name": Hostile({"dns": [b"web-1.hosts.test.example\n"]}, Reason.BAD_NAME, "not a host name"),
    "escape-in-name": Hostile({"dns": [b"\x1b[2J.hosts.test.example"]}, Reason.BAD_NAME, r"\x1b[2J"),
    "non-ascii-name": Hostile({"dns": ["wéb.hosts.test.example".encode()]}, Reason.BAD_NAME, "not a host name"),
    "bytes-that-are-no-text": Hostile({"dns": [b"\xff.hosts.test.example"]}, Reason.MALFORMED, "can't be read"),
    "label-of-64": Hostile({"dns": ["a" * 64 + "." + DOMAIN]}, Reason.BAD_NAME, "not a host name"),
    "name-of-300": Hostile({"dns": ["a." * 142 + DOMAIN]}, Reason.BAD_NAME, "not a host name"),
    "two-names": Hostile({"dns": [HOST_NAME, f"db-2.{DOMAIN}"]}, Reason.BAD_NAME, "this one names 2"),
    "name-twice": Hostile({"dns": [HOST_NAME, HOST_NAME]}, Reason.BAD_NAME, "this one names 2"),
    "no-names": Hostile({"san_der": b"\x30\x00"}, Reason.BAD_NAME, "this one names 0"),
    "no-subject-alternative-name": Hostile({"omit": ["subject_alternative_name"]}, Reason.BAD_NAME, "this one names 0"),
    "address-beside-name": Hostile({"ips": ["192.0.2.7"]}, Reason.BAD_NAME, "IPAddress"),
    "uri-beside-name": Hostile(
        {"san_der": tlv(0x30, tlv(0x82, HOST_NAME.encode()) + tlv(0x86, b"spiffe://test.example/web-1"))},
        Reason.BAD_NAME,
        "UniformResourceIdentifier",
    ),
    "uri-only": Hostile(
        {"san_der": tlv(0x30, tlv(0x86, b"spiffe://test.example/web-1"))}, Reason.BAD_NAME, "UniformResourceIdentifier"
    ),
    "email-only": Hostile({"san_der": tlv(0x30, tlv(0x81, b"root@test.example"))}, Reason.BAD_NAME, "RFC822Name"),
    "x400-name": Hostile({"san_der": tlv(0x30, tlv(0xA3, b""))}, Reason.MALFORMED, "can't be read"),
    "outside-the-domain": Hostile({"dns": ["web-1.evil.example"]}, Reason.BAD_NAME, "outside the domain"),
    "suffix-of-the-domain": Hostile({"dns": [f"evil{DOMAIN}"]}, Reason.BAD_NAME, "outside the domain"),
    "good-common-name-bad-san": Hostile(
        {"subject": HOST_NAME, "dns": ["db-2.evil.example"]}, Reason.BAD_NAME, "outside the domain"
    ),
    # time
    "expired": Hostile(
        {"not_before": NOW - timedelta(days=90), "not_after": NOW - timedelta(seconds=2)},
        Reason.EXPIRED,
        "this host's certificate expired on",
    ),
    "not-yet-valid": Hostile(
        {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=90)},
        Reason.NOT_YET_VALID,
        "is not valid before",
    ),
    "ten-years": Hostile({"not_after": NOW + timedelta(days=3652)}, Reason.PROFILE, "at most 397"),
    # form
    "no-key-usage": Hostile({"omit": ["key_usage"]}, Reason.PROFILE, "no keyUsage"),
    "key-usage-not-critical": Hostile({"critical": {"key_usage": False}}, Reason.PROFILE, "keyUsage extension is not critical"),
    "key-cert-sign": Hostile({"ku": ["digitalSignature", "keyCertSign"]}, Reason.PROFILE, "keyCertSign"),
    "key-encipherment": Hostile({"ku": ["digitalSignature", "keyEncipherment"]}, Reason.PROFILE, "keyEncipherment"),
    "no-basic-constraints": Hostile({"omit": ["basic_constraints"]}, Reason.PROFILE, "no basicConstraints"),
    "basic-constraints-not-critical": Hostile({"critical": {"basic_constraints": False}}, Reason.PROFILE, "not critical"),
    "critical-extended-key-usage": Hostile(
        {"critical": {"extended_key_usage": True}}, Reason.PROFILE, "extendedKeyUsage extension is"
    ),
    "critical-subject-alternative-name": Hostile(
        {"critical": {"subject_alternative_name": True}}, Reason.PROFILE, "subjectAltName"
    ),
    "no-subject-key-identifier": Hostile({"omit": ["subject_key_identifier"]}, Reason.PROFILE, "no subjectKeyIdentifier"),
    "no-authority-key-identifier": Hostile({"omit": ["authority_key_identifier"]}, Reason.PROFILE, "no authorityKeyIdentifier"),
    "wrong-authority-key-identifier": Hostile({"authority_key_id": b"x" * 20}, Reason.PROFILE, "authorityKeyIdentifier is not"),
    "authority-key-identifier-with-issuer": Hostile(
        {"omit": ["authority_key_identifier"], "extra": [(x509.AuthorityKeyIdentifier(b"x" * 20, [x509.DNSName("x")], 5), False)]},
        Reason.PROFILE,
        "holds more than a key identifier",
    ),
    "unknown-critical-extension": Hostile(
        {"extra": [(x509.UnrecognizedExtension(UNKNOWN_OID, b"\x05\x00"), True)]},
        Reason.PROFILE,
        "1.3.6.1.4.1.99999.7",
    ),
    "unknown-extension": Hostile(
        {"extra": [(x509.UnrecognizedExtension(UNKNOWN_OID, b"\x05\x00"), False)]},
        Reason.PROFILE,
        "does not have",
    ),
    "name-constraints-in-leaf": Hostile(
        {"extra": [(x509.NameConstraints([x509.DNSName(DOMAIN)], None), True)]},
        Reason.PROFILE,
        "nameConstraints",
    ),
    "ed25519-key": Hostile({"key_type": "ed25519"}, Reason.PROFILE, "P-256"),
    "rsa-key": Hostile({"key_type": "rsa2048"}, Reason.PROFILE, "P-256"),
    "p384-key": Hostile({"key_type": "p384"}, Reason.PROFILE, "P-256"),
    "sha512-signature": Hostile({"hash_algorithm": hashes.SHA512()}, Reason.PROFILE, "SHA-256"),
    "serial-of-zero": Hostile({"serial_der": b"\x00"}, Reason.PROFILE, "serial number"),
    "negative-serial": Hostile({"serial_der": b"\xff"}, Reason.PROFILE, "serial number"),
    "garbled-san": Hostile({"san_der": b"\x30\x05\x82\x7f"}, Reason.MALFORMED, "can't be read"),
}
"""Hosts' certificates, signed by our own hosts CA."""

RECEIVERS: Final = {
    "client-auth-only": Hostile({"eku": [CLIENT]}, Reason.WRONG_PURPOSE, "is for clientAuth: exactly serverAuth"),
    "no-extended-key-usage": Hostile({"omit": ["extended_key_usage"]}, Reason.WRONG_PURPOSE, "does not say"),
    "any-extended-key-usage": Hostile({"eku": [ANY]}, Reason.WRONG_PURPOSE, "anyExtendedKeyUsage"),
    "client-and-server-auth": Hostile({"eku": [CLIENT, SERVER]}, Reason.WRONG_PURPOSE, "clientAuth, serverAuth"),
    "an-enroller": Hostile(
        {"eku": [SERVER, ENROLLER_OID]}, Reason.WRONG_PURPOSE, "is for serverAuth, securecoreEnroller: exactly serverAuth"
    ),
    "ca-as-leaf": Hostile({"ca": True}, Reason.WRONG_PURPOSE, "a CA's own certificate"),
    "no-subject-alternative-name": Hostile({"omit": ["subject_alternative_name"]}, Reason.BAD_NAME, "0 names and 0 addresses"),
    "address-only": Hostile({"dns": [], "ips": ["127.0.0.1"]}, Reason.BAD_NAME, "0 names and 1 addresses"),
    "wildcard": Hostile({"dns": [f"*.{DOMAIN}"]}, Reason.BAD_NAME, "not a host name"),
    "slash-in-second-name": Hostile({"dns": [RECEIVER_NAME, "a/b.example"]}, Reason.BAD_NAME, "not a host name"),
    "uri": Hostile({"san_der": tlv(0x30, tlv(0x86, b"https://x.example"))}, Reason.BAD_NAME, "UniformResourceIdentifier"),
    "address-of-five-bytes": Hostile({"san_der": tlv(0x30, tlv(0x87, b"\x7f\x00\x00\x01\x00"))}, Reason.MALFORMED, "can't be read"),
    "thirty-three-names": Hostile({"dns": [f"r{number}.{DOMAIN}" for number in range(33)]}, Reason.BAD_NAME, "33 names"),
    "expired": Hostile(
        {"not_before": NOW - timedelta(days=90), "not_after": NOW - timedelta(seconds=2)},
        Reason.EXPIRED,
        "this receiver's certificate expired on",
    ),
    "not-yet-valid": Hostile(
        {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=90)},
        Reason.NOT_YET_VALID,
        "is not valid before",
    ),
    "ten-years": Hostile({"not_after": NOW + timedelta(days=3652)}, Reason.PROFILE, "at most 397"),
    "key-cert-sign": Hostile({"ku": ["digitalSignature", "keyCertSign"]}, Reason.PROFILE, "keyCertSign"),
    "no-key-usage": Hostile({"omit": ["key_usage"]}, Reason.PROFILE, "no keyUsage"),
    "unknown-critical-extension": Hostile(
        {"extra": [(x509.UnrecognizedExtension(UNKNOWN_OID, b"\x05\x00"), True)]}, Reason.PROFILE, "1.3.6.1.4.1.99999.7"
    ),
    "ed25519-key": Hostile({"key_type": "ed25519"}, Reason.PROFILE, "P-256"),
}
"""Receivers' certificates, signed by our own receivers CA."""

ENROLLERS: Final = {
    "a-receiver": Hostile({"eku": [SERVER]}, Reason.WRONG_PURPOSE, "is for serverAuth: exactly serverAuth securecoreEnroller"),
    "enroller-alone": Hostile({"eku": [ENROLLER_OID]}, Reason.WRONG_PURPOSE, "is for securecoreEnroller"),
    "the-other-order": Hostile({"eku": [ENROLLER_OID, SERVER]}, Reason.WRONG_PURPOSE, "is for securecoreEnroller, serverAuth"),
    "client-auth-too": Hostile({"eku": [CLIENT, SERVER, ENROLLER_OID]}, Reason.WRONG_PURPOSE, "is for clientAuth, serverAuth"),
    "another-use": Hostile({"eku": [SERVER, UNKNOWN_OID]}, Reason.WRONG_PURPOSE, "1.3.6.1.4.1.99999.7"),
    "any-extended-key-usage": Hostile({"eku": [ANY]}, Reason.WRONG_PURPOSE, "anyExtendedKeyUsage"),
    "no-extended-key-usage": Hostile({"omit": ["extended_key_usage"]}, Reason.WRONG_PURPOSE, "does not say"),
    "wildcard": Hostile({"dns": [f"*.{DOMAIN}"]}, Reason.BAD_NAME, "not a host name"),
    "address-only": Hostile({"dns": [], "ips": ["127.0.0.1"]}, Reason.BAD_NAME, "0 names and 1 addresses"),
    "expired": Hostile(
        {"not_before": NOW - timedelta(days=90), "not_after": NOW - timedelta(seconds=2)},
        Reason.EXPIRED,
        "this enroller's certificate expired on",
    ),
    "ten-years": Hostile({"not_after": NOW + timedelta(days=3652)}, Reason.PROFILE, "at most 397"),
}
"""Enrollers' certificates, signed by our own receivers CA."""

HOSTS_CAS: Final = {
    "no-name-constraints": Hostile({"omit": ["name_constraints"]}, Reason.PROFILE, "no nameConstraints"),
    "name-constraints-not-critical": Hostile({"critical": {"name_constraints": False}}, Reason.PROFILE, "not critical"),
    "two-domains": Hostile({"permitted": [DOMAIN, "evil.example"]}, Reason.PROFILE, "exactly one permitted DNS domain"),
    "any-use": Hostile({"eku": [ANY]}, Reason.WRONG_PURPOSE, "anyExtendedKeyUsage"),
    "no-extended-key-usage": Hostile({"omit": ["extended_key_usage"]}, Reason.WRONG_PURPOSE, "does not say"),
    "path-length-one": Hostile({"path_length": 1}, Reason.PROFILE, "path length 1"),
    "signs-data-too": Hostile({"ku": ["digitalSignature", "keyCertSign", "cRLSign"]}, Reason.PROFILE, "digitalSignature"),
    "cannot-sign-certificates": Hostile({"ku": ["cRLSign"]}, Reason.PROFILE, "key usage is cRLSign"),
    "expired": Hostile(
        {"not_before": NOW - timedelta(days=90), "not_after": NOW - timedelta(days=1)}, Reason.EXPIRED, "hosts CA expired"
    ),
    "not-yet-valid": Hostile({"not_before": NOW + timedelta(days=1)}, Reason.NOT_YET_VALID, "hosts CA is not valid before"),
    "eternal": Hostile({"not_after": NOW + timedelta(days=3000)}, Reason.PROFILE, "at most 1826"),
    "p384-key": Hostile({"key_type": "p384"}, Reason.PROFILE, "P-256"),
}
"""Hosts CAs, signed by our own root."""

ROOTS: Final = {
    "expired": Hostile({"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=1)}, Reason.EXPIRED, "root's"),
    "no-path-length-left": Hostile({"path_length": 0}, Reason.PROFILE, "path length 0"),
    "p384-key": Hostile({"key_type": "p384"}, Reason.PROFILE, "P-256"),
    "no-basic-constraints": Hostile({"omit": ["basic_constraints"]}, Reason.PROFILE, "basicConstraints"),
}
"""Roots, in ca.pem."""

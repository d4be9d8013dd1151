"""The only judge of certificates: from a leaf's DER to the name that it stands for, or to a refusal in words.

A chain is always leaf, issuing CA, root. The judgement, in order; the first step that fails decides the reason:

1. Every certificate is of bounded size and parses; the leaf is not a CA.
2. An issuing CA with the leaf's issuer name signed it, and one of our roots signed that CA. (Where several paths exist, as during a
   rotation, one good one is enough.)
3. The clock lies within the validity of leaf, issuing CA and root.
4. Leaf and issuing CA are for this purpose and no other: clientAuth for hosts, serverAuth for receivers, serverAuth and a use of
   our own for enrollers. So a stolen hosts CA can't make a receiver, and a receiver can't pose as an enroller.
5. The subject alternative names are of the permitted kinds, each is a HostName or an address, and the issuing CA may sign them.
   The common name is never read.
6. Leaf, issuing CA and root hold exactly what their profiles say.
7. The verifier of the cryptography library, an independent implementation of RFC 5280 chain validation, accepts the same chain.

OpenSSL has already validated the chain during the handshake; neither it nor step 7 alone refuses all that must be refused
(a certificate without extended key usage, one that lives ten years, a name with a slash in it). Revocation is a separate question:
see revocation.py.

A host is judged at the handshake and again before each commit. Path and clock are looked at each time, by the anchors of that
time; what no clock and no reload changes is found once for each path (``_find_good``).
"""

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from securecore import identity, limits
from securecore.certs import chain
from securecore.certs.chain import Anchors
from securecore.certs.conformance import find_departure, find_extension
from securecore.certs.profiles import (
    ENROLLER,
    EXTENDED_USES,
    HOST,
    HOSTS_CA,
    RECEIVER,
    RECEIVERS_CA,
    ROOT_CA,
    Profile,
)
from securecore.errors import Bug, UntrustedError
from securecore.names import HostName, NameRefused


class Purpose(Enum):
    """What the holder of a leaf certificate does."""

    HOST = "host"
    RECEIVER = "receiver"
    ENROLLER = "enroller"


class Reason(Enum):
    """Why a certificate was refused: stable names, fit for logs and for the wire."""

    MALFORMED = "malformed"
    UNKNOWN_ISSUER = "unknown-issuer"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    WRONG_PURPOSE = "wrong-purpose"
    BAD_NAME = "bad-name"
    PROFILE = "profile"
    REVOKED = "revoked"
    CRL_EXPIRED = "crl-expired"
    CRL_MISSING = "crl-missing"


class Refusal(UntrustedError):
    """A certificate that is not believed; the message is fit to be shown to the operators of both ends."""

    def __init__(self, reason: Reason, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Judgement(NamedTuple):
    """A believed certificate.

    *name* is the only dNSName of a host, the first of a receiver or an enroller; fingerprints are SHA-256 of the DER in lower-case
    hexadecimal; times are aware, UTC; *chain* is leaf, issuing CA, root.
    """

    name: HostName
    fingerprint: str
    serial: int
    issuer_fingerprint: str
    not_before: datetime
    not_after: datetime
    purpose: Purpose
    chain: tuple[x509.Certificate, x509.Certificate, x509.Certificate]


class _Path(NamedTuple):
    leaf: x509.Certificate
    issuing: x509.Certificate
    root: x509.Certificate


class _Good:
    """A path that steps 4 to 6 have passed, and what step 7 has said of it. Several threads may have it."""

    def __init__(self, name: HostName) -> None:
        self.name = name
        self._span: tuple[datetime, datetime] | None = None
        """Two moments for which the library has accepted the path. So it does between them: no certificate's validity has gaps."""

    def check(self, path: _Path, purpose: Purpose, now: datetime) -> None:
        """Step 7, unless it follows from what was said before. The library looks at dates too: step 3 stays not alone with them."""
        second, span = now.replace(microsecond=0), self._span
        if span is None:  # The first time is a handshake, for which somebody waits: one question.
            _check_with_library(path, purpose, second)
            self._span = second, second
            return
        first, last = span
        if second > last:
            last = min(one.not_valid_after_utc for one in path)
            _check_with_library(path, purpose, last)
        elif second < first:
            first = max(one.not_valid_before_utc for one in path)
            _check_with_library(path, purpose, first)
        if not first <= second <= last:  # Out of the path's time all the same: for the library to say.
            _check_with_library(path, purpose, second)
        self._span = first, last


_LEAF_PROFILES = {Purpose.HOST: HOST, Purpose.RECEIVER: RECEIVER, Purpose.ENROLLER: ENROLLER}
_ISSUER_PROFILES = {Purpose.HOST: HOSTS_CA, Purpose.RECEIVER: RECEIVERS_CA, Purpose.ENROLLER: RECEIVERS_CA}


def judge(leaf_der: bytes, intermediates_der: Sequence[bytes], anchors: Anchors, purpose: Purpose, now: datetime) -> Judgement:
    """Return who the holder of a leaf certificate is; raises Refusal with the reason, never anything else for any bytes.

    *intermediates_der* is what the peer sent beside its leaf, in any order; the anchors' own intermediates are used as well,
    because Python's ssl before 3.13 hands over the leaf only. *now* is aware. Not checked: revocation, and that a receiver's or
    an enroller's names hold the one that was dialled.
    """
    if now.tzinfo is None:
        raise Bug("judge: the clock must know its time zone")
    try:
        leaf, intermediates = _parse(leaf_der, intermediates_der)
        if _is_ca(leaf):
            raise Refusal(Reason.WRONG_PURPOSE, f"a CA's own certificate was sent where a {purpose.value}'s is expected")
        candidates = [*intermediates, *anchors.intermediates]
        first_refusal: Refusal | None = None
        for path in _find_paths(leaf, candidates, anchors):
            try:
                return _judge_path(path, purpose, now)
            except Refusal as refusal:
                first_refusal = first_refusal or refusal
        raise first_refusal or _unknown_issuer(leaf, candidates, anchors, purpose)
    except chain.PARSE_ERRORS as error:
        raise Refusal(Reason.MALFORMED, f"this {purpose.value}'s certificate can't be read: {chain.one_line(error)}") from error


def find_host(leaf_der: bytes, anchors: Anchors) -> HostName | None:
    """Return whose certificate a host's leaf is, whatever the clock says; None for one that was believed at no time, for any bytes.

    For whoever tells of a refusal, and for nobody who would let its holder in. Judged is the last second of the leaf's life.
    """
    try:
        leaf, _ = _parse(leaf_der, ())
        return judge(leaf_der, (), anchors, Purpose.HOST, leaf.not_valid_after_utc).name
    except (Refusal, *chain.PARSE_ERRORS):
        return None


def alternative_names(certificate: x509.Certificate, purpose: Purpose) -> tuple[list[HostName], list[str]]:
    """Return the host names and the addresses, in order, that a leaf of one purpose stands for.

    A host has exactly one dNSName and nothing else; a receiver or an enroller at least one dNSName, and addresses. Raises
    Refusal(BAD_NAME) on any other kind, number or spelling; chain.PARSE_ERRORS when the extension can't be read.
    """
    profile = _LEAF_PROFILES[purpose]
    extension = find_extension(certificate, x509.SubjectAlternativeName)
    dns: list[str] = []
    addresses: list[str] = []
    for name in extension or ():
        if isinstance(name, x509.DNSName):
            dns.append(name.value)
        elif isinstance(name, x509.IPAddress) and "ip" in profile.alternative_names:
            addresses.append(str(name.value))
        else:
            words = f"this {purpose.value}'s certificate names something other than a host: a {type(name).__name__}"
            raise Refusal(Reason.BAD_NAME, words)
    try:
        hosts = [identity.host_from_dns_names(dns)] if purpose is Purpose.HOST else [HostName(text) for text in dns]
    except NameRefused as error:
        raise Refusal(Reason.BAD_NAME, f"the name in this {purpose.value}'s certificate is refused: {error.message}") from error
    least, greatest = profile.alternative_names["dns"]
    if not least <= len(hosts) <= greatest or len(addresses) > greatest:
        words = f"this {purpose.value}'s certificate holds {len(hosts)} names and {len(addresses)} addresses"
        raise Refusal(Reason.BAD_NAME, f"{words}: between {least} and {greatest} names are expected")
    return hosts, addresses


def _parse(leaf_der: bytes, intermediates_der: Sequence[bytes]) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """Step 1: bounds and syntax."""
    if len(intermediates_der) >= limits.MAX_CHAIN:
        words = f"a chain of {len(intermediates_der) + 1} certificates was sent, at most {limits.MAX_CHAIN} are read"
        raise Refusal(Reason.MALFORMED, words)
    for der in (leaf_der, *intermediates_der):
        if len(der) > limits.MAX_CERTIFICATE_BYTES:
            words = f"a certificate of {len(der)} bytes was sent, at most {limits.MAX_CERTIFICATE_BYTES} are read"
            raise Refusal(Reason.MALFORMED, words)
    return x509.load_der_x509_certificate(leaf_der), [x509.load_der_x509_certificate(der) for der in intermediates_der]


def _is_ca(certificate: x509.Certificate) -> bool:
    basic = find_extension(certificate, x509.BasicConstraints)
    return basic is not None and basic.ca


def _find_paths(leaf: x509.Certificate, candidates: Sequence[x509.Certificate], anchors: Anchors) -> list[_Path]:
    """Step 2: every way from the leaf over one CA to one of our roots, by names and signatures only."""
    seen: set[str] = set()
    paths: list[_Path] = []
    for issuing in candidates:
        mark = chain.fingerprint(issuing)
        if mark in seen:
            continue
        seen.add(mark)
        # From the root down, so that nothing is kept of a chain that does not hang from one.
        roots = [root for root in anchors.roots if chain.is_signed_by_ours(issuing, root)]
        if roots and chain.is_signed_by_ours(leaf, issuing) and _is_ca(issuing):
            paths += [_Path(leaf, issuing, root) for root in roots]
    return paths


def _unknown_issuer(leaf: x509.Certificate, candidates: Sequence[x509.Certificate], anchors: Anchors, purpose: Purpose) -> Refusal:
    """Return the refusal for a leaf without a path, as precise as names and signatures allow."""
    what = f"this {purpose.value}'s certificate"
    issuer = chain.common_name(leaf.issuer)
    hint = "it must come from the same `securecore pki` as ca.pem; a chain file needs the leaf and its issuing CA"
    if any(chain.is_signed_by(leaf, root) for root in anchors.roots):
        return Refusal(Reason.UNKNOWN_ISSUER, f"{what} was signed by the root itself, not by its {_ca_of(purpose)}", hint=hint)
    signers = [candidate for candidate in candidates if chain.is_signed_by(leaf, candidate)]
    if signers and not any(_is_ca(signer) for signer in signers):
        return Refusal(Reason.UNKNOWN_ISSUER, f"{what} was signed by {issuer}, whose certificate is not a CA's", hint=hint)
    if signers:
        return Refusal(Reason.UNKNOWN_ISSUER, f"{what} was signed by {issuer}, which none of our roots signed", hint=hint)
    if any(candidate.subject == leaf.issuer for candidate in (*anchors.roots, *candidates)):
        return Refusal(Reason.UNKNOWN_ISSUER, f"{what} was signed by another CA that calls itself {issuer}", hint=hint)
    return Refusal(Reason.UNKNOWN_ISSUER, f"{what} was signed by a CA that is unknown here: {issuer}", hint=hint)


def _judge_path(path: _Path, purpose: Purpose, now: datetime) -> Judgement:
    """Steps 3 to 7 for one path."""
    _check_clock(path, purpose, now)
    good = _find_good(path, purpose)
    good.check(path, purpose, now)
    return Judgement(
        name=good.name,
        fingerprint=chain.fingerprint(path.leaf),
        serial=path.leaf.serial_number,
        issuer_fingerprint=chain.fingerprint(path.issuing),
        not_before=path.leaf.not_valid_before_utc,
        not_after=path.leaf.not_valid_after_utc,
        purpose=purpose,
        chain=(path.leaf, path.issuing, path.root),
    )


@lru_cache(maxsize=chain.KEPT)
def _find_good(path: _Path, purpose: Purpose) -> _Good:
    """Steps 4 to 6 for one path, found once and kept: they follow from the bytes by which paths are told apart.

    A refusal is not kept.
    """
    _check_purpose(path, purpose)
    hosts, _addresses = alternative_names(path.leaf, purpose)
    check_name_constraints(path.issuing, hosts)
    _check_profiles(path, purpose)
    return _Good(hosts[0])


def _check_clock(path: _Path, purpose: Purpose, now: datetime) -> None:
    """Step 3: notBefore and notAfter are both inside the validity (RFC 5280 section 4.1.2.5), whole seconds."""
    second = now.replace(microsecond=0)
    owners = (f"this {purpose.value}'s certificate", f"the certificate of the {_ca_of(purpose)}", "the root's certificate")
    for certificate, owner in zip(path, owners, strict=True):
        if second < certificate.not_valid_before_utc:
            raise Refusal(
                Reason.NOT_YET_VALID,
                f"{owner} is not valid before {_words(certificate.not_valid_before_utc)}, and the clock here says {_words(second)}",
                hint="compare the clocks of this machine, of the peer and of the machine that holds the CA",
            )
    for certificate, owner in zip(path, owners, strict=True):
        if second > certificate.not_valid_after_utc:
            hint = f"issue a new one: `securecore pki issue {purpose.value}`" if certificate is path.leaf else None
            raise Refusal(Reason.EXPIRED, f"{owner} expired on {_words(certificate.not_valid_after_utc)}", hint=hint)


def _check_purpose(path: _Path, purpose: Purpose) -> None:
    """Step 4: the extended key usage of leaf and issuing CA is exactly this purpose's (RFC 5280 section 4.2.1.12)."""
    owners = (f"this {purpose.value}'s certificate", f"the CA that signed this {purpose.value}'s certificate")
    for certificate, profile, owner in zip(path, (_LEAF_PROFILES[purpose], _ISSUER_PROFILES[purpose]), owners, strict=False):
        extended = find_extension(certificate, x509.ExtendedKeyUsage)
        wanted = " ".join(profile.extended_key_usage)
        if extended is None:
            raise Refusal(Reason.WRONG_PURPOSE, f"{owner} does not say what it is for: exactly {wanted} is expected")
        if list(extended) != profile.extended_oids:
            found = ", ".join(_use(oid) for oid in list(extended)[:8])
            raise Refusal(Reason.WRONG_PURPOSE, f"{owner} is for {found}: exactly {wanted} is expected")


def check_name_constraints(issuing: x509.Certificate, hosts: Sequence[HostName]) -> None:
    """Step 5, second half: raise Refusal unless each name lies in a domain that a constrained CA may sign for.

    Source: RFC 5280 section 4.2.1.10.
    """
    constraints = find_extension(issuing, x509.NameConstraints)
    subtrees = [] if constraints is None else constraints.permitted_subtrees or []
    domains = [subtree.value.lower() for subtree in subtrees if isinstance(subtree, x509.DNSName)]
    for host in hosts:
        if domains and not any(str(host) == domain or str(host).endswith(f".{domain}") for domain in domains):
            allowed = ascii(", ".join(domains)[: limits.MAX_WORDS // 4])
            raise Refusal(Reason.BAD_NAME, f"{str(host)!r} lies outside the domain that its CA may sign for: {allowed}")


def _check_profiles(path: _Path, purpose: Purpose) -> None:
    """Step 6."""
    rows: tuple[tuple[x509.Certificate, Profile, x509.Certificate, str], ...] = (
        (path.leaf, _LEAF_PROFILES[purpose], path.issuing, f"this {purpose.value}'s certificate"),
        (path.issuing, _ISSUER_PROFILES[purpose], path.root, f"the certificate of the {_ca_of(purpose)}"),
        (path.root, ROOT_CA, path.root, "the root's certificate"),
    )
    for certificate, profile, issuer, owner in rows:
        departure = find_departure(certificate, profile, issuer)
        if departure is not None:
            raise Refusal(Reason.PROFILE, f"{owner} is not as the {profile.name} profile wants it: {departure}")


def _check_with_library(path: _Path, purpose: Purpose, now: datetime) -> None:
    """Step 7: the same chain once more, judged by code that is not ours.

    The client verifier serves all purposes: it has no server name to compare, and the extension callbacks decide the extended key
    usage, which with our own callback is no longer checked by the library itself.
    """
    of_leaf, of_issuer = _LEAF_PROFILES[purpose].extended_oids, _ISSUER_PROFILES[purpose].extended_oids

    def check_use(_policy: verification.Policy, _certificate: x509.Certificate, use: x509.ExtendedKeyUsage | None) -> None:
        if use is not None and list(use) != of_issuer:
            raise ValueError("extended key usage is not exactly this purpose's")

    def check_leaf_use(_policy: verification.Policy, _certificate: x509.Certificate, use: x509.ExtendedKeyUsage) -> None:
        if list(use) != of_leaf:
            raise ValueError("extended key usage is not exactly this purpose's")

    agnostic = verification.Criticality.AGNOSTIC
    ca_policy = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, agnostic, check_use)
    ee_policy = (
        verification.ExtensionPolicy.webpki_defaults_ee()
        .require_present(x509.ExtendedKeyUsage, agnostic, check_leaf_use)
        .require_present(x509.KeyUsage, verification.Criticality.CRITICAL, None)
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([path.root]))
        .time(now)
        .max_chain_depth(1)
        .extension_policies(ca_policy=ca_policy, ee_policy=ee_policy)
        .build_client_verifier()
    )
    try:
        verified = verifier.verify(path.leaf, [path.issuing])
    except verification.VerificationError as error:
        raise Refusal(Reason.PROFILE, f"this {purpose.value}'s certificate does not verify: {chain.one_line(error)}") from error
    if verified.chain != list(path):
        raise Refusal(Reason.PROFILE, f"this {purpose.value}'s certificate verifies over another chain than the one judged")


def _ca_of(purpose: Purpose) -> str:
    """Return what the CA of one purpose is called: the hosts CA, the receivers CA."""
    return f"{_ISSUER_PROFILES[purpose].name.removesuffix('-ca')} CA"


def _use(oid: x509.ObjectIdentifier) -> str:
    names = {known: name for name, known in EXTENDED_USES.items()}
    names[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE] = "anyExtendedKeyUsage"
    return names.get(oid, oid.dotted_string)


def _words(moment: datetime) -> str:
    """Return a moment as operators compare it with `date -u`."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")

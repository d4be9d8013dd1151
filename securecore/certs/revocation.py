"""Certificate revocation lists: which certificates of our CAs are not to be believed any more.

OpenSSL's own check is not used: it refuses every host once a CRL expires, and among several CRLs of one CA it takes the newest
thisUpdate whatever the CRLNumber, so an old list can hide a revocation. Here the highest CRLNumber (RFC 5280 section 5.2.3) of each
CA counts, an expired list counts for a bounded grace, and what is amiss is told as warnings.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from securecore import limits
from securecore.certs import chain
from securecore.certs.chain import Anchors
from securecore.certs.conformance import find_extension
from securecore.certs.judge import Judgement, Reason, Refusal
from securecore.certs.profiles import BACKDATED_S
from securecore.errors import ConfigError

MAX_LISTS: Final = 2 * chain.MAX_ANCHORS
"""CRLs in one file: one for each CA, twice while old and new lie side by side."""

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_BLOCK: Final = re.compile(rb"-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----")
"""Base64 has no hyphen. Without that stop each of a million beginnings would have all that is behind it searched for its end."""
_EXTENSIONS: Final = {ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}
_HINT: Final = "run `securecore pki crl` where the CA is, and copy the file that it names over the receiver's crl.pem"
_OLDER: Final = (
    "copy the file that `securecore pki crl` names; if that one is older, so is the PKI: pki/runbooks/after-a-restore.md"
)
_TWO_COPIES: Final = "two copies of the PKI have signed, and each lacks what the other revoked: pki/runbooks/after-a-restore.md"


class _List(NamedTuple):
    """One CRL, its signature checked, with the revoked serial numbers as a set: a connection must not pay for a linear search."""

    mark: bytes
    issuer: x509.Certificate
    number: int
    this_update: datetime
    next_update: datetime
    serials: frozenset[int]
    crl: x509.CertificateRevocationList


class Entry(NamedTuple):
    """A revoked certificate as a list names it."""

    serial: int
    revoked_at: datetime
    """The list's own date where the entry has none of any calendar."""
    reason: str


class Contents(NamedTuple):
    """What one CA's list says; *issuer* is the serial number of the CA's certificate among the anchors."""

    issuer: int
    number: int
    this_update: datetime
    next_update: datetime
    entries: tuple[Entry, ...]


class Age(NamedTuple):
    """How old one CA's list is; *problem* is the line that ``warnings`` has on it, None when there is none."""

    owner: str
    age_days: int
    days_left: int
    """Below zero when it has expired."""
    problem: str | None
    next_update: datetime


class RevocationLists:
    """The CRLs of one crl.pem, at most one for each CA; immutable, so threads may share it."""

    def __init__(self, lists: Sequence[_List]) -> None:
        self._lists = tuple(lists)

    @classmethod
    def parse(cls, crl_pem: bytes, anchors: Anchors) -> "RevocationLists":
        """Return the lists of a PEM text, each signed by a CA among the anchors.

        Raises ConfigError when the text is larger than MAX_CRL_BYTES, holds no CRL or more than MAX_LISTS, or when one of them is
        cut off, malformed, of a kind that we don't make (delta, indirect, partial), or not signed by a CA of *anchors*. Of several
        lists of one CA the highest CRLNumber wins, then the newest thisUpdate. Not checked: dates; check() does that.
        """
        return cls._best(_parse_list(block, anchors) for block in _find_blocks(crl_pem))

    @classmethod
    def parse_for(cls, crl_pem: bytes, judgement: Judgement) -> "RevocationLists":
        """Return the lists of a PEM text that the issuing CA and the root of a judged chain have signed.

        For whoever has no other CA's certificate; raises as parse_known does.
        """
        _, issuing, root = judgement.chain
        return cls.parse_known(crl_pem, Anchors((root,), (issuing,)))

    @classmethod
    def parse_known(cls, crl_pem: bytes, anchors: Anchors) -> "RevocationLists":
        """Return the lists of a PEM text that a CA among the anchors has signed; others are passed over.

        Raises as parse does for all else.
        """
        found = (_find_list(block, anchors) for block in _find_blocks(crl_pem))
        return cls._best(parsed for parsed in found if parsed is not None)

    @classmethod
    def _best(cls, lists: Iterable[_List]) -> "RevocationLists":
        best: dict[bytes, _List] = {}
        for found in lists:
            other = best.get(found.mark)
            if other is None or (other.number, other.this_update) < (found.number, found.this_update):
                best[found.mark] = found
        return cls(list(best.values()))

    @property
    def count(self) -> int:
        """How many CAs have a list here."""
        return len(self._lists)

    def contents(self) -> list[Contents]:
        """Return what each list says, for whoever keeps a record of it."""
        return [
            Contents(
                found.issuer.serial_number, found.number, found.this_update, found.next_update,
                tuple(_entry(entry, found) for entry in found.crl),
            )
            for found in self._lists
        ]  # fmt: skip

    def check(self, judgement: Judgement, now: datetime, grace_s: float = limits.CRL_GRACE_S) -> None:
        """Raise Refusal when the leaf or its issuing CA is revoked, or when a list that would say so is missing or too old.

        The leaf is looked up in its issuing CA's list, the issuing CA in the root's. A list counts until *grace_s* seconds after
        its nextUpdate; a revocation that it names counts for ever. Cheap enough for every connection, and again before a commit.
        """
        leaf, issuing, root = judgement.chain
        kind = judgement.purpose.value
        of_issuing, of_root = self._find(issuing), self._find(root)
        if of_issuing is not None and leaf.serial_number in of_issuing.serials:
            raise _revoked(leaf, of_issuing, f"this {kind}'s certificate")
        if of_root is not None and issuing.serial_number in of_root.serials:
            raise _revoked(issuing, of_root, f"the certificate of the {kind}s CA")
        for issuer, found in ((issuing, of_issuing), (root, of_root)):
            owner = chain.common_name(issuer.subject)
            if found is None:
                words = f"the receiver has no revocation list of {owner}, so it believes none of its certificates"
                raise Refusal(Reason.CRL_MISSING, words, hint=_HINT)
            # A difference, because a list that says it never ends leaves no room for a sum.
            if now - found.next_update > timedelta(seconds=grace_s):
                day = f"{found.next_update:%Y-%m-%d}"
                words = f"the receiver's revocation list of {owner} expired on {day}, longer ago than is tolerated"
                raise Refusal(Reason.CRL_EXPIRED, words, hint=_HINT)

    def check_not_older_than(self, previous: "RevocationLists", anchors: Anchors) -> None:
        """Raise ConfigError when a list of *previous* is gone or has a lower CRLNumber here: somebody put an old file back.

        So too when it has the same CRLNumber and says anything else: a CA numbers each list anew (RFC 5280 section 5.2.3), so a
        second copy of the PKI has signed one of them, and neither is the newer.
        The list of a CA that is not among the *anchors* may be gone: nobody believes that CA any more.
        """
        believed = {_authority(one) for one in (*anchors.roots, *anchors.intermediates)}
        for old in previous._lists:
            owner = chain.common_name(old.issuer.subject)
            new = self._find(old.issuer)
            if new is None and old.mark in believed:
                raise ConfigError(f"crl.pem: the revocation list of {owner} is gone", hint=_HINT)
            if new is not None and new.number < old.number:
                words = f"the revocation list of {owner} has number {new.number}, and number {old.number} is already in use"
                raise ConfigError(f"crl.pem: {words}", hint=_OLDER)
            # What was signed, not the signature: ECDSA makes another one each time, and may be given a second form by anybody.
            if new is not None and new.number == old.number and new.crl.tbs_certlist_bytes != old.crl.tbs_certlist_bytes:
                words = f"has number {new.number}, and another list with that number is already in use"
                raise ConfigError(f"crl.pem: the revocation list of {owner} {words}", hint=_TWO_COPIES)

    def warnings(self, now: datetime) -> list[str]:
        """Return a line for the operator on each list that is expired, in the last third of its life, or from the future."""
        problems = (_problem(found, now) for found in self._lists)
        return [problem for problem in problems if problem is not None]

    def ages(self, now: datetime) -> list[Age]:
        """Return how old each list is, in whole days."""
        return [
            Age(
                chain.common_name(found.issuer.subject),
                (now - found.this_update).days,
                (found.next_update - now).days,
                _problem(found, now),
                found.next_update,
            )
            for found in self._lists
        ]

    def _find(self, issuer: x509.Certificate) -> _List | None:
        mark = _authority(issuer)
        return next((found for found in self._lists if found.mark == mark), None)


def _problem(found: _List, now: datetime) -> str | None:
    """Return what an operator should know of a list's dates, in one line; None when they are as they should be."""
    owner = chain.common_name(found.issuer.subject)
    until = f"{found.next_update:%Y-%m-%d %H:%M} UTC"
    if now > found.next_update:
        return f"the revocation list of {owner} expired on {until}; it counts for a short grace only"
    if found.this_update > now + timedelta(seconds=BACKDATED_S):
        return f"the revocation list of {owner} was made in the future; compare the clocks"
    if found.next_update - now < (found.next_update - found.this_update) / 3:
        return f"the revocation list of {owner} expires on {until}; make a new one with `securecore pki crl`"
    return None


def _authority(certificate: x509.Certificate) -> bytes:
    """Return what makes a CA one CA, whichever of its certificates (renewed, cross-signed) is at hand: its name and key."""
    key = certificate.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.subject.public_bytes() + key


def _find_blocks(crl_pem: bytes) -> list[bytes]:
    if len(crl_pem) > limits.MAX_CRL_BYTES:
        raise ConfigError(f"crl.pem: {len(crl_pem)} bytes, at most {limits.MAX_CRL_BYTES} are read")
    blocks = _BLOCK.findall(crl_pem)
    if (begun := crl_pem.count(_BEGIN)) != len(blocks):
        raise ConfigError(f"crl.pem: {begun} PEM revocation lists begin, {len(blocks)} are whole: it is cut off", hint=_HINT)
    if not 1 <= len(blocks) <= MAX_LISTS:
        raise ConfigError(f"crl.pem: expected 1 to {MAX_LISTS} PEM revocation lists, found {len(blocks)}", hint=_HINT)
    return blocks


def _parse_list(block: bytes, anchors: Anchors) -> _List:
    found = _find_list(block, anchors)
    if found is None:
        owner = chain.common_name(x509.load_pem_x509_crl(block).issuer)
        raise ConfigError(f"crl.pem: the revocation list of {owner} is not signed by a CA of ca.pem", hint=_HINT)
    return found


def _find_list(block: bytes, anchors: Anchors) -> _List | None:
    """Return a list; None when no CA among the anchors has signed it."""
    try:
        crl = x509.load_pem_x509_crl(block)
        issuer = _find_issuer(crl, anchors)
        if issuer is None:
            return None
        number = _check_form(crl, issuer)
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
        serials = frozenset(entry.serial_number for entry in crl)
    except chain.PARSE_ERRORS as error:
        raise ConfigError(f"crl.pem: a revocation list can't be read: {chain.one_line(error)}") from error
    if next_update is None:
        raise ConfigError("crl.pem: a revocation list does not say when the next one is due (RFC 5280 section 5.1.2.5)")
    return _List(_authority(issuer), issuer, number, this_update, next_update, serials, crl)


def _find_issuer(crl: x509.CertificateRevocationList, anchors: Anchors) -> x509.Certificate | None:
    """Return the CA certificate whose key signed the list; CAs only, so that no leaf can revoke anything."""
    for certificate in (*anchors.roots, *anchors.intermediates):
        usage = find_extension(certificate, x509.KeyUsage)
        if certificate.subject != crl.issuer or usage is None or not usage.crl_sign:
            continue
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or crl.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            continue
        if crl.is_signature_valid(key):
            return certificate
    return None


def _check_form(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> int:
    """Return the CRLNumber of a list that holds exactly the extensions that ours hold; raises ConfigError."""
    owner = chain.common_name(issuer.subject)
    found = {extension.oid: extension.critical for extension in crl.extensions}
    if set(found) != _EXTENSIONS or any(found.values()):
        listed = ", ".join(sorted(oid.dotted_string for oid in found)) or "none"
        words = f"the revocation list of {owner} is not a plain, full one with CRLNumber: its extensions are {listed}"
        raise ConfigError(f"crl.pem: {words}")
    authority = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = find_extension(issuer, x509.SubjectKeyIdentifier)
    if subject is None or authority.key_identifier != subject.digest:
        raise ConfigError(f"crl.pem: the revocation list of {owner} names another key than its issuer's")
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _revoked(certificate: x509.Certificate, found: _List, what: str) -> Refusal:
    """Return the refusal of a certificate that is on a list, with the date and reason that the list gives."""
    listed = found.crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    entry = Entry(certificate.serial_number, found.this_update, "unspecified") if listed is None else _entry(listed, found)
    words = f"{what} was revoked on {entry.revoked_at.astimezone(UTC):%Y-%m-%d} ({entry.reason})"
    return Refusal(Reason.REVOKED, words, hint="give it a new identity with `securecore pki issue`, once it can be trusted again")


def _entry(listed: x509.RevokedCertificate, found: _List) -> Entry:
    """Return what a list says of one certificate, whatever is amiss with its date or reason: it is revoked."""
    try:
        date = listed.revocation_date_utc
    except chain.PARSE_ERRORS:
        # A date in no calendar: ASN.1 has a year 0.
        date = found.this_update
    try:
        reason = listed.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except (x509.ExtensionNotFound, *chain.PARSE_ERRORS):
        reason = "unspecified"
    return Entry(listed.serial_number, date, reason)

"""Putting into a ledger what it has forgotten, from what others still have: CRLs, and certificates of this PKI's CAs.

It forgets when an older copy of the directory is put back, and does not know what a second copy has done. What is learned is what
the signature of a CA of this PKI vouches for: which certificates there are, which were revoked, the highest number of a list.
Nothing else comes back: not a CA that was made since, nor which tokens have been used. So with the first proof that the ledger is
behind every open token is recalled.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509

from securecore.certs.chain import (
    PARSE_ERRORS,
    Anchors,
    common_name,
    fingerprint,
    is_signed_by,
    load_pem_certificates,
    one_line,
)
from securecore.certs.conformance import find_departure, find_extension
from securecore.certs.judge import Purpose, Refusal, alternative_names
from securecore.certs.profiles import ENROLLER, HOST, RECEIVER, Profile
from securecore.certs.revocation import Contents, Entry, RevocationLists
from securecore.errors import ConfigError, PkiError
from securecore.pki.directory import PkiDirectory, certificate_pem, issue_fields
from securecore.pki.ledger import State, Token, format_time
from securecore.pki.staging import PUBLIC_MODE, replace

MAX_CERTIFICATES: Final = 64
"""Certificates in one file: an identity directory's ca.pem has 16 at most, and an editor may put some together."""

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_LIST: Final = b"-----BEGIN X509 CRL-----"


class Source(NamedTuple):
    """A file that somebody has kept; *what* names it in messages."""

    what: str
    data: bytes


class Known(NamedTuple):
    """A certificate that the ledger did not have, of which profile, for which names and addresses, by which CA."""

    certificate: x509.Certificate
    profile: Profile
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    issuer: x509.Certificate


class Learned(NamedTuple):
    """What a ledger has learned: certificates, revocations, lists, and the tokens that were recalled for it."""

    certificates: tuple[Known, ...]
    revoked: tuple[Entry, ...]
    lists: tuple[Contents, ...]
    recalled: tuple[Token, ...]


def learn(pki: PkiDirectory, sources: Sequence[Source], now: datetime) -> Learned:
    """Record what files hold and the ledger does not; signs nothing. One that was interrupted is done again by the same files.

    Raises PkiError for a file that holds nothing of this PKI's CAs, and for a certificate that none of its profiles allows;
    ConfigError for one that can't be read; StorageError, BrokenError.
    """
    with pki.lock():
        state, anchors = pki.ledger.follow(), pki.anchors()
        known, contents = _read(sources, anchors, state)
        revoked = [(one, entry) for one in contents for entry in one.entries if _is_news(state, entry)]
        lists = [one for one in _highest(contents) if _is_ahead(state, one)]
        recalled: list[Token] = []
        if known or revoked or lists:
            recalled = [one for one in state.tokens.values() if one.state(now) == "open"]
        # The lists' numbers last: until they are here, the same files are news again to whoever was interrupted.
        for token in recalled:
            pki.ledger.append(now, "recall", {"id": token.id})
        for one in known:
            _record(pki, one, now)
        entries = {entry.serial: (listed.issuer, entry) for listed, entry in revoked}
        for issuer, entry in entries.values():
            fields = {"issuer": f"{issuer:x}", "revoked_at": format_time(entry.revoked_at), "reason": entry.reason}
            pki.ledger.append(now, "learn", {"serial": f"{entry.serial:x}", **fields})
        for listed in lists:
            update = {"this_update": format_time(listed.this_update), "next_update": format_time(listed.next_update)}
            number = {"number": listed.number, "revoked": len(listed.entries), "learned": 1}
            pki.ledger.append(now, "crl", {"issuer": f"{listed.issuer:x}", **number, **update})
    return Learned(tuple(known), tuple(entry for _, entry in entries.values()), tuple(lists), tuple(recalled))


def _read(sources: Iterable[Source], anchors: Anchors, state: State) -> tuple[list[Known], list[Contents]]:
    """Return the certificates that the ledger does not have, each once, the newest last as they were issued, and all lists."""
    known: dict[int, Known] = {}
    contents: list[Contents] = []
    for source in sources:
        of_ours = 0
        if _CERTIFICATE in source.data:
            for certificate in load_pem_certificates(source.data, MAX_CERTIFICATES, what=source.what):
                try:
                    is_ours, one = _find_known(certificate, anchors, state, source.what)
                except PARSE_ERRORS as error:
                    raise ConfigError(f"{source.what}: a certificate can't be read: {one_line(error)}") from error
                of_ours += is_ours
                if one is not None:
                    known[certificate.serial_number] = one
        if _LIST in source.data:
            lists = RevocationLists.parse_known(source.data, anchors)
            of_ours += lists.count
            contents += lists.contents()
        if not of_ours:
            hint = "give what receivers and hosts have: crl.pem, the files of a store's crls/, cert.pem; or issued/ of another copy"
            raise PkiError(f"{source.what}: holds no list and no certificate that a CA of this PKI has signed", hint=hint)
    return sorted(known.values(), key=lambda one: one.certificate.not_valid_before_utc), contents


def _find_known(certificate: x509.Certificate, anchors: Anchors, state: State, what: str) -> tuple[bool, Known | None]:
    """Return whether a certificate is of this PKI, and what there is to learn of it; raises PkiError."""
    issued = state.issued.get(certificate.serial_number)
    if issued is not None and issued.fingerprint == fingerprint(certificate):
        return True, None
    issuer = next((one for one in (*anchors.intermediates, *anchors.roots) if is_signed_by(certificate, one)), None)
    if issuer is None:
        return False, None
    basic = find_extension(certificate, x509.BasicConstraints)
    if basic is not None and basic.ca:
        words = f"{what}: {common_name(certificate.subject)} is a CA that was made since, and its key is not here"
        raise PkiError(words, hint="put a copy of the PKI back that has it, or rotate again: pki/runbooks/after-a-restore.md")
    if issued is not None:
        raise PkiError(f"{what}: the ledger has another certificate with the serial number {certificate.serial_number:x}")
    signer = state.issued.get(issuer.serial_number)
    signed = [one for one in (HOST, RECEIVER, ENROLLER) if signer is not None and signer.profile == one.signed_by]
    profile = next((one for one in signed if find_departure(certificate, one, issuer) is None), None)
    if profile is None:
        words = f"{what}: certificate {certificate.serial_number:x} is none that this PKI makes"
        raise PkiError(words, hint=f"`securecore pki inspect {what}` says in what")
    try:
        names, addresses = alternative_names(certificate, Purpose(profile.name))
    except Refusal as error:
        raise PkiError(f"{what}: {error.message}") from error
    return True, Known(certificate, profile, tuple(str(name) for name in names), tuple(addresses), issuer)


def _is_news(state: State, entry: Entry) -> bool:
    issued = state.issued.get(entry.serial)
    return entry.serial not in state.strangers if issued is None else issued.revoked_at is None


def _highest(contents: Sequence[Contents]) -> list[Contents]:
    found: dict[int, Contents] = {}
    for one in sorted(contents, key=lambda one: (one.number, one.this_update)):
        found[one.issuer] = one
    return list(found.values())


def _is_ahead(state: State, one: Contents) -> bool:
    """Whether the ledger did not sign a list: it is of a higher number than its last, or another one of that number."""
    last = state.crls.get(one.issuer)
    # The ledger keeps whole seconds, as lists do.
    return last is None or last.number < one.number or (
        last.number == one.number and abs(last.this_update - one.this_update) >= timedelta(seconds=1)
    )


def _record(pki: PkiDirectory, one: Known, now: datetime) -> None:
    replace(pki.path / "issued" / f"{one.certificate.serial_number:x}.pem", certificate_pem(one.certificate), PUBLIC_MODE)
    fields = issue_fields(one.certificate, one.profile.name, one.issuer, [*one.names], [*one.addresses])
    pki.ledger.append(now, "issue", {**fields, "learned": 1})

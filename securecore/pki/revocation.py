"""Revoking certificates and signing CRLs.

A revocation is in the ledger before it is in a CRL, so a CRL that could not be signed is only late: the next one has it. CRLNumber
and thisUpdate strictly increase whatever the clock does, because verifiers order lists by the one or by the other.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.private_file import read_public
from securecore.errors import NotFoundError, PkiError
from securecore.limits import MAX_CRL_BYTES
from securecore.names import HostName
from securecore.pki.directory import FOLDERS, PkiDirectory
from securecore.pki.keys import AskPassphrase
from securecore.pki.ledger import Issued, State, find_serial, format_time
from securecore.pki.minting import CRL_DAYS, ROOT_CRL_DAYS, Authority, Revoked, mint_crl
from securecore.pki.staging import PUBLIC_MODE, replace

REASONS: Final = (
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
"""CRLReason of RFC 5280 section 5.3.1, without the two that can be taken back: a revocation here is for good."""


class SignedCrl(NamedTuple):
    """A CRL that was signed: of which CA (its profile's name), its number, how long it counts, how many it names."""

    authority: str
    number: int
    next_update: datetime
    revoked: int


class Revocation(NamedTuple):
    """What a revocation did: the certificates revoked now, those that already were, and the CRLs signed."""

    revoked: tuple[Issued, ...]
    already: tuple[Issued, ...]
    crls: tuple[SignedCrl, ...]


def revoke_name(pki: PkiDirectory, name: HostName, reason: str, ask_passphrase: AskPassphrase, now: datetime) -> Revocation:
    """Revoke every valid certificate of one name and sign the CRLs concerned.

    Raises NotFoundError when this PKI never made one for that name, PkiError when all have expired, and as sign_crls.
    """

    def choose(state: State) -> list[Issued]:
        found = [one for one in state.issued.values() if str(name) in one.names]
        if not found:
            raise NotFoundError(f"this PKI never made a certificate for {str(name)!r}", hint="see `securecore pki list`")
        chosen = [one for one in found if one.state(now) in ("valid", "revoked")]
        if not chosen:
            raise PkiError(f"no certificate of {str(name)!r} is valid any more, so there is nothing to revoke")
        return chosen

    return _revoke(pki, choose, reason, ask_passphrase, now)


def revoke_serial(pki: PkiDirectory, serial: int, reason: str, ask_passphrase: AskPassphrase, now: datetime) -> Revocation:
    """Revoke one certificate, that of an issuing CA included, and sign its issuer's CRL; raises like revoke_name."""

    def choose(state: State) -> list[Issued]:
        one = find_serial(state, serial)
        if one.issuer == one.serial:
            words = "a root can't be revoked: there is nobody above it to say so"
            raise PkiError(words, hint="replace it on every machine: pki/runbooks/root-key-lost.md")
        return [one]

    return _revoke(pki, choose, reason, ask_passphrase, now)


def sign_crls(pki: PkiDirectory, ask_passphrase: AskPassphrase, now: datetime) -> tuple[SignedCrl, ...]:
    """Sign a new CRL for every CA whose key is here, and put them together in crl.pem.

    CAs whose key is elsewhere keep their last CRL. Raises NotFoundError when no key is here, PkiError for a wrong passphrase,
    ConfigError, StorageError, BrokenError.
    """
    names = [name for name in FOLDERS if pki.has_key(name)]
    if not names:
        raise NotFoundError(f"{pki.path}: no CA's key is here", hint="bring the issuing CAs' keys back for this command")
    authorities = _unlock(pki, names, ask_passphrase)
    with pki.lock():
        return _sign(pki, pki.ledger.read(), authorities, now)


def _revoke(
    pki: PkiDirectory, choose: Callable[[State], Sequence[Issued]], reason: str, ask_passphrase: AskPassphrase, now: datetime
) -> Revocation:
    """Record and sign.

    The keys are unlocked first, so that a wrong passphrase changes nothing, and before the lock is taken, so that somebody who is
    still typing a passphrase does not hold up the timer that signs CRLs; hence *choose* is asked twice.
    """
    if reason not in REASONS:
        raise PkiError(f"not a reason for a revocation: {reason[:100]!a}", hint=f"one of {', '.join(REASONS)}")
    authorities = _unlock(pki, _authorities_of(pki, choose(pki.ledger.read())), ask_passphrase)
    with pki.lock():
        chosen = choose(pki.ledger.read())
        if not set(_authorities_of(pki, chosen)) <= set(authorities):
            raise PkiError("a certificate of that name was issued by another CA at this moment", hint="run the command again")
        fresh = [one for one in chosen if one.revoked_at is None]
        for one in fresh:
            pki.ledger.append(now, "revoke", {"serial": f"{one.serial:x}", "reason": reason})
        crls = _sign(pki, pki.ledger.read(), authorities, now)
    return Revocation(tuple(fresh), tuple(one for one in chosen if one.revoked_at is not None), crls)


def _authorities_of(pki: PkiDirectory, chosen: Sequence[Issued]) -> list[str]:
    """Return the CAs, by their profiles' names, that signed some certificates."""
    serials = {pki.certificate(name).serial_number: name for name in FOLDERS}
    for one in chosen:
        if one.issuer not in serials:
            raise PkiError(f"the CA that signed certificate {one.serial:x} is not in this PKI directory")
    found = {serials[one.issuer] for one in chosen}
    return [name for name in FOLDERS if name in found]


def _unlock(pki: PkiDirectory, names: Sequence[str], ask_passphrase: AskPassphrase) -> dict[str, Authority]:
    passphrase = _Remembered(ask_passphrase)
    return {name: pki.authority(name, passphrase) for name in names}


def _sign(pki: PkiDirectory, state: State, authorities: Mapping[str, Authority], now: datetime) -> tuple[SignedCrl, ...]:
    signed: list[SignedCrl] = []
    for name, authority in authorities.items():
        issuer = authority.certificate.serial_number
        last = state.crls.get(issuer)
        this_update = now.replace(microsecond=0)
        number = 1
        if last is not None:
            this_update = max(this_update, last.this_update + timedelta(seconds=1))
            number = last.number + 1
        days = ROOT_CRL_DAYS if name == "root-ca" else CRL_DAYS
        entries = _entries(state, issuer)
        crl = mint_crl(authority, number, this_update, days, entries)
        next_update = this_update + timedelta(days=days)
        # The ledger first: after a power cut a number is skipped, never used twice.
        update = {"this_update": format_time(this_update), "next_update": format_time(next_update)}
        pki.ledger.append(now, "crl", {"issuer": f"{issuer:x}", "number": number, "revoked": len(entries), **update})
        replace(pki.folder(name) / "crl.pem", crl.public_bytes(Encoding.PEM), PUBLIC_MODE)
        signed.append(SignedCrl(name, number, next_update, len(entries)))
    _assemble(pki)
    return tuple(signed)


def _entries(state: State, issuer: int) -> list[Revoked]:
    """Return what a CA's next CRL lists.

    A certificate is left out once it has expired and a CRL made after that has still listed it (RFC 5280 section 3.3).
    """
    last = state.crls.get(issuer)
    return [
        Revoked(one.serial, one.revoked_at, one.reason or "unspecified")
        for one in state.issued.values()
        if one.issuer == issuer and one.revoked_at is not None and (last is None or last.this_update <= one.not_after)
    ]


def _assemble(pki: PkiDirectory) -> None:
    """Write the CRLs of all CAs, newly signed or not, into the one file that receivers take."""
    parts = [read_public(pki.folder(name) / "crl.pem", MAX_CRL_BYTES) for name in FOLDERS]
    replace(pki.crl_path, b"".join(parts), PUBLIC_MODE)


class _Remembered:
    """Ask for a passphrase once, although several keys are locked with it."""

    def __init__(self, ask_passphrase: AskPassphrase) -> None:
        self._ask = ask_passphrase
        self._answer: bytes | None = None

    def __call__(self) -> bytes:
        if self._answer is None:
            self._answer = self._ask()
        return self._answer

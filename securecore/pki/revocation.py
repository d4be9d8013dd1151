"""Revoking certificates and signing CRLs.

A revocation is in the ledger before it is in a CRL, so a CRL that could not be signed is only late: the next one has it. CRLNumber
and thisUpdate strictly increase whatever the clock does, because verifiers order lists by the one or by the other.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.chain import PARSE_ERRORS, one_line
from securecore.certs.private_file import read_public
from securecore.certs.revocation import RevocationLists
from securecore.errors import BrokenError, ConfigError, NotFoundError, PkiError
from securecore.limits import MAX_CRL_BYTES
from securecore.names import HostName
from securecore.pki.choices import KEY_COMPROMISE, choose_name, choose_older, choose_serial, find_same_key
from securecore.pki.directory import PkiDirectory, certificate_pem
from securecore.pki.keys import AskPassphrase
from securecore.pki.ledger import Issued, State, format_time
from securecore.pki.minting import Authority, Revoked, crl_days, mint_crl
from securecore.pki.staging import PUBLIC_MODE, replace

REASONS: Final = (
    "unspecified",
    KEY_COMPROMISE,
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
"""CRLReason of RFC 5280 section 5.3.1, without the two that can be taken back: a revocation here is for good."""


_WAIT_S: Final = 30.0
"""For who only looks: to revoke and sign takes a second, and a monitoring system waits no longer."""

MAX_NUMBER_JUMP: Final = 1_000_000
"""How far a list's number may be put ahead: a CA that signs each five minutes for ten years gets there. A receiver never goes back
from a number, so that a slip of the keyboard must not use them up (RFC 5280 section 5.2.3: 20 octets)."""


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
    same_key: tuple[Issued, ...]
    """Valid ones, not revoked, with the key of one that is."""


def revoke_name(pki: PkiDirectory, name: HostName, reason: str, ask_passphrase: AskPassphrase, now: datetime) -> Revocation:
    """Revoke every valid certificate of one name and sign the CRLs concerned.

    With the reason KEY_COMPROMISE every other certificate with one of their keys goes too. Raises NotFoundError when this PKI never
    made one for that name, PkiError when all have expired, and as sign_crls.
    """
    return _revoke(pki, lambda state: choose_name(state, name, now), reason, ask_passphrase, now)


def revoke_serial(pki: PkiDirectory, serial: int, reason: str, ask_passphrase: AskPassphrase, now: datetime) -> Revocation:
    """Revoke one certificate, that of an issuing CA included, and sign its issuer's CRL; else as revoke_name."""
    return _revoke(pki, lambda state: choose_serial(state, serial), reason, ask_passphrase, now)


def revoke_older(pki: PkiDirectory, name: HostName, reason: str, ask_passphrase: AskPassphrase, now: datetime) -> Revocation:
    """Revoke every valid certificate of one name but the newest of each kind; else as revoke_name.

    Raises PkiError too when the newest has the key that *reason* calls compromised.
    """
    return _revoke(pki, lambda state: choose_older(state, name, reason, now), reason, ask_passphrase, now)


def sign_crls(
    pki: PkiDirectory,
    ask_passphrase: AskPassphrase,
    now: datetime,
    *,
    is_forced: bool = False,
    after: int = 0,
    lock_timeout_s: float | None = None,
) -> tuple[SignedCrl, ...]:
    """Sign a new CRL for each CA whose key is here and whose CRL is due, and put all together in crl.pem; return what was signed.

    Due is one of which a third of its life or less is left, one that lacks a revocation, and one that is missing or not the last
    that the ledger knows; all of them when *is_forced*. Its number is above *after*, which a receiver may have met from another
    copy of this PKI. No passphrase is asked for where nothing is due. CAs whose key is elsewhere keep their last CRL.

    Raises NotFoundError when no key is here; PkiError for a wrong passphrase, when the PKI's lock is not to be had within
    *lock_timeout_s*, and for an *after* beyond MAX_NUMBER_JUMP; ConfigError, StorageError; BrokenError, also when find_behind finds
    something.
    """
    here = [name for name in pki.authorities() if pki.has_key(name)]
    if not here:
        raise NotFoundError(f"{pki.path}: no CA's key is here", hint="bring the issuing CAs' keys back for this command")
    state = pki.ledger.follow()
    due = [name for name in here if is_forced or _is_due(pki, state, name, now)]
    unlocked = _unlock(pki, due, ask_passphrase)
    with pki.lock(lock_timeout_s):
        state = pki.ledger.follow()
        check_not_behind(pki)
        authorities = _as_called_now(pki, state, unlocked)
        still_due = {name: one for name, one in authorities.items() if is_forced or _is_due(pki, state, name, now)}
        _check_jump(state, still_due, after)
        return _sign(pki, state, still_due, now, after)


def check_not_behind(pki: PkiDirectory) -> None:
    """Raise BrokenError when find_behind finds something: what was signed now would say less than what receivers have."""
    behind = find_behind(pki)
    if behind is not None:
        raise BrokenError(behind, hint="it has forgotten what came since: pki/runbooks/after-a-restore.md")


def find_behind(pki: PkiDirectory) -> str | None:
    """Return how the ledger is behind the lists beside it, which it is written before: somebody put an old copy of it back.

    None when it is not. Not found: an old copy of the whole directory; for that see noting.py.
    """
    found = []
    for path in (*(folder / "crl.pem" for folder in pki.authorities().values()), pki.crl_path):
        # What can't be read is signed, or put together, anew; it says nothing.
        with suppress(ConfigError, NotFoundError):
            lists = RevocationLists.parse_known(read_public(path, MAX_CRL_BYTES), pki.anchors())
            found += [(path, one) for one in lists.contents()]
    # Read behind them, for whoever does not hold the lock: meanwhile a list may be signed.
    state = pki.ledger.follow()
    for path, one in found:
        last = state.crls.get(one.issuer)
        if last is None or last.number < one.number:
            words = f"the ledger is an older copy: {path.relative_to(pki.path)} has a list of number {one.number}"
            return f"{words}, and the ledger's last is {0 if last is None else last.number}"
    return None


def find_unlisted(pki: PkiDirectory, state: State, name: str) -> str | None:
    """Return why a CA's CRL file is not the last one that the ledger knows, or lacks a revocation; None when all is well."""
    issuer = pki.certificate(name).serial_number
    last, path = state.crls.get(issuer), pki.folder(name) / "crl.pem"
    if last is None or not path.exists():
        return "it was never signed" if last is None else "it is not there"
    try:
        crl = x509.load_pem_x509_crl(read_public(path, MAX_CRL_BYTES))
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        listed = {entry.serial_number for entry in crl}
    except (x509.ExtensionNotFound, *PARSE_ERRORS) as error:
        return f"it can't be read: {one_line(error)}"
    if number != last.number:
        return f"it has number {number}, and number {last.number} is the last that was signed"
    if crl.last_update_utc != last.this_update:
        return f"it is another list of number {number} than the last that was signed"
    missing = [one.serial for one in _entries(state, issuer) if one.serial not in listed]
    return f"it does not list {missing[0]:x}, which was revoked" if missing else None


def find_unready(pki: PkiDirectory, state: State) -> dict[int, str]:
    """Return why receivers can't have the last list of a CA yet, in words, by the serial number of that CA.

    A command that signs at this moment is waited for; raises PkiError when it is not done within _WAIT_S, else as find_unlisted.
    """
    if not _find_unready(pki, state):
        return {}
    with pki.lock(_WAIT_S):
        return _find_unready(pki, pki.ledger.follow())


def _find_unready(pki: PkiDirectory, state: State) -> dict[int, str]:
    found: dict[int, str] = {}
    together = read_public(pki.crl_path, MAX_CRL_BYTES) if pki.crl_path.exists() else b""
    for name, folder in pki.authorities(state).items():
        problem = find_unlisted(pki, state, name)
        if problem is None and read_public(folder / "crl.pem", MAX_CRL_BYTES) not in together:
            problem = f"it is not in {pki.crl_path.name}, which receivers are given"
        if problem is not None:
            found[pki.certificate(name).serial_number] = problem
    return found


def _is_due(pki: PkiDirectory, state: State, name: str, now: datetime) -> bool:
    if find_unlisted(pki, state, name) is not None:
        return True
    last = state.crls[pki.certificate(name).serial_number]
    return last.next_update - now <= (last.next_update - last.this_update) / 3


def _revoke(
    pki: PkiDirectory, choose: Callable[[State], Sequence[Issued]], reason: str, ask_passphrase: AskPassphrase, now: datetime
) -> Revocation:
    """Record and sign.

    The keys are unlocked first, so that a wrong passphrase changes nothing, and before the lock is taken, so that somebody who is
    still typing a passphrase does not hold up the timer that signs CRLs; hence *choose* is asked twice.
    """
    if reason not in REASONS:
        raise PkiError(f"not a reason for a revocation: {reason[:100]!a}", hint=f"one of {', '.join(REASONS)}")

    def choose_all(state: State) -> list[Issued]:
        chosen = list(choose(state))
        return [*chosen, *(find_same_key(state, chosen, now) if reason == KEY_COMPROMISE else [])]

    unlocked = _unlock(pki, _authorities_of(pki, choose_all(pki.ledger.follow())), ask_passphrase)
    with pki.lock():
        state = pki.ledger.follow()
        check_not_behind(pki)
        chosen = choose_all(state)
        authorities = _as_called_now(pki, state, unlocked)
        if not set(_authorities_of(pki, chosen)) <= set(authorities):
            raise PkiError("a certificate of that name was issued by another CA at this moment", hint="run the command again")
        fresh = [one for one in chosen if one.revoked_at is None]
        for one in (*fresh, *(one for one in chosen if _is_worse(one, reason))):
            pki.ledger.append(now, "revoke", {"serial": f"{one.serial:x}", "reason": reason})
        crls = _sign(pki, pki.ledger.follow(), authorities, now)
    already = tuple(one for one in chosen if one.revoked_at is not None)
    return Revocation(tuple(fresh), already, crls, tuple(find_same_key(state, chosen, now)))


def _is_worse(one: Issued, reason: str) -> bool:
    """Whether the key of a certificate that was revoked for another reason is called compromised now: it is for ever, then."""
    return one.revoked_at is not None and reason == KEY_COMPROMISE != one.reason


def _authorities_of(pki: PkiDirectory, chosen: Sequence[Issued]) -> list[str]:
    """Return the CAs, by their profiles' names, that signed some certificates; raises PkiError when none is in use any more.

    That of a certificate whose CA was let go of has no list: the ledger alone says that it was revoked.
    """
    serials = {pki.certificate(name).serial_number: name for name in pki.authorities()}
    found = {serials[one.issuer] for one in chosen if one.issuer in serials}
    if not found:
        words = f"the CA that signed certificate {chosen[0].serial:x} is not in use any more"
        raise PkiError(words, hint="what it signed counts nowhere that has the new ca.pem")
    return [name for name in serials.values() if name in found]


def _unlock(pki: PkiDirectory, names: Sequence[str], ask_passphrase: AskPassphrase) -> list[Authority]:
    """Return the CAs; where they are is looked up before anybody is asked, for a rotation may rename them meanwhile."""
    passphrase = Remembered(ask_passphrase)
    folders = [pki.folder(name) for name in names]
    return [pki.authority_in(folder, name, passphrase) for folder, name in zip(folders, names, strict=True)]


def _as_called_now(pki: PkiDirectory, state: State, unlocked: Sequence[Authority]) -> dict[str, Authority]:
    """Return those CAs that still count, by name: while a passphrase was typed, a rotation may have renamed or dismissed them."""
    by_serial = {one.certificate.serial_number: one for one in unlocked}
    serials = {name: pki.certificate(name).serial_number for name in pki.authorities(state)}
    return {name: by_serial[serial] for name, serial in serials.items() if serial in by_serial}


def _sign(
    pki: PkiDirectory, state: State, authorities: Mapping[str, Authority], now: datetime, after: int = 0
) -> tuple[SignedCrl, ...]:
    signed: list[SignedCrl] = []
    for name, authority in authorities.items():
        issuer = authority.certificate.serial_number
        last = state.crls.get(issuer)
        this_update = now.replace(microsecond=0)
        number = after + 1
        if last is not None:
            this_update = max(this_update, last.this_update + timedelta(seconds=1))
            number = max(last.number, after) + 1
        days = crl_days(name)
        entries = _entries(state, issuer)
        crl = mint_crl(authority, number, this_update, days, entries)
        next_update = this_update + timedelta(days=days)
        # The ledger first: after a power cut a number is skipped, never used twice.
        update = {"this_update": format_time(this_update), "next_update": format_time(next_update)}
        pki.ledger.append(now, "crl", {"issuer": f"{issuer:x}", "number": number, "revoked": len(entries), **update})
        replace(pki.folder(name) / "crl.pem", crl.public_bytes(Encoding.PEM), PUBLIC_MODE)
        signed.append(SignedCrl(name, number, next_update, len(entries)))
    assemble(pki)
    return tuple(signed)


def _check_jump(state: State, authorities: Mapping[str, Authority], after: int) -> None:
    for name, authority in authorities.items():
        last = state.crls.get(authority.certificate.serial_number)
        most = (0 if last is None else last.number) + MAX_NUMBER_JUMP
        if after > most:
            hint = "a receiver's log has the number that it has met, and `securecore pki inspect` shows that of its crl.pem"
            raise PkiError(f"the next list of the {name} is not numbered after {after}: at most after {most}", hint=hint)


def _entries(state: State, issuer: int) -> list[Revoked]:
    """Return what a CA's next CRL lists.

    A certificate is left out once it has expired and a CRL made after that has still listed it (RFC 5280 section 3.3). Of one that
    the ledger does not have nobody knows when it expires, so it stays as long as its CA.
    """
    last = state.crls.get(issuer)
    strangers = [Revoked(one.serial, one.revoked_at, one.reason) for one in state.strangers.values() if one.issuer == issuer]
    return strangers + [
        Revoked(one.serial, one.revoked_at, one.reason or "unspecified")
        for one in state.issued.values()
        if one.issuer == issuer and one.revoked_at is not None and (last is None or last.this_update <= one.not_after)
    ]


def assemble(pki: PkiDirectory) -> None:
    """Write the files that receivers take where they don't hold what they should."""
    for path, together in files_for_receivers(pki).items():
        if not path.exists() or read_public(path, MAX_CRL_BYTES) != together:
            replace(path, together, PUBLIC_MODE)


def files_for_receivers(pki: PkiDirectory) -> dict[Path, bytes]:
    """Return what the files that receivers take should hold: all CAs that count, and their CRLs."""
    crls = b"".join(read_public(folder / "crl.pem", MAX_CRL_BYTES) for folder in pki.authorities().values())
    anchors = pki.anchors()
    return {pki.ca_path: certificate_pem(*anchors.roots, *anchors.intermediates), pki.crl_path: crls}


class Remembered:
    """Ask for a passphrase once, although several keys are locked with it."""

    def __init__(self, ask_passphrase: AskPassphrase) -> None:
        self._ask = ask_passphrase
        self.answer: bytes | None = None
        """None until a key turned out to be locked."""

    def __call__(self) -> bytes:
        if self.answer is None:
            self.answer = self._ask()
        return self.answer

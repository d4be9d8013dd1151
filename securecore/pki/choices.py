"""Which certificates a revocation concerns: all of a name, one by its serial number, those of a name before the newest.

Where the reason is that a key is in wrong hands, every certificate with that key goes: a renewal certifies the same key again, and
whoever has it has them all.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.ledger import Issued, State

KEY_COMPROMISE: Final = "keyCompromise"
"""The reason (RFC 5280 section 5.3.1) that is about the key, not about one certificate of it."""


def choose_name(state: State, name: HostName, now: datetime) -> list[Issued]:
    """Return every certificate of a name that is valid or revoked; raises NotFoundError, and PkiError when all have expired."""
    found = [one for one in state.issued.values() if str(name) in one.names]
    if not found:
        raise NotFoundError(f"this PKI never made a certificate for {str(name)!r}", hint="see `securecore pki list`")
    chosen = [one for one in found if one.state(now) in ("valid", "revoked")]
    if not chosen:
        command = f"securecore pki revoke --serial {found[-1].serial:x} --reason {KEY_COMPROMISE}"
        hint = f"so that its key is not certified again: `{command}`"
        raise PkiError(f"no certificate of {str(name)!r} is valid any more, so there is nothing to revoke", hint=hint)
    return chosen


def choose_serial(state: State, serial: int) -> list[Issued]:
    """Return one certificate, in whatever state; raises NotFoundError, and PkiError for a root."""
    one = find_serial(state, serial)
    if one.issuer == one.serial:
        words = "a root can't be revoked: there is nobody above it to say so"
        raise PkiError(words, hint="replace it on every machine: pki/runbooks/root-key-lost.md")
    return [one]


def choose_older(state: State, name: HostName, reason: str, now: datetime) -> list[Issued]:
    """Return every certificate of a name but the newest of each kind that is valid or revoked; raises as choose_name.

    PkiError too when the newest has the key that *reason* calls compromised: it must not stay.
    """
    found = [one for one in state.issued.values() if one.names[:1] == (str(name),) and not one.is_discarded]
    if not found:
        raise NotFoundError(f"this PKI never made a certificate for {str(name)!r}", hint="see `securecore pki list`")
    newest = {one.profile: one for one in found}
    chosen = [one for one in found if one is not newest[one.profile] and one.state(now) in ("valid", "revoked")]
    if not chosen:
        raise PkiError(f"no older certificate of {str(name)!r} is valid any more, so there is nothing to revoke")
    kept = {one.public_key for one in newest.values() if one.public_key and one.revoked_at is None}
    if reason == KEY_COMPROMISE and any(one.public_key in kept for one in chosen):
        hint = f"`securecore pki revoke {name} --reason {KEY_COMPROMISE}` revokes it too; for another reason it may stay"
        raise PkiError(f"the newest certificate of {str(name)!r} has the same key as an older one", hint=hint)
    return chosen


def find_same_key(state: State, chosen: Sequence[Issued], now: datetime) -> list[Issued]:
    """Return the valid certificates beside *chosen* that have the key of one of them, whoever's they are.

    Not found: one that was issued before the ledger recorded keys.
    """
    serials, keys = {one.serial for one in chosen}, {one.public_key for one in chosen if one.public_key}
    return [
        one for one in state.issued.values() if one.public_key in keys and one.serial not in serials and one.state(now) == "valid"
    ]


def find_serial(state: State, serial: int) -> Issued:
    """Return the certificate with a serial number; raises NotFoundError."""
    if serial not in state.issued:
        hint = "see `securecore pki list`; if an older copy of the PKI was put back: pki/runbooks/after-a-restore.md"
        raise NotFoundError(f"this PKI never made a certificate with serial number {serial:x}", hint=hint)
    return state.issued[serial]

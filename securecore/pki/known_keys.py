"""Which keys are not certified: those that somebody else may have."""

from datetime import datetime
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from securecore.certs.chain import key_fingerprint
from securecore.errors import PkiError
from securecore.pki.choices import KEY_COMPROMISE
from securecore.pki.ledger import State
from securecore.pki.recording import Subject


class KeyProblem(NamedTuple):
    """Why a key is not certified."""

    code: str
    """``revoked-key`` or ``known-key``."""
    words: str
    hint: str


def check_key(state: State, public_key: ec.EllipticCurvePublicKey, subject: Subject, now: datetime) -> None:
    """Raise PkiError when find_key_problem finds one."""
    problem = find_key_problem(state, public_key, subject, now)
    if problem is not None:
        raise PkiError(problem.words, hint=problem.hint)


def find_key_problem(state: State, public_key: ec.EllipticCurvePublicKey, subject: Subject, now: datetime) -> KeyProblem | None:
    """Return why a key is not certified for *subject*: it was revoked, or another machine has it in use; None where it may be.

    That older certificates of a key were revoked as superseded says nothing against it.
    """
    mark = key_fingerprint(public_key)
    known = [one for one in state.issued.values() if one.public_key == mark and not one.is_discarded]
    revoked = [one for one in known if one.reason == KEY_COMPROMISE] or [one for one in known[-1:] if one.reason is not None]
    for one in revoked:
        words = f"certificate {one.serial:x} of this key was revoked ({one.reason}): the key is not certified again"
        hint = "make a new key: `securecore pki rekey`, or `securecore pki request` on the machine itself, in a new directory"
        return KeyProblem("revoked-key", words, hint)
    for one in known:
        if (one.profile, one.names[:1]) != (subject.profile.name, (str(subject.name),)) and one.state(now) == "valid":
            words = f"this is the key of {one.profile} {one.names[0]}: two that share a key could pose as each other"
            return KeyProblem("known-key", words, "was a machine copied with its key? Give each its own: `securecore pki request`")
    return None

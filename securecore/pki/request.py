"""Beginning on the machine itself: a key that never leaves it, and the request that does.

In a new identity directory the key is ``key.pem`` from the start. Beside a certificate that is in use, a new key waits as
``next-key.pem`` until install.py puts it in its place, so that nothing is interrupted before the CA has answered.
"""

from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from securecore.certs.identity_directory import CERTIFICATE, KEY, check_directory, load_key
from securecore.certs.identity_lock import IdentityLock
from securecore.errors import PkiError
from securecore.pki.keys import make_key, private_pem
from securecore.pki.signing_request import make_request
from securecore.pki.staging import PRIVATE_MODE, PUBLIC_MODE, disk_errors, replace, stage, stage_file

NEXT_KEY: Final = "next-key.pem"
REQUEST: Final = "request.pem"


class Requested(NamedTuple):
    """A request: where it is, and whether its key is a new one beside a certificate that is in use."""

    path: Path
    public_key: ec.EllipticCurvePublicKey
    is_rekey: bool
    is_new: bool = True
    """Whether this run has made the key; else an earlier one, whose answer may be under way."""


def request(identity: Path) -> Requested:
    """Make a key and its request in an identity directory, a new one or one whose key is to be replaced.

    Asked again before the answer has come, it writes the request for the same key. Where others may change the directory at the
    same time, request_locked is for that. Raises ConfigError, NotFoundError and StorageError as load_key and stage do, PkiError
    where another run is making the directory.
    """
    if not identity.exists():
        return Requested(identity / REQUEST, _make_directory(identity).public_key(), False)
    check_directory(identity)
    is_rekey = (identity / CERTIFICATE).exists()
    path = identity / (NEXT_KEY if is_rekey else KEY)
    is_new = not path.exists()
    if is_new:
        with stage_file(path, private_pem(make_key()), PRIVATE_MODE) as staged_key:
            staged_key.publish()
    key = load_key(path)
    replace(identity / REQUEST, make_request(key), PUBLIC_MODE)
    return Requested(identity / REQUEST, key.public_key(), is_rekey, is_new)


def request_locked(identity: Path, lock: IdentityLock) -> Requested:
    """Return the same, with the identity's lock taken as soon as there is a directory; raises as request and IdentityLock do."""
    if not identity.exists():
        try:
            _make_directory(identity)
        except PkiError:
            # Another run was faster, and is waited for below; or is at it, which it says.
            if not identity.exists():
                raise
    lock.take()
    # Looked at now only: another run may have had the lock between, and have a certificate for that key.
    return request(identity)


def call_off(identity: Path, made: Requested) -> None:
    """Remove a key that waits beside a certificate in use, and its request, where *made* says that this run has made it.

    The caller holds the directory's lock. Raises StorageError. Only for a key that no CA has certified, nor will.
    """
    if made.is_rekey and made.is_new:
        for name in (REQUEST, NEXT_KEY):
            with disk_errors(identity / name):
                (identity / name).unlink(missing_ok=True)


def _make_directory(identity: Path) -> ec.EllipticCurvePrivateKey:
    """Make an identity directory with a key and its request; raises as stage does."""
    key = make_key()
    with stage(identity) as staged:
        staged.write(KEY, private_pem(key), PRIVATE_MODE)
        staged.write(REQUEST, make_request(key), PUBLIC_MODE)
        staged.publish()
    return key

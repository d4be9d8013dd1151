"""A new log key in a receiver's identity directory, which takes the place of the one there, at every instant one whole identity.

In this order, each step durable before the next:

1. The new key, as ``.log-key.pem.next``, 0600 from its first instant on.
2. ``log-keys.jsonl`` with one line more: the new key's statement, signed by the TLS key, and the succession that both log keys have
   signed. Whoever loads the directory passes over it as long as the key is not in its place.
3. The new key is renamed to ``log-key.pem``. From here on it is the log key; its statement is taken from ``log-keys.jsonl``.
4. ``log-key.jws`` becomes its statement, which is signed anew where a run before has left this to do.

A run that was killed is finished by the next one, where it has come to step 2; else that starts afresh. The old key is gone with
step 3: what it has signed needs its public part only, and a key that is not there is not stolen.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from securecore import limits
from securecore.audit.statement import LogKey, read_stated_key, sign_statement, verify_statement
from securecore.audit.succession import (
    Line,
    LogKeys,
    encode_history,
    parse_history,
    public_bytes,
    sign_succession,
    verify_log_keys,
    verify_succession,
)
from securecore.certs import judge
from securecore.certs.identity_directory import (
    LOG_KEY,
    LOG_KEYS,
    LOG_STATEMENT,
    Identity,
    load_identity,
    load_log_key,
    load_log_keys,
)
from securecore.certs.identity_lock import IdentityLock
from securecore.certs.private_file import read_public
from securecore.dump import directory
from securecore.errors import BrokenError, ConfigError, NotFoundError

_NEXT: Final = f".{LOG_KEY}.next"
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_MAX_KEY_BYTES: Final = 4096
"""An Ed25519 key in PEM takes 119 bytes."""


class Rekeying(NamedTuple):
    """What was done."""

    before: LogKey
    after: LogKey
    is_lost: bool
    """Whether the key before was lost, and has not signed."""
    was_interrupted: bool
    """Whether an earlier run had begun it."""


def rekey(path: Path, now: datetime, lost: Path | None = None) -> Rekeying:
    """Give the identity directory *path* a new log key, to which the present one hands over.

    With *lost*, a directory that has the statement of a lost log key of this receiver, and its history if there is one (the store,
    or *path* itself): the succession says so, and only the key after has signed it. That is a new one where the lost key is the one
    that *path* states, or has followed the one that *path* has; else the one that *path* has.

    Raises ConfigError when a key, statement or history is missing or does not hold, when the key is not lost, when the receiver's
    certificate would not be believed, when there were MAX_LOG_KEYS already, or when another run has the identity's lock for too
    long; StorageError when the disk refuses; NotFoundError when a file is missing. In each case the directory is as good as before.
    """
    with IdentityLock(path) as lock:
        # Under the lock: an installation would replace the TLS key, and the statement would be signed by one that is gone.
        identity = load_identity(path)
        work = _Work(path, lock.fd, identity, now)
        try:
            return work.replace() if lost is None else work.replace_lost(lost)
        except (BrokenError, judge.Refusal) as error:
            raise ConfigError(f"identity {path}: {error.message}", hint=error.hint) from error


class _Work:
    def __init__(self, path: Path, fd: int, identity: Identity, now: datetime) -> None:
        self._path = path
        self._fd = fd
        self._identity = identity
        self._now = now

    def replace(self) -> Rekeying:
        """Have the present key hand over to a new one, or finish that."""
        if (finished := self._finish()) is not None:
            return finished
        try:
            key, statement = load_log_key(self._path)
        except NotFoundError as error:
            raise NotFoundError(error.message, hint=f"where it is lost: `securecore audit rekey --lost {self._path}`") from error
        if read_stated_key(statement) != public_bytes(key):
            raise ConfigError(f"identity {self._path}: log-key.pem is not the key of log-key.jws")
        return self._put_new(key, verify_log_keys(statement, load_log_keys(self._path), self._identity.anchors))

    def replace_lost(self, source: Path) -> Rekeying:
        """Put on record that a key was lost, with a new one in its place where there is none yet."""
        if (finished := self._finish()) is not None:
            return finished
        token, history = read_public(source / LOG_STATEMENT, limits.MAX_STATEMENT_BYTES), load_log_keys(source)
        lost = verify_log_keys(token, history, self._identity.anchors)
        own = read_stated_key(read_public(self._path / LOG_STATEMENT, limits.MAX_STATEMENT_BYTES))
        if (there := self._key_in(LOG_KEY)) == lost.key.public_key:
            raise ConfigError(f"identity {self._path}: the log key is there", hint="without --lost it signs the succession itself")
        # A key that the lost one has followed, out of a backup, cannot follow it in turn.
        if (there is None and own == lost.key.public_key) or there in lost.key.earlier:
            return self._put_new(lost.key.public_key, lost)
        return self._put_before(*load_log_key(self._path), lost)

    def _put_before(self, key: Ed25519PrivateKey, statement: bytes, lost: LogKeys) -> Rekeying:
        """Put it on record that the key that is there took the place of a lost one."""
        after = verify_statement(statement, self._identity.anchors)
        # A history that does not have this key is left of an identity that somebody has put this one over.
        earlier = verify_log_keys(statement, load_log_keys(self._path), self._identity.anchors).key.earlier
        if lost.key.public_key in earlier:
            return Rekeying(lost.key, after, is_lost=True, was_interrupted=False)
        if earlier:
            raise ConfigError(f"identity {self._path}: its log key has others before it, and the lost one is none of them")
        if after.public_key != public_bytes(key):
            raise ConfigError(f"identity {self._path}: log-key.pem is not the key of log-key.jws")
        self._check_same(lost.key, after)
        note = sign_succession(after.name, lost.key.public_key, key, self._now)
        self._put_history((*lost.lines, Line(statement, note)))
        return Rekeying(lost.key, after, is_lost=True, was_interrupted=False)

    def _put_new(self, before: Ed25519PrivateKey | bytes, keys: LogKeys) -> Rekeying:
        """Do all four steps."""
        key = Ed25519PrivateKey.generate()
        name = keys.key.name
        statement, after = self._state(name, public_bytes(key))
        self._check_same(keys.key, after)
        note = sign_succession(name, before, key, self._now)
        self._put(_NEXT, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _PRIVATE_MODE)
        directory.sync(self._fd)
        self._put_history((*keys.lines, Line(statement, note)))
        self._put_in_place(statement)
        return Rekeying(keys.key, after, is_lost=isinstance(before, bytes), was_interrupted=False)

    def _state(self, name: str, public_key: bytes) -> tuple[bytes, LogKey]:
        """Return the statement of a log key by the TLS key that the directory has now, and what it says."""
        statement = sign_statement(name, public_key, self._identity.key_pem, self._identity.chain_der, self._now)
        return statement, verify_statement(statement, self._identity.anchors, self._now)

    def _finish(self) -> Rekeying | None:
        """Do the steps that an earlier run has left undone; return None where it has left none, or has not come to the second."""
        history = load_log_keys(self._path)
        lines = parse_history(history) if history is not None else ()
        if len(lines) < 2:
            return None
        newest = lines[-1].statement
        public_key, stated = read_stated_key(newest), read_public(self._path / LOG_STATEMENT, limits.MAX_STATEMENT_BYTES)
        if read_stated_key(stated) == public_key:
            return None
        if self._key_in(_NEXT) != public_key and self._key_in(LOG_KEY) != public_key:
            return None
        keys = verify_log_keys(newest, history, self._identity.anchors)
        # The certificate may be another one since then, and the one that was there may have expired.
        statement, after = self._state(keys.key.name, public_key)
        self._put_in_place(statement, is_key_there=self._key_in(LOG_KEY) == public_key)
        before = verify_statement(lines[-2].statement, self._identity.anchors)
        is_lost = verify_succession(lines[-1].succession or b"").is_lost
        return Rekeying(before, after, is_lost, was_interrupted=True)

    def _put_in_place(self, statement: bytes, *, is_key_there: bool = False) -> None:
        """Do steps 3 and 4."""
        if not is_key_there:
            self._rename(_NEXT, LOG_KEY)
        self._replace(LOG_STATEMENT, statement)

    def _put_history(self, lines: tuple[Line, ...]) -> None:
        if len(lines) > limits.MAX_LOG_KEYS:
            hint = "a receiver of a new name has a history of its own: `securecore pki issue receiver`"
            raise ConfigError(f"identity {self._path}: it has had {limits.MAX_LOG_KEYS} log keys, and no more are read", hint=hint)
        verify_log_keys(lines[-1].statement, encode_history(lines), self._identity.anchors)
        self._replace(LOG_KEYS, encode_history(lines))

    def _check_same(self, before: LogKey, after: LogKey) -> None:
        if before.name != after.name:
            words = f"identity {self._path}: the log key of {before.name} cannot be followed by one of {after.name}"
            raise ConfigError(words, hint="a receiver of another name begins a store of its own")

    def _key_in(self, name: str) -> bytes | None:
        """Return the public key of what stands in a file; None when it is no whole key."""
        data = directory.read_file(name, self._fd, _MAX_KEY_BYTES)
        try:
            key = load_pem_private_key(data or b"", password=None)
        except (ValueError, TypeError):
            return None
        return public_bytes(key) if isinstance(key, Ed25519PrivateKey) else None

    def _replace(self, name: str, data: bytes) -> None:
        aside = directory.aside_name(name)
        self._put(aside, data, _PUBLIC_MODE)
        self._rename(aside, name)

    def _put(self, name: str, data: bytes, mode: int) -> None:
        """Write a file, durably; one that a crash left is replaced. It is 0600 until it gets its mode, before it has a byte."""
        directory.remove_file(name, self._fd)
        file = directory.create_file(name, self._fd)
        try:
            os.fchmod(file, mode)
            directory.write_all(file, data)
            directory.sync(file)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot set the mode of {name!r}") from error
        finally:
            os.close(file)

    def _rename(self, name: str, to: str) -> None:
        try:
            os.rename(name, to, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            raise directory.disk_refused(error, f"cannot put {to!r} in its place") from error
        directory.sync(self._fd)

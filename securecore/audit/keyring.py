"""The log key in a receiver's identity directory, ready to sign, with those before it."""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from securecore.audit.checkpoint import LogSigner
from securecore.audit.statement import read_stated_key
from securecore.audit.succession import LogKeys, parse_history, public_bytes, verify_log_keys
from securecore.certs.chain import Anchors
from securecore.certs.identity_directory import load_log_key, load_log_keys
from securecore.errors import ConfigError


class Keyring(NamedTuple):
    """A log key that signs, and what proves whose it is."""

    signer: LogSigner
    keys: LogKeys


def load_keyring(path: Path, anchors: Anchors, now: datetime | None = None) -> Keyring:
    """Return the log key in the identity directory *path*; its statement is judged at *now*, else at the time that it gives.

    Where a rekeying was interrupted before it replaced log-key.jws, the statement is the one of log-keys.jsonl. A key that took the
    place of a lost one is trusted: whoever can write the directory has the keys. Raises ConfigError when log-key.pem is not the
    stated key, BrokenError or the judge's Refusal when a statement or the history does not hold, and as load_identity does.
    """
    key, statement = load_log_key(path)
    history = load_log_keys(path)
    public_key = public_bytes(key)
    if read_stated_key(statement) != public_key:
        lines = parse_history(history) if history is not None else ()
        statements = [line.statement for line in lines if read_stated_key(line.statement) == public_key]
        if not statements:
            raise ConfigError(f"identity {path}: log-key.pem is not the key of log-key.jws")
        statement = statements[0]
    keys = verify_log_keys(statement, history, anchors, now)
    return Keyring(LogSigner(keys.key.name, key, keys.key.earlier), keys)

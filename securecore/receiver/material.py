"""What the receiver proves itself with and judges others by: loaded and tested as a whole, replaced as a whole.

A reload makes a new Material and only then lets go of the old one; material that does not hold together is refused and the last
good one stays. Contexts are never changed in place, so no connection sees half a reload.
"""

import ssl
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from securecore import tls
from securecore.audit import statement
from securecore.audit.checkpoint import LogSigner
from securecore.certs.identity_directory import Identity, ReceiverParts, load_identity, load_receiver_parts
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, SecurecoreError


class Material(NamedTuple):
    """An identity directory, loaded, with everything in it held against everything else."""

    context: ssl.SSLContext
    identity: Identity
    parts: ReceiverParts
    revocation: RevocationLists
    own: Judgement
    signer: LogSigner

    def judge_host(self, leaf_der: bytes, now: datetime) -> Judgement:
        """Return the host whose certificate this is; raises judge.Refusal when it is not believed. Not checked: revocation."""
        return judge(leaf_der, [], self.identity.anchors, Purpose.HOST, now)


def load_material(path: Path, now: datetime, previous: Material | None = None) -> Material:
    """Return the material in the identity directory *path*.

    Raises ConfigError (and its kin) when a file is missing or malformed, when our own certificate would not be believed by a
    sender, when the log key is not the one of its statement, or when, after *previous*, the log key has changed or a CRL is older.
    """
    identity, parts = load_identity(path), load_receiver_parts(path)
    try:
        own = judge(identity.chain_der[0], identity.chain_der[1:], identity.anchors, Purpose.RECEIVER, now)
        log_key = statement.verify_statement(parts.log_statement, identity.anchors, now)
    except SecurecoreError as error:
        raise ConfigError(f"identity {path}: {error.message}", hint=error.hint) from error
    signer = LogSigner(log_key.name, parts.log_key)
    if signer.public_key != log_key.public_key:
        raise ConfigError(f"identity {path}: log-key.pem is not the key of log-key.jws")
    revocation = RevocationLists.parse(parts.crl_pem, identity.anchors)
    if previous is not None:
        revocation.check_not_older_than(previous.revocation)
        if previous.signer.public_key != signer.public_key or previous.signer.name != signer.name:
            raise ConfigError("the log key has changed", hint="restart the receiver to use another log key")
    return Material(tls.receiver_context(str(path)), identity, parts, revocation, own, signer)

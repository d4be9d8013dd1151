"""What the receiver proves itself with and judges others by: loaded and tested as a whole, replaced as a whole.

A reload makes a new Material and only then lets go of the old one; material that does not hold together is refused and the last
good one stays. Contexts are never changed in place, so no connection sees half a reload.
"""

import ssl
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits, tls
from securecore.audit.checkpoint import LogSigner
from securecore.audit.keyring import load_keyring
from securecore.audit.statement import sign_statement
from securecore.audit.succession import LogKeys
from securecore.certs.identity_directory import CA, Identity, ReceiverParts, load_identity, load_receiver_parts
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, find_host, judge
from securecore.certs.private_file import read_public
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import HostName
from securecore.receiver.log_keys import HINT
from securecore.store.crls import CrlFile

_WARNED_DAYS: Final = 30
"""A third of the life that a certificate has by default."""


class Material(NamedTuple):
    """An identity directory, loaded, with everything in it held against everything else."""

    context: ssl.SSLContext
    identity: Identity
    parts: ReceiverParts
    revocation: RevocationLists
    own: Judgement
    signer: LogSigner
    log_keys: LogKeys
    """The signer's key, stated, and those before it."""
    crl: CrlFile
    """What *revocation* was read from."""

    anchors_pem: bytes
    """ca.pem as it stands in the directory."""

    def judge_host(self, leaf_der: bytes, now: datetime) -> Judgement:
        """Return the host whose certificate this is; raises judge.Refusal when it is not believed. Not checked: revocation."""
        return judge(leaf_der, [], self.identity.anchors, Purpose.HOST, now)

    def find_host(self, leaf_der: bytes, refusal: Refusal) -> HostName | None:
        """Return the host whose certificate judge_host has refused with *refusal*, where only its dates speak against it."""
        return find_host(leaf_der, self.identity.anchors) if refusal.reason in (Reason.EXPIRED, Reason.NOT_YET_VALID) else None

    def warnings(self, now: datetime) -> list[str]:
        """Return a line for the operator on each thing that ends soon: revocation lists, and our own certificate."""
        days = (self.own.not_after - now).days
        own = [f"the receiver's certificate expires in {days} days"] if days < _WARNED_DAYS else []
        return self.revocation.warnings(now) + own

    def statement_for(self, receipt: bytes, now: datetime) -> bytes:
        """Return the statement of the log key that has signed a receipt; that of the key in use where none before it has.

        Of a key before it a new one: senders believe no certificate that has expired since it stated the key.
        """
        earlier = self.log_keys.find_earlier(receipt)
        if earlier is None:
            return self.log_keys.lines[-1].statement
        return sign_statement(self.signer.name, earlier, self.identity.key_pem, self.identity.chain_der, now)

    def find_crl(self, leaf_der: bytes, now: datetime) -> CrlFile | None:
        """Return the CRLs in force when a host's certificate is believed by them; None when it is not, for whatever reason."""
        try:
            self.revocation.check(self.judge_host(leaf_der, now), now)
        except Refusal:
            return None
        return self.crl


def load_material(path: Path, now: datetime, previous: Material | None = None) -> Material:
    """Return the material in the identity directory *path*.

    Raises ConfigError (and its kin) when a file is missing or malformed, when our own certificate would not be believed by a
    sender, when the log key is not the one of its statement, or when, after *previous*, a CRL is older or the log key is another
    that does not go on with it.
    """
    identity, parts = load_identity(path), load_receiver_parts(path)
    try:
        own = judge(identity.chain_der[0], identity.chain_der[1:], identity.anchors, Purpose.RECEIVER, now)
        signer, log_keys = load_keyring(path, identity.anchors, now)
    except ConfigError:
        raise
    except SecurecoreError as error:
        raise ConfigError(f"identity {path}: {error.message}", hint=error.hint) from error
    revocation = RevocationLists.parse(parts.crl_pem, identity.anchors)
    if previous is not None:
        revocation.check_not_older_than(previous.revocation, identity.anchors)
        if previous.signer.public_key not in (signer.public_key, *signer.earlier) or previous.signer.name != signer.name:
            raise ConfigError("the log key is another one, and the one in use has signed no succession to it", hint=HINT)
    context, anchors_pem = tls.receiver_context(str(path)), read_public(path / CA, limits.MAX_STATEMENT_BYTES)
    return Material(context, identity, parts, revocation, own, signer, log_keys, CrlFile.of(parts.crl_pem), anchors_pem)

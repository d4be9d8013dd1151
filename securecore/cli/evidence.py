"""What vouches for a dump: manifest, certificate and receipt, checked as far as it goes without reading the core."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit import statement
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import Held, check_received, find_time, parse_incomplete
from securecore.audit.proof import Receipt, verify_receipt
from securecore.audit.statement import LogKey
from securecore.certs import chain, jws
from securecore.certs.chain import Anchors
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.cli import terminal
from securecore.cli.options import read_file
from securecore.dump.manifest import MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, ConfigError, NotFoundError, SecurecoreError
from securecore.store.layout import Store
from securecore.store.reading import DumpFiles

OWN_ROOT: Final = "verified up to the store's own copy of the root; give --root for a check that does not trust the store"


class Papers(NamedTuple):
    """What was found, and for each what is wrong with it."""

    manifest: Manifest | None
    certificate: Judgement | None
    receipt: Receipt | None
    manifest_problem: str | None
    receipt_problem: str | None
    root_is_the_stores_own: bool
    """The root was taken from the store itself, which proves nothing against whoever can write the store."""
    given_up: Held | None
    """What was held of a dump when it was given up, by the entry that the receipt proves."""

    def marks(self) -> Iterator[tuple[str, str | None]]:
        """Yield what was looked at and what is wrong with it, None when nothing is."""
        if self.manifest is not None or self.manifest_problem is not None:
            yield "manifest", self.manifest_problem
        if self.receipt is not None or self.receipt_problem is not None:
            yield "receipt", self.receipt_problem


def load_anchors(store: Store, root_path: Path | None) -> tuple[Anchors, bool]:
    """Return what to verify up to, and whether it is the store's own copy.

    Raises ConfigError when neither a root was given nor the store has one.
    """
    if root_path is not None:
        return chain.load_anchors(read_file(root_path, limits.MAX_STATEMENT_BYTES), what=str(root_path)), False
    own = store.read_anchors()
    if own is None:
        raise ConfigError("the store has no copy of a root", hint="give --root CA.PEM")
    return chain.load_anchors(own, what="the store's ca.pem"), True


def load_log_key(store: Store, anchors: Anchors) -> LogKey:
    """Return the log key of the store's receiver, its statement verified; raises NotFoundError when there is none."""
    token = store.read_log_key()
    if token is None:
        raise NotFoundError("the store has no log key statement", hint="`securecore receive` puts it there when it starts")
    return statement.verify_statement(token, anchors)


def check_papers(store: Store, files: DumpFiles, root_path: Path | None) -> Papers:
    """Return the papers of a dump; what is wrong with them is said, not raised."""
    anchors, is_own = load_anchors(store, root_path)
    token, receipt_text = files.read_manifest(), files.read_receipt()
    manifest = certificate = receipt = given_up = None
    manifest_problem = receipt_problem = None
    if token is not None:
        try:
            manifest = parse_manifest(jws.verify(token, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES).payload)
        except SecurecoreError as error:
            manifest_problem = error.message
    if receipt_text is not None:
        try:
            log_key = load_log_key(store, anchors)
            receipt = verify_receipt(receipt_text, origin_of(log_key.name, files.host), log_key.public_key)
            if manifest is not None and token is not None:
                check_received(receipt.fields, manifest, token)
            elif token is None:
                given_up = parse_incomplete(receipt.fields, files.dump_id, files.host, store.store_id)
        except SecurecoreError as error:
            receipt_problem = error.message
    if manifest is not None and token is not None:
        try:
            certificate = _judge_signer(token, manifest, receipt, anchors)
        except SecurecoreError as error:
            manifest_problem = error.message
    return Papers(manifest, certificate, receipt, manifest_problem, receipt_problem, is_own, given_up)


def _judge_signer(token: bytes, manifest: Manifest, receipt: Receipt | None, anchors: Anchors) -> Judgement:
    """Return the certificate that signed the manifest, judged at the time of the receipt: the host's own clock may be wrong."""
    parts = jws.parse(token, limits.MAX_MANIFEST_BYTES)
    moment = find_time(receipt.fields) if receipt else terminal.moment(manifest.ended_at / 1000)
    if moment is None:
        raise BrokenError("its time is in no calendar")
    judgement = judge(parts.chain_der[0], parts.chain_der[1:], anchors, Purpose.HOST, moment)
    if judgement.name != manifest.host:
        raise BrokenError(f"it is signed by {judgement.name}")
    return judgement

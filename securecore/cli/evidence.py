"""What vouches for a dump: manifest, certificate and receipt, checked as far as it goes without reading the core."""

from collections.abc import Callable, Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import click

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import INCOMPLETE, Held, Value, check_received, find_time, parse_entry, parse_incomplete
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.revocation import KeptLists
from securecore.audit.statement import LogKey
from securecore.audit.succession import verify_log_keys
from securecore.certs import chain, jws
from securecore.certs.chain import Anchors
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.cli import terminal
from securecore.cli.options import read_file
from securecore.dump.manifest import MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, ConfigError, NotFoundError, SecurecoreError, StorageError
from securecore.store.crls import read_crl
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
    claims_given_up: bool
    """Whether there is no manifest, and a receipt whose entry says that it was given up, proved or not."""
    has_manifest: bool
    """Whether anything stands in the manifest's place."""
    has_lists: bool
    """Whether receipt and manifest hold, and the entry refers to the revocation lists by which the certificate was judged."""
    revocation_problem: str | None
    """Why these do not vouch for the certificate: they are gone, or speak against it."""
    report_problem: str | None
    core_problem: str | None
    """Of the core only the length is looked at."""

    @property
    def sound_manifest(self) -> Manifest | None:
        """The manifest, if nothing is wrong with it."""
        return self.manifest if self.manifest_problem is None else None

    def marks(self) -> Iterator[tuple[str, str | None]]:
        """Yield what was looked at and what is wrong with it, None when nothing is."""
        if self.manifest is not None or self.manifest_problem is not None:
            yield "manifest", self.manifest_problem
        if self.receipt is not None or self.receipt_problem is not None:
            yield "receipt", self.receipt_problem
        if self.has_lists:
            yield "revocation", self.revocation_problem
        if self.report_problem is not None:
            yield "report", self.report_problem
        if self.core_problem is not None:
            yield "core", self.core_problem


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


def load_log_key(store: Store, anchors: Anchors, trusted: Collection[str] = ()) -> LogKey:
    """Return the log key of the store's receiver with those before it, all verified; raises NotFoundError when there is none.

    A key that took the place of a lost one, and is not among the *trusted* verifier keys, is told on standard error.
    """
    log_key = _read_log_key(store, anchors, trusted)
    if log_key.cut is not None:
        click.echo(f"note: {terminal.printable(log_key.cut, 1000)}", err=True)
        click.echo("  hint: where its operator has told you so, --trust-log-key with the first of the two accepts both", err=True)
    return log_key


def _read_log_key(store: Store, anchors: Anchors, trusted: Collection[str] = ()) -> LogKey:
    token = store.read_log_key()
    if token is None:
        raise NotFoundError("the store has no log key statement", hint="`securecore receive` puts it there when it starts")
    return verify_log_keys(token, store.read_log_keys(), anchors, trusted=trusted).key


def check_papers(store: Store, files: DumpFiles, root_path: Path | None, trusted: Collection[str] = ()) -> Papers:
    """Return the papers of a dump; what is wrong with them is said, not raised."""
    anchors, is_own = load_anchors(store, root_path)
    manifest = certificate = receipt = given_up = None
    token, manifest_problem = read_paper(files.read_manifest)
    receipt_text, receipt_problem = read_paper(files.read_receipt)
    has_manifest = token is not None or manifest_problem is not None
    entry = find_entry(receipt_text or b"")
    claims_given_up = not has_manifest and entry.get("event") == INCOMPLETE
    if token is not None:
        try:
            manifest = _read_manifest(token, files, store)
        except SecurecoreError as error:
            manifest_problem = error.message
    if receipt_text is not None:
        try:
            log_key = _read_log_key(store, anchors, trusted)
            receipt = _read_receipt(receipt_text, files, log_key)
            if manifest is not None and token is not None:
                check_received(receipt.fields, manifest, token)
            elif claims_given_up:
                given_up = parse_incomplete(receipt.fields, files.dump_id, files.host, store.store_id)
        except SecurecoreError as error:
            receipt_problem = error.message
    elif files.is_published and receipt_problem is None:
        receipt_problem = "missing"
    if manifest is not None and token is not None:
        try:
            certificate = _judge_signer(token, manifest, receipt, anchors)
        except SecurecoreError as error:
            manifest_problem = error.message
    has_lists, revocation_problem = False, None
    if certificate is not None and receipt is not None and receipt_problem is None:
        has_lists = receipt.fields.get("crl_sha256") is not None
        revocation_problem = _find_revocation_problem(store, receipt, certificate) if has_lists else None
    return Papers(
        manifest,
        certificate,
        receipt,
        manifest_problem,
        receipt_problem,
        is_own,
        given_up,
        claims_given_up,
        has_manifest,
        has_lists=has_lists,
        revocation_problem=revocation_problem,
        report_problem=_find_report_problem(files, manifest or given_up),
        core_problem=_find_core_problem(files, entry),
    )


def find_entry(receipt: bytes) -> Mapping[str, Value]:
    """Return the entry that a receipt is about, unverified; empty when it is about none."""
    try:
        return parse_entry(parse_proof(receipt).extra or b"")
    except BrokenError:
        return {}


def _read_manifest(token: bytes, files: DumpFiles, store: Store) -> Manifest:
    """Return a manifest that is signed, and of this dump; whether the signer was the host is for _judge_signer."""
    manifest = parse_manifest(jws.verify(token, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES).payload)
    stated, ours = (manifest.dump, manifest.host, manifest.store), (files.dump_id, files.host, store.store_id)
    for what, theirs, wanted in zip(("dump", "host", "store"), stated, ours, strict=True):
        if theirs != wanted:
            raise BrokenError(f"it is of another {what}, {theirs}")
    return manifest


def _read_receipt(text: bytes, files: DumpFiles, log_key: LogKey) -> Receipt:
    """Return a receipt that proves an entry of the host's log, and of this dump."""
    receipt = verify_receipt(text, origin_of(log_key.name, files.host), log_key.public_key, log_key.earlier)
    if (of := receipt.fields.get("dump")) != str(files.dump_id):
        raise BrokenError(f"it is of another dump, {terminal.printable(str(of), 36)}")
    return receipt


def _find_report_problem(files: DumpFiles, stated: Manifest | Held | None) -> str | None:
    """Return why a report is not the one that was sent; None when it is, or nothing says which one that was."""
    text, problem = read_paper(files.read_report)
    if text is None:
        return problem or "report.json is missing"
    if stated is not None and sha256(text).digest() != stated.report_sha256:
        return "it is not the one that was sent"
    return None


def _find_core_problem(files: DumpFiles, entry: Mapping[str, Value]) -> str | None:
    """Return why a core is not as long as the receipt's entry says; None when it is, or there is no entry of this dump."""
    if entry.get("dump") != str(files.dump_id) or "stored_bytes" not in entry:
        return None
    found, said = files.core_bytes(), entry["stored_bytes"]
    return f"it has {found} bytes, the entry says {terminal.printable(str(said), 24)}" if found != said else None


def _find_revocation_problem(store: Store, receipt: Receipt, certificate: Judgement) -> str | None:
    """Return why the revocation lists to which an entry refers do not vouch for a judged certificate; None when they do."""
    moment = find_time(receipt.fields)
    if moment is None:
        return "the entry's time is in no calendar"
    try:
        KeptLists(lambda digest: read_crl(store, digest)).check(receipt.fields["crl_sha256"], certificate, moment)
    except SecurecoreError as error:
        return error.message
    return None


def read_paper(read: Callable[[], bytes | None]) -> tuple[bytes | None, str | None]:
    """Return what *read* finds, and why it finds nothing that could be read: a directory, a link, a file that is too long."""
    try:
        return read(), None
    except StorageError as error:
        return None, error.message


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

"""From the last frame to the receipt, in the one order that survives a crash at any instant.

1. The manifest is checked against what is held.
2. The revocation lists by which the certificate was judged, the core with its seek table, then the manifest: durable.
3. The audit entry, which refers to these lists, then the checkpoint over it: durable. From here on the dump counts as received.
4. The receipt into the dump's directory: durable.
5. The directory is moved among the published ones: durable.
6. Only then does the sender hear of it.

A start, or the caretaker, finds a dump in any of these states and goes on from step 3: an entry that is there is not written
again. It is this dump's when it names this manifest; a dump whose files were lost may have been received before. By which lists the
certificate was judged is not known then. The entry refers to those of now if they do not speak against it, else to none.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from securecore.audit.entry import RECEIVED, received_entry
from securecore.audit.introductions import Introduction
from securecore.audit.log import HostLog, HostLogs
from securecore.audit.log_files import ENTRIES
from securecore.certs import jws
from securecore.certs.chain import Anchors
from securecore.certs.judge import Purpose, Refusal, judge
from securecore.dump import directory
from securecore.dump.manifest import COMPLETE, MANIFEST_TYP, Manifest, parse_manifest
from securecore.errors import BrokenError, BusyError, SecurecoreError
from securecore.limits import MAX_MANIFEST_BYTES
from securecore.names import DumpId, HostName, StoreId
from securecore.receiver.deletion import Tombstone, Tombstones, roll_forward_deletions, settle
from securecore.report import parse_report
from securecore.store.crls import CrlArchive, CrlFile
from securecore.store.layout import Place, Store
from securecore.store.recovery import sweep_incoming
from securecore.store.writer import IncomingDump


class ManifestRefused(BrokenError):
    """The sender's manifest does not hold; the fault is the sender's, not that of what is stored here."""


class Signed(NamedTuple):
    """A manifest whose signature is by the key of its own x5c[0]; whose key that is, is not yet known.

    Only read_signed makes one.
    """

    token: bytes
    chain_der: list[bytes]
    manifest: Manifest


class Committer:
    """Writes audit entries and publishes dumps; for several threads at once. The caller holds the store's lock."""

    def __init__(
        self,
        store: Store,
        logs: HostLogs,
        clock: Callable[[], datetime],
        find_crl: Callable[[bytes], CrlFile | None] = lambda certificate: None,
    ) -> None:
        """*find_crl* returns the CRLs in force, for a certificate (DER) that they do not speak against."""
        self._store = store
        self._logs = logs
        self._tombstones = Tombstones(logs)
        self._clock = clock
        self._find_crl = find_crl
        self._crls = CrlArchive(store)

    def finish(self, dump: IncomingDump, signed: Signed, report: bytes, certificate: bytes, crl: CrlFile | None = None) -> bytes:
        """Do steps 1 to 5 for a dump whose frames are all here; return its receipt.

        *report* is as the session's OPEN had it, and no other than what is stored: the dump began with it, or IncomingDump.resume
        has compared the two. *certificate* is the leaf (DER) that the session was opened with, *crl* that by which it was judged
        just now. Raises ManifestRefused when the manifest does not hold; then nothing was written and the frames stay
        for another try, as they do where the disk does not take the CRL.
        """
        check_manifest(signed, dump, self._store.store_id, report, certificate)
        self.keep_lists(crl)
        dump.finish(signed.token)
        return self._commit(dump, signed, report, crl)

    def commit(self, dump: IncomingDump) -> bytes:
        """Do steps 1 and 3 to 5 for a dump that was resumed with its manifest; return its receipt.

        Raises BrokenError when the manifest does not hold for what is here now; then nothing was written.
        """
        try:
            signed, report = read_signed(dump.read_manifest()), dump.read_report()
            check_manifest(signed, dump, self._store.store_id, report, None)
        except ManifestRefused as error:  # It did hold when it was stored: the disk is to blame, and no sender.
            raise BrokenError(f"dump {dump.dump_id} is damaged since its manifest was durable: {error.message}") from error
        crl = self._find_crl(signed.chain_der[0]) if not dump.has_receipt else None
        self.keep_lists(crl)
        return self._commit(dump, signed, report, crl)

    def find_tombstone(self, host: HostName, dump_id: DumpId) -> Tombstone | None:
        """Return the tombstone of a dump that is not in the store; None for one that is, or was never received, or not deleted.

        Raises BusyError while a deletion is under way: the dump may come back from there.
        """
        if self._store.find_place(host, dump_id) is not None:
            return None
        tombstone = self._tombstones.find(host, dump_id)
        if tombstone is None and str(dump_id) in self._store.dump_names(Place.DELETING, host):
            raise BusyError(f"dump {dump_id} is being deleted")
        return tombstone

    def roll_forward(self) -> list[tuple[str, SecurecoreError | None]]:
        """Finish what a crash has interrupted; return each such dump in words, with what stood in the way.

        A dump that cannot be finished stays where it is, for its operator to look at, and does not keep the receiver from starting.
        """
        self._finish_new_logs()
        # Deletions before dumps: what is put back may itself have to be published.
        done = roll_forward_deletions(self._store, self._logs)
        leftovers = sweep_incoming(self._store)
        done += [(f"{dump_id} of {host}", error) for host, dump_id, error in leftovers.stuck]
        for host, dump_id in (*leftovers.finished, *leftovers.given_up):
            try:
                self.finish_interrupted(host, dump_id)
                done.append((f"{dump_id} of {host}", None))
            except SecurecoreError as error:
                done.append((f"{dump_id} of {host}", error))
        return done

    def _finish_new_logs(self) -> None:
        """Make the logs whole whose making a crash has interrupted, so that none is missed in a store that nobody has touched.

        What is wrong with another one is found by whoever uses it, and by `audit verify`.
        """
        for host in self._store.audited_hosts():
            with suppress(SecurecoreError):
                fd = self._store.audit_directory(host, create=False)
                try:
                    is_made = ENTRIES in directory.names_in(fd)
                finally:
                    os.close(fd)
                if not is_made:
                    with self._logs.using(host):
                        pass

    def finish_interrupted(self, host: HostName, dump_id: DumpId, between: Callable[[], None] = lambda: None) -> None:
        """Publish a dump under incoming whose manifest or receipt is durable; *between* and errors as of IncomingDump.resume.

        Raises BrokenError too when the manifest does not hold. The caller has claimed the dump, or no session runs.
        """
        dump = IncomingDump.resume(self._store, host, dump_id, between=between)
        try:
            if dump.is_given_up:  # Its receipt is durable, so only the rename is missing (receiver/abandonment.py).
                dump.publish()
            else:
                self.commit(dump)
        finally:
            dump.close()

    def settle_deletion(self, host: HostName, dump_id: DumpId) -> bool:
        """Finish, or undo, a deletion that was interrupted, as a start does; return whether the dump is deleted.

        Raises NotFoundError where none is under way any more. The caller has claimed the dump.
        """
        return settle(self._store, self._logs, host, dump_id)

    def keep_lists(self, crl: CrlFile | None) -> None:
        """Keep revocation lists in the store, durably, once; raises StorageError."""
        if crl is not None:
            self._crls.keep(crl)

    def _commit(self, dump: IncomingDump, signed: Signed, report: bytes, crl: CrlFile | None) -> bytes:
        if dump.has_receipt:
            receipt = dump.read_receipt()
        else:
            with self._logs.using(dump.host) as log:
                standing = log.standing(dump.dump_id)
                digest = sha256(signed.token).digest()
                if standing is not None and (standing.event, standing.digest) == (RECEIVED, digest):
                    receipt = log.receipt_for(standing.index)
                else:
                    receipt = self._append(log, dump, signed, report, crl)
            dump.put_receipt(receipt)
        dump.publish()
        return receipt

    def _append(self, log: HostLog, dump: IncomingDump, signed: Signed, report: bytes, crl: CrlFile | None) -> bytes:
        """Write the entry, and with it that of its certificate, where a session of an earlier version began the dump."""
        moment, certificate, said = self._clock().astimezone(UTC), signed.chain_der[0], parse_report(report)
        entry = received_entry(
            moment,
            signed.manifest,
            signed.token,
            stored_bytes=dump.container_bytes,
            certificate=sha256(certificate).hexdigest(),
            crl_sha256=crl.sha256 if crl is not None else None,
            program=said.program,
            signal=said.signal,
            wide_head=self._logs.find_wide_head(),
        )
        return log.append_all([entry], Introduction(dump.host, dump.dump_id, certificate, moment))[0]


def read_signed(token: bytes) -> Signed:
    """Return the manifest in *token*; raises ManifestRefused unless it is well formed and signed by the key of its own x5c[0]."""
    try:
        parts = jws.verify(token, MANIFEST_TYP, MAX_MANIFEST_BYTES)
        return Signed(token, parts.chain_der, parse_manifest(parts.payload))
    except BrokenError as error:
        raise ManifestRefused(error.message) from error


def check_signer(signed: Signed, anchors: Anchors, now: datetime) -> None:
    """Check that whoever has our roots and nothing else believes the chain of a manifest; raises ManifestRefused.

    The session's certificate was judged with the issuers that this receiver has at hand. A verifier has what x5c holds: a dump
    whose manifest leaves them out would be stored, receipted and never verify.
    """
    try:
        judge(signed.chain_der[0], signed.chain_der[1:], Anchors(anchors.roots, ()), Purpose.HOST, now)
    except Refusal as error:
        raise ManifestRefused(f"manifest's chain does not hold by itself: {error.message}") from error


def check_manifest(signed: Signed, dump: IncomingDump, store: StoreId, report: bytes, certificate: bytes | None) -> None:
    """Hold a manifest against everything that is known of the dump; raises ManifestRefused.

    1. The key of its signature, which is that of its own x5c[0], is that of the session's *certificate* (when there is one).
    2. It speaks of this dump, this host and this store.
    3. Number of frames, plaintext size and Merkle root are those that were recomputed here; the report's digest likewise.
    4. It does not claim more than it says: ``complete`` is not shorter than predicted.

    Not checked: the chain above the certificate; check_signer does that.
    """
    manifest = signed.manifest
    if certificate is not None and signed.chain_der[0] != certificate:
        raise ManifestRefused("manifest is signed with another certificate than the session's")
    expected = {
        "dump": dump.dump_id,
        "host": dump.host,
        "store": store,
        "frames": dump.frames,
        "size": dump.plain_bytes,
        "root": dump.root,
        "report_sha256": sha256(report).digest(),
    }
    for field, value in expected.items():
        if getattr(manifest, field) != value:
            raise ManifestRefused(f"manifest states another {field} than what was received")
    if manifest.outcome == COMPLETE and manifest.predicted_size is not None and manifest.size < manifest.predicted_size:
        raise ManifestRefused("manifest calls a dump complete that is shorter than predicted")

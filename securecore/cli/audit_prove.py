"""``securecore audit prove``: one dump's bundle, for somebody who has the root certificate and no store."""

import os
import sys
from pathlib import Path
from typing import Final

import click

from securecore.audit.bundle import Bundle
from securecore.audit.bundle_verification import BundleVerification, verify_bundle
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import INCOMPLETE
from securecore.audit.proof import parse_proof
from securecore.audit.revocation import find_reference
from securecore.audit.standing_proof import Proofs, prove_standing
from securecore.audit.statement import LogKey
from securecore.certs.chain import Anchors
from securecore.cli import evidence, options, terminal, tombstones
from securecore.cli.options import host_option, root_option, store_option
from securecore.cli.sources import check_stream, local_output
from securecore.errors import BrokenError, IncompleteError, NotFoundError, StorageError
from securecore.names import DumpId, HostName
from securecore.store.crls import read_crl
from securecore.store.layout import Place, Store, open_store
from securecore.store.lookup import find_candidates
from securecore.store.reading import DumpFiles

EPILOG: Final = """\b
Examples:
  securecore audit prove 9c41d07e --root ca.pem -o 9c41d07e.tar
  securecore audit prove 9c41d07e --with-report -o - | ssh auditor 'cat > 9c41d07e.tar'
  tar tvf 9c41d07e.tar
Exit code 6: the evidence does not hold, and no bundle was written. 7: the dump is still coming in.
"""

_LOOKS: Final = 3
"""Between our look at the log and our look at a dump's files, a receiver may have moved it on."""
_HINT: Final = "`securecore verify` and `securecore audit verify` say what is wrong"


@click.command("prove", epilog=EPILOG, short_help="Write what proves one dump to a third party.")
@click.argument("text", metavar="ID")
@click.option("-o", "--output", required=True, metavar="FILE|-", help="Where to; a file is 0600 and never overwritten.")
@click.option("--with-report", is_flag=True, help="The report too: arguments and paths of the process stand in it.")
@store_option
@host_option
@root_option
def command(
    text: str,
    output: str,
    with_report: bool,
    store_path: str,
    host_text: str | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
) -> None:
    """Write what proves one dump to a third party: that this host sent it, when, and that it is in this receiver's log.

    A tar of the manifest, a proof under the log's newest checkpoint, the statement of the log's key, and the revocation lists of
    the reception. No byte of the core is in it. Of a dump that was deleted it proves what the log says. `audit check` verifies it
    where there is no store.
    """
    if not output:
        raise click.BadParameter("an empty text names no file", param_hint="'--output'")
    if output == "-":
        check_stream(sys.stdout, "standard output", "a bundle does not belong on a terminal; use -o FILE, or pipe it somewhere")
    elif os.path.lexists(output):
        raise StorageError(f"{output}: already exists", hint="name another file, or remove it first")
    with open_store(store_path) as store:
        anchors, is_own = evidence.load_anchors(store, root_path)
        host, dump = _find_dump(store, text, options.find_host(host_text, store))
        log_key = evidence.load_log_key(store, anchors, trusted)
        bundle, found = _Assembly(store, host, dump, anchors, log_key, with_report=with_report).make()
    with local_output(output) as target:
        target.write(bundle.encode())
        target.publish()
    if with_report and found.deletion is not None:
        click.echo(f"note: the report of {dump.short} was deleted with it", err=True)
    if output != "-":
        names = ", ".join("crls" if name.startswith("crls/") else name for name, _ in bundle.members())
        click.echo(f"{dump.short}  bundle of {host} written to {output}: {names}")
    if is_own:
        click.echo(evidence.OWN_ROOT, err=True)


def _find_dump(store: Store, text: str, host: HostName | None) -> tuple[HostName, DumpId]:
    """Return the one dump that *text* means, in the store or deleted; raises as ``tombstones.find_dump`` does."""
    if not find_candidates(store, text, host).dumps:
        deleted = [absence for absence in tombstones.find_absences(store, text, host) if absence.is_deleted]
        if len(deleted) == 1:
            return deleted[0].host, deleted[0].dump
    return tombstones.find_dump(store, text, host, lost=BrokenError)


class _Assembly:
    """The making of one dump's bundle, which is verified before anybody gets it."""

    def __init__(self, store: Store, host: HostName, dump: DumpId, anchors: Anchors, log_key: LogKey, *, with_report: bool) -> None:
        self._store = store
        self._host = host
        self._dump = dump
        self._anchors = anchors
        self._with_report = with_report
        self._log_key = log_key

    def make(self) -> tuple[Bundle, BundleVerification]:
        """Return the bundle and what holds of it, which is all; raises BrokenError when the evidence is not sound."""
        for _ in range(_LOOKS):
            bundle = self._gather()
            found = verify_bundle(bundle, self._anchors)
            if found.ok:
                return bundle, found
        failed = next(check for check in found.checks if not check.ok and check.number not in found.excused)
        problem = f"{failed.what}: {terminal.printable(failed.detail, 200)}"
        raise BrokenError(f"{self._dump.short} cannot be proved: {problem}", hint=_HINT)

    def _gather(self) -> Bundle:
        proofs = self._prove(self._log_key)
        statement = self._store.read_log_key()
        if proofs.receipt is None or statement is None:
            raise self._nothing_to_prove(proofs)
        bundle = Bundle(statement, proofs.receipt, proofs.deletion)
        if proofs.deletion is not None:
            return bundle
        try:
            files = self._store.open_dump(self._host, self._dump)
        except NotFoundError:
            tombstones.check_present(self._store, self._host, self._dump, lost=BrokenError)
            raise
        with files:
            return self._add_papers(bundle, files)

    def _add_papers(self, bundle: Bundle, files: DumpFiles) -> Bundle:
        if self._with_report:
            report = files.read_report()
            if report is None:
                raise BrokenError(f"{self._dump.short}: report.json is missing", hint=_HINT)
            bundle = bundle._replace(report=report)
        if evidence.find_entry(bundle.receipt).get("event") == INCOMPLETE:
            return bundle
        digest = find_reference(parse_proof(bundle.receipt).extra or b"")
        pem = read_crl(self._store, digest) if digest is not None else None
        lists = (digest, pem) if digest is not None and pem is not None else None
        return bundle._replace(manifest=files.read_manifest(), lists=lists)

    def _prove(self, log_key: LogKey) -> Proofs:
        try:
            fd = self._store.audit_directory(self._host, create=False)
        except NotFoundError as error:
            raise self._nothing_to_prove(Proofs(None, None)) from error
        try:
            return prove_standing(fd, origin_of(log_key.name, self._host), log_key.public_key, self._dump)
        except BrokenError as error:
            raise BrokenError(f"the audit log of {self._host} proves nothing: {error.message}", hint=_HINT) from error
        finally:
            os.close(fd)

    def _nothing_to_prove(self, proofs: Proofs) -> BrokenError | IncompleteError | NotFoundError:
        if proofs.deletion is not None:
            words = f"{self._dump.short} was deleted before it had come in; the log proves nothing else of it"
            return NotFoundError(words, hint=f"`securecore audit log {self._dump.short}` has its history")
        if self._store.find_place(self._host, self._dump) is Place.INCOMING:
            words = f"{self._dump.short} is still coming in"
            return IncompleteError(words, hint="its log proves something of it once it was received, or given up")
        return BrokenError(f"the audit log of {self._host} says nothing of {self._dump.short}", hint=_HINT)

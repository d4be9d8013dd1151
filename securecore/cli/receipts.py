"""``securecore receipts``: what receivers have proved to this host, in its own receipt log."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from securecore import limits
from securecore.cli import terminal
from securecore.cli.options import json_option, read_file, trust_option
from securecore.cli.spool import settings_options
from securecore.errors import BrokenError, ConfigError, SecurecoreError, UntrustedError
from securecore.sender.settings import load_settings

if TYPE_CHECKING:
    from securecore.audit.contradiction import Contradiction
    from securecore.audit.kept_receipt import Kept, ReceiptVerifier, Unread
    from securecore.audit.lineage import Strange
    from securecore.audit.statement import LogKey
    from securecore.certs.chain import Anchors

EPILOG = """\b
Examples:
  securecore receipts list
  securecore receipts verify
  securecore receipts verify web-1-receipts.jsonl db-2-receipts.jsonl --root ca.pem
  zcat -f receipts.jsonl-* receipts.jsonl | securecore receipts verify -
Exit code 6: a receipt does not hold, two of them contradict each other, or a log key is outside of the chain of the others. Whether
the receiver's log still is what it was is for `securecore audit compare`, where the store is.
"""

LIST_EPILOG = """\b
Examples:
  securecore receipts list
  securecore receipts list --spool /var/lib/securecore/spool --json | jq -r '.[] | [.received_at, .receiver, .dump] | @tsv'
"""

_SIZE_END: Final = 1 << 63
"""Above the size of any dump, as manifests bound it; an entry holds any number."""

_TOLD: Final = 10
"""Contradictions of one log that a person is told: a receiver that began anew makes one of each receipt that follows."""


@click.group("receipts", epilog=EPILOG)
def command() -> None:
    """What this host was given for its dumps: proofs that they were stored and logged, kept in its spool."""


@command.command("list", epilog=LIST_EPILOG, short_help="List the receipts as they stand.")
@click.argument("paths", nargs=-1, metavar="[RECEIPTS]...")
@settings_options
@json_option
def list_(paths: tuple[str, ...], settings_path: str, spool_path: str | None, as_json: bool) -> None:
    """List the receipts, oldest first, as they stand; nothing is verified.

    RECEIPTS are files that are read instead of the spool: hosts' receipts.jsonl, whole or in parts, or - for standard input.
    """
    from securecore.audit.kept_receipt import Kept

    rows = [
        _row(one) if isinstance(one, Kept) else {"receipt": one.where, "problem": one.problem}
        for one in _read(paths, settings_path, spool_path)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    cells = [_cells(row) for row in rows if "problem" not in row]
    if cells:
        terminal.table(("RECEIVED", "RECEIVER", "HOST", "DUMP", "ENTRY", "SIZE"), cells)
    else:
        click.echo("no receipts")
    for row in rows:
        if "problem" in row:
            click.echo(f"note: {terminal.printable(row['receipt'], 200)}: {row['problem']}", err=True)


@command.command("verify", epilog=EPILOG, short_help="Verify each receipt up to the root, and that none contradicts another.")
@click.argument("paths", nargs=-1, metavar="[RECEIPTS]...")
@settings_options
@click.option(
    "--root", "root_path", envvar="SECURECORE_ROOT", type=click.Path(path_type=Path), metavar="CA.PEM",
    help="The root that you trust, instead of the identity's; also $SECURECORE_ROOT.",
)  # fmt: skip
@click.option(
    "--log-key", "log_key_path", type=click.Path(path_type=Path), metavar="LOG-KEY.JWS",
    help="The statement of the log's key, as a store has it, for tlog-proofs: none is with them.",
)  # fmt: skip
@trust_option
@json_option
def verify_(
    paths: tuple[str, ...],
    settings_path: str,
    spool_path: str | None,
    root_path: Path | None,
    log_key_path: Path | None,
    trusted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Verify each receipt offline, up to the root: its form, whose key signed it, and that its entry leads to what was signed.

    And that receipts of one log do not contradict each other, whichever files they stand in: a receiver that rewrote its log gives
    itself away by a receipt for what came later. And that the keys that have signed for one receiver have taken over from one
    another, one by one.

    RECEIPTS are files that are read instead of the spool: hosts' receipts.jsonl, whole or in parts, tlog-proofs, or - for standard
    input.
    """
    from securecore.audit.kept_receipt import ReceiptVerifier

    anchors = _load_anchors(settings_path, root_path)
    log_key = _load_log_key(log_key_path, anchors) if log_key_path is not None else None
    found = _Findings(ReceiptVerifier(anchors, log_key), trusted)
    for one in _read(paths, settings_path, spool_path):
        found.take(one)
    if as_json:
        click.echo(json.dumps(found.document(), indent=1))
    else:
        found.tell()
    return 0 if found.ok else BrokenError.exit_code


class _Findings:
    """What holds of the receipts so far."""

    def __init__(self, verifier: "ReceiptVerifier", trusted: tuple[str, ...]) -> None:
        from securecore.audit.contradiction import Histories
        from securecore.audit.lineage import Lineages

        self._verifier = verifier
        self._histories = Histories()
        self._lineages = Lineages(trusted)
        self._rows: list[dict[str, Any]] = []
        self._torn: list[Unread] = []
        self._contradictions: list[Contradiction] = []

    @property
    def ok(self) -> bool:
        """Whether every receipt holds, none contradicts another, and their keys have taken over from one another."""
        return not self._contradictions and not self._strange() and all(row["ok"] for row in self._rows)

    def take(self, one: "Kept | Unread") -> None:
        """Verify a receipt; what is no receipt does not hold, unless a crash may have torn it."""
        from securecore.audit.kept_receipt import Kept

        if not isinstance(one, Kept):
            if one.is_torn:
                self._torn.append(one)
            else:
                self._add(one.where, problem=one.problem)
            return
        try:
            witness = self._verifier.verify(one)
        except SecurecoreError as error:
            self._add(one.where, dump=_text(one.said.get("dump")), problem=error.message)
            return
        self._lineages.take(witness)
        contradiction = self._histories.take(witness)
        if contradiction is not None:
            self._contradictions.append(contradiction)
        receipt = witness.receipt
        self._add(
            one.where, origin=witness.origin, dump=_text(receipt.fields.get("dump")), entry=receipt.leaf_index,
            checkpoint_size=receipt.checkpoint.size,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Return all of it for a program."""
        return {
            "ok": self.ok,
            "receipts": self._rows,
            "contradictions": [
                {
                    "origin": one.origin,
                    "first_entry": one.first,
                    "last_entry": one.end - 1,
                    "receipts": [one.earlier, one.later],
                    "what": one.what,
                }
                for one in self._contradictions
            ],
            "log_keys": [{"receipt": one.where, "what": one.words} for one in self._strange()],
            "torn": [one.where for one in self._torn],
        }

    def tell(self) -> None:
        """Print what does not hold, and how many do."""
        for row in self._rows:
            if not row["ok"]:
                dump = f"  {terminal.printable(terminal.short_id(row['dump']), 8)}" if row["dump"] else ""
                where = terminal.printable(row["receipt"], 200)
                click.echo(f"{where}{dump}  {terminal.bad('BROKEN')}  {terminal.printable(row['problem'], 200)}")
        self._tell_contradictions()
        for strange in self._strange():
            where = terminal.printable(strange.where, 200)
            click.echo(f"{where}  {terminal.bad('BROKEN')}  {terminal.printable(strange.words, 1200)}")
        for torn in self._torn:
            where = terminal.printable(torn.where, 200)
            click.echo(f"note: {where}: {torn.problem}; it was never a receipt, or is being written", err=True)
        holding: dict[str, int] = {}
        for row in self._rows:
            if row["ok"]:
                holding[row["origin"]] = holding.get(row["origin"], 0) + 1
        for origin, number in sorted(holding.items()):
            verb = "holds" if number == 1 else "hold"
            click.echo(f"{terminal.count(number, 'receipt')} {verb} of log {terminal.printable(origin, 300)}")
        if not self._rows:
            click.echo("no receipts")

    def _tell_contradictions(self) -> None:
        by_log: dict[str, list[Contradiction]] = {}
        for one in self._contradictions:
            by_log.setdefault(one.origin, []).append(one)
        for origin, found in by_log.items():
            for one in found[:_TOLD]:
                places = " and ".join(terminal.printable(where, 200) for where in (one.earlier, one.later))
                words = f"contradict each other: {one.what}"
                click.echo(f"{places}  {terminal.bad('BROKEN')}  {terminal.printable(words, 200)}")
            more = f", with {len(found) - _TOLD} more" if len(found) > _TOLD else ""
            click.echo(f"          of log {terminal.printable(origin, 300)}{more}")

    def _strange(self) -> "list[Strange]":
        return list(self._lineages.find_strange())

    def _add(self, where: str, problem: str | None = None, **said: Any) -> None:
        row = {"receipt": where, "origin": None, "dump": None, "entry": None, "checkpoint_size": None}
        self._rows.append(row | said | {"ok": problem is None, "problem": problem})


def _read(paths: Sequence[str], settings_path: str, spool_path: str | None) -> "Iterator[Kept | Unread]":
    """Yield the receipts in the files, or of the spool that is meant where none are named; a terminal sees how far that is."""
    from securecore.audit.kept_receipt import read_kept
    from securecore.cli.receipt_files import open_receipts, read_receipts
    from securecore.sender import receipt_log

    if not paths:
        with _open_own(settings_path, spool_path) as log:
            yield from _watch(log, receipt_log.NAME, read_kept(log, receipt_log.NAME))
    elif spool_path is not None:
        raise click.UsageError("--spool names the receipts of a spool; give that or files")
    for path in paths:
        with open_receipts(path) as file:
            yield from _watch(file, path, read_receipts(file, path))


def _watch(file: IO[bytes], name: str, receipts: "Iterator[Kept | Unread]") -> "Iterator[Kept | Unread]":
    with terminal.Progress(f"reading {terminal.printable(name)}", os.fstat(file.fileno()).st_size or None) as progress:
        for one in receipts:
            yield one
            if file.seekable():
                progress.update(file.tell())


def _open_own(settings_path: str, spool_path: str | None) -> IO[bytes]:
    """Return the receipt log of the spool that is meant; an empty file where no receipt was kept yet."""
    from securecore.sender import receipt_log
    from securecore.sender.spool_directory import open_spool_directory

    spool = open_spool_directory(load_settings(settings_path).spool if spool_path is None else spool_path)
    try:
        return receipt_log.open_log(spool) or open(os.devnull, "rb")
    finally:
        os.close(spool)


def _load_anchors(settings_path: str, root_path: Path | None) -> "Anchors":
    from securecore.certs import chain

    if root_path is None:
        try:
            root_path = Path(load_settings(settings_path).identity) / "ca.pem"
        except ConfigError as error:
            raise ConfigError(error.message, hint="give --root CA.PEM") from error
    return chain.load_anchors(read_file(root_path, limits.MAX_STATEMENT_BYTES), what=str(root_path))


def _load_log_key(path: Path, anchors: "Anchors") -> "LogKey":
    from securecore.audit.statement import verify_statement

    try:
        return verify_statement(read_file(path, limits.MAX_STATEMENT_BYTES), anchors)
    except (BrokenError, UntrustedError) as error:
        raise BrokenError(f"{path}: {error.message}", hint=error.hint) from error


def _row(kept: "Kept") -> dict[str, Any]:
    """Return what a receipt and its line say."""
    from securecore.audit.kept_receipt import find_entry

    index, fields = find_entry(kept)
    said = {name: _text(kept.said.get(name)) for name in ("receiver", "origin", "gone", "instead_of")}
    return {
        "receipt": kept.where,
        "received_at": fields.get("time"),
        "host": fields.get("host"),
        "dump": fields.get("dump"),
        "entry": index,
        "size_bytes": fields.get("size"),
        **said,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from securecore.audit.entry import find_time

    moment, size = find_time({"time": row["received_at"]}), row["size_bytes"]
    return (
        terminal.when(moment) if moment is not None else "-",
        terminal.printable(row["receiver"]),
        terminal.printable((_text(row["host"]) or "").split(".")[0]),
        terminal.printable(terminal.short_id(_text(row["dump"]) or "")),
        terminal.printable(_text(row["entry"])),
        terminal.size(size if type(size) is int and 0 <= size < _SIZE_END else None),
    )


def _text(value: object) -> str | None:
    """Return what a line says as text: it may say anything."""
    return None if value is None else str(value)

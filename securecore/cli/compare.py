"""``securecore audit compare``: a store's audit logs held against receipts that hosts, or anybody else, have kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from securecore.audit.comparison import LogComparison
from securecore.audit.statement import LogKey
from securecore.cli import evidence, terminal
from securecore.cli.options import json_option, root_option, store_option
from securecore.cli.witnesses import ANOTHER_RECEIVER, Findings, Row, compare_receipts
from securecore.errors import BrokenError
from securecore.names import HostName
from securecore.store.layout import Store, open_store

EPILOG = """\b
Examples:
  securecore audit compare web-1-receipts.jsonl db-2-receipts.jsonl --root ca.pem
  ssh web-1 sudo cat /var/lib/securecore/spool/receipts.jsonl | securecore audit compare - --root ca.pem
Exit code 6: the store contradicts a receipt (shortened, forked, unknown-host, another-store, another-receiver, another-key, dump),
or a receipt does not hold by itself (damaged). 4: there was no receipt to compare.
"""


@click.command("compare", epilog=EPILOG, short_help="Hold the logs against receipts that were kept elsewhere.")
@click.argument("paths", nargs=-1, required=True, metavar="RECEIPTS...")
@store_option
@click.option("--host", "host_text", metavar="HOST", help="Only receipts of this host; the domain may be left out.")
@click.option("--receiver", "receiver_text", metavar="NAME", help="Only receipts of this receiver; the domain may be left out.")
@root_option
@json_option
def command(
    paths: tuple[str, ...],
    store_path: str,
    host_text: str | None,
    receiver_text: str | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Hold the logs against receipts that were kept elsewhere: each one must be of this store's history, or that was rewritten.

    RECEIPTS are hosts' receipts.jsonl, or files with tlog-proofs, or - for standard input. Of each receipt: that it holds up to the
    root; that the log is no shorter than it was then, and began with the same entries; and that the dump is as the log says.
    """
    with open_store(store_path) as store:
        anchors, is_own = evidence.load_anchors(store, root_path)
        log_key = evidence.load_log_key(store, anchors, trusted)
        found = compare_receipts(store, anchors, log_key, paths, host_text=host_text, receiver_text=receiver_text)
    if as_json:
        click.echo(json.dumps(_document(store, log_key, found), indent=1))
    else:
        _tell(found)
        if is_own:
            click.echo(evidence.OWN_ROOT, err=True)
    return 0 if found.ok else BrokenError.exit_code


def _tell(found: Findings) -> None:
    for torn in found.torn:
        click.echo(f"note: {terminal.printable(torn.where, 200)}: {torn.problem}", err=True)
    for host, rows in found.by_host().items():
        _tell_host(host, rows, found.logs.get(host))
    others = [row for row in found.rows if row.host is None or row.kind == ANOTHER_RECEIVER]
    if others:
        click.echo(f"-  {terminal.bad('BROKEN')}  {terminal.count(len(others), 'receipt')} of no log of this store")
        _tell_rows(others)
    if any(row.kind == ANOTHER_RECEIVER for row in others):
        click.echo("  hint: a host with several receivers has receipts of each; --receiver NAME compares those of one", err=True)


def _tell_host(host: HostName, rows: Sequence[Row], log: LogComparison | None) -> None:
    wrong = [row for row in rows if row.kind is not None]
    is_sound = not wrong and (log is None or log.problem is None)
    entries = f", of {terminal.count(log.size, 'entry')}" if log is not None else ""
    number = len(wrong) or len(rows)
    fit = ("does not fit" if number == 1 else "do not fit") if wrong else ("fits" if number == 1 else "fit")
    of = f"{len(wrong)} of " if wrong else ""
    what = f"{of}{terminal.count(len(rows), 'receipt')} {fit} this store's log{entries}"
    click.echo(f"{host}  {terminal.good('ok') if is_sound else terminal.bad('BROKEN')}  {what}")
    if log is not None and log.problem is not None:
        click.echo(f"  the log does not hold by itself: {terminal.printable(log.problem, 200)}")
    _tell_rows(wrong)


def _tell_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        dump = terminal.printable(terminal.short_id(row.dump) if row.dump else None, 8)
        click.echo(f"  {terminal.printable(row.where, 200)}  {dump}  {row.kind}: {terminal.printable(row.words, 200)}")


def _document(store: Store, log_key: LogKey, found: Findings) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "store": str(store.store_id),
        "receiver": str(log_key.receiver.name),
        "receipts": [_row_document(row) for row in found.rows],
        "logs": [
            {"host": str(host), "ok": log.problem is None, "entries": log.size, "problem": log.problem}
            for host, log in found.logs.items()
        ],
        "torn": [torn.where for torn in found.torn],
    }


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "receipt": row.where,
        "host": None if row.host is None else str(row.host),
        "dump": row.dump,
        "entry": None if row.said is None else row.said.leaf_index,
        "checkpoint_size": None if row.said is None else row.said.size,
        "ok": row.kind is None,
        "contradicts": row.kind,
        "detail": row.words or None,
    }

"""``securecore audit report``: what the logs of a store say, as one page for people, as JSON or as CSV."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from securecore.cli import evidence, options, terminal
from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, host_option, json_option, root_option, store_option
from securecore.cli.overview.lines import csv_lines
from securecore.cli.overview.model import Overview, document_of
from securecore.cli.overview.reading import Kept, VerifiedEvents, open_subject, read_overview
from securecore.cli.sources import Output, check_stream, local_output
from securecore.errors import BrokenError
from securecore.store.layout import open_store

EPILOG: Final = """\b
Examples:
  securecore audit report --root ca.pem -o report.html
  securecore audit report --host web-1 --since 30d -o web-1.html
  securecore audit report --since 1d --json | jq '.hosts[] | {host, totals}'
  securecore audit report --root ca.pem --receipts web-1.jsonl --receipts db-2.jsonl -o report.html
  securecore audit report --csv -o entries.csv
Exit code 6: the report was written, and says of a log that it does not hold, or of a receipt that the store contradicts it.
"""


@click.command("report", epilog=EPILOG, short_help="Tell all of it on one page for people, as JSON or as CSV.")
@store_option
@host_option
@click.option("--since", type=options.moment, metavar="WHEN", help="Only what is newer: 15m, 6h, 1d, 2w ago, or a date.")
@root_option
@click.option(
    "--identity", type=click.Path(path_type=Path), show_default=f"{DEFAULT_RECEIVER_IDENTITY}, if it is there",
    help="The receiver's identity, to tell how long its certificate and revocation lists last; no key is read.",
)  # fmt: skip
@click.option(
    "--receipts", "receipt_paths", multiple=True, metavar="RECEIPTS",
    help="Also compare these receipts that hosts have kept, as `audit compare` does; may be repeated.",
)  # fmt: skip
@click.option("--receiver", "receiver_text", metavar="NAME", help="Of --receipts only this receiver's; the domain may be left out.")
@click.option(
    "-o", "--output", default="-", show_default=True, metavar="FILE|-", help="Where to; a file is 0600 and never overwritten."
)  # fmt: skip
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="One line for each entry, for a spreadsheet.")
def command(
    store_path: str,
    host_text: str | None,
    since: datetime | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
    identity: Path | None,
    receipt_paths: tuple[str, ...],
    receiver_text: str | None,
    output: str,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Tell what arrived, what was refused, who took what out, what is incomplete, and whether the logs hold.

    One page of HTML that needs no network and no script, for a screen, a telephone or paper. Each log is verified first, as by
    `audit verify`; --since leaves out what is told, never what is verified.
    """
    _check(output, as_json=as_json, as_csv=as_csv)
    if as_csv and receipt_paths:
        raise click.UsageError("--csv has a line for each entry and none for a receipt; `securecore audit compare` has these")
    contradicted = 0
    with open_store(store_path) as store, _open(output) as target:
        subject = open_subject(store, host_text, since, root_path, datetime.now(UTC), trusted)
        if as_csv:
            events = VerifiedEvents(subject)
            _write(target, csv_lines(events))
            broken = events.broken
        else:
            overview = read_overview(subject, _find_identity(identity), Kept(receipt_paths, receiver_text))
            _write(target, _document(overview) if as_json else _page(overview))
            broken = overview.broken
            contradicted = len(overview.witnesses.contradictions) if overview.witnesses is not None else 0
        target.publish()
    if output != "-" and not as_json:
        click.echo(f"report written to {output}")
    if not as_json:
        _tell_broken(broken, subject.log_key_problem, contradicted)
        if subject.root_is_the_stores_own:
            click.echo(evidence.OWN_ROOT, err=True)
    return BrokenError.exit_code if broken or contradicted or subject.log_key_problem is not None else 0


def _tell_broken(broken: Sequence[str], log_key_problem: str | None, contradicted: int) -> None:
    """Say on standard error what the exit code means; the report has the rest."""
    if log_key_problem is not None:
        click.echo(f"no log could be verified: {terminal.printable(log_key_problem, 200)}", err=True)
    for host in broken:
        click.echo(f"{host}: the log does not hold", err=True)
    if broken:
        click.echo("  hint: `securecore audit verify` prints each check; keep the store as it is", err=True)
    if contradicted:
        verb = "does" if contradicted == 1 else "do"
        click.echo(f"{terminal.count(contradicted, 'receipt')} {verb} not fit this store's logs", err=True)
        click.echo("  hint: `securecore audit compare` says of each why; keep receipts and store as they are", err=True)


def _check(output: str, *, as_json: bool, as_csv: bool) -> None:
    """Raise click.UsageError for what cannot be asked for together, and for a page on a terminal."""
    if as_json and as_csv:
        raise click.UsageError("--json and --csv are two forms of one report; ask for one of them")
    if not output:
        raise click.BadParameter("an empty text names no file", param_hint="'--output'")
    if output == "-" and not (as_json or as_csv):
        check_stream(sys.stdout, "standard output", "a page of HTML does not belong on a terminal; use -o report.html")


def _open(output: str) -> AbstractContextManager[Output]:
    return nullcontext(_StandardOutput()) if output == "-" else local_output(output)


class _StandardOutput:
    """Text that a person or a program reads as it comes."""

    def write(self, data: bytes) -> None:
        click.echo(data, nl=False)

    def publish(self) -> None:
        """Nothing is left to do: the bytes are with whoever reads them."""


def _write(target: Output, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        target.write(piece)


def _find_identity(identity: Path | None) -> Path | None:
    """Return the identity directory that was named, else the usual one where there is one that we may look at."""
    if identity is not None:
        return identity
    usual = Path(DEFAULT_RECEIVER_IDENTITY)
    try:
        return usual if usual.is_dir() else None
    except OSError:
        return None


def _page(overview: Overview) -> Iterable[bytes]:
    # Late, because this alone needs the template library, which takes longer to load than a short log to read.
    from securecore.cli.overview.page import draw_page

    return draw_page(overview)


def _document(overview: Overview) -> Iterable[bytes]:
    return [f"{json.dumps(document_of(overview), indent=1)}\n".encode("ascii")]

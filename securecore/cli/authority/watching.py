"""Keeping an eye on a PKI: ``securecore pki status`` and ``log verify``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from securecore.cli import terminal
from securecore.cli.authority.options import day, dir_option, echo_json, now, open_directory
from securecore.cli.options import json_option

if TYPE_CHECKING:
    from securecore.pki.status import Item, Status
    from securecore.pki.verification import Head

STATUS_EPILOG = """\b
Exit codes, those of monitoring plug-ins: 0 nothing to do, 1 something is due, 2 something has ended or is about to.

\b
Examples:
  securecore pki status
  securecore pki status --json
  securecore pki status --note /var/lib/securecore/pki-noted
"""

VERIFY_EPILOG = """\b
Examples:
  securecore pki log verify
  securecore pki log verify --noted 42:8c1f...    the place that an earlier run told you to note
"""


@click.command(epilog=STATUS_EPILOG)
@dir_option
@click.option("--all", "everything", is_flag=True, help="Show also what needs nothing.")
@click.option("--note", type=click.Path(path_type=Path), help="A file elsewhere, to note how far the ledger has come.")
@json_option
def status(directory: Path, everything: bool, note: Path | None, as_json: bool) -> int:
    """Say what ends soon: the newest certificate of each host, receiver and enroller, each CA, each CRL.

    And whether an older copy of the PKI was put back. That of the whole directory shows only with --note: the ledger must go on
    from the place that an earlier run has noted there.
    """
    from securecore.pki.noting import find_lost
    from securecore.pki.revocation import find_unready
    from securecore.pki.status import find_status

    pki = open_directory(directory)
    lost = find_lost(pki, note)
    state = pki.ledger.follow()
    found = find_status(state, now(), find_unready(pki, state))._replace(lost=lost)
    if as_json:
        items = [_as_json(item) for item in found.items]
        echo_json({"level": found.level.name.lower(), "gone": found.gone, "lost": found.lost, "items": items})
        return int(found.level)
    shown = [item for item in found.items if everything or item.problem is not None]
    click.echo(_summary(found))
    if found.lost is not None:
        click.echo("what to do: pki/runbooks/after-a-restore.md")
    if shown:
        rows = [(_level(item), item.kind, item.name, day(item.ends), item.problem or "") for item in shown]
        terminal.table(("LEVEL", "KIND", "NAME", "ENDS", "WHAT TO DO"), rows)
    return int(found.level)


@click.group()
def log() -> None:
    """Check what this PKI has ever done."""


@log.command(epilog=VERIFY_EPILOG)
@dir_option
@click.option("--noted", help="LINES:DIGEST, the place of an earlier run: the ledger must go on from there.")
@json_option
def verify(directory: Path, noted: str | None, as_json: bool) -> int:
    """Hold the PKI directory against its ledger, and the ledger against itself.

    The chain shows an edit or a gap. That lines are missing at the end shows only against a place that you noted elsewhere.
    """
    from securecore.errors import BrokenError
    from securecore.pki.verification import verify_log

    checks = list(verify_log(open_directory(directory), None if noted is None else _head(noted)))
    if as_json:
        echo_json([{"what": one.what, "ok": one.problem is None, "detail": one.problem or one.detail} for one in checks])
    else:
        for number, one in enumerate(checks, start=1):
            mark = terminal.good("ok") if one.problem is None else terminal.bad("WRONG")
            words = one.problem or one.detail
            click.echo(f"  {number}. {mark}  {one.what}" + (f": {words}" if words else ""))
            if one.hint is not None:
                click.echo(f"     hint: {one.hint}")
    return BrokenError.exit_code if any(one.problem is not None for one in checks) else 0


def _head(text: str) -> "Head":
    from securecore.pki.verification import parse_head

    try:
        return parse_head(text)
    except ValueError:
        raise click.UsageError("--noted is LINES:DIGEST, as `securecore pki log verify` printed it") from None


def _summary(found: "Status") -> str:
    """Return the line that a monitoring system shows."""
    if found.lost is not None:
        return f"{found.level.name} - {found.lost}"
    due = [item for item in found.items if item.problem is not None]
    words = f"{len(due)} of {len(found.items)} need something" if due else f"{len(found.items)} looked at, nothing to do"
    gone = f"; {terminal.count(found.gone, 'name')} not renewed for long: gone" if found.gone else ""
    return f"{found.level.name} - {words}{gone}"


def _level(item: "Item") -> str:
    return item.level.name.lower()


def _as_json(item: "Item") -> dict[str, object]:
    from securecore.pki.ledger import format_time

    return {
        "level": item.level.name.lower(),
        "kind": item.kind,
        "name": item.name,
        "serial": f"{item.serial:x}",
        "ends": format_time(item.ends),
        "problem": item.problem,
    }

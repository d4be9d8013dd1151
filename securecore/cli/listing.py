"""``securecore list``: the dumps in a store."""

import json
from datetime import datetime
from typing import Any

import click

from securecore import limits
from securecore.cli import options, terminal
from securecore.cli.options import host_option, json_option, store_option
from securecore.cli.state import State

EPILOG = """\b
Examples:
  securecore list
  securecore list --since 1d --host web-1
  securecore list --json | jq -r '.[] | select(.signal == 11) | .id'
"""


@click.command("list", epilog=EPILOG)
@store_option
@host_option
@click.option("--since", type=options.moment, metavar="WHEN", help="Only newer ones: 15m, 6h, 1d, 2w ago, or a date.")
@json_option
def command(store_path: str, host_text: str | None, since: datetime | None, as_json: bool) -> None:
    """List the dumps in a store, newest first."""
    from securecore.store.catalogue import open_catalogue
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host = options.find_host(host_text, store)
        with open_catalogue(store) as catalogue:
            catalogue.reconcile(host)
            rows = [row._asdict() for row in catalogue.rows(host, since)]
            terminal.tell_unlisted(catalogue.problems)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("no dumps" + (f" of {host}" if host else ""))
    else:
        terminal.table(("ID", "RECEIVED", "HOST", "PROGRAM", "SIGNAL", "SIZE", "STORED", "STATE"), [_cells(row) for row in rows])


def _state(row: dict[str, Any]) -> str:
    """Return how a dump stands, with how much of the core is there where that is known and not all."""
    found = State(
        row["published"],
        row["outcome"],
        row["given_up_at"] is not None,
        row["lost_frames"],
        has_manifest=row["has_manifest"],
        has_core=row["has_core"],
        core_fits=row["core_fits"],
    )
    return found.label(share=share_of(row["size_bytes"], row["predicted_bytes"], row["lost_frames"]))


def share_of(size: int | None, predicted: int | None, lost_frames: int) -> str | None:
    """Return how much of a core is there, None where that is all of it or not known; placeholders for what was lost do not count.

    *size* and *predicted* are bytes of plaintext.
    """
    if size is None or not predicted:
        return None
    there = max(size - lost_frames * limits.PIECE_BYTES, 0)
    return f"{100 * there // predicted} %" if there < predicted else None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    beside = (
        (row["sensitive"], "sensitive"), (not row["has_sound_report"], "no sound report"),
        (not row["has_sound_receipt"], "no sound receipt"),
    )  # fmt: skip
    state = ", ".join([_state(row), *(words for is_so, words in beside if is_so)])
    return (
        terminal.short_id(row["id"]),
        terminal.when(datetime.fromisoformat(row["received_at"])),
        row["host"].split(".")[0],
        terminal.printable(row["program"], 24),
        terminal.signal_name(row["signal"]),
        terminal.size(row["size_bytes"]),
        terminal.size(row["stored_bytes"]),
        state,
    )

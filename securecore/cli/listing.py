"""``securecore list``: the dumps in a store."""

import json
from datetime import datetime
from typing import Any, Final

import click

from securecore.cli import options, terminal
from securecore.cli.options import host_option, json_option, store_option

GIVEN_UP: Final = "link lost"
"""What is said of a dump that its sender has left: the host, its link, or its disk is gone."""

UNCOMMITTED: Final = "all of it came, and nothing proves it yet"
"""What is said of a dump whose commit is under way, or was interrupted: the receiver finishes it."""

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
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("no dumps" + (f" of {host}" if host else ""))
    else:
        terminal.table(("ID", "RECEIVED", "HOST", "PROGRAM", "SIGNAL", "SIZE", "STORED", "STATE"), [_cells(row) for row in rows])


def _reasons(row: dict[str, Any]) -> list[str]:
    """Return how much of the core is there and why not all of it, where that is known."""
    size, predicted = row["size_bytes"], row["predicted_bytes"]
    why = row["outcome"] or (GIVEN_UP if row["given_up_at"] is not None else None)
    share = f"{100 * size // predicted} %" if size is not None and predicted and size < predicted else None
    lost = terminal.lost_beginning(row["lost_frames"]) if row["lost_frames"] else None
    return [word for word in (share, why, lost) if word is not None]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = row["state"]
    if state != "complete" and (reasons := _reasons(row)):
        state = f"{state} ({', '.join(reasons)})"
    if row["sensitive"]:
        state += ", sensitive"
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

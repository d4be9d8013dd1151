"""``securecore delete``: remove a dump from the store for good, and have the audit log say so."""

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from securecore import limits
from securecore.cli import options, tombstones
from securecore.cli.options import host_option, json_option, receiver_identity_option, store_option
from securecore.errors import NotFoundError
from securecore.receiver import control, standalone
from securecore.store.layout import open_store

EPILOG = """\b
Examples:
  securecore delete 9c41d07e
  securecore delete 9c41d07e --reason "customer data, ticket 4711"
"""


@click.command("delete", epilog=EPILOG)
@click.argument("text", metavar="ID")
@click.option("--reason", metavar="TEXT", help="Why, for the audit log.")
@store_option
@host_option
@receiver_identity_option("The receiver's identity, to sign the audit entry with where no receiver runs.")
@json_option
def command(text: str, reason: str | None, store_path: str, host_text: str | None, identity: Path, as_json: bool) -> None:
    """Delete one dump, also one that is incomplete; it can't be undone.

    Who deleted it and why is written into the host's audit log first: by the receiver that runs on this store, else by this
    command with the receiver's identity. A host that offers a deleted dump again is told that it is gone, with the proof that it
    had been received, and lets go of its own copy.
    """
    if reason is not None and not 1 <= len(reason) <= limits.MAX_WORDS:
        raise click.BadParameter(f"a reason has 1 to {limits.MAX_WORDS} characters", param_hint="'--reason'")
    with open_store(store_path) as store:
        host, dump = tombstones.find_only_dump(store, text, options.find_host(host_text, store))
        if not control.ask_for_deletion(store, host, dump, reason):
            try:
                standalone.delete_alone(store, host, dump, reason, identity, datetime.now(UTC))
            except NotFoundError as error:
                hint = "who deletes is audited: start the receiver, or name its identity with --identity to sign the entry"
                raise NotFoundError(error.message, hint=hint) from error
    if as_json:
        click.echo(json.dumps({"id": str(dump), "host": str(host), "deleted": True}))
    else:
        click.echo(f"{dump.short}  deleted; the audit log of {host} says so")

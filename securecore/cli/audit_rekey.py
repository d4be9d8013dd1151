"""``securecore audit rekey``: a new key for the audit logs, to which the present one hands over."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from securecore.audit.checkpoint import verifier_key
from securecore.audit.rekeying import rekey
from securecore.audit.statement import LogKey
from securecore.cli.options import json_option, receiver_identity_option

EPILOG: Final = """\b
Examples:
  securecore audit rekey && systemctl reload securecore-receiver
  securecore audit rekey --lost /var/lib/securecore/store
Exit code 3: the identity is not whole, or its log key cannot sign. What was interrupted is finished by the next run.
"""


@click.command("rekey", epilog=EPILOG)
@receiver_identity_option("The receiver's identity directory.")
@click.option(
    "--lost", type=click.Path(path_type=Path), metavar="DIRECTORY",
    help="The log key before is lost and can sign nothing: here is its statement, log-key.jws. The store, or the identity itself.",
)  # fmt: skip
@json_option
def command(identity: Path, lost: Path | None, as_json: bool) -> None:
    """Give a receiver a new log key: the one before signs that this is the next, and then is deleted.

    The receiver takes it up when it is reloaded or started. Logs go on as they are, under the same names; receipts that were given
    stay valid. Nothing else is changed, and no certificate authority is needed.
    """
    done = rekey(identity, datetime.now(UTC), lost)
    before, after = _words(done.before), _words(done.after)
    if as_json:
        found = {"before": before, "after": after, "is_lost": done.is_lost, "was_interrupted": done.was_interrupted}
        click.echo(json.dumps(found, indent=1))
        return
    begun = ", as an earlier run had begun" if done.was_interrupted else ""
    signed = "is lost, and has not signed that" if done.is_lost else "has signed that"
    click.echo(f"{done.after.name} has another log key{begun}; the one before {signed}")
    click.echo(f"      key     {after}")
    click.echo(f"      before  {before}")
    click.echo("next: systemctl reload securecore-receiver (or its start), then `securecore audit verify`")
    if done.is_lost:
        click.echo("and tell whoever verifies, by a way of their own, that --trust-log-key may be given this key")


def _words(log_key: LogKey) -> str:
    return verifier_key(log_key.name, log_key.public_key)

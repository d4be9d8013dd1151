"""``securecore enroll``: a host's first certificate, from an enroller."""

from pathlib import Path
from typing import Final

import click

from securecore.cli.authority.options import echo_installed, now, root_fingerprint, secret_from
from securecore.cli.options import address
from securecore.names import Address

EPILOG: Final = """\b
Examples:
  securecore enroll enrol.acme.example:4456 --ca-fingerprint 5f3c... --token-file token --identity /etc/securecore/identity
  pass show web-1/token | securecore enroll enrol.acme.example:4456 --ca-fingerprint 5f3c... --token-file - --identity web-1
"""


@click.command(epilog=EPILOG)
@click.argument("enroller", metavar="ADDR:PORT", type=address)
@click.option(
    "--ca-fingerprint", required=True, help="SHA-256 fingerprint of the fleet's root, in hexadecimal: no other root is believed."
)
@click.option(
    "--token", "token_text", help="The token. Every user of this machine can see it there while the command runs: better a file."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Read the token from the first line of a file (mode 0600) or a pipe; - for standard input.",
)
@click.option("--identity", type=click.Path(path_type=Path), required=True, help="The identity directory, new or this host's.")
def command(enroller: Address, ca_fingerprint: str, token_text: str | None, token_file: Path | None, identity: Path) -> None:
    """Enrol this host: make its key here, and get its certificate from an enroller (`securecore pki serve`) by a token.

    The key and the token stay here: the token is only shown to be known, to nobody but an enroller of the fleet with that root. Run
    it again if it was interrupted. It also gives a host whose certificate has expired a new one, and a new key.
    """
    from securecore.pki.enrolling import enroll
    from securecore.pki.tokens import parse_token

    if (token_text is None) == (token_file is None):
        raise click.UsageError("give --token-file FILE, or --token")
    text = token_text if token_file is None else secret_from(token_file, "the token").decode("ascii", "replace")
    done = enroll(enroller, root_fingerprint(ca_fingerprint), parse_token(text or ""), identity, now())
    judged = done.judgement
    echo_installed(identity, judged)
    if done.was_there:
        click.echo("  it had enrolled with this token before: nothing was left to do")
    if done.is_new_key:
        click.echo("  a new key has taken the old one's place")
    click.echo("next: securecore setup sender, which also has the certificate renewed by itself (pki/runbooks/enrol-online.md)")

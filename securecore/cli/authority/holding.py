"""On the machine that holds the key: ``securecore pki request`` and ``install``."""

from pathlib import Path

import click

from securecore.cli.authority.options import echo_installed, now, root_fingerprint

REQUEST_EPILOG = """\b
Examples:
  securecore pki request --identity /etc/securecore/identity
  then where the PKI is: securecore pki sign host web-1 request.pem --out web-1-reply.pem
"""

INSTALL_EPILOG = """\b
Examples:
  securecore pki install web-1-reply.pem --identity /etc/securecore/identity
  securecore pki install reply.pem --identity receiver-identity --ca-fingerprint 5f3c...
"""

_identity_option = click.option("--identity", type=click.Path(path_type=Path), required=True, help="The identity directory.")


@click.command(epilog=REQUEST_EPILOG)
@_identity_option
def request(identity: Path) -> None:
    """Make a key on this machine, and the request for its certificate, which is all that leaves it.

    An identity directory that is there already goes on as it is until the reply to the request is installed.
    """
    from securecore.certs.chain import key_fingerprint
    from securecore.certs.identity_lock import IdentityLock
    from securecore.pki import request as requesting

    with IdentityLock(identity) as lock:
        made = requesting.request_locked(identity, lock)
    what = "a new key, which waits beside the one in use" if made.is_rekey else "a key"
    click.echo(f"made {what}, and its request {made.path}")
    click.echo(f"  key     {key_fingerprint(made.public_key)}")
    click.echo("next: carry the request to where the PKI is, then there:")
    click.echo("  securecore pki sign host NAME request.pem --out reply.pem")
    click.echo("  (or: sign receiver NAME ... --address ADDRESS, sign enroller NAME ... --address ADDRESS)")


@click.command(epilog=INSTALL_EPILOG)
@click.argument("reply", type=click.Path(path_type=Path))
@_identity_option
@click.option("--ca-fingerprint", help="Believe no root but the one with this SHA-256 fingerprint, in hexadecimal.")
def install(reply: Path, identity: Path, ca_fingerprint: str | None) -> None:
    """Put the certificate that REPLY brings into the identity directory that has its key."""
    from securecore.certs.identity_lock import IdentityLock
    from securecore.certs.private_file import read_public
    from securecore.pki import install as installing
    from securecore.pki.reply import MAX_REPLY_BYTES

    wanted = None if ca_fingerprint is None else root_fingerprint(ca_fingerprint)
    with IdentityLock(identity):
        done = installing.install(identity, read_public(reply, MAX_REPLY_BYTES), now(), wanted, what=str(reply))
    judged = done.judgement
    echo_installed(identity, judged)
    if done.is_new_key:
        click.echo("  the new key has taken the old one's place")
    if done.lacks_log_key:
        click.echo("  the log key is not there, and no receiver starts without it")
        click.echo(f"next: put it back; where it is lost, securecore audit rekey --lost {identity} --identity {identity}")
    elif judged.purpose.value == "receiver":
        click.echo("a receiver that runs takes it within a minute, and at once when it gets SIGHUP")
    elif judged.purpose.value == "enroller":
        click.echo("next: send `securecore pki serve` SIGHUP, or start it")

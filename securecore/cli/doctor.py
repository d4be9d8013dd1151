"""``securecore doctor``: what is wrong with this machine's set-up, and what to do about it."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from securecore.cli import terminal
from securecore.cli.checkup import receiver, sender
from securecore.cli.checkup.findings import Finding, Level, attempt
from securecore.cli.machine.root import Root
from securecore.cli.options import json_option
from securecore.errors import ConfigError, NotFoundError

EPILOG: Final = """\b
Examples:
  securecore doctor
  securecore doctor --offline --json
  securecore doctor --store /srv/cores --identity /etc/securecore/receiver
  securecore doctor --root /mnt/image --offline
Nothing is changed. Exit code 0 when nothing is wrong (there may be warnings), 3 otherwise.
"""

_MARKS: Final[dict[Level, Callable[[str], str]]] = {
    Level.OK: terminal.good,
    Level.WARNING: terminal.doubtful,
    Level.WRONG: terminal.bad,
}


@click.command("doctor", epilog=EPILOG)
@click.option("--offline", is_flag=True, help="Do not connect to the receivers.")
@click.option("--store", metavar="STORE", help="Look at a receiver's store, set up as a service or not.")
@click.option("--identity", metavar="IDENTITY", help="Look at a receiver's identity directory, set up as a service or not.")
@click.option(
    "--root", "root_path", type=click.Path(path_type=Path), default=Path("/"), show_default=True, metavar="DIR",
    help="Look at another root, such as a mounted image; all other paths are paths in it.",
)  # fmt: skip
@json_option
def command(offline: bool, store: str | None, identity: str | None, root_path: Path, as_json: bool) -> int:
    """Look at this machine's set-up as a sender, as a receiver, or both, and say what is wrong and what mends it.

    Run it as root: only root can see all of it.
    """
    now = datetime.now(UTC)
    found: list[tuple[str, Finding]] = []
    with Root(root_path) as root:
        if root.is_live:
            store, identity = _absolute(store), _absolute(identity)
        checks = _checks(root, now, offline, store, identity)
        if not checks:
            where = "this machine" if root.is_live else root.path
            raise NotFoundError(f"{where} is set up neither as sender nor as receiver", hint="`securecore setup --help` shows how")
        for role, check in checks.items():
            if not as_json:
                click.secho(role, bold=True)
            for finding in check():
                found.append((role, finding))
                if not as_json:
                    _say(finding)
    counts = {level: sum(finding.level is level for _, finding in found) for level in Level}
    if as_json:
        click.echo(json.dumps(_document(found), indent=1))
    else:
        click.echo(f"{counts[Level.WRONG]} wrong, {terminal.count(counts[Level.WARNING], 'warning')}, {counts[Level.OK]} ok")
    return ConfigError.exit_code if counts[Level.WRONG] else 0


def _checks(
    root: Root, now: datetime, offline: bool, store: str | None, identity: str | None
) -> dict[str, Callable[[], Iterator[Finding]]]:
    """Return the checks of each role that is set up here, or asked for."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {}
    if sender.is_set_up(root):
        checks["sender"] = lambda: sender.check_sender(root, now, offline=offline)
    if store or identity or receiver.is_set_up(root):
        checks["receiver"] = lambda: attempt("unit", lambda: receiver.check_receiver(root, now, store, identity))
    return checks


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path is not None else None


def _say(finding: Finding) -> None:
    mark = _MARKS[finding.level](finding.level.value.ljust(8))
    click.echo(f"  {mark} {finding.name:<15}  {terminal.printable(finding.words, 400)}")
    if finding.remedy is not None and finding.level is not Level.OK:
        click.echo(f"  {'':<8} {'':<15}  -> {terminal.printable(finding.remedy, 400)}")


def _document(found: list[tuple[str, Finding]]) -> dict[str, object]:
    order = list(Level)
    worst = max((finding.level for _, finding in found), key=order.index, default=Level.OK)
    return {
        "level": worst.value,
        "checks": [
            {"role": role, "check": finding.name, "level": finding.level.value, "words": finding.words, "remedy": finding.remedy}
            for role, finding in found
        ],
    }

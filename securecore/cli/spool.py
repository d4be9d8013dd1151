"""``securecore spool``: what this host could not deliver yet."""

import json
import os
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from securecore import tls
from securecore.cli import terminal
from securecore.cli.options import address, json_option
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import Address, DumpId
from securecore.report import parse_report
from securecore.sender.settings import Settings, load_settings

if TYPE_CHECKING:
    from securecore.sender.flush import Flushed
    from securecore.sender.spool import Spool
    from securecore.sender.spool_limits import SpoolLimits

DEFAULT_SETTINGS = "/etc/securecore/handler.json"

EPILOG = """\b
Examples:
  securecore spool list
  securecore spool usage --json
  securecore spool flush
  securecore spool flush --spool /tmp/spool --to 127.0.0.1:4455 --identity host-identity
"""


@click.group("spool", epilog=EPILOG)
def command() -> None:
    """List and deliver the dumps that this host could not deliver when they happened."""


def settings_options(function: Any) -> Any:
    """Add ``--settings`` and ``--spool``: which spool a command is about."""
    function = click.option("--spool", "spool_path", metavar="SPOOL", help="The spool, instead of the settings'.")(function)
    return click.option("--settings", "settings_path", default=DEFAULT_SETTINGS, show_default=True, help="As setup wrote them.")(
        function
    )


@command.command("list")
@settings_options
@json_option
def list_(settings_path: str, spool_path: str | None, as_json: bool) -> None:
    """List what waits in the spool, oldest first, and how full it is."""
    from securecore.cli.fullness import find_fullness

    spool, settings, bounds = _open(settings_path, spool_path)
    rows = [row for dump in spool.dump_ids() if (row := _row(spool, dump)) is not None]
    if as_json:
        click.echo(json.dumps(rows))
    elif not rows:
        click.echo("the spool is empty")
    else:
        terminal.table(
            ("ID", "MET", "PROGRAM", "SIGNAL", "STORED", "STATE"),
            [
                (
                    terminal.short_id(row["id"]), terminal.when(datetime.fromisoformat(row["met_at"])),
                    terminal.printable(row["program"], 24), terminal.signal_name(row["signal"]),
                    terminal.size(row["stored_bytes"]), terminal.printable(row["state"]),
                )
                for row in rows
            ],
        )  # fmt: skip
    if not as_json and (rows or bounds.has_quota):
        click.echo(find_fullness(spool, bounds).words())
    if not as_json and (told := _storm_limits(spool, settings)):
        click.echo(told)


@command.command("usage")
@settings_options
@json_option
def usage_(settings_path: str, spool_path: str | None, as_json: bool) -> None:
    """Tell how full the spool is against its limits, for what watches a host; with --spool against none."""
    from securecore.cli.fullness import find_fullness

    spool, _, bounds = _open(settings_path, spool_path)
    found = find_fullness(spool, bounds)
    click.echo(json.dumps(found.document()) if as_json else found.words())


def _open(settings_path: str, spool_path: str | None) -> "tuple[Spool, Settings | None, SpoolLimits]":
    """Return the spool, the settings unless a spool is named, and what limits it by these."""
    from securecore.sender.spool import open_spool
    from securecore.sender.spool_limits import UNBOUND

    settings = load_settings(settings_path) if spool_path is None else None
    bounds = settings.spool_limits if settings is not None else UNBOUND
    return _at_hand(open_spool(spool_path or (settings.spool if settings is not None else ""))), settings, bounds


def _at_hand(spool: "Spool") -> "Spool":
    """Return the spool, which is closed when the command ends."""
    return click.get_current_context().with_resource(closing(spool))


def _storm_limits(spool: "Spool", settings: Settings | None) -> str | None:
    """Return how the storm limits stand, where there is something to tell; without settings by the usual ones."""
    from securecore.cli import standing
    from securecore.sender import storms
    from securecore.sender.admission import Admission

    found = storms.look(spool.fd, settings.admission if settings is not None else Admission())
    if found.problem is None and not any(found.waiting) and not found.used_up:
        return None
    return f"storm limits: {standing.words(found)}" + (f"; {found.problem}" if found.problem is not None else "")


def _row(spool: "Spool", dump: DumpId) -> dict[str, Any] | None:
    """Return what is told of one dump; None when it was delivered since it was found.

    The entry is locked while its small files are read and no longer, for a flush leaves out what is locked. So its length is told
    and not its frames', among which a torn last one would not count.
    """
    row: dict[str, Any] = {"id": str(dump), "met_at": _rfc3339(dump.time_ms), "program": None, "signal": None}
    try:
        row["stored_bytes"] = os.stat(f"dumps/{dump}/core.zst", dir_fd=spool.fd, follow_symlinks=False).st_size
    except OSError:
        row["stored_bytes"] = None
    try:
        entry = spool.entry(dump)
        if entry is None:
            return row | {"state": "in use"} if row["stored_bytes"] is not None else None
        with closing(entry):
            end = entry.end()
        report = parse_report(entry.report)
    except SecurecoreError as error:
        return row | {"state": f"broken: {error.message}"}
    state = "waiting" if end is not None else "waiting, source cut"
    return row | {"program": report.program, "signal": report.signal, "state": state}


@command.command("flush")
@settings_options
@click.option(
    "--to", "receivers", multiple=True, type=address, metavar="HOST:PORT", help="Receivers, instead of the settings'; in order."
)
@click.option("--identity", type=click.Path(path_type=Path), help="Identity directory, instead of the settings'.")
@click.option("--when-due", is_flag=True, help="Do nothing while the last failures ask for patience; for the timer.")
@json_option
def flush_(
    settings_path: str,
    spool_path: str | None,
    receivers: tuple[Address, ...],
    identity: Path | None,
    when_due: bool,
    as_json: bool,
) -> int:
    """Deliver what waits in the spool; each dump goes on from the receiver's last durable frame.

    Without --when-due it is tried at once. After flushes that delivered nothing, a timer's waits: up to a minute after the first,
    up to an hour in the end, or as long as the receiver has asked for. One flush works on a spool at a time.
    """
    from securecore.sender.spool import open_spool

    settings: Settings | None = None
    if spool_path is None or not receivers or identity is None:
        settings = load_settings(settings_path)
    if settings is not None:
        _tell_drift()
    where = spool_path or (settings.spool if settings else "")
    who = str(identity) if identity is not None else (settings.identity if settings else "")
    targets = receivers or (settings.receivers if settings else ())
    if not (where and who and targets):
        raise ConfigError("spool, receiver and identity are needed")
    spool = _at_hand(open_spool(where))
    if when_due and not _is_work_due(spool):
        # Every two minutes on every host: nothing of what signs and sends is loaded for it, and nothing is said.
        _tidy(spool)
        return 0
    # What is loaded later than the privileges are dropped may be out of reach by then, so the evidence is loaded here too.
    from securecore.sender import evidence, privileges  # noqa: F401
    from securecore.sender.credentials import read_credentials
    from securecore.sender.flush import flush
    from securecore.sender.parcel import Papers
    from securecore.sender.schedule import claim

    privileges.forbid_own_core()
    papers = Papers(tls.sender_context(who), read_credentials(who))
    _become_owner(spool)
    results, code = [], 0
    with claim(spool.fd) as is_ours:
        if not is_ours:
            click.echo("[]" if as_json else "another flush is at work on this spool")
            return 0
        for flushed in flush(spool, targets, papers, patience=settings.deadlines if settings else None):
            results.append(_document(flushed))
            code = code or (flushed.failure.exit_code if flushed.failure else 0)
            if not as_json:
                _tell(flushed)
    if as_json:
        click.echo(json.dumps(results))
    elif not results:
        click.echo("nothing to deliver")
    return code


def _become_owner(spool: "Spool") -> None:
    """Give root up for the spool's owner, for good.

    Files that root would leave in the spool could not be read by the handler's user, and root has no business on the wire.
    """
    from securecore.sender import privileges

    if os.geteuid() == 0 and spool.owner[0] != 0:
        privileges.drop(*spool.owner)


def _is_work_due(spool: "Spool") -> bool:
    """Return whether something waits, or was left behind by a handler that was killed, and may be seen to now."""
    from securecore.sender.schedule import read_schedule

    return _holds_anything(spool) and read_schedule(spool.fd).is_due(time.time())


def _holds_anything(spool: "Spool") -> bool:
    from securecore.dump import directory as files

    dumps = files.open_directory("dumps", spool.fd)
    if dumps is None:
        return False
    try:
        return bool(files.names_in(dumps))
    finally:
        os.close(dumps)


def _tidy(spool: "Spool") -> None:
    """Clear away what killed handlers have left, while no dump is due: what was kept free for them is missing to others."""
    if _holds_anything(spool):
        _become_owner(spool)
        spool.sweep(time.time())


def _document(flushed: "Flushed") -> dict[str, Any]:
    return {
        "id": str(flushed.dump),
        "delivered": flushed.failure is None,
        "sent_frames": flushed.sent_frames,
        "lost_frames": flushed.lost_frames,
        "delivered_as": str(flushed.delivered_as) if flushed.delivered_as else None,
        "error": flushed.failure.message if flushed.failure else None,
    }


def _tell(flushed: "Flushed") -> None:
    """Print what became of one dump: on standard error when it is still here."""
    failure, receipt = flushed.failure, flushed.receipt
    if failure is not None:
        click.echo(f"{flushed.dump.short}  kept: {failure.message}", err=True)
        if failure.hint:
            click.echo(f"          hint: {failure.hint}", err=True)
    elif receipt is not None:
        told, gone = f"stored by {receipt['receiver']}", receipt.get("gone")
        if gone is not None:
            told = f"deleted at the receiver: {terminal.printable(gone, 100)}"
        frames = terminal.count(flushed.sent_frames, "frame")
        click.echo(f"{flushed.dump.short}  {told}, receipt verified ({frames} sent now)")
        if receipt.get("not_kept") is not None:
            click.echo(f"          the receipt could not be kept here: {terminal.printable(receipt['not_kept'], 200)}", err=True)
        if flushed.delivered_as is not None:
            click.echo(f"          as {flushed.delivered_as.short}: what the receiver had of it before is not what was sent")
        if flushed.lost_frames:
            click.echo(f"          {terminal.lost_beginning(flushed.lost_frames)}: the store that had them has them no more")


def _tell_drift() -> None:
    """Write a line to the system log when the kernel no longer starts what set-up installed: the timer is who notices (R26)."""
    from securecore.cli.machine.drift import find_drift
    from securecore.cli.machine.root import Root
    from securecore.sender.system_log import log

    with Root(Path("/")) as root:
        drift = find_drift(root)
    if drift is not None:
        log("pattern-drift", found=drift.found, installed=drift.installed, hint="securecore doctor")


def _rfc3339(milliseconds: int) -> str:
    met_at = terminal.moment(milliseconds / 1000)
    return met_at.isoformat(timespec="milliseconds") if met_at else "1970-01-01T00:00:00.000+00:00"

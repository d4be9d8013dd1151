"""``securecore audit``: read and verify the audit logs of a store."""

import json
import os
from pathlib import Path
from typing import Any, Final

import click

from securecore import limits
from securecore.audit.checkpoint import origin_of, verifier_key
from securecore.audit.entry import find_time, parse_entry
from securecore.audit.log import ENTRIES, scan_lines
from securecore.audit.log_verification import Holdings, LogVerification, verify_log
from securecore.audit.statement import LogKey
from securecore.cli import evidence, holdings, options, terminal
from securecore.cli.options import host_option, json_option, root_option, store_option
from securecore.cli.verify import print_checks
from securecore.dump import directory as files
from securecore.errors import BrokenError, NotFoundError, SecurecoreError
from securecore.names import HostName
from securecore.store.layout import Store, open_store

EPILOG = """\b
Examples:
  securecore audit log --host web-1
  securecore audit verify --root ca.pem
Exit code 6: a log does not hold, or it and the store's dumps contradict each other. The dumps' bytes are for `securecore verify`.
"""

_SIZE_END: Final = 1 << 63
"""Above the size of any dump, as manifests bound it; an entry holds any number."""


@click.group("audit", epilog=EPILOG)
def command() -> None:
    """Who sent what, and who took it out: one append-only, signed log for each host."""


@command.command("log")
@store_option
@host_option
@json_option
def log_(store_path: str, host_text: str | None, as_json: bool) -> None:
    """Print the entries, oldest first, as they stand; nothing is verified."""
    with open_store(store_path) as store:
        rows = [row for host in _chosen(store, host_text) for row in _entries(store, host)]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("no entries")
    else:
        terminal.table(("ENTRY", "TIME", "HOST", "EVENT", "DUMP", "WHAT"), [_cells(row) for row in rows])


@command.command("verify")
@store_option
@host_option
@root_option
@json_option
def verify_(store_path: str, host_text: str | None, root_path: Path | None, as_json: bool) -> int:
    """Verify the logs: every entry, every hash, the checkpoint's signature, up to the root that you trust.

    And that log and store agree: each dump has its entry, each entry its dump, and the log contains what every receipt proves.
    """
    code, documents = 0, []
    with open_store(store_path) as store:
        host = options.find_host(host_text, store)
        anchors, is_own = evidence.load_anchors(store, root_path)
        log_key = evidence.load_log_key(store, anchors)
        for owner in [host] if host is not None else holdings.known_hosts(store):
            held = holdings.read_holdings(store, owner, log_key)
            result = _verify(store, owner, log_key, held)
            key = verifier_key(result.origin, log_key.public_key)
            code = code if result.ok else BrokenError.exit_code
            documents.append(_document(owner, result, held) | {"verifier_key": key})
            if not as_json:
                _print(owner, result, key)
    if as_json:
        click.echo(json.dumps(documents, indent=1))
    elif not documents:
        click.echo("no audit logs, and no dumps")
    elif is_own:
        click.echo(evidence.OWN_ROOT, err=True)
    return code


def _verify(store: Store, host: HostName, log_key: LogKey, held: Holdings) -> LogVerification:
    """Return what holds of a host's log; that there is none is for the checks to say."""
    try:
        fd = store.audit_directory(host, create=False)
    except NotFoundError:
        fd = None
    try:
        with terminal.Progress(f"verifying {host}", None) as progress:
            return verify_log(
                fd,
                origin_of(log_key.name, host),
                log_key.public_key,
                holdings=held,
                progress=lambda done, total: progress.update(done),
            )
    finally:
        if fd is not None:
            os.close(fd)


def _print(host: HostName, result: LogVerification, key: str) -> None:
    click.echo(f"{host}  log {result.origin}")
    print_checks(result.checks)
    click.echo(f"      key   {key}")
    unsigned = f", {result.unsigned} more not yet under a checkpoint" if result.unsigned else ""
    verdict = terminal.good("ok") if result.ok else terminal.bad("BROKEN")
    click.echo(f"{host}  {verdict}  {terminal.count(result.size, 'entry')}{unsigned}")


def _document(host: HostName, result: LogVerification, held: Holdings) -> dict[str, Any]:
    return {
        "host": str(host),
        "origin": result.origin,
        "ok": result.ok,
        "entries": result.size,
        "unsigned": result.unsigned,
        "gone": [str(dump) for dump in result.gone],
        "unlogged": [str(dump) for dump in result.unlogged],
        "unproved": [{"dump": str(dump), "problem": problem} for dump, problem in held.unproved],
        "checks": [check._asdict() for check in result.checks],
    }


def _chosen(store: Store, host_text: str | None) -> list[HostName]:
    host = options.find_host(host_text, store)
    return [host] if host is not None else store.audited_hosts()


def _entries(store: Store, host: HostName) -> list[dict[str, Any]]:
    fd = store.audit_directory(host, create=False)
    try:
        entries = files.open_file(ENTRIES, fd)
    finally:
        os.close(fd)
    if entries is None:
        return []
    rows = []
    try:
        for index, line in enumerate(scan_lines(entries)):
            try:
                fields: dict[str, Any] = dict(parse_entry(line.data))
            except SecurecoreError as error:
                fields = {"event": "unreadable", "problem": error.message}
            rows.append(_row(index, host, fields))
    finally:
        os.close(entries)
    return rows


def _row(index: int, host: HostName, fields: dict[str, Any]) -> dict[str, Any]:
    """Return an entry's fields, with its place and whose log it stands in; what the entry itself says of these does not count."""
    place = {"entry": index, "host": str(host)}
    return place | fields | place


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    moment = find_time(row)
    dump = terminal.printable(terminal.short_id(str(row["dump"]))) if row.get("dump") else "-"
    time = terminal.when(moment) if moment is not None else "-"
    return (str(row["entry"]), time, row["host"].split(".")[0], terminal.printable(row["event"], 16), dump, _what(row))


def _what(row: dict[str, Any]) -> str:
    if row["event"] == "received":
        size = row.get("size")
        what = f"{terminal.size(size if type(size) is int and 0 <= size < _SIZE_END else None)} "
        what += terminal.printable(str(row.get("state")), 16)
        lost = row.get("lost_frames")
        if type(lost) is int and 0 < lost < _SIZE_END // limits.PIECE_BYTES:
            what += f" ({terminal.lost_beginning(lost)})"
        return f"{what}, {terminal.printable(str(row['program']), 24)}" if row.get("program") else what
    if row["event"] == "incomplete":
        frames = row.get("frames")
        return f"{frames if type(frames) is int and 0 <= frames < _SIZE_END else '-'} frames held, its sender did not come back"
    if row["event"] in ("extracted", "deleted"):
        reason = f": {terminal.printable(str(row['reason']), 48)}" if row.get("reason") is not None else ""
        return f"by {terminal.printable(str(row.get('user') or row.get('uid')), 32)}{reason}"
    if row["event"] == "refused":
        others = row.get("others")
        more = f", and {others} times more before" if type(others) is int and 0 < others < _SIZE_END else ""
        return f"{terminal.printable(str(row.get('reason')), 120)}{more}"
    return terminal.printable(str(row.get("problem", "")), 80)

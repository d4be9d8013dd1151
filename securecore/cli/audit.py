"""``securecore audit``: read and verify the audit logs of a store."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

from securecore import limits
from securecore.audit.checkpoint import origin_of, verifier_key
from securecore.audit.entry import find_time, parse_entry
from securecore.audit.log_files import ENTRIES, scan_lines
from securecore.audit.log_verification import Holdings, LogVerification
from securecore.cli import (
    audit_check,
    audit_prove,
    audit_rekey,
    audit_report,
    compare,
    event_words,
    evidence,
    options,
    terminal,
)  # fmt: skip
from securecore.cli.options import host_option, json_option, root_option, store_option
from securecore.cli.verified_file import VerifiedFile
from securecore.cli.verify import print_checks
from securecore.cli.wide_log import Before, LogsLook
from securecore.dump import directory as files
from securecore.errors import BrokenError, NotFoundError, SecurecoreError
from securecore.names import HostName
from securecore.store.layout import Store, open_store
from securecore.store.lookup import digits_of, is_match

EPILOG = """\b
Examples:
  securecore audit log 9c41d07e
  securecore audit verify --root ca.pem
  securecore audit report --root ca.pem -o report.html
  securecore audit compare web-1-receipts.jsonl --root ca.pem
  securecore audit prove 9c41d07e --root ca.pem -o 9c41d07e.tar
  securecore audit check 9c41d07e.tar --root ca.pem
  securecore audit rekey
Exit code 6: a log does not hold, or it and the store's dumps contradict each other. The dumps' bytes are for `securecore verify`.
"""

LOG_EPILOG: Final = """\b
Examples:
  securecore audit log 9c41d07e
  securecore audit log --host web-1 --since 1d
  securecore audit log --json | jq -r '.[] | select(.event == "extracted") | [.time, .host, .dump, .user] | @tsv'
Exit code 4: no entry is about such a dump. Whether what stands here is true is for `securecore audit verify`.
"""

VERIFY_EPILOG: Final = """\b
Examples:
  securecore audit verify --root ca.pem
  securecore audit verify --root ca.pem --host web-1
  securecore audit verify --root ca.pem --state verified.json
  securecore audit verify --root ca.pem --state verified.json --from-the-start
  securecore audit verify --root ca.pem --json | jq '.[] | select(.ok | not)'
Exit code 6: a log does not hold, or was shortened or rewritten since it was verified, or it and the store's dumps contradict each
other, or a host is missing whole. What is broken stays remembered as it was when it held. The dumps' bytes are for
`securecore verify`. Whether all of the store was put back to an earlier state, --state tells, or `securecore audit compare`.
"""

_WIDTHS: Final = (len("ENTRY"), len("2026-11-22 09:14:22"), len("certificate"), len("9c41d07e"))
"""Of the columns ENTRY, TIME, EVENT and DUMP."""
_UNREADABLE: Final = {"event": "unreadable", "problem": "not whole: an append is under way, or was cut off"}
_SIZE_END: Final = 1 << 63
"""Above the size of any dump, as manifests bound it; an entry holds any number."""


@click.group("audit", epilog=EPILOG)
def command() -> None:
    """Who sent what, and who took it out: one append-only, signed log for each host."""


command.add_command(compare.command)
command.add_command(audit_report.command)
command.add_command(audit_prove.command)
command.add_command(audit_check.command)
command.add_command(audit_rekey.command)


@command.command("log", epilog=LOG_EPILOG, short_help="Print what stands in the logs, of all dumps or of one.")
@click.argument("text", metavar="[ID]", required=False)
@store_option
@host_option
@click.option("--since", type=options.moment, metavar="WHEN", help="Only what is newer: 15m, 6h, 1d, 2w ago, or a date.")
@json_option
def log_(text: str | None, store_path: str, host_text: str | None, since: datetime | None, as_json: bool) -> None:
    """Print the entries, oldest first, as they stand; nothing is verified.

    With an ID only those about the dumps whose ids begin or end with it, deleted ones too: who sent it, who took it out.
    """
    with open_store(store_path) as store:
        hosts = _chosen(store, host_text)
        found = (row for host in hosts for row in _entries(store, host))
        rows: Iterable[dict[str, Any]] = (row for row in found if _is_about(row, text) and _is_since(row, since))
        if text is not None:
            rows = _checked(rows, text)
        if as_json:
            _print_array(rows)
        else:
            _print_table(rows, max((len(_short(str(host))) for host in hosts), default=0))


def _checked(rows: Iterable[dict[str, Any]], text: str) -> Iterable[dict[str, Any]]:
    """Return the rows about a dump; raises NotFoundError, before anything is printed, where there is none."""
    several = iter(rows)
    first = next(several, None)
    if first is None:
        problem = f"no entry is about a dump whose id begins or ends with {text[:64]!a}"
        raise NotFoundError(problem, hint="`securecore audit log` has all entries")
    return chain([first], several)


def _print_array(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as one JSON array, each when it is read."""
    click.echo("[")
    before: str | None = None
    for row in rows:
        if before is not None:
            click.echo(f"{before},")
        before = json.dumps(row)
    click.echo("]" if before is None else f"{before}\n]")


def _print_table(rows: Iterable[dict[str, Any]], host_width: int) -> None:
    """Print rows as a table, each when it is read: so the columns are as wide as what a receiver writes, and not as the widest."""
    widths = (*_WIDTHS[:2], max(host_width, len("HOST")), *_WIDTHS[2:])
    is_empty = True
    for row in rows:
        if is_empty:
            click.secho(_line(("ENTRY", "TIME", "HOST", "EVENT", "DUMP", "WHAT"), widths), bold=True)
            is_empty = False
        click.echo(_line(_cells(row), widths))
    if is_empty:
        click.echo("no entries")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]).rstrip()


@command.command("verify", epilog=VERIFY_EPILOG, short_help="Verify the logs, and that they and the store agree.")
@store_option
@host_option
@root_option
@click.option(
    "--state", "state_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Remember in FILE what was verified, and hold the logs against it the next time. Keep it where nobody who can write the"
    " store can write.",
)  # fmt: skip
@click.option("--from-the-start", is_flag=True, help="Parse all entries, also those that FILE says were verified.")
@json_option
def verify_(
    store_path: str,
    host_text: str | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
    state_path: Path | None,
    from_the_start: bool,
    as_json: bool,
) -> int:
    """Verify the logs: every entry, every hash, the checkpoint's signature, up to the root that you trust.

    And that log and store agree: each dump has its entry, each entry its dump, the log contains what every receipt proves, and the
    catalogue, which is brought up to date for that, lists what the dumps' files say. And that no host is missing whole: the
    receiver-wide log says which logs there were, and how long they were.

    With --state it goes on where the last verification ended. Each log must begin with the entries that were verified then, or it
    is broken; so their form need not be looked at again. All are hashed, and compared with dumps and receipts, each time.
    """
    code, documents = 0, []
    with open_store(store_path) as store, ExitStack() as stack:
        anchors, is_own = evidence.load_anchors(store, root_path)
        log_key = evidence.load_log_key(store, anchors, trusted)
        state = stack.enter_context(VerifiedFile(state_path, store, log_key)) if state_path is not None else None
        look = LogsLook(store, log_key)
        remembered = state.hosts if state is not None else []
        host = options.find_host(host_text, store, [*look.said.hosts, *remembered])
        for owner in [host] if host is not None else sorted({*look.hosts, *remembered}):
            before = Before(state.find(origin_of(log_key.name, owner)) if state is not None else None, from_the_start)
            result, held = look.verify_host(owner, before)
            if state is not None:
                state.take(result.note)
            code = code if result.ok else BrokenError.exit_code
            keys = [verifier_key(result.origin, one) for one in (log_key.public_key, *log_key.earlier)]
            shown = {"verifier_key": keys[0], "earlier_verifier_keys": keys[1:], "verified_before": before.document()}
            documents.append(_document(owner, result, held) | shown)
            if not as_json:
                _print(owner, result, keys)
        before = Before(state.find(log_key.name) if state is not None else None, from_the_start)
        wide = look.verify(before)
        if documents or (wide is not None and not wide.ok):
            if wide is not None:
                code = code if wide.ok else BrokenError.exit_code
                documents.append(look.document(wide) | {"verified_before": before.document()})
            if not as_json:
                look.print(wide)
        if state is not None:
            state.take(wide.note if wide is not None else None)
            state.write()
    if as_json:
        click.echo(json.dumps(documents, indent=1))
    elif not documents:
        click.echo("no audit logs, and no dumps")
    elif is_own:
        click.echo(evidence.OWN_ROOT, err=True)
    return code


def _print(host: HostName, result: LogVerification, keys: Sequence[str]) -> None:
    click.echo(f"{host}  log {result.origin}")
    print_checks(result.checks)
    click.echo(f"      key   {keys[0]}")
    for one in keys[1:]:
        click.echo(f"      before  {one}")
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
        "restored": [str(dump) for dump in result.restored],
        "unproved": [{"dump": str(dump), "problem": problem} for dump, problem in held.unproved],
        "checks": [check._asdict() for check in result.checks],
    }


def _chosen(store: Store, host_text: str | None) -> list[HostName]:
    host = options.find_host(host_text, store)
    return [host] if host is not None else store.audited_hosts()


def _entries(store: Store, host: HostName) -> Iterator[dict[str, Any]]:
    fd = store.audit_directory(host, create=False)
    try:
        entries = files.open_file(ENTRIES, fd)
    finally:
        os.close(fd)
    if entries is None:
        return
    try:
        for index, line in enumerate(scan_lines(entries)):
            try:
                fields: dict[str, Any] = dict(parse_entry(line.data)) if line.is_whole else _UNREADABLE
            except SecurecoreError as error:
                fields = _UNREADABLE | {"problem": error.message}
            yield _row(index, host, fields)
    finally:
        os.close(entries)


def _is_about(row: dict[str, Any], text: str | None) -> bool:
    if text is None:
        return True
    wanted = digits_of(text)
    return wanted != "" and isinstance(row.get("dump"), str) and is_match(row["dump"], wanted)


def _is_since(row: dict[str, Any], since: datetime | None) -> bool:
    """Return whether an entry is of the period; one whose time cannot be told is of any."""
    moment = find_time(row) if since is not None else None
    return since is None or moment is None or moment >= since


def _row(index: int, host: HostName, fields: dict[str, Any]) -> dict[str, Any]:
    """Return an entry's fields, with its place and whose log it stands in; what the entry itself says of these does not count."""
    place = {"entry": index, "host": str(host)}
    return place | fields | place


def _short(host: str) -> str:
    return host.split(".")[0]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    moment = find_time(row)
    dump = terminal.printable(terminal.short_id(str(row["dump"]))) if row.get("dump") else "-"
    time = terminal.when(moment) if moment is not None else "-"
    return (str(row["entry"]), time, _short(row["host"]), terminal.printable(row["event"], 16), dump, _what(row))


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
        return f"{event_words.count(row.get('frames'), 'frame')} held, its sender did not come back"
    if row["event"] in ("extracted", "deleted"):
        reason = f": {terminal.printable(str(row['reason']), 48)}" if row.get("reason") is not None else ""
        return f"by {terminal.printable(str(row.get('user') or row.get('uid')), 32)}{reason}"
    if row["event"] == "refused":
        others = row.get("others")
        more = f", and {event_words.count(others, 'time')} more before" if type(others) is int and 0 < others < _SIZE_END else ""
        return f"{terminal.printable(str(row.get('reason')), 120)}{more}"
    return event_words.find_words(row) or terminal.printable(str(row.get("problem", "")), 80)

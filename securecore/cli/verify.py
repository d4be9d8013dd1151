"""``securecore verify``: check dumps against what was signed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from securecore import limits
from securecore.audit.checks import Check
from securecore.audit.statement import LogKey
from securecore.audit.verification import DumpVerification, Expected, verify_dump
from securecore.certs.chain import Anchors
from securecore.cli import evidence, holdings, options, terminal
from securecore.cli.listing import GIVEN_UP, UNCOMMITTED
from securecore.cli.options import host_option, json_option, root_option, store_option
from securecore.errors import BrokenError, IncompleteError, NotFoundError
from securecore.names import DumpId, HostName
from securecore.store.layout import Store, open_store

EPILOG = """\b
Examples:
  securecore verify 9c41d07e --root ca.pem
  securecore verify --all --root ca.pem
Exit code 6: something does not hold, or with --all a dump is gone that the audit log says was received. 7: the dump is
still coming in. An incomplete dump whose evidence holds is not broken. The logs themselves, and dumps that no log knows, are
for `securecore audit verify`.
"""

_GONE: Final = "the audit log says that it was received, or given up with more frames, and it is not in the store as it says"


@click.command("verify", epilog=EPILOG)
@click.argument("text", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every dump in the store, or of --host.")
@click.option("--quick", is_flag=True, help="Hash the frames, but do not decompress them while the hashes agree.")
@store_option
@host_option
@root_option
@json_option
def command(
    text: str | None,
    everything: bool,
    quick: bool,
    store_path: str,
    host_text: str | None,
    root_path: Path | None,
    as_json: bool,
) -> int:
    """Recompute everything about a dump from its files: hashes, checksums, signatures, receipt."""
    if (text is None) != everything:
        raise click.UsageError("name one dump, or say --all")
    with open_store(store_path) as store:
        host = options.find_host(host_text, store)
        anchors, is_own = evidence.load_anchors(store, root_path)
        try:
            log_key = evidence.load_log_key(store, anchors)
        except NotFoundError:
            log_key = None
        code, documents = 0, []
        for owner, dump in _chosen(store, text, host):
            try:
                result = _verify(store, owner, dump, anchors, log_key, decode=not quick, is_one_of_all=everything)
            except NotFoundError:
                if not everything:
                    raise
                continue  # It was deleted, or taken back by its sender, since it was listed.
            code = code if result.ok else BrokenError.exit_code
            documents.append(_document(owner, dump, result))
            if not as_json:
                _print(owner, dump, result, is_detailed=not everything)
        for owner, dump in _gone(store, host) if everything else ():
            code = BrokenError.exit_code
            documents.append(_document_of_gone(owner, dump))
            if not as_json:
                click.echo(f"{dump.short}  {terminal.bad('GONE')}  {owner}  {_GONE}")
    if as_json:
        click.echo(json.dumps(documents, indent=1))
    elif is_own:
        click.echo(evidence.OWN_ROOT, err=True)
    return code


def _verify(
    store: Store,
    host: HostName,
    dump: DumpId,
    anchors: Anchors,
    log_key: LogKey | None,
    *,
    decode: bool,
    is_one_of_all: bool,
) -> DumpVerification:
    """Return what holds of a dump; raises NotFoundError when it is not there, IncompleteError when nothing can hold of it yet.

    One of all is left out when it is not there any more, and so is one that is coming in again.
    """
    with store.open_dump(host, dump) as files, terminal.Progress(f"verifying {dump.short}", None) as progress:
        if not files.is_published and files.read_receipt() is None:
            if is_one_of_all:
                raise NotFoundError(f"{dump.short} is coming in again")
            why = "still coming in, or cut" if files.read_manifest() is None else UNCOMMITTED
            raise IncompleteError(f"{dump.short} has no receipt: {why}", hint="`securecore show` tells how much is there")
        return verify_dump(
            files.fd,
            Expected(host, dump, store.store_id),
            anchors,
            log_key,
            decode=decode,
            progress=lambda done, total: progress.update(done * limits.PIECE_BYTES),
        )


def _chosen(store: Store, text: str | None, host: HostName | None) -> Iterator[tuple[HostName, DumpId]]:
    """Yield what to verify: one dump, or each published one; and what a crash kept from being published with its receipt."""
    if text is not None:
        yield store.find(text, host)
        return
    for owner in [host] if host is not None else holdings.known_hosts(store):
        dumps = store.dump_ids(owner)
        dumps += [entered.dump for entered in holdings.find_absent(store, owner) if _has_receipt(store, owner, entered.dump)]
        yield from ((owner, dump) for dump in sorted(set(dumps), key=str))


def _has_receipt(store: Store, host: HostName, dump: DumpId) -> bool:
    try:
        with store.open_dump(host, dump) as files:
            return files.read_receipt() is not None
    except NotFoundError:
        return False


def _gone(store: Store, host: HostName | None) -> Iterator[tuple[HostName, DumpId]]:
    """Yield the dumps that are not in the store as a log says that they were received or given up."""
    for owner in [host] if host is not None else holdings.known_hosts(store):
        missing = {entered.dump for entered in holdings.find_absent(store, owner) if not holdings.is_held(store, owner, entered)}
        if missing:
            # It may have been deleted, or received once more, between our look at the log and our look at the store.
            again = [entered for entered in holdings.find_absent(store, owner) if entered.dump in missing]
            yield from ((owner, entered.dump) for entered in again if not holdings.is_held(store, owner, entered))


def _print(host: HostName, dump: DumpId, result: DumpVerification, *, is_detailed: bool) -> None:
    if is_detailed:
        print_checks(result.checks)
    outcome = result.manifest.outcome if result.manifest else GIVEN_UP if result.given_up else "no manifest"
    if result.manifest is not None and result.manifest.lost_frames:
        outcome += f", {terminal.lost_beginning(result.manifest.lost_frames)}"
    label = "complete" if outcome == "complete" else f"incomplete ({outcome})"
    if result.ok:
        click.echo(f"{dump.short}  {terminal.good('ok')}  {host}  {label}, {terminal.size(_plain(result))}")
        return
    click.echo(f"{dump.short}  {terminal.bad('BROKEN')}  {host}  {_first_problem(result)}")
    if result.damage and result.survey:
        lost = sum(damage.last_frame - damage.first_frame + 1 for damage in result.damage)
        left = result.survey.frames - lost
        if left:
            others = "1 frame is" if left == 1 else f"{left} frames are"
            click.echo(f"          the other {others} intact; `extract --partial` writes what is left, with a hole")


def print_checks(checks: Sequence[Check]) -> None:
    """Print numbered checks, one a line, with what was found."""
    for check in checks:
        mark = {True: terminal.good("ok  "), False: terminal.bad("FAIL"), None: "n/a "}[check.ok]
        detail = f": {terminal.printable(check.detail, 200)}" if check.detail else ""
        click.echo(f"  {check.number:>2}  {mark}  {check.what}{detail}")


def _first_problem(result: DumpVerification) -> str:
    if result.damage:
        first = result.damage[0]
        of = f" of {result.survey.frames}" if result.survey else ""
        extent = f"{terminal.size(first.plain_start)} to {terminal.size(first.plain_end)}"
        return f"frame {first.first_frame}{of} (plaintext {extent}): {terminal.printable(first.reason, 120)}"
    failed = next((check for check in result.checks if not check.ok), None)
    return f"{failed.what}: {terminal.printable(failed.detail, 160)}" if failed else "not proved"


def _plain(result: DumpVerification) -> int | None:
    stated = result.manifest or result.given_up
    return stated.size if stated is not None else None


def _document(host: HostName, dump: DumpId, result: DumpVerification) -> dict[str, Any]:
    return {
        "id": str(dump),
        "host": str(host),
        "ok": result.ok,
        "outcome": result.manifest.outcome if result.manifest else None,
        "given_up": result.given_up is not None,
        "lost_frames": result.manifest.lost_frames if result.manifest else None,
        "checks": [check._asdict() for check in result.checks],
        "damage": [damage._asdict() for damage in result.damage],
    }


def _document_of_gone(host: HostName, dump: DumpId) -> dict[str, Any]:
    check = Check(1, "the dump is in the store", False, _GONE)
    unknown = {"outcome": None, "given_up": False, "lost_frames": None}
    return {"id": str(dump), "host": str(host), "ok": False, **unknown, "checks": [check._asdict()], "damage": []}

"""``securecore verify``: check dumps against what was signed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from securecore import limits
from securecore.audit.checks import Check
from securecore.audit.damage import Damage
from securecore.audit.dump_reading import Expected
from securecore.audit.entry import Held
from securecore.audit.revocation import KeptLists
from securecore.audit.statement import LogKey
from securecore.audit.verification import DumpVerification, verify_dump
from securecore.certs.chain import Anchors
from securecore.cli import evidence, holdings, options, terminal, tombstones
from securecore.cli.options import host_option, json_option, receiver_identity_option, root_option, store_option
from securecore.cli.recording import Recorder
from securecore.cli.state import State, state_of
from securecore.dump.manifest import Manifest
from securecore.errors import BrokenError, IncompleteError, NotFoundError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.crls import read_crl
from securecore.store.layout import Place, Store, open_store
from securecore.store.reading import DumpFiles

EPILOG = """\b
Examples:
  securecore verify 9c41d07e --root ca.pem
  securecore verify --all --root ca.pem
  securecore verify --all --root ca.pem --record
Exit code 6: something does not hold, or a dump is gone that the audit log says was received. 7: the dump is still
coming in or not published yet, and nothing of it is broken. 4: it was deleted; when, by whom and why is said. An
incomplete dump whose evidence holds is not broken. The logs themselves, and dumps that no log knows, are for
`securecore audit verify`.
"""

_DAMAGES: Final = 20
"""Damaged places of one dump that a person is told of: a screen; programs are told of all."""

_SO_FAR: Final = "what can be checked without a receipt holds"

_GONE: Final = "not in the store as the audit log says"


@click.command("verify", epilog=EPILOG)
@click.argument("text", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every dump in the store, or of --host.")
@click.option("--quick", is_flag=True, help="Hash the frames, but do not decompress them while the hashes agree.")
@click.option("--record", is_flag=True, help="Have the audit logs say who verified what, and what was found.")
@store_option
@host_option
@root_option
@receiver_identity_option("The receiver's identity, to sign what --record writes where no receiver runs.")
@json_option
def command(
    text: str | None,
    everything: bool,
    quick: bool,
    record: bool,
    store_path: str,
    host_text: str | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
    identity: Path,
    as_json: bool,
) -> int:
    """Recompute everything about a dump from its files: hashes, checksums, signatures, receipt.

    The frames of a dump are shared out to the CPUs that this process may use (taskset(1) leaves it fewer).

    Nothing is written, but with --record an entry into the host's audit log for each dump that is verified: by the receiver that
    runs on this store, else by this command with the receiver's identity.
    """
    if (text is None) != everything:
        raise click.UsageError("name one dump, or say --all")
    with open_store(store_path) as store, Recorder(store, identity if record else None) as recorder:
        host = options.find_host(host_text, store)
        anchors, is_own = evidence.load_anchors(store, root_path)
        try:
            log_key = evidence.load_log_key(store, anchors, trusted)
        except NotFoundError:
            log_key = None
        how = _How(anchors, log_key, KeptLists(lambda digest: read_crl(store, digest)), decode=not quick)
        code, documents, broken = 0, [], set()
        restored = set(_restored(store, host)) if everything else set()
        for owner, dump in _chosen(store, text, host):
            try:
                found = _verify(store, owner, dump, how)
            except (NotFoundError, IncompleteError) as error:
                if not everything:
                    tombstones.check_present(store, owner, dump, lost=BrokenError)
                    raise
                # It was listed a moment ago. Nothing of it is wrong, and nothing is left to be verified.
                if not as_json:
                    click.echo(f"{dump.short}  n/a  {owner}  {_meanwhile(error)}")
                continue
            if found.is_awaited:
                if not as_json:
                    _print_awaited(owner, dump, found, is_detailed=not everything)
                if not everything:
                    raise IncompleteError(f"{dump.short} is {found.state.label()}", hint=_SO_FAR)
                continue
            if (owner, dump) in restored or (not everything and dump in holdings.find_restored(store, owner)):
                found = found._replace(result=_deny(found.result))
            if not found.result.ok:
                code = BrokenError.exit_code
                broken.add((owner, dump))
            documents.append(_document(owner, dump, found.result))
            recorder.note(owner, dump, None if found.result.ok else _first_problem(found.result))
            if not as_json:
                _print(owner, dump, found, is_detailed=not everything)
        for owner, dump, problem in _gone(store, host) if everything else ():
            if (owner, dump) in broken:
                continue  # What is wrong with it was said.
            code = BrokenError.exit_code
            documents.append(_document_of_gone(owner, dump, problem))
            recorder.note(owner, dump, f"{_GONE}: {problem}")
            if not as_json:
                click.echo(f"{dump.short}  {terminal.bad('GONE')}  {owner}  {_GONE}: {problem}")
    if as_json:
        click.echo(json.dumps(documents, indent=1))
    elif is_own:
        click.echo(evidence.OWN_ROOT, err=True)
    recorder.conclude(is_broken=bool(code))
    return code


class _How(NamedTuple):
    """What dumps are verified with."""

    anchors: Anchors
    log_key: LogKey | None
    lists: KeptLists
    decode: bool


class _Found(NamedTuple):
    """What holds of a dump, and how it stands."""

    result: DumpVerification
    state: State

    @property
    def is_awaited(self) -> bool:
        """Whether it is not published yet, and all that could be checked without a receipt holds."""
        return self.result.awaits_receipt and self.result.ok


def _verify(store: Store, host: HostName, dump: DumpId, how: _How) -> _Found:
    """Return what holds of a dump.

    Raises NotFoundError when it is not there, or not any more, and IncompleteError when nothing can hold of it yet. Nothing is said
    to be broken that was moved away while it was looked at: a file that is missing then was removed in good order.
    """
    try:
        with terminal.Progress(f"verifying {dump.short}", None) as progress:
            return holdings.read_standing(
                lambda: store.open_dump(host, dump),
                lambda files: _verify_files(files, Expected(host, dump, store.store_id), how, progress),
                lambda files, found: found.result.ok or holdings.stands(store, files),
            )
    except StorageError as error:
        return _Found(_unreadable(error), state_of(None, is_published=True))


def _verify_files(files: DumpFiles, expected: Expected, how: _How, progress: terminal.Progress) -> _Found:
    awaits_receipt = not files.is_published and not holdings.has_receipt(files)
    if awaits_receipt and not files.has_manifest():
        label = state_of(None, is_published=False, has_manifest=False).label()
        raise IncompleteError(f"{files.dump_id.short} is {label}", hint="`securecore show` tells how much is there")
    result = verify_dump(
        files.fd,
        expected,
        how.anchors,
        how.log_key,
        how.lists,
        awaits_receipt=awaits_receipt,
        decode=how.decode,
        progress=lambda done, total: progress.update(done * limits.PIECE_BYTES, total * limits.PIECE_BYTES),
    )
    # By what was read: a file that is looked for now may have been removed meanwhile, in good order.
    given_up = result.given_up is not None
    state = state_of(
        result.manifest,
        is_published=files.is_published,
        is_given_up=given_up and files.is_published,
        has_manifest=not given_up,
        has_core=result.survey is not None,
    )
    return _Found(result, state)


def _unreadable(error: StorageError) -> DumpVerification:
    """Return the outcome of what stands in a dump's place and is no directory that can be read."""
    check = Check(1, "the dump can be opened", False, error.message)
    return DumpVerification([check], manifest=None, receipt=None, survey=None, damage=[], given_up=None)


def _meanwhile(error: SecurecoreError) -> str:
    return "its sender is back, and it is coming in again" if isinstance(error, IncompleteError) else "deleted meanwhile"


def _chosen(store: Store, text: str | None, host: HostName | None) -> Iterator[tuple[HostName, DumpId]]:
    """Yield what to verify: one dump, or each that is published or of which no more is to come."""
    if text is not None:
        yield tombstones.find_dump(store, text, host, lost=BrokenError)
        return
    for owner in [host] if host is not None else sorted({*holdings.known_hosts(store), *store.hosts_in(Place.INCOMING)}):
        dumps = {*holdings.published_dumps(store, owner), *_coming_in(store, owner)}
        yield from ((owner, dump) for dump in sorted(dumps, key=str))


def _coming_in(store: Store, host: HostName) -> list[DumpId]:
    """Return the dumps under incoming that have a receipt or a manifest, or that cannot be read; none that is still coming in."""
    try:
        names = store.dump_names(Place.INCOMING, host)
    except StorageError:
        return []
    found = []
    for name in names:
        try:
            dump = DumpId.parse(name)
            with store.open_dump(host, dump) as files:
                if holdings.has_receipt(files) or files.has_manifest():
                    found.append(dump)
        except (NameRefused, NotFoundError):
            continue
        except StorageError:
            found.append(dump)
    return found


def _restored(store: Store, host: HostName | None) -> Iterator[tuple[HostName, DumpId]]:
    """Yield the published dumps that were deleted, as the logs say."""
    for owner in [host] if host is not None else holdings.known_hosts(store):
        yield from ((owner, dump) for dump in holdings.find_restored(store, owner))


def _deny(result: DumpVerification) -> DumpVerification:
    """Return the outcome of a dump that was deleted and is there again; its papers may hold."""
    check = Check(len(result.checks) + 1, "the log says that it is in the store", False, "it says that it was deleted")
    return result._replace(checks=[*result.checks, check])


def _gone(store: Store, host: HostName | None) -> Iterator[tuple[HostName, DumpId, str]]:
    """Yield the dumps that are not in the store as a log says that they were received or given up, and why not."""
    for owner in [host] if host is not None else holdings.known_hosts(store):
        problems = holdings.find_problems(store, owner, holdings.find_absent(store, owner))
        yield from ((owner, dump, problem) for dump, problem in problems.items())


def _print(host: HostName, dump: DumpId, found: _Found, *, is_detailed: bool) -> None:
    result = found.result
    if is_detailed:
        print_checks(result.checks)
    if result.ok:
        click.echo(f"{dump.short}  {terminal.good('ok')}  {host}  {found.state.label()}, {terminal.size(_plain(result))}")
        return
    click.echo(f"{dump.short}  {terminal.bad('BROKEN')}  {host}  {_first_problem(result)}")
    for damage in result.damage[1:_DAMAGES]:
        click.echo(f"          {_describe(damage, result)}")
    if (more := len(result.damage) - _DAMAGES) > 0:
        click.echo(f"          and {terminal.count(more, 'more place')}; --json names them all")
    if result.damage and (left := _describe_rest(result)) is not None:
        click.echo(f"          {left}")


def _print_awaited(host: HostName, dump: DumpId, found: _Found, *, is_detailed: bool) -> None:
    if is_detailed:
        print_checks(found.result.checks)
    else:
        click.echo(f"{dump.short}  n/a  {host}  {found.state.label()}; {_SO_FAR}")


def _describe_rest(result: DumpVerification) -> str | None:
    """Return in words how many frames are intact beside damaged ones; None where there is none.

    What is damaged behind the last frame that was found is missing, and no frame of it was counted.
    """
    frames = result.survey.frames if result.survey else 0
    lost = sum(min(damage.last_frame + 1, frames) - damage.first_frame for damage in result.damage if damage.first_frame < frames)
    left = frames - lost
    if left <= 0:
        return None
    others = "1 frame is" if left == 1 else f"{left} frames are"
    hole = ", with a hole" if lost else ""
    return f"the other {others} intact; `extract --partial` writes what is left{hole}"


def print_checks(checks: Sequence[Check]) -> None:
    """Print numbered checks, one a line, with what was found."""
    for check in checks:
        mark = {True: terminal.good("ok  "), False: terminal.bad("FAIL"), None: "n/a "}[check.ok]
        detail = f": {terminal.printable(check.detail, 200)}" if check.detail else ""
        click.echo(f"  {check.number:>2}  {mark}  {check.what}{detail}")


def _first_problem(result: DumpVerification) -> str:
    if result.damage:
        return _describe(result.damage[0], result)
    # What could not be checked is a problem only where nothing else is.
    failed = min((check for check in result.checks if not check.ok), key=lambda check: check.ok is None, default=None)
    return f"{failed.what}: {terminal.printable(failed.detail, 160)}" if failed else "not proved"


def _describe(damage: Damage, result: DumpVerification) -> str:
    """Return in words which frames are damaged, which bytes of the plaintext these stood for, and why."""
    stated = _stated(result)
    of = f" of {stated.frames}" if stated is not None else ""
    first, last = damage.first_frame, damage.last_frame
    frames = f"frame {first}" if first == last else f"frames {first} to {last}"
    extent = f"{terminal.size(damage.plain_start)} to {terminal.size(damage.plain_end)}"
    if damage.plain_end > damage.plain_start:
        extent += f", bytes {damage.plain_start} to {damage.plain_end - 1}"
    return f"{frames}{of} (plaintext {extent}): {terminal.printable(damage.reason, 120)}"


def _stated(result: DumpVerification) -> Manifest | Held | None:
    return result.manifest or result.given_up


def _plain(result: DumpVerification) -> int | None:
    stated = _stated(result)
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


def _document_of_gone(host: HostName, dump: DumpId, problem: str) -> dict[str, Any]:
    check = Check(1, "the dump is in the store", False, f"{_GONE}: {problem}")
    unknown = {"outcome": None, "given_up": False, "lost_frames": None}
    return {"id": str(dump), "host": str(host), "ok": False, **unknown, "checks": [check._asdict()], "damage": []}

"""``securecore vacuum``: delete the dumps that are older, or more, than is to be kept, and have the audit log say so."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from securecore import limits
from securecore.cli import options, terminal
from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, DEFAULT_STORE, host_option, json_option
from securecore.errors import NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName
from securecore.receiver.installation import CONFIGURATION
from securecore.store.layout import Store, open_store
from securecore.store.retention import Due, Held, Retention, select

if TYPE_CHECKING:
    from securecore.receiver.configuration import ReceiverConfiguration

EPILOG: Final = """\b
Examples:
  securecore vacuum --older-than 30d --dry-run
  securecore vacuum --keep-bytes 500GiB --host-dumps 1000 --min-age 1d
  securecore vacuum --host web-1 --host-bytes 20GiB
Exit code: that of the first dump that could not be deleted; the others are deleted all the same.
"""

_NOTHING: Final = (
    "nothing says what is to go: say --older-than, --keep-bytes, --keep-dumps, --host-bytes or --host-dumps,"
    f" or write [retention] into {CONFIGURATION}"
)

_NOTHING_OF_HOST: Final = (
    "nothing says what is to go of one host: say --older-than, --host-bytes or --host-dumps,"
    f" or write max_age, host_stored or host_dumps into [retention] of {CONFIGURATION}"
)


@click.command("vacuum", epilog=EPILOG)
@click.option("--older-than", type=options.duration, metavar="AGE", help="Delete what was received longer ago: 12h, 30d, 8w.")
@click.option("--keep-bytes", type=options.size, metavar="SIZE", help="Of the whole store, as it lies on the disk: 500GiB, 1.5TiB.")
@click.option("--keep-dumps", type=click.IntRange(min=0), metavar="N", help="Of the whole store.")
@click.option("--host-bytes", type=options.size, metavar="SIZE", help="Of each host, what comes in included up to half.")
@click.option("--host-dumps", type=click.IntRange(min=0), metavar="N", help="Of each host.")
@click.option(
    "--min-age", type=options.least_age, metavar="AGE", help="Leave younger ones, whatever else is said; none lifts what FILE says."
)
@click.option("--dry-run", is_flag=True, help="Show what would go, delete nothing.")
@click.option("--if-any", is_flag=True, help="Do nothing, without complaint, where nothing says what is to go; for a timer.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the options leave open is taken from the table [retention] of this file;"
    f" without it of {CONFIGURATION}, if that is of this store.",
)
@click.option(
    "--store",
    "store_path",
    envvar="SECURECORE_STORE",
    metavar="STORE",
    show_default=f"that of FILE, or {DEFAULT_STORE}",
    help="Directory of the store; also $SECURECORE_STORE, but not against a --config.",
)
@host_option
@click.option(
    "--identity", type=click.Path(path_type=Path), show_default=f"that of FILE, or {DEFAULT_RECEIVER_IDENTITY}",
    help="The receiver's identity, to sign the audit entries with where no receiver runs.",
)  # fmt: skip
@json_option
def command(
    older_than: timedelta | None,
    keep_bytes: int | None,
    keep_dumps: int | None,
    host_bytes: int | None,
    host_dumps: int | None,
    min_age: timedelta | None,
    dry_run: bool,
    if_any: bool,
    config: Path | None,
    store_path: str | None,
    host_text: str | None,
    identity: Path | None,
    as_json: bool,
) -> int:
    """Delete the oldest dumps until what is left is what is to be kept; it can't be undone.

    The oldest by the time at which they were received go first, and no more than a bound asks for. What is coming in is counted
    for its host's bytes, up to half of the bound, and never deleted. Each deletion is one as by `securecore delete`, with its
    reason in the host's log.
    """
    if host_text is not None and (keep_bytes is not None or keep_dumps is not None):
        raise click.UsageError("--keep-bytes and --keep-dumps are of the whole store: with --host say --host-bytes or --host-dumps")
    store_path = options.find_store(store_path, config)
    said = _read_configuration(config, store_path)
    usual = said.policy.retention
    retention = Retention(
        older_than or usual.max_age,
        keep_bytes if keep_bytes is not None else usual.max_bytes,
        keep_dumps if keep_dumps is not None else usual.max_dumps,
        host_bytes if host_bytes is not None else usual.host_bytes,
        host_dumps if host_dumps is not None else usual.host_dumps,
        min_age if min_age is not None else usual.min_age,
    )
    if host_text is not None:
        retention = retention._replace(max_bytes=None, max_dumps=None)
    if not retention.is_bounded:
        words = _NOTHING if host_text is None else _NOTHING_OF_HOST
        if not if_any:
            raise click.UsageError(words)
        click.echo(json.dumps(_document([], {}, None, None, dry_run), indent=1) if as_json else words.partition(":")[0])
        return 0
    identity = identity or Path(said.identity)
    with open_store(store_path or said.store) as store:
        host = options.find_host(host_text, store)
        dumps, coming = _read_held(store, host)
        due = select(dumps, retention, datetime.now(UTC), coming)
        if due and not as_json:
            terminal.table(("ID", "RECEIVED", "HOST", "SIZE", "WHY"), [_cells(each) for each in due])
        unsuccessful = _delete(store, due, identity) if not dry_run else {}
    failed = {each: error for each, error in unsuccessful.items() if not isinstance(error, NotFoundError)}
    # What is not found has been deleted meanwhile, or is coming in again: no failure, not our deed, and not left either.
    gone = [each for each in due if each not in unsuccessful]
    left = _sum(dumps) - _sum(each.held for each in due if each not in failed)
    if as_json:
        click.echo(json.dumps(_document(gone, failed, left, _sum(coming), dry_run), indent=1))
    else:
        for each, error in failed.items():
            click.echo(f"securecore: {terminal.short_id(each.held.id)} stays: {error.message}", err=True)
        verb, freed = ("would delete", "") if dry_run else ("deleted", " freed")
        what = f"{verb} {_sum(each.held for each in gone)}{freed}" if due else "nothing to delete"
        whose, parts = f" of {host}" if host is not None else "", f"; {_sum(coming)} coming in" if coming else ""
        click.echo(f"{what}; {left} left{whose}{parts}")
    return options.exit_code(next(iter(failed.values()), None))


def _read_configuration(config: Path | None, store_path: str | None) -> "ReceiverConfiguration":
    """Return what FILE says; of the machine's own file only what is for its own store: nothing goes by another store's rules."""
    from securecore.receiver.configuration import ReceiverConfiguration, load_configuration

    if config is not None:
        return load_configuration(config)
    if not os.path.exists(CONFIGURATION):
        return ReceiverConfiguration()
    said = load_configuration(Path(CONFIGURATION))
    is_its_own = store_path is None or os.path.realpath(store_path) == os.path.realpath(said.store)
    return said if is_its_own else ReceiverConfiguration()


class _Sum(NamedTuple):
    dumps: int
    stored_bytes: int

    def __sub__(self, other: "_Sum") -> "_Sum":
        return _Sum(self.dumps - other.dumps, self.stored_bytes - other.stored_bytes)

    def __str__(self) -> str:
        return f"{terminal.count(self.dumps, 'dump')}, {terminal.size(self.stored_bytes)}"


def _sum(dumps: Iterable[Held]) -> _Sum:
    sizes = [held.stored_bytes for held in dumps]
    return _Sum(len(sizes), sum(sizes))


def _read_held(store: Store, host: HostName | None) -> tuple[list[Held], list[Held]]:
    """Return what is published, and what is coming in."""
    from securecore.store.catalogue import open_catalogue

    with open_catalogue(store) as catalogue:
        catalogue.reconcile(host)
        terminal.tell_unlisted(catalogue.problems)
        return catalogue.held(host), catalogue.coming_in(host)


def _delete(store: Store, due: Sequence[Due], identity: Path) -> dict[Due, SecurecoreError]:
    """Delete, and return what was not deleted, each with why."""
    from securecore.receiver.deleter import Deleter

    failed: dict[Due, SecurecoreError] = {}
    done_bytes, total_bytes = 0, sum(each.held.stored_bytes for each in due)
    with Deleter(store, identity, lambda: datetime.now(UTC)) as deleter, terminal.Progress("deleting", total_bytes) as progress:
        for batch in _batches(due):
            by_id = {DumpId.parse(each.held.id): each for each in batch}
            try:
                chosen = {dump: each.held.received_at for dump, each in by_id.items()}
                errors = deleter.delete(HostName(batch[0].held.host), chosen, f"vacuum: {batch[0].reason}")
            except NotFoundError as error:
                hint = "who deletes is audited: start the receiver, or name its identity with --identity to sign the entries"
                raise NotFoundError(error.message, hint=hint) from error
            failed.update((by_id[dump], error) for dump, error in errors.items())
            done_bytes += sum(each.held.stored_bytes for each in batch)
            progress.update(done_bytes)
    return failed


def _batches(due: Sequence[Due]) -> Iterator[list[Due]]:
    """Yield what goes together, one host's and for one reason: the host of the oldest first."""
    groups: dict[tuple[str, str], list[Due]] = {}
    for each in due:
        groups.setdefault((each.held.host, each.reason), []).append(each)
    for group in groups.values():
        batch: list[Due] = []
        room = limits.DELETION_BATCH_BYTES
        for each in group:
            if batch and (len(batch) == limits.DELETION_BATCH or each.held.stored_bytes > room):
                yield batch
                batch, room = [], limits.DELETION_BATCH_BYTES
            batch.append(each)
            room -= each.held.stored_bytes
        yield batch


def _cells(due: Due) -> tuple[str, ...]:
    held = due.held
    return (
        terminal.short_id(held.id),
        terminal.when(datetime.fromisoformat(held.received_at)),
        held.host.split(".")[0],
        terminal.size(held.stored_bytes),
        due.reason,
    )


def _document(
    gone: Sequence[Due], failed: Mapping[Due, SecurecoreError], left: _Sum | None, coming: _Sum | None, dry_run: bool
) -> dict[str, Any]:
    def row(due: Due) -> dict[str, Any]:
        return {**due.held._asdict(), "reason": due.reason}

    return {
        "dry_run": dry_run,
        "deleted": [row(each) for each in gone],
        "failed": [{**row(each), "error": {"name": error.name, "message": error.message}} for each, error in failed.items()],
        "freed_bytes": _sum(each.held for each in gone).stored_bytes,
        "left": left._asdict() if left is not None else None,
        "coming_in": coming._asdict() if coming is not None else None,
    }

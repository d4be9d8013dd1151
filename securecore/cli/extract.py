"""``securecore extract``: write a dump's core to a file, or to standard output."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import click

from securecore import limits
from securecore.audit.entry import RECEIVED, parse_entry, parse_incomplete
from securecore.audit.proof import parse_proof
from securecore.certs import jws
from securecore.cli import holdings, options, terminal, tombstones
from securecore.cli.options import host_option, receiver_identity_option, store_option
from securecore.cli.sources import check_stream
from securecore.cli.state import state_of
from securecore.dump import directory as files
from securecore.dump.manifest import COMPLETE, parse_manifest
from securecore.dump.output import NewFile, set_length, write_sparse
from securecore.dump.reader import DumpReader, open_container, open_frames, read_exactly
from securecore.errors import BrokenError, IncompleteError, NotFoundError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName
from securecore.receiver import control, standalone
from securecore.store.layout import Store, open_store
from securecore.store.reading import DumpFiles

_HOLES_SHOWN: Final = 10

EPILOG = """\b
Examples:
  securecore extract 9c41d07e -o core.nginx
  securecore extract 9c41d07e -o - | gzip > core.gz
  gdb /usr/sbin/nginx core.nginx
  securecore extract e07733c4 --partial -o core.streamer
  securecore extract 9c41d07e --stored -o 9c41d07e.zst
Exit code 7: the dump is incomplete, and --partial was not given. 6: something is damaged; with --partial the rest was written.
"""


@click.command("extract", epilog=EPILOG)
@click.argument("text", metavar="ID")
@click.option("-o", "--output", required=True, metavar="FILE|-", help="Where to; a file is made sparse and never overwritten.")
@click.option("--partial", is_flag=True, help="Also what there is of a dump that is incomplete or damaged.")
@click.option("--stored", is_flag=True, help="The frames as they are stored (zstd), which `audit check --core` can prove.")
@store_option
@host_option
@receiver_identity_option("The receiver's identity, to sign the audit entry with where no receiver runs.")
def command(
    text: str, output: str, partial: bool, stored: bool, store_path: str, host_text: str | None, identity: Path
) -> None:
    """Write the core of one dump to FILE, or to standard output.

    Who extracted what is written into the host's audit log first: by the receiver that runs on this store, else by this command
    with the receiver's identity.
    """
    if not output:
        raise click.BadParameter("an empty text names no file", param_hint="'--output'")
    if output == "-":
        check_stream(sys.stdout, "standard output", "a core does not belong on a terminal; use -o FILE, or pipe it somewhere")
    if output != "-" and os.path.lexists(output):
        raise StorageError(f"{output}: already exists", hint="name another file, or remove it first")
    with open_store(store_path) as store:
        host, dump = tombstones.find_dump(store, text, options.find_host(host_text, store))
        promise = holdings.read_standing(
            lambda: tombstones.open_dump(store, host, dump),
            lambda files: _read_promise(files, store),
            lambda files, promise: holdings.is_in_place(store, files),
        )
        _check(promise, dump, partial=partial)
        core = _take(store, host, dump, identity)
    if promise.label != COMPLETE and promise.problem is None:
        click.echo(f"note: {dump.short} is {promise.label}", err=True)
    try:
        reader, problem = _open(core, has_table=promise.is_finished, partial=partial)
        is_all_there = problem is None or len(reader.entries) == promise.frames
        stated, label = promise if is_all_there else _NOTHING, f"extracting {dump.short}"
        if stored:
            written, damaged = _copy_to(core, reader, output, stated, label, partial), []
        else:
            written, damaged = reader.size, _write_to(reader, output, stated, label, partial)
    finally:
        os.close(core)
    if promise.lost_frames:
        click.echo(f"note: {terminal.lost_beginning(promise.lost_frames)} before it came here, and are zeroes", err=True)
    if losses := _describe_losses(reader, promise, damaged, problem):
        raise BrokenError(f"{dump.short}: {losses}")
    if output != "-":
        click.echo(f"{dump.short}  {terminal.size(written)} written to {output}{', as stored' if stored else ''}")


class _Promise(NamedTuple):
    """What is stated of the frames: by the sender in the manifest, or by the receiver in the entry of a dump that it gave up."""

    label: str
    """``complete``, or why the dump is not."""
    size: int | None = None
    frames: int | None = None
    root: bytes | None = None
    lost_frames: int = 0
    """So many at the beginning are placeholders."""
    problem: str | None = None
    """Why nothing is stated, where something should be."""
    has_core: bool = True
    is_finished: bool = True
    """Whether its core has a seek table."""


_NOTHING: Final = _Promise("")


def _read_promise(found: DumpFiles, store: Store) -> _Promise:
    """Return what is stated of a dump; not checked: any signature, `verify` does that."""
    has_core = found.core_bytes() > 0
    has_manifest = found.has_manifest()
    state = state_of(None, is_published=found.is_published, has_manifest=has_manifest, has_core=has_core)
    try:
        token = found.read_manifest()
        if token is not None:
            manifest = parse_manifest(jws.parse(token, limits.MAX_MANIFEST_BYTES).payload)
            if (manifest.dump, manifest.host) != (found.dump_id, found.host):
                raise BrokenError(f"its manifest is of another dump, {manifest.dump} of {manifest.host}")
            label = state_of(manifest, is_published=found.is_published, has_core=has_core).label()
            stated = _Promise(label, manifest.size, manifest.frames, manifest.root, manifest.lost_frames)
        elif not found.is_published:
            stated = _Promise(state.label(), is_finished=False)
        else:
            entry = parse_entry(parse_proof(found.read_receipt() or b"").extra or b"")
            if entry["event"] == RECEIVED:
                raise BrokenError("it was received, and its manifest is missing")
            held = parse_incomplete(entry, found.dump_id, found.host, store.store_id)
            stated = _Promise(state._replace(is_given_up=True).label(), held.size, held.frames, held.root)
    except (BrokenError, StorageError) as error:
        stated = _NOTHING._replace(label=state.label(), problem=error.message, is_finished=found.is_published or has_manifest)
    return stated._replace(has_core=has_core)


def _check(promise: _Promise, dump: DumpId, *, partial: bool) -> None:
    """Raise unless what there is of a dump is what was asked for."""
    if not promise.has_core and promise.is_finished:
        hint = "there is nothing to extract; `securecore verify` says what is left"
        raise BrokenError(f"{dump.short} is {promise.label}", hint=hint)
    if not promise.has_core:
        raise IncompleteError(f"{dump.short} is {promise.label}", hint="nothing of it has come yet")
    if promise.problem is not None and not partial:
        hint = "`securecore verify` says more; --partial writes what there is"
        raise BrokenError(f"{dump.short}: {promise.problem}", hint=hint)
    if promise.label != COMPLETE and not partial:
        raise IncompleteError(f"{dump.short} is {promise.label}", hint="--partial writes what there is")


def _open(core: int, *, has_table: bool, partial: bool) -> tuple[DumpReader, str | None]:
    """Return a reader, and what is wrong with the seek table when the frames had to be found without it (with *partial*)."""
    if not has_table:
        return open_frames(core)[0], None
    try:
        return open_container(core), None
    except BrokenError as error:
        if not partial:
            hint = "`securecore verify` says what is damaged; --partial writes the frames that are found without it"
            raise BrokenError(error.message, hint=hint) from error
        return open_frames(core)[0], error.message


def _describe_losses(reader: DumpReader, promise: _Promise, damaged: list[int], problem: str | None) -> str:
    """Return in words what is missing in the output, nothing when all is there that was stored."""
    words = []
    if promise.problem is not None:
        words.append(f"{promise.problem}, so nothing says whether this is all of it")
    if problem is not None:
        found = len(reader.entries)
        words.append(f"{problem}, so the frames were looked for one after the other: {found} found")
        if promise.frames is not None and promise.size is not None and found < promise.frames:
            lost = f"frames {found} to {promise.frames - 1} are lost"
            words.append(f"{lost}, plaintext {terminal.size(reader.size)} to {terminal.size(promise.size)}")
    if damaged:
        holes = ", ".join(map(str, damaged[:_HOLES_SHOWN]))
        became = "frame is damaged and became a hole" if len(damaged) == 1 else "frames are damaged and became holes"
        words.append(f"{len(damaged)} {became}: {holes}")
    return "; ".join(words)


def _take(store: Store, host: HostName, dump: DumpId, identity: Path) -> int:
    """Return the core's descriptor, from the receiver that runs on the store, else by our own audit entry."""
    core = control.ask_for_core(store, host, dump)
    if core is None:
        try:
            core = standalone.take_core_alone(store, host, dump, identity, datetime.now(UTC))
        except NotFoundError as error:
            tombstones.check_present(store, host, dump)
            hint = "who extracts is audited: start the receiver, or name its identity with --identity to sign the entry"
            raise NotFoundError(error.message, hint=hint) from error
    return core


def _write_to(reader: DumpReader, output: str, promise: _Promise, label: str, partial: bool) -> list[int]:
    """Write the plaintext and return the pieces that are damaged; only with *partial* there can be any.

    Raises BrokenError for sound frames that are not those of *promise*: one left out, swapped, or another dump's.
    """
    with terminal.Progress(label, reader.size) as progress:
        if output == "-":
            writing = _Writing(reader, sys.stdout.fileno(), partial, progress, sparse=False)
            writing.write()
        else:
            with NewFile(output) as file:
                writing = _Writing(reader, file.fd, partial, progress, sparse=True)
                writing.write()
                set_length(file.fd, reader.size)
                if not partial:
                    writing.check(promise)
                file.publish()
    if not writing.damaged:
        writing.check(promise)
    return writing.damaged


def _copy_to(core: int, reader: DumpReader, output: str, promise: _Promise, label: str, partial: bool) -> int:
    """Write the container as it stands and return its length; the frames are hashed, and not decompressed.

    Raises BrokenError for frames that are not those of *promise*: before anything is written, with *partial* behind it.
    """
    length = os.fstat(core).st_size
    if not partial:
        _check_frames(reader, _hash_frames(reader), promise)
    with terminal.Progress(label, length) as progress:
        if output == "-":
            _copy(core, sys.stdout.fileno(), length, progress)
        else:
            with NewFile(output) as file:
                _copy(core, file.fd, length, progress)
                file.publish()
    if partial:
        _check_frames(reader, _hash_frames(reader), promise)
    return length


def _copy(core: int, fd: int, length: int, progress: terminal.Progress) -> None:
    for offset in range(0, length, limits.PIECE_BYTES):
        files.write_all(fd, read_exactly(core, offset, min(limits.PIECE_BYTES, length - offset)))
        progress.update(offset)


def _hash_frames(reader: DumpReader) -> Frontier:
    tree = Frontier()
    for index in range(len(reader.entries)):
        tree.append(leaf_hash(reader.frame(index)))
    return tree


def _check_frames(reader: DumpReader, tree: Frontier, promise: _Promise) -> None:
    """Raise BrokenError when the frames are not those of which something was stated."""
    found = (reader.size, tree.size, tree.root())
    if promise.root is not None and found != (promise.size, promise.frames, promise.root):
        raise BrokenError("the frames are not those that were signed", hint="`securecore verify` says what differs")


class _Writing:
    """The plaintext of a reader on its way to a descriptor, and the tree over the frames that it came from."""

    def __init__(self, reader: DumpReader, fd: int, partial: bool, progress: terminal.Progress, *, sparse: bool) -> None:
        self._reader, self._fd, self._partial, self._progress, self._sparse = reader, fd, partial, progress, sparse
        self._tree = Frontier()
        self.damaged: list[int] = []

    def write(self) -> None:
        """Write all pieces; with *partial* the damaged ones as holes."""
        offset = 0
        for index, entry in enumerate(self._reader.entries):
            frame = self._reader.frame(index)
            self._tree.append(leaf_hash(frame))
            try:
                piece = self._reader.decode(index, frame)
            except BrokenError as error:
                if not self._partial:
                    hint = "`securecore verify` says what is damaged; --partial writes the rest with a hole"
                    raise BrokenError(error.message, hint=hint) from error
                self.damaged.append(index)
                piece = bytes(entry.plain)
            if self._sparse:
                write_sparse(self._fd, piece, offset)
            else:
                files.write_all(self._fd, piece)
            offset += len(piece)
            self._progress.update(offset)

    def check(self, promise: _Promise) -> None:
        """Raise BrokenError when the frames are not those of which something was stated."""
        _check_frames(self._reader, self._tree, promise)

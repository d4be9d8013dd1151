"""``securecore extract``: write a dump's core to a file, or to standard output."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from securecore import limits
from securecore.certs import jws
from securecore.cli import options, terminal
from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, host_option, store_option
from securecore.cli.sources import check_stream
from securecore.dump import directory as files
from securecore.dump.manifest import Manifest, parse_manifest
from securecore.dump.output import NewFile, set_length, write_sparse
from securecore.dump.reader import DumpReader, open_container, open_frames
from securecore.errors import BrokenError, IncompleteError, NotFoundError, StorageError
from securecore.merkle import Frontier, leaf_hash
from securecore.names import DumpId, HostName
from securecore.receiver import control
from securecore.store.layout import Store, open_store

EPILOG = """\b
Examples:
  securecore extract 9c41d07e -o core.nginx
  securecore extract 9c41d07e -o - | gzip > core.gz
  gdb /usr/sbin/nginx core.nginx
"""


@click.command("extract", epilog=EPILOG)
@click.argument("text", metavar="ID")
@click.option("-o", "--output", required=True, metavar="FILE|-", help="Where to; a file is made sparse and never overwritten.")
@click.option("--partial", is_flag=True, help="Also a dump that is labelled incomplete.")
@store_option
@host_option
@click.option(
    "--identity", type=click.Path(path_type=Path), default=DEFAULT_RECEIVER_IDENTITY, show_default=True,
    help="The receiver's identity, to sign the audit entry with where no receiver runs.",
)  # fmt: skip
def command(text: str, output: str, partial: bool, store_path: str, host_text: str | None, identity: Path) -> None:
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
        host, dump = store.find(text, options.find_host(host_text, store))
        with store.open_dump(host, dump) as found:
            token = found.read_manifest()
            manifest = parse_manifest(jws.parse(token, limits.MAX_MANIFEST_BYTES).payload) if token is not None else None
            label = manifest.outcome if manifest is not None else "still coming in, or cut"
            if label != "complete" and not partial:
                raise IncompleteError(f"{dump.short} is incomplete ({label})", hint="--partial writes what there is")
        core = _take(store, host, dump, identity)
    try:
        reader = open_container(core) if manifest is not None else open_frames(core)[0]
        damaged = _write_to(reader, output, manifest, f"extracting {dump.short}", partial)
    finally:
        os.close(core)
    if manifest is not None and manifest.lost_frames:
        click.echo(f"note: {terminal.lost_beginning(manifest.lost_frames)} before it came here, and are zeroes", err=True)
    if damaged:
        holes = ", ".join(map(str, damaged[:10]))
        raise BrokenError(f"{dump.short}: {len(damaged)} frames are damaged and became holes: {holes}")
    if output != "-":
        click.echo(f"{dump.short}  {terminal.size(reader.size)} written to {output}")


def _take(store: Store, host: HostName, dump: DumpId, identity: Path) -> int:
    """Return the core's descriptor, from the receiver that runs on the store, else by our own audit entry."""
    core = control.ask_for_core(store, host, dump)
    if core is None:
        try:
            core = control.take_core_alone(store, host, dump, identity, datetime.now(UTC))
        except NotFoundError as error:
            hint = "who extracts is audited: start the receiver, or name its identity with --identity to sign the entry"
            raise NotFoundError(error.message, hint=hint) from error
    return core


def _write_to(reader: DumpReader, output: str, manifest: Manifest | None, label: str, partial: bool) -> list[int]:
    """Write the plaintext and return the pieces that are damaged; only with *partial* there can be any.

    Raises BrokenError for sound frames that are not those of *manifest*: one left out, swapped, or another dump's. Not checked: the
    manifest's signature.
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
                    writing.check(manifest)
                file.publish()
    if not writing.damaged:
        writing.check(manifest)
    return writing.damaged


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

    def check(self, manifest: Manifest | None) -> None:
        """Raise BrokenError when the frames are not those that the sender has signed."""
        found = (self._reader.size, self._tree.size, self._tree.root())
        if manifest is not None and found != (manifest.size, manifest.frames, manifest.root):
            raise BrokenError("the frames are not those that were signed", hint="`securecore verify` says what differs")

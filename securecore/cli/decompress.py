"""``securecore decompress``: a .zst, .gz or .zlib file, ours or anybody's, back to what it was."""

import json
import os
from typing import Final

import click

from securecore.cli.options import json_option
from securecore.cli.sources import check_streams, local_output, open_source
from securecore.cli.terminal import Progress, size
from securecore.dump.packing import FORMATS
from securecore.errors import BrokenError, StorageError

EPILOG: Final = """\b
Examples:
  securecore decompress core.4711.gz
  securecore decompress /var/lib/securecore/cores/20261124T065359Z-nginx-4711.zst -o core.nginx
  ssh web-1 cat core.zlib | securecore decompress - -o core
"""


@click.command("decompress", epilog=EPILOG)
@click.argument("file", metavar="FILE|-")
@click.option("-o", "--output", metavar="OUT|-", help="Where to; default FILE without its ending, - for -. Never overwritten.")
@json_option
def command(file: str, output: str | None, as_json: bool) -> None:
    """Write what the compressed FILE (- is standard input) holds; FILE is kept.

    The format is told by the first bytes. Every checksum and the file's end are verified: what is damaged, cut off or followed by
    anything else is exit code 6, and no OUT appears. One cut cannot be seen: that of a .zst of data that is no core, exactly behind
    its first MiB. A file gets holes where the core has only zeroes.
    """
    from securecore.dump.unpacking import Source, unpack

    target = output if output is not None else "-" if file == "-" else _without_ending(file)
    check_streams(file, target, as_json)
    fd, total = open_source(file)
    hint = None
    try:
        source, written = Source(lambda length: _read(fd, length, file)), 0
        with local_output(target, is_sparse=True) as out, Progress(f"decompressing {os.path.basename(file)}", total) as progress:
            unpacked = unpack(source)
            # From here on there is something to write; what begins like no compressed file has nothing.
            hint = None if target == "-" else f"`securecore decompress - < {file} > OUT` writes what is there"
            for part in unpacked.plaintext:
                out.write(part)
                written += len(part)
                progress.update(source.taken)
            out.publish()
    except BrokenError as error:
        raise BrokenError(f"{file}: {error.message}", hint=error.hint or hint) from error
    finally:
        os.close(fd)
    if as_json:
        facts = {"output": target, "format": unpacked.kind, "size_bytes": written, "stored_bytes": source.taken}
        click.echo(json.dumps(facts))
    elif target != "-":
        click.echo(f"{target}  {size(written)} from {size(source.taken)}")


def _without_ending(file: str) -> str:
    stem, _, ending = file.rpartition(".")
    if ending not in FORMATS or not os.path.basename(stem):
        endings = ", ".join(f".{kind}" for kind in FORMATS)
        raise click.UsageError(f"{os.path.basename(file)!a} does not end with {endings}: use -o OUT")
    return stem


def _read(fd: int, length: int, file: str) -> bytes:
    try:
        return os.read(fd, length)
    except OSError as error:
        raise StorageError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from error

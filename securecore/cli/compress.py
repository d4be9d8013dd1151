"""``securecore compress``: a local file, or standard input, to .zst, .gz or .zlib."""

import json
import os
from typing import TYPE_CHECKING, Final

import click

from securecore.cli.options import json_option
from securecore.cli.sources import check_streams, local_output, open_source
from securecore.cli.terminal import Progress, size
from securecore.dump.manifest import COMPLETE
from securecore.dump.packing import FORMATS, make_packing
from securecore.errors import ConfigError, IncompleteError, StorageError

if TYPE_CHECKING:
    from securecore.sender.pump import SourceEnd

EPILOG: Final = """\b
Examples:
  securecore compress core.4711
  securecore compress core.4711 --format gz --level 9 -o /srv/cores/core.4711.gz
  gcore -o /tmp/core 4711 && cat /tmp/core.4711 | securecore compress - > core.zst
"""

_ELF_MAGIC_BYTES: Final = 4
"""0x7f, E, L, F (elf(5))."""
_LEVELS: Final = ", ".join(f"{name} 1 to {levels.highest} ({levels.default})" for name, levels in FORMATS.items())


@click.command("compress", epilog=EPILOG)
@click.argument("file", metavar="FILE|-")
@click.option("-o", "--output", metavar="OUT|-", help="Where to; default FILE and the format's ending, - for -. Never overwritten.")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), default="zst", show_default=True, help="Format of the output.")
@click.option("--level", type=int, metavar="N", help=f"Higher is smaller and slower; by format and default: {_LEVELS}.")
@click.option("--partial", is_flag=True, help="Also a core that ends before its ELF headers say.")
@json_option
def command(file: str, output: str | None, kind: str, level: int | None, partial: bool, as_json: bool) -> None:
    """Compress FILE (- is standard input), which is kept.

    A core that was cut where it comes from is exit code 7 and no OUT appears, unless --partial asks for what there is; what is no
    core is compressed whatever it is.

    zst can be read at any offset without the rest, and by any zstd program; gz and zlib are one standard stream. None of them is
    encryption: whoever has the file has the core.
    """
    from securecore.sender.packer import Packer

    try:
        packing = make_packing(kind, level)
    except ConfigError as error:
        raise click.BadParameter(error.message, param_hint="'--level'") from error
    target = output if output is not None else "-" if file == "-" else f"{file}.{kind}"
    check_streams(file, target, as_json)
    source, total = open_source(file)
    try:
        with local_output(target) as out, Progress(f"compressing {os.path.basename(file)}", total) as progress:
            packed = Packer(packing, out.write, progress.update).pack(os.dup(source))
            if packed.failure is not None:
                raise packed.failure
            if packed.end.failure is not None:
                raise StorageError(f"{file}: {packed.end.failure.lower()}")
            outcome = _outcome(packed.end)
            if outcome != COMPLETE and not partial:
                raise _cut_core(file, packed.end)
            out.publish()
    finally:
        os.close(source)
    if as_json:
        facts = {"output": target, "format": kind, "size_bytes": packed.end.size, "stored_bytes": packed.stored_bytes}
        known = {"outcome": outcome, "predicted_size": packed.end.predicted_size, "sha256": packed.sha256.hex()}
        click.echo(json.dumps(facts | known))
    elif target != "-":
        label = "" if outcome == COMPLETE else f", incomplete ({outcome})"
        click.echo(f"{target}  {size(packed.end.size)} as {size(packed.stored_bytes)}{label}")


def _outcome(end: "SourceEnd") -> str:
    """Return what a manifest would call this end.

    What a handler reads is always a core: also one that was cut before the end of its magic. A file that short may be anything.
    """
    return end.outcome(is_part_lost=False) if end.size >= _ELF_MAGIC_BYTES else COMPLETE


def _cut_core(file: str, end: "SourceEnd") -> IncompleteError:
    where = "within its headers" if end.predicted_size is None else f"after {end.size} of {end.predicted_size} bytes"
    return IncompleteError(f"{file}: the core is cut: it ends {where}", hint="--partial compresses what there is")

"""``securecore compress``: a local file, or standard input, to .zst, .gz or .zlib."""

import json
import os
from typing import Final

import click

from securecore.cli.options import json_option
from securecore.cli.sources import check_streams, local_output, open_source
from securecore.cli.terminal import Progress, size
from securecore.dump.packing import FORMATS, check_level, make_packing
from securecore.errors import ConfigError

EPILOG: Final = """\b
Examples:
  securecore compress core.4711
  securecore compress core.4711 --format gz --level 9 -o /srv/cores/core.4711.gz
  gcore -o /tmp/core 4711 && cat /tmp/core.4711 | securecore compress - > core.zst
"""

_LEVELS: Final = ", ".join(f"{name} 1 to {levels.highest} ({levels.default})" for name, levels in FORMATS.items())


@click.command("compress", epilog=EPILOG)
@click.argument("file", metavar="FILE|-")
@click.option("-o", "--output", metavar="OUT|-", help="Where to; default FILE and the format's ending, - for -. Never overwritten.")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), default="zst", show_default=True, help="Format of the output.")
@click.option("--level", type=int, metavar="N", help=f"Higher is smaller and slower; by format and default: {_LEVELS}.")
@json_option
def command(file: str, output: str | None, kind: str, level: int | None, as_json: bool) -> None:
    """Compress FILE (- is standard input), which is kept.

    zst can be read at any offset without the rest, and by any zstd program; gz and zlib are one standard stream. None of them is
    encryption: whoever has the file has the core.
    """
    from securecore.sender.packer import Packer

    if level is not None and not 1 <= level <= FORMATS[kind].highest:
        raise click.BadParameter(f"{kind} has levels 1 to {FORMATS[kind].highest}", param_hint="'--level'")
    target = output or ("-" if file == "-" else f"{file}.{kind}")
    check_streams(file, target, as_json)
    source, total = open_source(file)
    try:
        with local_output(target) as out, Progress(f"compressing {os.path.basename(file)}", total) as progress:
            packed = Packer(make_packing(kind, check_level(kind, level)), out.write, progress.update).pack(os.dup(source))
            if packed.failure is not None:
                raise packed.failure
            if packed.end.failure is not None:
                raise ConfigError(f"{file}: {packed.end.failure.lower()}")
            out.publish()
    finally:
        os.close(source)
    if as_json:
        facts = {"output": target, "format": kind, "size_bytes": packed.end.size, "stored_bytes": packed.stored_bytes}
        click.echo(json.dumps(facts | {"sha256": packed.sha256.hex()}))
    elif target != "-":
        click.echo(f"{target}  {size(packed.end.size)} as {size(packed.stored_bytes)}")

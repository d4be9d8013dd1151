"""``securecore handler``: what the kernel starts for each crash, for a person who wants to see it work."""

import os
import sys
from typing import Final

import click

from securecore.cli.sources import check_stream
from securecore.sender.installation import SETTINGS

EPILOG: Final = """\b
Examples:
  securecore handler --local /tmp/cores --format gz 4711 4711 0 0 11 1795317943 18446744073709551615 1 < core
  securecore handler 4711 4711 0 0 11 1795317943 18446744073709551615 1 < core
"""


@click.command("handler", epilog=EPILOG, context_settings={"ignore_unknown_options": True})
@click.argument(
    "arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--local DIR ...] PID TID UID GID SIGNAL TIME LIMIT MODE [PIDFD]"
)
def command(arguments: tuple[str, ...]) -> int:
    """Do with the core on standard input what the crash handler does.

    The arguments are those of core_pattern, read by the same code: numbers as in core(5) for %P %I %u %g %s %t %c %d %F, and before
    them, for cores that stay on this machine, --local DIR [--format zst|gz|zlib] [--level N] [--keep N]. Without --local the
    settings of `securecore setup sender` say where to. What goes to the system's log is shown on a terminal as well.
    """
    from securecore.sender.crash import handle

    check_stream(sys.stdin, "standard input", "standard input is a terminal; give it a core, as in `< core`")
    return handle(os.dup(0), list(arguments), SETTINGS)

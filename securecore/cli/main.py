"""The command line: finds the command, loads only its module, and turns errors into a line, a hint and an exit code."""

import json
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final, NoReturn

import click

from securecore import __version__
from securecore.cli.output import Output
from securecore.errors import Bug, SecurecoreError, StorageError

# Each command's module and one line for --help: `securecore --help` loads none of them.
COMMANDS: Final = {
    "demo": ("demo", "All of it on one machine: mint, receive, crash, send, verify, audit."),
    "pki": ("pki", "Mint and revoke the certificates of hosts and receivers."),
    "enroll": ("enroll", "Get this host its certificate from an enroller, by a token."),
    "renew": ("renew", "Renew this host's certificate, when that is due."),
    "receive": ("receive", "Run a receiver: take dumps from hosts into a store."),
    "send": ("send", "Send a core that you have at hand."),
    "setup": ("setup", "Make this machine a sender or a receiver."),
    "doctor": ("doctor", "What is wrong with this machine's set-up, and what mends it."),
    "handler": ("handler", "What the kernel starts for each crash; by hand, to try it."),
    "agent": ("agent", "Take crashes from the kernel's coredump socket, as a daemon."),
    "spool": ("spool", "What this host could not deliver yet: list it, deliver it."),
    "receipts": ("receipts", "The receipts that this host was given: list them, verify them offline."),
    "list": ("listing", "List the dumps in a store."),
    "show": ("show", "Show what is known of one dump."),
    "extract": ("extract", "Write a dump's core to a file; the act is audited."),
    "verify": ("verify", "Check dumps against what was signed."),
    "audit": ("audit", "Read and verify the audit logs of a store."),
    "delete": ("delete", "Delete a dump for good; the act is audited."),
    "vacuum": ("vacuum", "Delete the oldest dumps, beyond what is to be kept."),
    "compress": ("compress", "Compress a local file: .zst, .gz or .zlib."),
    "decompress": ("decompress", "Decompress a .zst, .gz or .zlib file, and believe it only when it is whole."),
    "elf": ("elf", "Say which program a core is of: build-ids and `.uuid` sections."),
}

_UNREAD: Final = 141
"""128 and the number of SIGPIPE, as a shell tells of a program that ended by it."""

EPILOG: Final = """\b
Examples:
  securecore demo
  securecore pki init --dir fleet-pki --org Acme --domain hosts.acme.example
  securecore receive --listen 0.0.0.0:4455 --store /var/lib/securecore/store --identity receiver-identity
  securecore list --store /var/lib/securecore/store
"""


class LazyGroup(click.Group):
    """A group whose commands are modules of securecore.cli, loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table, which is the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, its module loaded."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"securecore.cli.{COMMANDS[cmd_name][0]}").command
        if not isinstance(command, click.Command):
            raise Bug(f"{cmd_name} has no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="securecore %(version)s")
def securecore() -> None:
    """Core dumps over mutual TLS: authenticated, compressed, receipted, audited."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with the exit code of docs/exit-codes.md."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal of another encoding than UTF-8 shows what it can; the command is not to end in the middle of its words.
        sys.stdout.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; whatever it meets becomes one line on stderr, or JSON where that was asked for."""
    output = Output(as_json="--json" in arguments)
    color = False if os.environ.get("NO_COLOR") else None  # no-color.org; None is colour on a terminal and nowhere else
    try:
        words = arguments or ["--help"]
        result = securecore.main(args=words, prog_name="securecore", standalone_mode=False, color=color, obj=output)
    except SecurecoreError as error:
        if isinstance(error, StorageError) and isinstance(error.__cause__, BrokenPipeError):
            return _UNREAD  # Of a core on its way to standard output.
        return _fail(error.message, error.hint, error.exit_code, error.name, output)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later; older ones print the help themselves
            print(error.format_message())
            return 0
        return _fail(_click_message(error), _click_hint(error), error.exit_code, "usage", output)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", None, 130, "interrupted", output)
    except SystemExit:
        # click's answer where whoever read our output has gone (`securecore list | head`), its only one for us. What
        # was to be said was not, so this is no 0: of a verification the outcome may not be known yet.
        return _UNREAD
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"{(error.strerror or str(error)).lower()}{where}", None, 5, "storage", output)
    except Exception as error:  # a top level: no traceback for anybody but those who ask for one
        if os.environ.get("SECURECORE_TRACEBACK"):
            raise
        hint = "this is a bug in securecore; run again with SECURECORE_TRACEBACK=1 and report what it prints"
        return _fail(f"{type(error).__name__}: {error}", hint, Bug.exit_code, Bug.name, output)
    return result if isinstance(result, int) else 0


def _fail(message: str, hint: str | None, code: int, name: str, output: Output) -> int:
    if output.as_json:
        document: dict[str, Any] = {"error": {"name": name, "message": message, "hint": hint, "exit_code": code}}
        _print_document(json.dumps(document), output)
    else:
        print(f"securecore: {message}", file=sys.stderr)
        if hint:
            print(f"  hint: {hint}", file=sys.stderr)
    return code


def _print_document(text: str, output: Output) -> None:
    """Print an error's document; on standard error where standard output is what failed, or has another document in part."""
    if output.is_in_part:
        print(text, file=sys.stderr)
        return
    try:
        print(text, flush=True)
    except OSError:
        print(text, file=sys.stderr)


def _click_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]


def _click_hint(error: click.ClickException) -> str | None:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"`{error.ctx.command_path} --help` shows how"
    return None


if __name__ == "__main__":
    main()

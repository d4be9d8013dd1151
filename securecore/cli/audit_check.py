"""``securecore audit check``: what a bundle proves, on a machine that has a root certificate and no store."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import IO, Any, Final

import click

from securecore import limits
from securecore.audit.bundle import Bundle, read_bundle
from securecore.audit.bundle_verification import BundleVerification, verify_bundle
from securecore.audit.checkpoint import verifier_key
from securecore.audit.entry import INCOMPLETE, find_time
from securecore.audit.proof import Receipt
from securecore.certs import chain
from securecore.cli import terminal
from securecore.cli.options import json_option, read_file
from securecore.cli.sources import check_stream, open_named
from securecore.cli.verify import print_checks
from securecore.errors import BrokenError, ConfigError

EPILOG: Final = """\b
Examples:
  securecore audit check 9c41d07e.tar --root ca.pem
  securecore audit check 9c41d07e.tar --root ca.pem --core core.zst
Exit code 6: something does not hold, or could not be checked that was to be; so always for a core in plaintext.
"""


@click.command("check", epilog=EPILOG, short_help="Check what `audit prove` has written, without a store.")
@click.argument("path", metavar="BUNDLE|-")
@click.option(
    "--root", "root_path", required=True, type=click.Path(path_type=Path), metavar="CA.PEM",
    help="The root that you trust, from elsewhere than the bundle. There is no default.",
)  # fmt: skip
@click.option(
    "--core", "core_path", metavar="CORE.ZST",
    help="Also this file: the core as `extract --stored` writes it. Of plaintext nothing but the length can be compared.",
)  # fmt: skip
@json_option
def command(path: str, root_path: Path, core_path: str | None, as_json: bool) -> int:
    """Check what `audit prove` has written: who sent which dump, when, and that it is in which receiver's log.

    Neither store nor network is needed, and nothing is believed because the bundle says it.
    """
    anchors = chain.load_anchors(read_file(root_path, limits.MAX_STATEMENT_BYTES), what=str(root_path))
    core = _open_core(core_path) if core_path is not None else None
    try:
        bundle = _read(path)
        with terminal.Progress("checking", None) as progress:
            found = verify_bundle(bundle, anchors, core, lambda done, total: progress.update(done * limits.PIECE_BYTES))
    except OSError as error:
        raise ConfigError(f"{core_path}: {(error.strerror or '').lower()}") from error
    finally:
        if core is not None:
            os.close(core)
    if as_json:
        click.echo(json.dumps(_document(found), indent=1))
    else:
        _tell(found)
    return 0 if found.ok else BrokenError.exit_code


def _read(path: str) -> Bundle:
    """Return the bundle in a file or on standard input; raises BrokenError when it is none, ConfigError when it cannot be read."""
    if path == "-":
        check_stream(sys.stdin, "standard input", "standard input is a terminal; pipe a bundle into it")
    elif os.path.isdir(path):
        raise ConfigError(f"{path}: is a directory")
    with os.fdopen(os.dup(0) if path == "-" else open_named(path), "rb") as file:
        return _read_open(file, "stdin" if path == "-" else path)


def _read_open(file: IO[bytes], name: str) -> Bundle:
    try:
        return read_bundle(file)
    except BrokenError as error:
        raise BrokenError(f"{name}: {error.message}", hint="`securecore audit prove` writes bundles") from error
    except OSError as error:
        raise ConfigError(f"{name}: {(error.strerror or '').lower()}") from error


def _open_core(path: str) -> int:
    """Return a descriptor; raises NotFoundError or ConfigError unless it is of a regular file."""
    fd = open_named(path, os.O_NONBLOCK)  # a FIFO must not wait for its other end
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{path}: is no regular file")
    return fd


def _tell(found: BundleVerification) -> None:
    print_checks(found.checks)
    if found.ok:
        verdict = terminal.good("ok")
    elif any(check.ok is False for check in found.checks):
        verdict = terminal.bad("BROKEN")
    else:
        verdict = terminal.bad("NOT PROVED")
    if found.about is None or found.receipt is None:
        click.echo(f"-  {verdict}  {_first_problem(found)}")
        return
    words = _describe(found, found.receipt) if found.ok else _first_problem(found)
    click.echo(f"{found.about.dump_id.short}  {verdict}  {found.about.host}  {words}")
    if found.ok:
        for name, value in _facts(found).items():
            click.echo(f"      {name:<5} {value}")


def _first_problem(found: BundleVerification) -> str:
    # What could not be checked is a problem only where nothing else is.
    missed = [check for check in found.checks if not check.ok and check.number not in found.excused]
    first = min(missed, key=lambda check: check.ok is None)
    return f"{first.what}: {terminal.printable(first.detail, 160)}"


def _describe(found: BundleVerification, receipt: Receipt) -> str:
    """Return in a sentence what was proved, and by whose word."""
    receiver = found.log_key.receiver.name if found.log_key is not None else "-"
    extent = f"{terminal.size(found.held.size)} in {terminal.count(found.held.frames, 'frame')}" if found.held is not None else "-"
    if receipt.fields["event"] == INCOMPLETE:
        words = f"{extent}, given up {_time(receipt)} by {receiver}, whose word alone it is"
    elif found.manifest is None:
        words = f"{extent}, received {_time(receipt)} by {receiver}, whose word alone it is"
    else:
        words = f"{found.manifest.outcome}, {extent}, signed by the host, received {_time(receipt)} by {receiver}"
    return f"{words}; {_describe_deletion(found.deletion)}" if found.deletion is not None else words


def _describe_deletion(deletion: Receipt) -> str:
    fields = deletion.fields
    by = terminal.printable(str(fields.get("user") or fields.get("uid")), 32)
    reason = f": {terminal.printable(str(fields['reason']), 160)}" if fields.get("reason") is not None else ""
    return f"deleted {_time(deletion)} by {by}{reason}"


def _facts(found: BundleVerification) -> dict[str, str]:
    """Return what a person compares with what was claimed."""
    facts: dict[str, str] = {}
    if found.about is not None:
        facts |= {"dump": str(found.about.dump_id), "store": str(found.about.store_id)}
    if found.held is not None:
        facts["root"] = found.held.root.hex()
    if found.receipt is not None and found.log_key is not None:
        facts["key"] = verifier_key(found.receipt.checkpoint.origin, found.log_key.public_key)
    return facts


def _time(receipt: Receipt) -> str:
    moment = find_time(receipt.fields)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment is not None else "-"


def _document(found: BundleVerification) -> dict[str, Any]:
    about, receipt, held, manifest = found.about, found.receipt, found.held, found.manifest
    return {
        "ok": found.ok,
        "id": str(about.dump_id) if about is not None else None,
        "host": str(about.host) if about is not None else None,
        "store": str(about.store_id) if about is not None else None,
        "receiver": str(found.log_key.receiver.name) if found.log_key is not None else None,
        "event": receipt.fields["event"] if receipt is not None else None,
        "logged_at": receipt.fields["time"] if receipt is not None else None,
        "deletion": _deletion_document(found.deletion) if found.deletion is not None else None,
        "is_signed_by_host": found.ok and manifest is not None,
        "outcome": manifest.outcome if manifest is not None else None,
        "size": held.size if held is not None else None,
        "frames": held.frames if held is not None else None,
        "root": held.root.hex() if held is not None else None,
        "report_sha256": held.report_sha256.hex() if held is not None else None,
        "log": _log_document(found, receipt) if receipt is not None else None,
        "checks": [check._asdict() for check in found.checks],
        "damage": [damage._asdict() for damage in found.damage],
    }


def _deletion_document(deletion: Receipt) -> dict[str, Any]:
    return {"logged_at": deletion.fields["time"]} | {name: deletion.fields.get(name) for name in ("uid", "user", "reason")}


def _log_document(found: BundleVerification, receipt: Receipt) -> dict[str, Any]:
    key = found.log_key.public_key if found.log_key is not None else b""
    return {
        "origin": receipt.checkpoint.origin,
        "entry": receipt.leaf_index,
        "checkpoint_size": receipt.checkpoint.size,
        "checkpoint_root": receipt.checkpoint.root.hex(),
        "verifier_key": verifier_key(receipt.checkpoint.origin, key),
    }

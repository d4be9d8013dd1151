"""``securecore send``: send a core that a person has at hand."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from securecore import __version__, tls
from securecore.cli.options import address, json_option
from securecore.cli.sources import open_source
from securecore.cli.terminal import Progress, size
from securecore.errors import BrokenError, Bug, ConfigError
from securecore.names import Address, DumpId
from securecore.report import CrashReport

if TYPE_CHECKING:
    from securecore.sender.parcel import Outcome

EPILOG = """\b
Examples:
  securecore send core.4711 --to collector.acme.example:4455 --identity /etc/securecore/identity
  gcore -o /tmp/core 4711 && securecore send /tmp/core.4711 --to collector.acme.example:4455 --identity ID
  zcat core.gz | securecore send - --to 10.0.0.5:4455 --to [fd00::5]:4455 --identity ID --spool /var/lib/securecore/spool
"""


@click.command("send", epilog=EPILOG)
@click.argument("file", metavar="FILE|-")
@click.option(
    "--to", "receivers", multiple=True, required=True, type=address, metavar="HOST:PORT",
    help="Receiver; repeat for others, tried in order.",
)  # fmt: skip
@click.option("--identity", required=True, type=click.Path(path_type=Path), help="This host's identity directory.")
@click.option("--spool", "spool_path", type=click.Path(path_type=Path), help="Keep in this spool what cannot be delivered.")
@json_option
def command(file: str, receivers: tuple[Address, ...], identity: Path, spool_path: Path | None, as_json: bool) -> int:
    """Send the core in FILE (- is standard input) and wait for the receipt.

    What the core in a file says of its crash (signal, program, ids, build-id) travels with it as its report.
    """
    from securecore.sender import privileges
    from securecore.sender.credentials import read_credentials
    from securecore.sender.parcel import Papers, Parcel
    from securecore.sender.spool import create_spool, open_spool
    from securecore.sender.transfer import carry

    # The key is read next: a crash of ours must not send it to the collector in a core (R19).
    privileges.forbid_own_core()
    papers = Papers(tls.sender_context(str(identity)), read_credentials(str(identity)))
    spool = None
    if spool_path is not None:
        create_spool(str(spool_path), os.urandom(16))
        spool = open_spool(str(spool_path))
    source, total = open_source(file)
    now_ms = time.time_ns() // 1_000_000
    parcel = Parcel(DumpId.make(now_ms, os.urandom(10)), _report(file, source, total).encode(), now_ms)
    with Progress(f"sending {parcel.dump.short}", total) as progress:
        outcome = carry(source, parcel, receivers, papers, spool, progress.update)
    if outcome.receipt is None:
        failure = outcome.spool_failure or outcome.failure
        if failure is None:
            raise Bug("nothing was delivered and nothing failed")
        failure.hint = _hint(outcome, parcel.dump, spool_path, failure.hint)
        raise failure
    if outcome.source_failure is not None:
        raise ConfigError(f"{file}: {outcome.source_failure}; what could be read was stored as {parcel.dump.short}, incomplete")
    _say(parcel.dump, outcome.receipt, outcome.size, outcome.stored_bytes, as_json)
    return 0


def _report(file: str, source: int, total: int | None) -> CrashReport:
    uname = os.uname()
    report = CrashReport(
        sender=f"securecore {__version__}",
        source="file",
        core_name=os.path.basename(file) if file != "-" else None,
        node=uname.nodename,
        kernel=uname.release,
        machine=uname.machine,
    )
    if file == "-" or total is None:
        return report
    return _add_analysis(report._replace(crashed_at=int(os.fstat(source).st_mtime)), source)


def _add_analysis(report: CrashReport, source: int) -> CrashReport:
    """Return *report* with what the core says of itself; a core that cannot be analysed is sent all the same."""
    from securecore.elf.analysis import CoreKind, analyse

    try:
        summary = analyse(source, CoreKind.FILE)
    except BrokenError as error:
        click.echo(f"note: {error.message}; sent without its details", err=True)
        return report
    found = {key: value for key, value in summary._asdict().items() if value is not None and key in CrashReport._fields}
    return report._replace(**found)


def _hint(outcome: "Outcome", dump: DumpId, spool: Path | None, hint: str | None) -> str:
    """Return *hint* with what became of a core that was not delivered."""
    if outcome.spooled:
        how_far = "" if outcome.spool_failure is None else ", as far as it goes"
        kept = f"the core is kept in the spool as {dump.short}{how_far}; `securecore spool flush` sends it"
    elif outcome.is_begun_elsewhere:
        kept = f"what has arrived there stays, as dump {dump.short}"
    else:
        kept = "nothing was stored"
    if spool is None:
        kept += f"; `--spool DIR` would keep {'the rest' if outcome.is_begun_elsewhere else 'what cannot be delivered'}"
    return f"{hint}; {kept}" if hint else kept


def _say(dump: DumpId, receipt: dict[str, Any], plain: int, stored: int, as_json: bool) -> None:
    if as_json:
        document = {
            "id": str(dump), "receiver": receipt["receiver"], "size_bytes": plain, "stored_bytes": stored,
            "received_at": receipt["received_at"], "log": receipt["origin"], "entry": receipt["index"],
        }  # fmt: skip
        click.echo(json.dumps(document))
        return
    click.echo(
        f"{dump.short}  stored by {receipt['receiver']}: {size(plain)}, {size(stored)} on the wire;"
        f" receipt #{receipt['index']} of {receipt['origin']} verified"
    )

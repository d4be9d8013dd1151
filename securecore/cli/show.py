"""``securecore show``: what is known of one dump."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import click

from securecore.cli import evidence, options, terminal
from securecore.cli.listing import GIVEN_UP, UNCOMMITTED
from securecore.cli.options import host_option, json_option, root_option, store_option
from securecore.elf.analysis import CoreKind, analyse
from securecore.elf.summary import CoreSummary
from securecore.errors import BrokenError, NotFoundError
from securecore.report import CrashReport, parse_report
from securecore.store.reading import DumpFiles

EPILOG = """\b
Examples:
  securecore show 9c41d07e
  securecore show 9c41d07e --json
"""


class _Analysis(NamedTuple):
    """What the core itself says, or why that is not known."""

    summary: CoreSummary | None = None
    problem: str | None = None


@click.command("show", epilog=EPILOG)
@click.argument("text", metavar="ID")
@store_option
@host_option
@root_option
@click.option("--no-analysis", is_flag=True, help="Do not read the core; show only what its sender reported.")
@json_option
def command(text: str, store_path: str, host_text: str | None, root_path: Path | None, no_analysis: bool, as_json: bool) -> None:
    """Show one dump: what crashed, what was stored, and what vouches for it.

    ID is any beginning or end of the dump's id that means only one dump. Signatures are checked; the core's bytes are not, see
    `securecore verify`. The core's own account of the crash is read by a confined process.
    """
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host, dump = store.find(text, options.find_host(host_text, store))
        with store.open_dump(host, dump) as files:
            report = parse_report(files.read_report() or b"{}")
            stored, is_published = files.core_bytes(), files.is_published
            papers = evidence.check_papers(store, files, root_path)
            analysis = _Analysis() if no_analysis else _analyse(files)
    if as_json:
        document = _document(report, papers, str(host), str(dump), stored, is_published=is_published)
        click.echo(json.dumps(document | {"analysis": _analysis_document(analysis)}, indent=1))
        return
    _print_crash(report, analysis, str(host))
    _print_core(papers, stored, str(dump), is_published=is_published)
    _print_evidence(papers, str(host))


def _analyse(files: DumpFiles) -> _Analysis:
    """Return what the core itself says.

    This reads the core as root or the store's owner may, and is no extraction: only facts derived from it leave, so no audit entry
    is written.
    """
    try:
        core = files.open_core()
    except NotFoundError as error:
        return _Analysis(problem=error.message)
    try:
        return _Analysis(analyse(core, CoreKind.STORED))
    except BrokenError as error:
        return _Analysis(problem=error.message)
    finally:
        os.close(core)


def _print_crash(report: CrashReport, analysis: _Analysis, host: str) -> None:
    core = analysis.summary or CoreSummary()
    title = f"{terminal.printable(report.program or core.program or report.core_name)} on {host.split('.')[0]}"
    signal = core.signal if report.signal is None else report.signal
    if signal is not None:
        title += f" crashed with {terminal.signal_name(signal)}"
        if signal == core.signal and core.reason is not None:
            title += f" ({_reason(core)})"
    crashed_at = terminal.moment(report.crashed_at) if report.crashed_at is not None else None
    if crashed_at is not None:
        title += f" at {crashed_at:%Y-%m-%d %H:%M:%S} UTC"
    click.secho(title, bold=True)
    _field("command", terminal.printable(report.command_line or core.command_line, 100))
    _field("executable", terminal.printable(report.executable or core.executable, 100))
    _fields(
        ("unit", terminal.printable(report.unit)), ("container", terminal.printable(report.container, 12)),
        ("threads", _number(report.threads if report.threads is not None else core.threads)),
    )  # fmt: skip
    _fields(
        ("pid/tid", f"{_number(report.pid)}/{_number(report.tid)}"), ("uid", _number(report.uid)),
        ("kernel", terminal.printable(report.kernel)), ("build-id", terminal.printable(core.build_id or report.build_id, 40)),
    )  # fmt: skip
    if report.uuid is not None:
        _field(".uuid", terminal.printable(report.uuid))
    if report.is_sensitive:
        words = "the process had changed its privileges, its memory may hold what its user may not see"
        _field("sensitive", f"{words} (dump mode {report.dump_mode})")
    if report.metadata is not None:
        _field("metadata", terminal.printable(report.metadata))
    if (untaken := _untaken(report)) is not None:
        _field("not taken", untaken)
    if analysis.problem is not None:
        _field("analysis", terminal.printable(analysis.problem, 100))
    elif core.signal is not None and core.signal != signal:
        _field("analysis", f"the core itself says {terminal.signal_name(core.signal)}")
    if None not in (core.build_id, report.build_id) and core.build_id != report.build_id:
        _field("analysis", f"the report gives build-id {terminal.printable(report.build_id, 40)}")


def _untaken(report: CrashReport) -> str | None:
    """Return what the report counts beside its own crash; None when it counts nothing."""
    counts = (
        (report.suppressed, "more of this program"),
        (report.suppressed_of_user, "more of this user"),
        (report.suppressed_of_others, "of others"),
        (report.declined, "declined"),
        (report.skipped_by_kernel, "skipped by the kernel"),
    )
    words = [f"{number} {what}" for number, what in counts if number]
    since = terminal.moment(report.untaken_since) if report.untaken_since else None
    if words and since is not None:
        words[-1] += f", since {since:%Y-%m-%d %H:%M:%S} UTC"
    return ", ".join(words) or None


def _reason(core: CoreSummary) -> str:
    words = terminal.printable(core.reason)
    return words if core.fault_address is None else f"{words}, {core.fault_address:#x}"


def _print_core(papers: "evidence.Papers", stored: int, dump: str, *, is_published: bool) -> None:
    manifest = papers.manifest
    if papers.given_up is not None and papers.receipt is not None:
        held, last_at = papers.given_up, terminal.printable(str(papers.receipt.fields.get("last_at")), 24)
        root, frames = held.root.hex(), terminal.count(held.frames, "frame")
        _field("core", f"{terminal.size(held.size)} in {frames}, {terminal.size(stored)} stored, root {root[:4]}…{root[-4:]}")
        _field("incomplete", f"{GIVEN_UP}: the last frame came {last_at}, and its sender has not come back")
    elif manifest is None:
        _field("core", f"{terminal.size(stored)} stored so far; no manifest yet")
    else:
        whole = terminal.size(manifest.size)
        if manifest.outcome != "complete" and manifest.predicted_size is not None:
            whole += f" of {terminal.size(manifest.predicted_size)}"
        if manifest.outcome != "complete":
            lost = f", {terminal.lost_beginning(manifest.lost_frames)}" if manifest.lost_frames else ""
            whole += f" ({manifest.outcome}{lost})"
        elif manifest.predicted_size is None:
            whole += " (no ELF core, so its length proves nothing)"
        root, frames = manifest.root.hex(), terminal.count(manifest.frames, "frame")
        _field("core", f"{whole} in {frames}, {terminal.size(stored)} stored, root {root[:4]}…{root[-4:]}")
        if not is_published:
            _field("incomplete", UNCOMMITTED)
    _field("id", dump)


def _print_evidence(papers: "evidence.Papers", host: str) -> None:
    if papers.certificate is not None:
        until = f"{papers.certificate.not_after:%Y-%m-%d}"
        _field("sent by", f"{host}, certificate {papers.certificate.fingerprint[:8]}…, valid until {until}")
    words = [_mark(name, problem) for name, problem in papers.marks()]
    _field("evidence", " · ".join(words) if words else "none yet")
    if papers.receipt is not None:
        size, time = papers.receipt.checkpoint.size, papers.receipt.fields["time"]
        _field("", f"entry #{papers.receipt.leaf_index} of {papers.receipt.checkpoint.origin}, checkpoint {size}")
        _field("received", str(time))
    if papers.root_is_the_stores_own:
        _field("", evidence.OWN_ROOT)


def _mark(name: str, problem: str | None) -> str:
    return terminal.good(f"{name} ok") if problem is None else terminal.bad(f"{name}: {problem}")


def _document(
    report: CrashReport, papers: "evidence.Papers", host: str, dump: str, stored: int, *, is_published: bool
) -> dict[str, Any]:
    manifest, stated = papers.manifest, papers.manifest or papers.given_up
    return {
        "id": dump,
        "host": host,
        "state": "complete" if is_published and manifest is not None and manifest.outcome == "complete" else "incomplete",
        "received_at": papers.receipt.fields["time"] if papers.receipt else None,
        "size_bytes": stated.size if stated else None,
        "predicted_bytes": manifest.predicted_size if manifest else None,
        "stored_bytes": stored,
        "frames": stated.frames if stated else None,
        "lost_frames": manifest.lost_frames if manifest else None,
        "root": stated.root.hex() if stated else None,
        "given_up": papers.given_up is not None,
        "sensitive": report.is_sensitive,
        "report": {key: value for key, value in report._asdict().items() if value is not None},
        "certificate": papers.certificate.fingerprint if papers.certificate else None,
        "entry": papers.receipt.leaf_index if papers.receipt else None,
        "log": papers.receipt.checkpoint.origin if papers.receipt else None,
        "evidence": {name: problem or "ok" for name, problem in papers.marks()},
    }


def _analysis_document(analysis: _Analysis) -> dict[str, Any] | None:
    """Return the analysis for programs: addresses as text, for not every JSON reader keeps 64 bits; None where there is none."""
    if analysis.summary is None:
        return None if analysis.problem is None else {"error": analysis.problem}
    found = {key: value for key, value in analysis.summary._asdict().items() if value is not None}
    if analysis.summary.fault_address is not None:
        found["fault_address"] = f"{analysis.summary.fault_address:#x}"
    return found


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _field(name: str, value: str) -> None:
    click.echo(f"  {name:<11} {value}")


def _fields(*pairs: tuple[str, str]) -> None:
    first, *others = pairs
    _field(first[0], "   ".join([first[1], *(f"{name} {value}" for name, value in others)]))

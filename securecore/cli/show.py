"""``securecore show``: what is known of one dump."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import click

from securecore.cli import evidence, holdings, options, terminal, tombstones
from securecore.cli.options import host_option, json_option, root_option, store_option
from securecore.cli.state import INCOMPLETE, State, state_of
from securecore.dump import directory
from securecore.dump.manifest import COMPLETE
from securecore.elf.analysis import CoreKind, analyse
from securecore.elf.summary import CoreSummary
from securecore.errors import BrokenError, NotFoundError, PeerError, StorageError
from securecore.report import CrashReport, parse_report
from securecore.store.layout import Store
from securecore.store.reading import REMAINS_NAME, DumpFiles, remains_bytes

EPILOG = """\b
Examples:
  securecore show 9c41d07e
  securecore show 9c41d07e --json
"""


class _Analysis(NamedTuple):
    """What the core itself says, or why that is not known."""

    summary: CoreSummary | None = None
    problem: str | None = None


class _Claim(NamedTuple):
    """What the host says of the crash, or why nothing is known of that."""

    report: CrashReport
    problem: str | None = None


class _Remains(NamedTuple):
    """What was cut off a damaged core while the dump came in, and is kept beside it."""

    size_bytes: int
    names: list[str]


class _Reading(NamedTuple):
    """All that is shown of a dump."""

    papers: "evidence.Papers"
    stored_bytes: int
    """All that the dump takes, with what remains of damage, as ``list`` has it."""
    remains: _Remains
    claim: _Claim
    state: State
    last_at: str | None
    analysis: _Analysis


@click.command("show", epilog=EPILOG)
@click.argument("text", metavar="ID")
@store_option
@host_option
@root_option
@click.option("--no-analysis", is_flag=True, help="Do not read the core; show only what its sender reported.")
@json_option
def command(
    text: str,
    store_path: str,
    host_text: str | None,
    root_path: Path | None,
    trusted: tuple[str, ...],
    no_analysis: bool,
    as_json: bool,
) -> None:
    """Show one dump: what crashed, what was stored, and what vouches for it.

    ID is any beginning or end of the dump's id that means only one dump. Signatures are checked; the core's bytes are not, see
    `securecore verify`. The core's own account of the crash is read by a confined process.
    """
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host, dump = tombstones.find_dump(store, text, options.find_host(host_text, store))
        found = holdings.read_standing(
            lambda: tombstones.open_dump(store, host, dump),
            lambda files: _read(files, store, root_path, trusted, analysis=not no_analysis),
            lambda files, found: holdings.is_in_place(store, files),
        )
    if as_json:
        document = _document(found.claim, found.papers, str(host), str(dump), found.stored_bytes, found.state)
        document |= {"damaged_bytes": found.remains.size_bytes, "analysis": _analysis_document(found.analysis)}
        click.echo(json.dumps(document, indent=1))
        return
    _print_crash(found.claim.report, found.analysis, str(host))
    _print_core(found, str(dump))
    _print_evidence(_marks(found.claim, found.papers), found.papers, str(host))


def _read(
    files: DumpFiles, store: Store, root_path: Path | None, trusted: tuple[str, ...], *, analysis: bool
) -> _Reading:
    papers = evidence.check_papers(store, files, root_path, trusted)
    state = state_of(
        papers.sound_manifest,
        is_published=files.is_published,
        is_given_up=papers.claims_given_up and files.is_published,
        has_manifest=papers.has_manifest,
        has_core=files.core_bytes() > 0,
        core_fits=papers.core_problem is None,
    )
    found = _analyse(files) if analysis else _Analysis()
    return _Reading(papers, files.taken_bytes(), _find_remains(files), _read_claim(files), state, _last_at(files, papers), found)


def _find_remains(files: DumpFiles) -> _Remains:
    size_bytes = remains_bytes(files.fd)
    names = [name for name in directory.names_in(files.fd) if REMAINS_NAME.fullmatch(name)] if size_bytes else []
    return _Remains(size_bytes, sorted(names, key=lambda name: (len(name), name)))


def _read_claim(files: DumpFiles) -> _Claim:
    """Return what the host says of the crash, nothing with the reason where that cannot be read: the rest is shown all the same."""
    try:
        text = files.read_report()
        return _Claim(CrashReport(), "report.json is missing") if text is None else _Claim(parse_report(text))
    except (PeerError, StorageError) as error:
        return _Claim(CrashReport(), error.message)


def _last_at(files: DumpFiles, papers: "evidence.Papers") -> str | None:
    """Return when the last frame came of a dump whose end has not: by its entry, else by its file; None for any other."""
    if papers.given_up is not None and papers.receipt is not None:
        return terminal.printable(str(papers.receipt.fields.get("last_at")), 24)
    if files.is_published or papers.has_manifest:
        return None
    return f"{files.last_frame_at():%Y-%m-%d %H:%M:%S} UTC"


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
        (report.suppressed_of_host, "more of this host"),
        (report.suppressed_of_others, "of others"),
        (report.declined, "declined"),
        (report.lost, "lost"),
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


def _print_core(found: _Reading, dump: str) -> None:
    _field("core", _core(found.papers, found.stored_bytes, found.state))
    _field("state", found.state.label() + (f"; the last frame came {found.last_at}" if found.last_at is not None else ""))
    if found.remains.size_bytes:
        _field("damaged", f"{terminal.size(found.remains.size_bytes)} cut off as damaged, in {', '.join(found.remains.names)}")
    _field("id", dump)


def _core(papers: "evidence.Papers", stored: int, state: State) -> str:
    """Return what there is of the core, and what there should be."""
    stated = papers.manifest or papers.given_up
    if stated is None:
        return f"{terminal.size(stored)} stored" + ("" if state.is_published else " so far")
    whole, manifest = terminal.size(stated.size), papers.manifest
    if manifest is not None and manifest.outcome != COMPLETE and manifest.predicted_size is not None:
        whole += f" of {terminal.size(manifest.predicted_size)}"
    if manifest is not None and manifest.outcome == COMPLETE and manifest.predicted_size is None:
        whole += " (no ELF core, so its length proves nothing)"
    root, frames = stated.root.hex(), terminal.count(stated.frames, "frame")
    return f"{whole} in {frames}, {terminal.size(stored)} stored, Merkle root {root[:4]}…{root[-4:]}"


def _marks(claim: _Claim, papers: "evidence.Papers") -> list[tuple[str, str | None]]:
    """Return what was looked at and what is wrong with it; report and core only where something is."""
    found = dict(papers.marks())
    return list((found | {"report": claim.problem} if claim.problem is not None else found).items())


def _print_evidence(marks: list[tuple[str, str | None]], papers: "evidence.Papers", host: str) -> None:
    if papers.certificate is not None:
        until = f"{papers.certificate.not_after:%Y-%m-%d}"
        _field("sent by", f"{host}, certificate {papers.certificate.fingerprint[:8]}…, valid until {until}")
    words = [_mark(name, problem) for name, problem in marks]
    _field("evidence", " · ".join(words) if words else "none yet")
    if papers.receipt is not None:
        size, time = papers.receipt.checkpoint.size, papers.receipt.fields["time"]
        _field("", f"entry #{papers.receipt.leaf_index} of {papers.receipt.checkpoint.origin}, checkpoint {size}")
        _field("received" if papers.given_up is None else "given up", terminal.printable(str(time)))
    if papers.root_is_the_stores_own:
        _field("", evidence.OWN_ROOT)


def _mark(name: str, problem: str | None) -> str:
    return terminal.good(f"{name} ok") if problem is None else terminal.bad(f"{name}: {problem}")


def _document(
    claim: _Claim, papers: "evidence.Papers", host: str, dump: str, stored: int, state: State
) -> dict[str, Any]:
    report = claim.report
    manifest, stated = papers.manifest, papers.manifest or papers.given_up
    return {
        "id": dump,
        "host": host,
        "state": COMPLETE if state.is_complete else INCOMPLETE,
        "published": state.is_published,
        "received_at": _received_at(papers),
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
        "evidence": {name: problem or "ok" for name, problem in _marks(claim, papers)},
    }


def _received_at(papers: "evidence.Papers") -> object:
    """Return when a dump was received; of one that was given up, when its last frame came, as `list` does."""
    if papers.receipt is None:
        return None
    return papers.receipt.fields.get("last_at" if papers.given_up is not None else "time")


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

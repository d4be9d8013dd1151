"""``securecore elf``: which program is this core of?"""

import json
import os
import uuid
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from securecore import limits
from securecore.cli import options, terminal
from securecore.cli.core_files import analyse_core, analyse_file, find_report_beside, opened
from securecore.cli.options import host_option, json_option, store_option
from securecore.elf.analysis import CoreKind, identify_program
from securecore.elf.matching import Crashed, Verdict, compare
from securecore.elf.stamping import stamp
from securecore.elf.summary import CoreSummary
from securecore.elfid import ProgramIds
from securecore.errors import BrokenError, ConfigError, NotFoundError, PeerError, SecurecoreError
from securecore.report import CrashReport, parse_report

NO_MATCH: Final = 9
"""The exit code of a no; an answer, not an error. docs/exit-codes.md has it."""

_ID_CHARACTERS: Final = frozenset("0123456789abcdef-")
_CUT: Final = "the core is cut, and the program's first page is not in it"

EPILOG = """\b
Examples:
  securecore elf id /usr/sbin/nginx
  securecore elf id 9c41d07e --store /var/lib/securecore/store
  securecore elf match 9c41d07e /usr/sbin/nginx --store /var/lib/securecore/store
  securecore elf match /var/lib/securecore/cores/20261124T065359Z-app-4711.gz build/app
  securecore elf stamp build/app --uuid "$(git rev-parse HEAD)"
Where the linker writes build-ids, as all distributions' do, no stamp is needed.
"""


@click.group("elf", epilog=EPILOG)
def command() -> None:
    """Pair cores and programs by build-id or `.uuid` section."""


@command.command("id")
@click.argument("text", metavar="ID|FILE")
@store_option
@host_option
@json_option
def id_(text: str, store_path: str, host_text: str | None, as_json: bool) -> None:
    """Print what names FILE, a program, library, object or debug file; of a core, what names the program that crashed.

    A core is a dump in the store, by its id, or a file as `match` takes it. Of a dump a `.uuid` is known too, by its report.
    """
    path = _find_file(text)
    if path is None:
        evidence = _evidence_in_store(text, store_path, host_text)
        core: CoreSummary | None = evidence.summary
        ids = ProgramIds(build_id=evidence.crashed.build_id, uuid=evidence.crashed.report_uuid)
        for problem in evidence.problems:
            click.echo(f"note: {terminal.printable(problem, 400)}", err=True)
    else:
        with opened(path) as fd:
            found = analyse_file(fd, path)
            core = found.summary if found is not None else None
            ids = ProgramIds(build_id=core.build_id) if core is not None else _identify(fd, path)
    more = {"kind": "program"} if core is None else {"kind": "core", "program": core.program, "executable": core.executable}
    if as_json:
        click.echo(json.dumps({"dump" if path is None else "file": text} | more | ids._asdict(), indent=1))
        return
    if core is not None:
        click.echo(f"core of    {terminal.printable(core.executable or core.program, 200)}")
    for name, value in _lines(ids):
        click.echo(f"{name:<10} {value}")


@command.command("stamp")
@click.argument("program", type=click.Path(path_type=Path))
@click.option("--uuid", "text", metavar="TEXT", help="What to stamp: printable ASCII; a new random UUID without it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new file, instead of PROGRAM itself.")
@click.option("--replace", is_flag=True, help="Put it in place of the `.uuid` section that PROGRAM has.")
@json_option
def stamp_(program: Path, text: str | None, output: Path | None, replace: bool, as_json: bool) -> None:
    """Add a `.uuid` section to PROGRAM, by objcopy, as a step of its build.

    The section is not loaded, costs nothing at run time, and outlives strip. The sender reads it from the program that crashes.
    """
    with opened(program) as fd:
        before = _identify(fd, program)
    if before.uuid is not None and not replace:
        words = f"{program}: has the .uuid {terminal.printable(before.uuid)} already"
        raise ConfigError(words, hint="--replace puts another in its place")
    if output is not None and os.path.lexists(output):
        raise click.BadParameter(f"{output} already exists", param_hint="--output")
    target = output or program.resolve()
    after = stamp(program if output else target, target, text if text is not None else str(uuid.uuid4()))
    if as_json:
        click.echo(json.dumps({"file": str(target)} | after._asdict()))
    else:
        click.echo(f"{target}: .uuid {after.uuid}")


@command.command("match")
@click.argument("core", metavar="ID|CORE")
@click.argument("program", type=click.Path(path_type=Path))
@click.option(
    "--report", "report_path", type=click.Path(path_type=Path), metavar="JSON",
    help="The report of a core in a file; without it, one that lies beside the core is used.",
)  # fmt: skip
@store_option
@host_option
@json_option
def match_(core: str, program: Path, report_path: Path | None, store_path: str, host_text: str | None, as_json: bool) -> int:
    """Say whether PROGRAM is the one that crashed: exit code 0 for yes, 9 for no, 4 when nothing can be compared.

    The core is a dump in the store, by its id, or a file: as the kernel wrote it, or compressed (.zst, .gz, .zlib). PROGRAM may be
    stripped or not, or its separate debug file. The build-id is looked for in the core itself, a `.uuid` in its report.
    """
    with opened(program) as fd:
        ids = _identify(fd, program)
    path = _find_file(core)
    evidence = _evidence_in_store(core, store_path, host_text) if path is None else _evidence_in_file(path, report_path)
    verdict = compare(evidence.crashed, ids)
    verdict = verdict._replace(notes=(*verdict.notes, *evidence.problems))
    if verdict.is_match is None:
        why = "; ".join((verdict.why, *evidence.problems))
        raise NotFoundError(f"cannot tell whether {program} is the program of {core}: {why}", hint=_hint(evidence, ids))
    if as_json:
        click.echo(json.dumps(_document(core, program, evidence.crashed, ids, verdict), indent=1))
    else:
        answer = terminal.good("yes") if verdict.is_match else terminal.bad("no")
        click.echo(f"{answer}: {terminal.printable(verdict.why, 400)}")
        for note in verdict.notes:
            click.echo(f"  note: {terminal.printable(note, 400)}")
    return 0 if verdict.is_match else NO_MATCH


class _Evidence(NamedTuple):
    """What a core and its report say."""

    summary: CoreSummary
    report: CrashReport
    is_cut: bool
    """The core's beginning is all there is, and names no program."""
    problems: tuple[str, ...]
    """Why one of the two says nothing."""

    @property
    def crashed(self) -> Crashed:
        """What is known of the program that crashed."""
        return Crashed(self.summary.build_id, self.report.build_id, self.report.uuid)


def _find_file(text: str) -> Path | None:
    """Return the file that *text* names, None when it can only be a dump's id; raises NotFoundError when it is neither."""
    if os.path.exists(text):
        return Path(text)
    if set(text.strip().lower()) <= _ID_CHARACTERS:
        return None
    raise NotFoundError(f"{text}: no such file", hint="an id has hexadecimal digits and hyphens only")


def _evidence_in_file(path: Path, report_path: Path | None) -> _Evidence:
    with opened(path) as fd:
        core = analyse_file(fd, path)
    if core is None:
        raise BrokenError(f"{path}: not a core", hint="a core as the kernel wrote it, or compressed: .zst, .gz or .zlib")
    problems = [_CUT] if core.is_cut else []
    report = CrashReport()
    found = report_path or find_report_beside(path)
    try:
        report = _read_report(found) if found is not None else report
    except SecurecoreError as error:
        # A file that only lies there may be anything; one that was named is meant.
        if report_path is not None:
            raise
        problems.append(f"the report beside it cannot be used: {error.message}")
    return _Evidence(core.summary, report, core.is_cut, tuple(problems))


def _read_report(path: Path) -> CrashReport:
    try:
        return parse_report(options.read_file(path, limits.MAX_REPORT_BYTES))
    except PeerError as error:
        raise BrokenError(f"{path}: {error.message}") from error


def _evidence_in_store(text: str, store_path: str, host_text: str | None) -> _Evidence:
    """Read the core as its store's owner may; only facts derived from it leave, so that this is no extraction."""
    from securecore.cli import tombstones
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host, dump = tombstones.find_dump(store, text, options.find_host(host_text, store))
        with tombstones.open_dump(store, host, dump) as files:
            try:
                report = parse_report(files.read_report() or b"{}")
            except PeerError as error:
                raise BrokenError(f"{dump.short}: {error.message}") from error
            fd = files.open_core()
            try:
                core = analyse_core(fd, CoreKind.STORED)
                return _Evidence(core.summary, report, core.is_cut, (_CUT,) if core.is_cut else ())
            except BrokenError as error:
                return _Evidence(CoreSummary(), report, False, (error.message,))
            finally:
                os.close(fd)


def _hint(evidence: _Evidence, ids: ProgramIds) -> str:
    if evidence.is_cut and (ids.build_id or ids.uuid):
        return "no build-id of the program's could be in that core; a report that has it is named with --report"
    return "build it with -Wl,--build-id, or stamp it: `securecore elf stamp`"


def _identify(fd: int, path: Path) -> ProgramIds:
    try:
        return identify_program(fd)
    except BrokenError as error:
        raise BrokenError(f"{path}: {error.message}") from error


def _lines(ids: ProgramIds) -> list[tuple[str, str]]:
    link = terminal.printable(ids.debuglink, 200) + (f" (crc32 {ids.debuglink_crc32})" if ids.debuglink else "")
    return [("build-id", ids.build_id or "-"), (".uuid", terminal.printable(ids.uuid, 512)), ("debuglink", link)]


def _document(core: str, program: Path, crashed: Crashed, ids: ProgramIds, verdict: Verdict) -> dict[str, Any]:
    return {
        "match": verdict.is_match,
        "why": verdict.why,
        "notes": list(verdict.notes),
        "core": {"name": core} | crashed._asdict(),
        "program": {"name": str(program)} | ids._asdict(),
    }

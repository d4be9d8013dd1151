"""``securecore elf``: which program is this core of?"""

import json
import os
import uuid
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from securecore import limits
from securecore.cli import options, terminal
from securecore.cli.core_files import analyse_file, find_report_beside, opened
from securecore.cli.options import host_option, json_option, store_option
from securecore.elf.analysis import CoreKind, analyse, identify_program
from securecore.elf.matching import Crashed, Verdict, compare
from securecore.elf.stamping import stamp
from securecore.elf.summary import CoreSummary
from securecore.elfid import ProgramIds
from securecore.errors import BrokenError, ConfigError, NotFoundError
from securecore.report import CrashReport, parse_report

NO_MATCH: Final = 9
"""The exit code of a no; an answer, not an error. docs/exit-codes.md has it."""

EPILOG = """\b
Examples:
  securecore elf id /usr/sbin/nginx
  securecore elf match 9c41d07e /usr/sbin/nginx --store /var/lib/securecore/store
  securecore elf match /var/lib/securecore/cores/20261124T065359Z-app-4711.gz build/app
  securecore elf stamp build/app --uuid "$(git rev-parse HEAD)"
Where the linker writes build-ids, as all distributions' do, no stamp is needed.
"""


@click.group("elf", epilog=EPILOG)
def command() -> None:
    """Pair cores and programs by build-id or `.uuid` section."""


@command.command("id")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def id_(file: Path, as_json: bool) -> None:
    """Print what names FILE, a program, library, object or debug file; of a core, what names the program that crashed."""
    with opened(file) as fd:
        core = analyse_file(fd, file)
        ids = ProgramIds(build_id=core.build_id) if core is not None else _identify(fd, file)
    more = {"kind": "program"} if core is None else {"kind": "core", "program": core.program, "executable": core.executable}
    if as_json:
        click.echo(json.dumps({"file": str(file)} | more | ids._asdict(), indent=1))
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
    if os.path.exists(core):
        evidence = _evidence_in_file(Path(core), report_path)
    else:
        evidence = _evidence_in_store(core, store_path, host_text)
    crashed = Crashed(evidence.summary.build_id, evidence.report.build_id, evidence.report.uuid)
    verdict = compare(crashed, ids)
    if verdict.is_match is None:
        hint = "build it with -Wl,--build-id, or stamp it: `securecore elf stamp`"
        why = verdict.why + (f"; {evidence.problem}" if evidence.problem else "")
        raise NotFoundError(f"cannot tell whether {program} is the program of {core}: {why}", hint=hint)
    if as_json:
        click.echo(json.dumps(_document(core, program, crashed, ids, verdict), indent=1))
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
    problem: str | None
    """Why the core itself says nothing."""


def _evidence_in_file(path: Path, report_path: Path | None) -> _Evidence:
    with opened(path) as fd:
        summary = analyse_file(fd, path)
    if summary is None:
        raise BrokenError(f"{path}: not a core", hint="a core as the kernel wrote it, or compressed: .zst, .gz or .zlib")
    found = report_path or find_report_beside(path)
    report = parse_report(options.read_file(found, limits.MAX_REPORT_BYTES)) if found else CrashReport()
    return _Evidence(summary, report, None)


def _evidence_in_store(text: str, store_path: str, host_text: str | None) -> _Evidence:
    """Read the core as its store's owner may; only facts derived from it leave, so that this is no extraction."""
    from securecore.store.layout import open_store

    with open_store(store_path) as store:
        host, dump = store.find(text, options.find_host(host_text, store))
        with store.open_dump(host, dump) as files:
            report = parse_report(files.read_report() or b"{}")
            core = files.open_core()
            try:
                return _Evidence(analyse(core, CoreKind.STORED), report, None)
            except BrokenError as error:
                return _Evidence(CoreSummary(), report, error.message)
            finally:
                os.close(core)


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

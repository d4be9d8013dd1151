"""The catalogue: what it lists is what the directories hold, whatever happened behind its back."""

import json
import os
import shutil
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.log import HostLogs
from securecore.dump.manifest import CUT, SOURCE_TRUNCATED
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.store.catalogue import Catalogue
from securecore.store.layout import Place, Store
from securecore.store.reading import DumpFiles
from securecore.store.rows import DumpRow, format_time, row_of
from securecore.store.writer import IncomingDump
from tests.support.dumps import NOW, REPORT, WEB, Signer, begin, core_bytes, dump_id, dump_path, store_dump

CORE = core_bytes(1, 40)
DB = HostName("db-2.hosts.test.example")


def listed(catalogue: Catalogue, host: HostName | None = None) -> list[str]:
    catalogue.reconcile(host)
    return [row.id for row in catalogue.rows(host)]


def test_a_row_says_what_the_files_say(store: Store, logs: HostLogs, signer: Signer) -> None:
    """Every field comes from the report, the manifest, the receipt's entry or the core's size."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    with store.open_dump(WEB, dump_id(1)) as files:
        assert row_of(files) == DumpRow(
            id=str(dump_id(1)),
            host=str(WEB),
            state="complete",
            outcome="complete",
            received_at="2026-11-22T09:14:22.123Z",
            size_bytes=len(CORE),
            predicted_bytes=None,
            stored_bytes=(dump_path(store, dump_id(1)) / "core.zst").stat().st_size,
            frames=2,
            signal=11,
            program="nginx",
            pid=4711,
            build_id="4f1c",
            executable="/usr/sbin/nginx",
            crashed_at=1,
            given_up_at=None,
            lost_frames=0,
            sensitive=False,
            published=True,
        )


@pytest.mark.parametrize("outcome", [CUT, SOURCE_TRUNCATED])
def test_other_outcomes_are_incomplete(outcome: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """A published dump whose manifest does not say complete is listed as incomplete, with its outcome."""
    store_dump(store, logs, signer, dump_id(1), CORE, outcome=outcome)
    catalogue.reconcile()
    assert [(row.state, row.outcome) for row in catalogue.rows()] == [("incomplete", outcome)]


@pytest.mark.parametrize("name", ["report.json", "manifest.jws", "receipt", "core.zst"])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, b"a.b.c", b"a.e30.c", b"[" * 60000, b"extra e30=\nextra W10=\n"])
def test_damaged_files_are_listed(
    name: str, content: bytes | None, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue
) -> None:
    """A dump with a missing or malformed file is listed beside the others, incomplete when it is the manifest or the core."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = dump_path(store, dump_id(1)) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    catalogue.reconcile()
    is_less = name in ("manifest.jws", "core.zst")
    assert [(row.id, row.state) for row in catalogue.rows()] == [(str(dump_id(1)), "incomplete" if is_less else "complete")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.json", "manifest.jws", "receipt"])
def test_a_file_cut_at_every_offset_costs_its_own_fields(name: str, store: Store, logs: HostLogs, signer: Signer) -> None:
    """The row is there, with the fields of the other files, and never complete by half a manifest."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = dump_path(store, dump_id(1)) / name
    whole = path.read_bytes()
    of_report = {"signal", "program", "pid", "build_id", "executable", "crashed_at", "has_sound_report"}
    fields = {"report.json": of_report, "receipt": {"received_at", "has_sound_receipt"}}
    with store.open_dump(WEB, dump_id(1)) as files:
        good = row_of(files)
        for cut in range(len(whole)):
            path.write_bytes(whole[:cut])
            row = row_of(files)
            lost = {field for field in good._fields if getattr(row, field) != getattr(good, field)}
            if name in fields:
                assert lost <= fields[name]
            else:
                # Of the JWS the payload is read alone: its signature is the business of `verify`.
                assert lost in ({"state", "outcome", "size_bytes", "frames"}, set())
                assert lost or whole[:cut].count(b".") == 2


@pytest.mark.parametrize("time", ["", "x", "2026-11-22T09:14:22", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_receipt_without_a_moment_leaves_the_directorys(time: str, store: Store, logs: HostLogs, signer: Signer) -> None:
    """An entry may give any text for its time; what is no moment of a calendar is not listed, and costs no row."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = dump_path(store, dump_id(1))
    (path / "receipt").write_bytes(b"extra " + b64encode(json.dumps({"time": time}).encode()))
    os.utime(path, (0, 0))
    with store.open_dump(WEB, dump_id(1)) as files:
        assert row_of(files).received_at == "1970-01-01T00:00:00.000Z"


@pytest.mark.parametrize("year", [1, 999, 1970, 9999])
def test_times_are_of_one_length_in_every_year(year: int) -> None:
    """So that the order of the texts is that of the times."""
    assert format_time(datetime(year, 2, 3, 4, 5, 6, 789_999, UTC)) == f"{year:04d}-02-03T04:05:06.789Z"


def test_dumps_that_are_coming_in_are_listed_as_incomplete(store: Store, catalogue: Catalogue) -> None:
    """A partial dump shows what its report says, the time of its directory, and no size; without a report, nothing of it."""
    begin(store, dump_id(1), CORE).close()
    IncomingDump.begin(store, WEB, dump_id(2), REPORT).close()
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    for number in (1, 2):
        os.utime(dump_path(store, dump_id(number), "incoming"), (moment.timestamp(), moment.timestamp()))
    catalogue.reconcile()
    rows = {row.id: row for row in catalogue.rows()}
    assert {row.state for row in rows.values()} == {"incomplete"}
    first, second = rows[str(dump_id(1))], rows[str(dump_id(2))]
    assert (first.received_at, first.size_bytes, first.frames, first.outcome) == ("2026-01-02T00:00:00.000Z", None, None, None)
    assert (first.program, second.program) == ("nginx", None)
    assert first.stored_bytes > 0


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_dump_is_looked_at_again_each_time(
    name: str, how: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put back into its directory changes nothing in the host's; the mark of that does not stand for it."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    path = dump_path(store, dump_id(1)) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    if how == "missing":
        path.unlink()
    catalogue.reconcile()
    assert [row.state for row in catalogue.rows()] == ["incomplete"]

    path.write_bytes(whole)
    catalogue.reconcile()

    assert [row.state for row in catalogue.rows()] == ["complete"]


@pytest.mark.parametrize("name", ["report.json", "receipt"])
@pytest.mark.parametrize("how", ["missing", "cut", "unreadable"])
def test_a_paper_that_does_not_read_is_said_and_looked_at_again_each_time(
    name: str, how: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its host has signed is all there, and more is not known: the row says so, until the paper can be read."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    with store.open_dump(WEB, dump_id(1)) as files:
        good = row_of(files)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    path = dump_path(store, dump_id(1)) / name
    whole = path.read_bytes()
    if how == "unreadable":
        path.write_bytes(bytes(limits.MAX_REPORT_BYTES + limits.MAX_RECEIPT_BYTES))
    else:
        path.write_bytes(whole[:10])
    if how == "missing":
        path.unlink()
    catalogue.reconcile()
    (row,) = catalogue.rows()
    assert (row.state, row.has_sound_report, row.has_sound_receipt) == ("complete", name == "receipt", name == "report.json")

    path.write_bytes(whole)
    catalogue.reconcile()

    assert catalogue.rows() == [good]


@pytest.mark.parametrize("state", ["new", "damaged", "given up"])
def test_a_dump_that_cannot_be_read_once_is_listed_when_it_can(
    state: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes in its host's directory when the disk has its good day again; meanwhile what was known of it stays."""
    for number in (1, 2):
        store_dump(store, logs, signer, dump_id(number), CORE)
    path = dump_path(store, dump_id(1)) / "core.zst"
    whole = path.read_bytes()
    if state == "damaged":
        path.write_bytes(whole[:10])
    elif state == "given up":
        (dump_path(store, dump_id(1)) / "manifest.jws").unlink()
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    both = {str(dump_id(1)), str(dump_id(2))}
    if state != "new":
        assert set(listed(catalogue)) == both
        path.write_bytes(whole)
    if state == "given up":
        (Path(store.path) / "hosts" / str(WEB) / "notes").touch()  # Its directory changes, so all its names are read.
    real = DumpFiles.core_bytes

    def core_bytes(files: DumpFiles) -> int:
        if files.dump_id == dump_id(1):
            raise StorageError("input/output error")
        return real(files)

    with monkeypatch.context() as patch:
        patch.setattr(DumpFiles, "core_bytes", core_bytes)
        assert set(listed(catalogue)) == (both if state != "new" else {str(dump_id(2))})
        assert [problem.message for problem in catalogue.problems] == [f"1 dump of {WEB} cannot be read: input/output error"]
        catalogue.reconcile()
        assert len(catalogue.problems) == 1

    assert set(listed(catalogue)) == both
    assert catalogue.problems == []
    assert {row.core_fits for row in catalogue.rows()} == {True}


def test_a_dump_that_is_coming_in_and_cannot_be_read_is_said(
    store: Store, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not listed then, and not passed over in silence."""
    begin(store, dump_id(1), CORE).close()

    def core_bytes(files: DumpFiles) -> int:
        raise StorageError("input/output error")

    monkeypatch.setattr(DumpFiles, "core_bytes", core_bytes)
    assert listed(catalogue) == []
    assert [problem.message for problem in catalogue.problems] == [f"1 dump of {WEB} cannot be read: input/output error"]


@pytest.mark.parametrize("names", [("manifest.jws",), ("manifest.jws", "receipt")])
def test_another_dumps_papers_are_none(
    names: tuple[str, ...], store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue
) -> None:
    """What vouches for a dump that is complete vouches for no other."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    store_dump(store, logs, signer, dump_id(2), CORE)
    for name in names:
        shutil.copy(dump_path(store, dump_id(1)) / name, dump_path(store, dump_id(2)) / name)

    catalogue.reconcile()

    assert [(row.state, row.outcome) for row in catalogue.rows() if row.id == str(dump_id(2))] == [("incomplete", None)]


def test_a_settled_directory_is_not_read_again(
    store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a host's directory has been quiet, reconcile does not look into it until it changes; then it does."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert listed(catalogue) == [str(dump_id(1))]
    read: list[HostName] = []
    original = store.dump_names

    def watched(place: Place, host: HostName) -> list[str]:
        if place is Place.HOSTS:
            read.append(host)
        return original(place, host)

    monkeypatch.setattr(store, "dump_names", watched)
    assert listed(catalogue) == [str(dump_id(1))]
    assert read == []
    shutil.rmtree(dump_path(store, dump_id(1)))
    assert listed(catalogue) == []
    assert read == [WEB]


def test_rows_by_host_and_time_newest_first(store: Store, catalogue: Catalogue) -> None:
    """Rows come newest first, of one host or all, from a moment on."""
    for number in range(4):
        host, moment = (WEB, DB)[number % 2], NOW + timedelta(hours=number)
        path = dump_path(store, dump_id(number), host=host)
        path.mkdir(parents=True)
        os.utime(path, (moment.timestamp(), moment.timestamp()))
    catalogue.reconcile()
    assert [row.id for row in catalogue.rows()] == [str(dump_id(number)) for number in (3, 2, 1, 0)]
    assert [row.id for row in catalogue.rows(DB)] == [str(dump_id(number)) for number in (3, 1)]
    assert [row.id for row in catalogue.rows(since=NOW + timedelta(hours=2))] == [str(dump_id(number)) for number in (3, 2)]
    assert [row.id for row in catalogue.rows(WEB, NOW + timedelta(hours=1))] == [str(dump_id(2))]


@pytest.mark.parametrize("place", ["hosts", "incoming"])
def test_what_stands_in_a_hosts_place_is_that_hosts_trouble(
    place: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue
) -> None:
    """The others are listed; who lists says what is not."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    (Path(store.path) / place / str(DB)).touch()

    assert listed(catalogue) == [str(dump_id(1))]
    assert [problem.message for problem in catalogue.problems] == [f"cannot open '{DB}': not a directory"]


def test_strangers_among_dumps_do_not_stop_the_list(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """A file or a link among the dump directories is passed over; where a dump should be there it is said."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    host = Path(store.path) / "hosts" / str(WEB)
    (host / "notes").touch()
    (host / str(dump_id(2))).touch()
    (host / str(dump_id(3))).symlink_to(host / str(dump_id(1)))
    assert listed(catalogue) == [str(dump_id(1))]
    assert [problem.message.split(": ")[0] for problem in catalogue.problems] == [f"2 dumps of {WEB} cannot be read"]

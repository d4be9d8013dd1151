"""The directory of local cores: no name twice, none that says more than is there, nothing lost by a kill, nothing else touched."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.errors import ConfigError, StorageError
from securecore.sender.core_names import stem_of_crash
from securecore.sender.cores import LOCK, CoreDirectory, open_cores
from tests.support.disk import Disk
from tests.support.local_handlers import is_well_named

REPORT: Final = b'{"program":"nginx"}'
CORE: Final = b"what stands for a core"
STEM: Final = "20261124T065359Z-nginx-4711"


@pytest.fixture
def cores(tmp_path: Path) -> Iterator[CoreDirectory]:
    """An empty directory, tmp_path/cores."""
    (tmp_path / "cores").mkdir(mode=0o700)
    with closing(open_cores(str(tmp_path / "cores"))) as opened:
        yield opened


def names(path: Path) -> set[str]:
    """Return all names but the lock's."""
    return {entry.name for entry in path.iterdir()} - {LOCK}


def store(cores: CoreDirectory, stem: str = STEM, *, kind: str = "gz", data: bytes = CORE, is_whole: bool = True) -> str:
    """Store a core from beginning to end and return its stem."""
    new = cores.begin(stem, kind, REPORT)
    new.write(data)
    new.publish(REPORT, {"outcome": "complete" if is_whole else "source-truncated"}, is_whole=is_whole)
    return new.stem


def test_a_stem_is_time_program_and_pid() -> None:
    """UTC, as the kernel's clock had it."""
    assert stem_of_crash(1795503239, "nginx", 4711) == STEM


@given(st.none() | st.text(max_size=300), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_any_program_makes_a_harmless_name(program: str | None, moment: int, pid: int) -> None:
    """R12: letters, digits, dot, dash and underscore; no leading dot or dash; at most 64 of them; never empty; any clock."""
    stem = stem_of_crash(moment, program, pid)
    middle = stem[17:].rpartition("-")[0]

    assert is_well_named(f"{stem}.gz")
    assert 1 <= len(middle) <= 64


@pytest.mark.parametrize(
    ("program", "middle"),
    [
        (None, "unknown"),
        ("", "unknown"),
        ("../../etc/passwd", "___.._etc_passwd"),
        ("-rf", "_rf"),
        ("..", "__"),
        (".hidden", "_hidden"),
        ("a b\n{}", "a_b___"),
        ("\x1b[31m", "__31m"),
        ("ä\u202e", "__"),
        ("x" * 65, "x" * 64),
        ("a.gz", "a.gz"),
        ("a.truncated", "a.truncated"),
    ],
)
def test_hostile_programs(program: str | None, middle: str) -> None:
    """What each becomes."""
    assert stem_of_crash(0, program, 1) == f"19700101T000000Z-{middle}-1"


def test_a_core_and_its_report_appear_together(cores: CoreDirectory, tmp_path: Path) -> None:
    """Hidden while it is written; then both, 0600, the report with what is stored of the core."""
    new = cores.begin(STEM, "gz", REPORT)
    new.write(CORE)
    before = names(tmp_path / "cores")
    new.publish(REPORT, {"outcome": "complete"}, is_whole=True)

    assert before == {f".{STEM}.gz.new", f".{STEM}.json.new"}
    assert names(tmp_path / "cores") == {f"{STEM}.gz", f"{STEM}.json"}
    assert (tmp_path / f"cores/{STEM}.gz").read_bytes() == CORE
    assert json.loads((tmp_path / f"cores/{STEM}.json").read_bytes()) == {
        "program": "nginx", "local": {"outcome": "complete", "file": f"{STEM}.gz"},
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cores").iterdir()} == {0o600}


def test_a_name_is_never_given_twice(cores: CoreDirectory, tmp_path: Path) -> None:
    """gzCoredump made one file of two crashes in a second: here each has its own, whatever is written, whole, cut or abandoned."""
    first = cores.begin(STEM, "gz", REPORT)
    assert store(cores) == f"{STEM}-2"
    assert store(cores, kind="zst", is_whole=False) == f"{STEM}-3"
    first.abandon(REPORT, {})
    assert store(cores) == f"{STEM}-4"

    assert names(tmp_path / "cores") == {
        f"{STEM}{rest}" for rest in (".json", "-2.gz", "-2.json", "-3.truncated.zst", "-3.json", "-4.gz", "-4.json")
    }


@pytest.mark.parametrize("ending", ["gz", "zst", "truncated.zlib", "json"])
def test_what_stands_there_is_never_overwritten(ending: str, cores: CoreDirectory, tmp_path: Path) -> None:
    """A file, or a link, of any of a stem's names makes the next one take another stem."""
    (tmp_path / f"cores/{STEM}.{ending}").symlink_to(tmp_path / "victim")

    assert store(cores) == f"{STEM}-2"
    assert not (tmp_path / "victim").exists()


def test_a_name_taken_meanwhile_is_an_error(cores: CoreDirectory, tmp_path: Path) -> None:
    """Nobody but us gives such names; who does so by hand loses nothing."""
    new = cores.begin(STEM, "gz", REPORT)
    (tmp_path / f"cores/{STEM}.gz").write_bytes(b"mine")
    with pytest.raises(StorageError):
        new.publish(REPORT, {}, is_whole=True)
    new.abandon(REPORT, {"error": "file exists"})

    assert (tmp_path / f"cores/{STEM}.gz").read_bytes() == b"mine"
    assert json.loads((tmp_path / f"cores/{STEM}.json").read_bytes())["local"]["outcome"] == "not-kept"
    assert names(tmp_path / "cores") == {f"{STEM}.gz", f"{STEM}.json"}


def test_a_living_handlers_core_is_left_alone(cores: CoreDirectory, tmp_path: Path) -> None:
    """It is locked: another handler neither names nor counts it."""
    new = cores.begin(STEM, "gz", REPORT)
    new.write(CORE)
    with closing(open_cores(str(tmp_path / "cores"))) as other:
        assert other.recover() == ([], [])
        assert other.rotation.keep_newest(1, "none") == []
    new.publish(REPORT, {}, is_whole=True)
    assert names(tmp_path / "cores") == {f"{STEM}.gz", f"{STEM}.json"}


def test_a_killed_handlers_core_is_kept_as_what_it_is(cores: CoreDirectory, tmp_path: Path) -> None:
    """Nothing is lost, nothing looks whole, no temporary file stays; the report has the crash and says that it was cut."""
    new = cores.begin(STEM, "gz", REPORT)
    new.write(CORE)
    new.close()

    assert cores.recover() == ([f"{STEM}.truncated.gz"], [])
    assert (tmp_path / f"cores/{STEM}.truncated.gz").read_bytes() == CORE
    report = json.loads((tmp_path / f"cores/{STEM}.json").read_bytes())
    assert (report["program"], report["local"]["outcome"], report["local"]["stored_bytes"]) == ("nginx", "cut", len(CORE))
    assert names(tmp_path / "cores") == {f"{STEM}.truncated.gz", f"{STEM}.json"}


class Killed(BaseException):
    """The process ends here."""


def live(path: Path, fate: str) -> None:
    """Be a handler: store a core, or give one up, then tidy."""
    with closing(open_cores(str(path))) as cores:
        with closing(cores.begin(STEM, "gz", REPORT)) as new:
            new.write(CORE[:7])
            new.write(CORE[7:])
            if fate == "publish":
                new.publish(REPORT, {"outcome": "complete"}, is_whole=True)
            else:
                new.abandon(REPORT, {"error": "no space left on device"})
        cores.recover()


def check(path: Path, fate: str) -> None:
    """See that the directory holds the truth after the next handler has tidied it."""
    with closing(open_cores(str(path))) as cores:
        assert cores.recover()[1] == []
        tidied = names(path)
        assert cores.recover() == ([], [])
    found = names(path)
    assert found == tidied
    assert found in [set(), {f"{STEM}.json"}, {f"{STEM}.gz", f"{STEM}.json"}, {f"{STEM}.truncated.gz", f"{STEM}.json"}]
    if f"{STEM}.gz" in found:
        assert fate == "publish"
        assert (path / f"{STEM}.gz").read_bytes() == CORE
    if f"{STEM}.truncated.gz" in found:
        assert CORE.startswith((path / f"{STEM}.truncated.gz").read_bytes())
    if f"{STEM}.json" in found:
        stated = json.loads((path / f"{STEM}.json").read_bytes())["local"]
        assert stated["file"] in found | {None}
        assert (stated["file"] is None) == (stated["outcome"] == "not-kept")


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["publish", "abandon"])
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call(loses_power: bool, fate: str, tmp_path: Path) -> None:
    """Killed, or without power, before each call that changes the disk: what is there is what its name says, tidied once."""
    for fatal in range(1, 100):
        path, calls = tmp_path / f"{fatal}", 0
        path.mkdir(0o700)
        disk = Disk(path)

        def count(call: str) -> None:
            nonlocal calls
            calls += 1
            if calls >= fatal:  # noqa: B023  # used up before the loop goes on
                raise Killed

        disk.before = count
        with pytest.MonkeyPatch.context() as patch:
            disk.watch(patch)
            try:
                live(path, fate)
                has_ended = True
            except Killed:
                has_ended = False
        if loses_power:
            path = tmp_path / f"{fatal}-after"
            disk.restore(path)
        disk.close()
        check(path, fate)
        if has_ended:
            break

    assert has_ended
    assert fatal > 8
    assert names(path) == ({f"{STEM}.gz", f"{STEM}.json"} if fate == "publish" else {f"{STEM}.json"})


def stored(cores: CoreDirectory, path: Path, seconds: range) -> list[str]:
    """Store a core for each second and return the stems."""
    stems = [store(cores, stem_of_crash(second, "nginx", 7)) for second in seconds]
    assert names(path) >= {f"{stem}.gz" for stem in stems}
    return stems


def test_the_newest_are_kept_and_the_others_go_in_pairs(cores: CoreDirectory, tmp_path: Path) -> None:
    """N dumps stay, each core with its report, truncated ones counted like others."""
    stems = stored(cores, tmp_path / "cores", range(5))
    cut = store(cores, stem_of_crash(5, "nginx", 7), is_whole=False)

    gone = cores.rotation.keep_newest(3, cut)

    assert gone == [f"{stem}.{ending}" for stem in stems[:3] for ending in ("gz", "json")]
    assert names(tmp_path / "cores") == {
        f"{stems[3]}.gz", f"{stems[3]}.json", f"{stems[4]}.gz", f"{stems[4]}.json", f"{cut}.truncated.gz", f"{cut}.json",
    }  # fmt: skip


def test_within_a_second_the_files_times_decide(cores: CoreDirectory, tmp_path: Path) -> None:
    """A burst's names have the same second; the order is that of writing, not that of the pids."""
    stems = [store(cores, stem_of_crash(1, "nginx", pid)) for pid in (9, 8, 7)]
    for number, stem in enumerate(stems):
        os.utime(tmp_path / f"cores/{stem}.gz", ns=(0, number))
        os.utime(tmp_path / f"cores/{stem}.json", ns=(0, number))

    gone = cores.rotation.keep_newest(1, stems[2])

    assert [name for name in gone if name.endswith(".gz")] == [f"{stem}.gz" for stem in stems[:2]]


def test_files_times_are_asked_for_only_where_they_decide(
    cores: CoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dump for each second, and several of the newest second, which stay: of none that stays is a file looked at."""
    stems = stored(cores, tmp_path / "cores", range(4))
    burst = [store(cores, stem_of_crash(9, "nginx", pid)) for pid in (1, 2, 3)]
    looked_at: set[str] = set()
    stat_file = os.stat

    def stat_and_note(path: str, *, dir_fd: int, follow_symlinks: bool) -> os.stat_result:
        looked_at.add(path)
        return stat_file(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    with monkeypatch.context() as watched:
        watched.setattr(os, "stat", stat_and_note)
        gone = cores.rotation.keep_newest(5, burst[0])

    assert gone == [f"{stem}.{ending}" for stem in stems[:2] for ending in ("gz", "json")]
    assert looked_at == set(gone)


def test_ones_own_dump_stays_whatever_the_clock_says(cores: CoreDirectory, tmp_path: Path) -> None:
    """A clock that was set back makes a new dump look old: it is not removed the moment it is there."""
    stored(cores, tmp_path / "cores", range(100, 103))
    own = store(cores, stem_of_crash(1, "nginx", 7))

    cores.rotation.keep_newest(2, own)

    assert len(names(tmp_path / "cores")) == 4
    assert f"{own}.gz" in names(tmp_path / "cores")


FOREIGN: Final = [
    "core", "core.gz", "notes.json", "20261124T065359Z-nginx-4711.gz.bak", "20261124T065359Z-nginx.gz", "x20261124T065359Z-a-1.gz",
    ".20261124T065359Z-nginx-4711.swp", "2026-11-24.gz", "20261124T065359Z-a b-1.gz", "20261124T065359Z-nginx-4711.truncated",
]  # fmt: skip


def test_nothing_else_in_the_directory_is_touched(cores: CoreDirectory, tmp_path: Path) -> None:
    """gzCoredump removed everything in a directory: here what is not named as we name is not even looked at."""
    for name in FOREIGN:
        (tmp_path / "cores" / name).write_text("mine")
    (tmp_path / "cores/sub").mkdir()
    (tmp_path / "cores/sub/20261124T065359Z-a-1.gz").write_text("mine")
    stored(cores, tmp_path / "cores", range(3))
    cores.recover()
    cores.rotation.keep_newest(1, "none")

    assert {name: (tmp_path / "cores" / name).read_text() for name in FOREIGN} == dict.fromkeys(FOREIGN, "mine")
    assert (tmp_path / "cores/sub/20261124T065359Z-a-1.gz").exists()
    assert len(names(tmp_path / "cores")) == len(FOREIGN) + 1 + 2


def test_reports_without_cores_push_no_core_out(cores: CoreDirectory, tmp_path: Path) -> None:
    """A full disk makes one at each crash: as many stay as dumps, and no good core goes for them."""
    stems = stored(cores, tmp_path / "cores", range(2))
    for second in range(10, 16):
        cores.begin(stem_of_crash(second, "nginx", 7), "gz", REPORT).abandon(REPORT, {})
    cores.rotation.keep_newest(2, "none")

    assert {f"{stem}.gz" for stem in stems} <= names(tmp_path / "cores")
    assert len(names(tmp_path / "cores")) == 4 + 2


@pytest.fixture
def planted(cores: CoreDirectory, tmp_path: Path) -> Iterator[Path]:
    """A victim outside, which must not be touched."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    yield victim
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_planted_is_refused_and_left(kind: str, cores: CoreDirectory, tmp_path: Path, planted: Path) -> None:
    """R10: a link, FIFO or directory under a temporary name costs one line in the log, and no other core its name."""
    aside = tmp_path / "cores" / f".{STEM}.gz.new"
    if kind == "link":
        aside.symlink_to(planted)
    elif kind == "fifo":
        os.mkfifo(aside)
    else:
        aside.mkdir()
    killed = cores.begin(stem_of_crash(1, "nginx", 1), "gz", REPORT)
    killed.close()

    recovered, troubles = cores.recover()

    assert recovered == [f"{killed.stem}.truncated.gz"]
    assert len(troubles) == 1
    assert aside.lstat()
    assert store(cores) == f"{STEM}-2"


def test_a_lock_that_is_no_file_is_refused(cores: CoreDirectory, tmp_path: Path, planted: Path) -> None:
    """R9: no link is followed, and nobody waits for a FIFO."""
    (tmp_path / "cores" / LOCK).symlink_to(planted)
    with pytest.raises(StorageError):
        cores.begin(STEM, "gz", REPORT)


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_directory_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    """Whoever can write there can plant names and take cores away."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner can write there"):
        open_cores(str(tmp_path / "open"))


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """Missing, a file, a link to a directory: each is one line."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name, words in {"missing": "no such file", "file": "not a directory", "link": "not a directory"}.items():
        with pytest.raises(ConfigError, match=words):
            open_cores(str(tmp_path / name))

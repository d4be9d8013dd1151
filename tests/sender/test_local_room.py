"""The room of local cores: what fits is kept, what others need stays free, and no core that cannot fit costs an older one."""

import os
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import StorageError
from securecore.sender import cores_room, rotation
from securecore.sender.cores import CoreDirectory, NewCore, open_cores
from securecore.sender.cores_room import AtFloorError
from securecore.sender.floor import Floor
from tests.support.elf import Segment, write_core
from tests.support.file_systems import BLOCK_BYTES, fill
from tests.support.kernel import write_script
from tests.support.local_files import KINDS, filter_through, noise, small_disk
from tests.support.local_handlers import LocalHost

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SLACK_BYTES: Final = 64 * limits.KIB
"""Reports, directories and the ends of files may go below the floor."""
PROGRAMS: Final = {"zst": ["zstd", "-dcq"], "gz": ["gzip", "-dc"]}


def core_of(size: int, seed: int = 0) -> bytes:
    """Return a core that does not compress."""
    return write_core([Segment(noise(size, seed))])


def free_of(disk: Path) -> int:
    """Return how many bytes others could still write."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def local_of(host: LocalHost, name: str) -> dict[str, object]:
    """Return what a report says of its core."""
    local: dict[str, object] = host.reports()[name.partition(".truncated.")[0]]["local"]
    return local


@pytest.mark.parametrize("kind", KINDS)
def test_a_core_that_the_disk_cannot_hold_costs_no_other_and_is_kept_as_far_as_it_fits(kind: str, tmp_path: Path) -> None:
    """With --keep: any user of the machine could otherwise make everybody's cores go with one crash, and leave nothing instead."""
    older = [core_of(4 * limits.MIB, second) for second in range(4)]
    large = core_of(60 * limits.MIB, 9)
    with small_disk(tmp_path / "small", "48m") as small:
        host = LocalHost(small, floor=Floor())
        options = ("--format", kind, "--keep", "5")
        assert [host.run(core, *options, changes={5: str(second)}) for second, core in enumerate(older)] == [0] * 4
        assert host.run(large, *options, changes={5: "9"}) == StorageError.exit_code

        *kept, cut = host.cores_kept()
        assert [host.plain(name) for name in kept] == older
        part, stated = host.plain(cut), local_of(host, cut)
        assert large.startswith(part)
        assert len(part) > 24 * limits.MIB
        assert cut.endswith(f".truncated.{kind}")
        assert (stated["outcome"], stated["size"], stated["predicted_size"]) == ("cut", len(part), len(large))
        assert "2.4 MiB are to stay free" in str(stated["error"])
        assert free_of(small) >= 48 * limits.MIB * limits.SPOOL_FLOOR_SHARE - SLACK_BYTES


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_read_what_fitted(kind: str, tmp_path: Path) -> None:
    """It has an end of its own, so that `zstd -d` and `gzip -d` find nothing wrong with it."""
    large = core_of(9 * limits.MIB)
    with small_disk(tmp_path / "small", "8m") as small:
        host = LocalHost(small, floor=Floor())
        assert host.run(large, "--format", kind) == StorageError.exit_code
        (cut,) = host.cores_kept()
        part = filter_through(PROGRAMS[kind], (host.cores / cut).read_bytes())

        assert large.startswith(part)
        assert len(part) == local_of(host, cut)["size"] == 7 * limits.MIB


@pytest.mark.parametrize(("keep", "left"), [("9", 4), ("7", 4), ("1", 1)])
def test_on_a_full_disk_a_core_that_it_cannot_hold_costs_the_room_of_its_first_pieces(keep: str, left: int, tmp_path: Path) -> None:
    """By fewer than sixteen nobody can tell, and it may be one of those that fit; what goes for the new one anyway goes too."""
    with small_disk(tmp_path / "small", "32m") as small:
        host = LocalHost(small, floor=Floor())
        for second in range(7):
            assert host.run(core_of(4 * limits.MIB, second), "--keep", "9", changes={5: str(second)}) == 0
        assert host.run(core_of(60 * limits.MIB, 9), "--keep", keep, changes={5: "9"}) == StorageError.exit_code

        *kept, cut = host.cores_kept()
        assert ".truncated." in cut
        assert len(kept) + 1 == left


def test_older_cores_go_for_one_that_compresses_well_enough(tmp_path: Path) -> None:
    """It is larger than the disk before it is compressed, and is kept whole: as many go as it needs, the oldest first."""
    large = write_core([Segment(noise(limits.MIB // 2, second) + bytes(limits.MIB // 2)) for second in range(40)])
    with small_disk(tmp_path / "small", "32m") as small:
        host = LocalHost(small, floor=Floor())
        for second in range(7):
            assert host.run(core_of(4 * limits.MIB, second), "--keep", "9", changes={5: str(second)}) == 0
        assert free_of(small) < 4 * limits.MIB
        assert host.run(large, "--keep", "9", changes={5: "9"}) == 0

        *kept, new = host.cores_kept()
        assert host.plain(new) == large
        assert 1 <= len(kept) < 7
        assert kept[-1].startswith("19700101T000006Z")


KEEP: Final = 10_000
SMALL_BYTES: Final = 2 * 4096
"""What a dump of one byte and its report take of a disk."""


def lay_down(cores: Path, seconds: range) -> list[str]:
    """Put dumps of those seconds there, and return the names of their cores."""
    stems = [f"20261127T{second // 60:04}{second % 60:02}Z-app-1" for second in seconds]
    for stem in stems:
        (cores / f"{stem}.gz").write_bytes(b"c")
        (cores / f"{stem}.json").write_bytes(b"r")
    return [f"{stem}.gz" for stem in stems]


def fill_by(disk: Path, left: int) -> None:
    """Leave *left* bytes free of a disk."""
    (disk / "filler").write_bytes(bytes(free_of(disk) - left))


def test_many_small_ones_that_go_for_a_core_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process waits: to list the directory again for each of a few thousand took minutes."""
    looks = []
    names_in = rotation.files.names_in
    monkeypatch.setattr(rotation.files, "names_in", lambda fd: looks.append(fd) or names_in(fd))
    with small_disk(tmp_path / "small", "8m") as small:
        small.chmod(0o700)
        cores, older = open_cores(str(small), Floor(0.0)), lay_down(small, range(300))
        fill_by(small, limits.MIB)
        new = cores.begin("20261127T090000Z-app-2", "gz", b"{}", KEEP)
        for _ in range(20):
            new.write(noise(100_000))
        left = sorted(path.name for path in small.glob("2*.gz"))
        new.withdraw()
        cores.close()

    gone = older[: len(older) - len(left)]
    assert left == older[len(gone) :]
    assert 2_000_000 - limits.MIB <= len(gone) * SMALL_BYTES <= 2_000_000
    assert len(looks) == 1


def test_handlers_that_need_room_at_once_go_by_what_the_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has removed since another has looked is none of the room that the other counts on, and is said by the one alone."""
    said: list[str] = []
    monkeypatch.setattr(cores_room, "log", lambda event, **facts: said.append(facts["file"]))

    def begun(second: int) -> tuple[CoreDirectory, NewCore]:
        cores = open_cores(str(small), Floor(0.0))
        return cores, cores.begin(f"20261127T09000{second}Z-app-2", "gz", b"{}", KEEP)

    with small_disk(tmp_path / "small", "8m") as small:
        small.chmod(0o700)
        older = lay_down(small, range(100))
        fill_by(small, limits.MIB // 2)
        (one, first), (other, second) = begun(1), begun(2)
        first.write(noise(limits.MIB * 5 // 8))
        second.write(noise(limits.MIB // 16))
        first.write(noise(limits.MIB // 4))
        left = sorted(path.name for path in small.glob("2*.gz"))
        # More than all that is left would make room for: nothing goes for it.
        with pytest.raises(AtFloorError):
            second.write(noise(limits.MIB // 2))
        assert left == sorted(path.name for path in small.glob("2*.gz")) == older[-len(left) :]
        assert 0 < len(left) * SMALL_BYTES < limits.MIB // 2
        assert sorted(name for name in said if name.endswith(".gz")) == older[: -len(left)]
        for cores, new in ((one, first), (other, second)):
            new.withdraw()
            cores.close()


NO_MEMORY: Final = """from securecore.sender.rotation import Rotation

def look_in_vain(*arguments):
    raise MemoryError

Rotation.keep_newest = look_in_vain
main("""


def test_a_directory_with_more_files_than_memory_costs_no_core(tmp_path: Path) -> None:
    """Some hundred thousand dumps, and --keep: the new core is there by then, and that no older one goes is no failure of it."""
    host = LocalHost(tmp_path)
    write_script(host.handler, host.handler.read_text().replace("main(", NO_MEMORY))
    core = core_of(limits.MIB)

    assert host.run(core, "--keep", "3") == 0
    assert [host.plain(name) for name in host.cores_kept()] == [core]


def test_cores_leave_the_floor_free(tmp_path: Path) -> None:
    """Without --keep: however often a program crashes, others can write to the disk still; and each crash has its report."""
    with small_disk(tmp_path / "small", "16m") as small:
        host = LocalHost(small, floor=Floor(0.0, 4 * limits.MIB))
        codes = [host.run(core_of(5 * limits.MIB, second), changes={5: str(second)}) for second in range(4)]

        assert codes == [0, 0] + [StorageError.exit_code] * 2
        assert free_of(small) >= 4 * limits.MIB - SLACK_BYTES
        outcomes = [report["local"]["outcome"] for _, report in sorted(host.reports().items())]
        assert outcomes[:2] == ["complete"] * 2
        assert outcomes[3] == "not-kept"


def test_cores_leave_inodes_free(tmp_path: Path) -> None:
    """A twentieth of them: who has none left cannot make a file on a disk that is empty."""
    with small_disk(tmp_path / "small", "16m,nr_inodes=400") as small:
        host = LocalHost(small, floor=Floor())
        assert host.run(write_core(), changes={5: "1"}) == 0
        for number in range(os.statvfs(small).f_favail - 21):
            (small / str(number)).touch()

        assert host.run(write_core(), changes={5: "2"}) == StorageError.exit_code
        assert len(host.cores_kept()) == 1
        assert os.statvfs(small).f_favail == 21


def test_below_the_floor_a_core_takes_the_place_of_older_ones(tmp_path: Path) -> None:
    """What others have taken of the floor no core can give back; the newest that are kept stay, and take no more than before."""
    cores = [core_of(3 * limits.MIB, second) for second in range(4)]
    with small_disk(tmp_path / "small", "16m") as small:
        host = LocalHost(small, floor=Floor(0.0, 6 * limits.MIB))
        for second in range(2):
            assert host.run(cores[second], "--keep", "2", changes={5: str(second)}) == 0
        fill(small, 2 * limits.MIB // BLOCK_BYTES)
        for second in (2, 3):
            assert host.run(cores[second], "--keep", "2", changes={5: str(second)}) == 0

        assert host.plain(host.cores_kept()[-1]) == cores[3]
        assert free_of(small) >= 2 * limits.MIB - SLACK_BYTES


def test_below_the_floor_nothing_is_kept_where_nothing_goes(tmp_path: Path) -> None:
    """Without --keep: the report says why."""
    with small_disk(tmp_path / "small", "16m") as small:
        host = LocalHost(small, floor=Floor())
        fill(small, SLACK_BYTES // BLOCK_BYTES)

        assert host.run(core_of(limits.MIB)) == StorageError.exit_code
        ((_, report),) = host.reports().items()
        assert (report["local"]["outcome"], report["local"]["file"]) == ("not-kept", None)
        assert "are to stay free" in report["local"]["error"]

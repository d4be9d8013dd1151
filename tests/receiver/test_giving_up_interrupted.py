"""Giving up and taking back, ended before any of their calls: nothing acknowledged is lost, nothing is written down twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.dump.container import FrameEntry, seek_table
from securecore.store.layout import create_store
from tests.support.disk import Disk, run_until
from tests.support.dumps import (
    WEB,
    Keys,
    begin,
)
from tests.support.old_dumps import CORE, FRAMES, ID, INCOMING, PUBLISHED, SENT, Life, published

Survivors = dict[str, bytes | None]


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Each end of a process has a store of its own."""
    return in_memory


def has_moved_back(before: Survivors) -> bool:
    """Whether the dump is under incoming, and there alone."""
    return INCOMING in before and PUBLISHED not in before


PROMISES: dict[str, tuple[str, Callable[[Survivors], bool]]] = {
    "the incomplete entry of a dump that is given up is written": (
        f"write audit/{WEB}/entries.jsonl",
        lambda before: before[f"{INCOMING}/core.zst"] == FRAMES[0][0] + seek_table([FrameEntry(len(FRAMES[0][0]), len(SENT))]),
    ),
    "the receipt of a dump that is taken back is removed": (f"unlink {INCOMING}/receipt", has_moved_back),
    "the seek table of a dump that is taken back is cut off": (
        f"ftruncate {INCOMING}/core.zst",
        lambda before: has_moved_back(before) and f"{INCOMING}/receipt" not in before,
    ),
}
"""By the first column of the table in docs/store.md, behind the rows of test_commit.py: the call, and what is durable before it."""


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_durable_when(promise: str, life: Life) -> None:
    """A power cut just before the call leaves what docs/store.md promises; and a receipt is there only with all that it proves."""
    call, holds = PROMISES[promise]
    steps: list[tuple[str, Survivors]] = []
    disk = Disk(life.path)
    disk.before = lambda call: steps.append((call, disk.survivors()))
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        life.caretaker.look()
        life.come_back()
    life.end()
    disk.close()
    assert [holds(before) for made, before in steps if made == call] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_ended_before_every_call(loses_power: bool, tmp_path: Path, keys: Keys) -> None:
    """Ended anywhere in giving up, and once more in what the next start does, nothing that was acknowledged is lost.

    Each start brings the dump among the published ones, with every frame that was ever acknowledged and the receipt of what it is;
    and whenever its sender comes back it goes on from there. No event stands in the log twice.
    """

    def work(life: Life) -> bytes:
        assert life.start() == []
        plain, names, entry = published(life)
        assert (entry["event"] == "received") == ("manifest.jws" in names)
        assert entry["size"] == len(plain)
        return plain

    def work_and_complete(life: Life) -> bytes:
        work(life)
        life.complete(lambda frames: accepted.append(frames))
        return work(life)

    fatal, is_through = 0, False
    while not is_through:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            begin(store, ID, SENT).close()
        accepted: list[int] = []
        for number, deadline in enumerate((fatal, 1 + fatal % 11, None)):
            life, disk = Life(path, keys), Disk(path)
            plain = run_until(deadline, disk, lambda life=life: work_and_complete(life))
            is_through = is_through or (number == 0 and plain is not None)
            life.end()
            if loses_power:
                path = tmp_path / f"store-{fatal}-{number}"
                disk.restore(path)
            disk.close()
        assert plain == CORE
        assert all(frames >= 1 for frames in accepted)
        life = Life(path, keys)
        events = [entry["event"] for entry in life.entries()]
        assert events in (["incomplete", "received"], ["incomplete", "incomplete", "received"]), fatal
        life.end()
    assert fatal > 60


def test_a_sender_gone_for_good_after_every_call_of_coming_back(tmp_path: Path, keys: Keys) -> None:
    """Whatever coming back had done when the receiver died, the next start publishes the dump again, from the same entry."""
    fatal, is_through = 0, False
    while not is_through:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store:
            begin(store, ID, SENT).close()
        life = Life(path, keys)
        life.caretaker.look()
        disk = Disk(path)
        is_through = run_until(fatal, disk, life.come_back) is not None
        life.end()
        disk.restore(tmp_path / f"cut-{fatal}")
        disk.close()
        for left in (path, tmp_path / f"cut-{fatal}"):
            life = Life(left, keys)
            assert life.start() == []
            assert published(life)[0] == SENT
            assert [entry["event"] for entry in life.entries()] == ["incomplete"]
            life.end()
    assert fatal > 5

"""A spool whose processes end at any call, time and again: an entry is there as far as was promised, or it is none.

The model knows what each call has returned; what the disk holds is read by code of its own, as docs/store.md has it.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from securecore import limits
from securecore.dump import directory
from securecore.errors import SecurecoreError
from securecore.merkle import Frontier, leaf_hash
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart, SpoolEntry
from tests.support.dumps import REPORT, core_bytes, dump_id, frames_of
from tests.support.power import End, Killed, Loss, Power, Survivors, contents, ends, examples, hunt, scratch

FRAMES: Final = [frame for frame, _ in frames_of(core_bytes(3, 40))]
NAMES: Final = {"report.json", "entry.json", "core.zst", "end.json"}
numbers: Final = st.integers(1, 3)


class Kept(NamedTuple):
    """What was promised of an entry, and what may be."""

    first: int
    promised: int
    """Frames that a power cut does not take: all, once the end is stated."""
    appended: int
    is_ended: bool


class Model:
    """What the calls that returned have promised."""

    def __init__(self) -> None:
        self.entries: dict[int, Kept] = {}
        """Entries that are there."""
        self.doubtful: dict[int, Kept] = {}
        """Entries of which a call was ended: each is there at least as far as it says, or as a whole not at all."""
        self.receipts: list[int] = []
        """Receipts whose keeping has returned, in order; one whose keeping was ended may stand among them."""


class Keeping(RuleBasedStateMachine):
    """Handlers and flushes, one at a time, on a spool."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = scratch()
        create_spool(str(self.directory / "spool"), bytes(16))
        self.power = Power(self.directory / "spool")
        self.model = Model()
        self.now = 1e9
        self.serial = 0
        self._open()

    def _open(self) -> None:
        self.spool = open_spool(str(self.power.root))
        self.held: dict[int, SpoolEntry] = {}

    def _leave(self) -> None:
        for entry in self.held.values():
            entry.close()
        self.spool.close()

    def _end(self, loss: Loss) -> None:
        """All processes end."""
        self._leave()
        self.power.restart(loss)
        self._open()
        if loss is Loss.POWER:
            # As a flush begins: of what was not ended there may be anything, which is then there whole, or goes.
            self.spool.sweep(self._moment())
            ended = {number: kept for number, kept in self.model.entries.items() if kept.is_ended or self._is_there(number)}
            self.model.entries = ended

    def _is_there(self, number: int) -> bool:
        return (self.power.root / "dumps" / str(dump_id(number))).exists()

    def _attempt(self, act: Callable[[], None], end: End | None) -> bool:
        """Act, and be ended as *end* says; return whether it did not come to that."""
        self.power.end_within(end)
        try:
            act()
            self.power.end_within(None)
            return True
        except Killed:
            self._end(end.loss if end is not None else Loss.KILLED)
            return False

    @rule(loss=st.sampled_from(Loss))
    def restart(self, loss: Loss) -> None:
        """Everything ends between two calls."""
        self._end(loss)

    @rule(number=numbers, first=st.integers(0, 3), end=ends(16))
    def begin(self, number: int, first: int, end: End | None) -> None:
        """A handler begins an entry, whose first frames a receiver has."""
        if number in self.model.entries or number in self.model.doubtful:
            return
        before = Frontier()
        before.extend(leaf_hash(frame) for frame in FRAMES[:first])
        start = EntryStart(dump_id(number), 1, None, before)
        kept = Kept(first, 0, 0, False)
        self.model.doubtful[number] = kept

        def act() -> None:
            self._forget_leftover(number)
            self.held[number] = self.spool.begin(start, REPORT)
            self.model.entries[number] = self.model.doubtful.pop(number)

        self._attempt(act, end)
        self._settle(number)

    def _forget_leftover(self, number: int) -> None:
        """Ids are not used twice; here they are, so what was killed under this one is swept first, an hour later."""
        self.now += 7200
        self.spool.sweep(self._moment())

    def _moment(self) -> float:
        newest = max((path.stat().st_mtime for path in (self.power.root / "dumps").iterdir()), default=0.0)
        return newest + 7200

    def _settle(self, number: int) -> None:
        """See what a call that was ended has left, and go on from there."""
        kept = self.model.doubtful.pop(number, None)
        if kept is not None and self._is_there(number):
            self.model.entries[number] = kept

    @precondition(lambda self: self.held)
    @rule(pick=numbers, count=st.integers(1, 3), end=ends(4))
    def append(self, pick: int, count: int, end: End | None) -> None:
        """The handler keeps frames; none is promised yet."""
        number = nth(self.held, pick)
        kept = self.model.entries[number]
        frames = FRAMES[kept.first + kept.appended :][:count]
        self.model.entries[number] = kept._replace(appended=kept.appended + len(frames))

        def act() -> None:
            for frame in frames:
                self.held[number].append(frame)

        self._attempt(act, end)

    @precondition(lambda self: self.held)
    @rule(pick=numbers, end=ends(8))
    def finish(self, pick: int, end: End | None) -> None:
        """The handler states the end, and goes."""
        number = nth(self.held, pick)
        kept = self.model.entries[number]
        size = (kept.first + kept.appended) * limits.PIECE_BYTES

        def act() -> None:
            self.held[number].finish(EntryEnd(size, None, "complete", 5))
            self.model.entries[number] = kept._replace(promised=kept.appended, is_ended=True)
            self.held.pop(number).close()

        self._attempt(act, end)

    @precondition(lambda self: set(self.model.entries) - set(self.held))
    @rule(pick=numbers, end=ends(9))
    def deliver(self, pick: int, end: End | None) -> None:
        """A flush has its receipt, keeps it, and removes the entry."""
        number = nth(set(self.model.entries) - set(self.held), pick)
        self.serial += 1
        serial = self.serial

        def act() -> None:
            entry = self.spool.entry(dump_id(number))
            assert entry is not None
            self.held[number] = entry
            self.spool.keep_receipt({"dump": str(entry.start.dump), "serial": serial})
            self.model.receipts.append(serial)
            self.model.doubtful[number] = self.model.entries.pop(number)
            self.spool.remove(entry)
            del self.model.doubtful[number], self.held[number]

        self._attempt(act, end)
        self._settle(number)

    @rule(end=ends(30))
    def sweep(self, end: End | None) -> None:
        """A flush comes by hours later: what was begun, or was being removed, goes."""
        self._attempt(lambda: self.spool.sweep(self._moment()), end)

    @invariant()
    def all_promises_hold(self) -> None:
        """On the disk as it is, and on what a power cut would leave of it this instant."""
        check(self.model, contents(self.power.root))
        check(self.model, self.power.survivors(), is_powerless=True)

    @invariant()
    def readers_see_it(self) -> None:
        """The spool lists exactly the entries, and reads each that no handler holds, at least as far as was promised."""
        assert self.spool.dump_ids() == [dump_id(number) for number in sorted(self.model.entries)]
        for number, kept in self.model.entries.items():
            if number not in self.held:
                entry = self.spool.entry(dump_id(number))
                assert entry is not None
                assert (entry.start.frontier.size, entry.report) == (kept.first, REPORT)
                found = [entry.reader().frame(index) for index in range(len(entry.reader().entries))]
                assert FRAMES[kept.first :][: kept.promised] == found[: kept.promised]
                assert found == FRAMES[kept.first :][: len(found)]
                entry.close()

    def teardown(self) -> None:
        """Everything can be delivered in the end, and nothing is left but the receipts."""
        try:
            self._end(Loss.KILLED)
            while self.model.entries:
                self.deliver(0, None)
            self.sweep(None)
            self.all_promises_hold()
            assert [name for name in contents(self.power.root) if name.startswith("dumps/")] == []
        finally:
            self._leave()
            self.power.close()
            shutil.rmtree(self.directory)


def nth(numbers: Collection[int], pick: int) -> int:
    """Return one of *numbers*."""
    return sorted(numbers)[pick % len(numbers)]


def check(model: Model, found: Survivors, *, is_powerless: bool = False) -> None:
    """Hold a spool's files against the model; without power nothing was promised of what was not ended."""
    listed = {name.split("/")[1] for name in found if name.count("/") == 1 and not name.split("/")[1].startswith(".")}
    for number, kept in model.entries.items():
        if kept.is_ended or not is_powerless:
            check_entry(kept, f"dumps/{dump_id(number)}", found)
    known = {str(dump_id(number)) for number in (*model.entries, *model.doubtful)}
    assert listed <= known, "nothing that was removed comes back"
    lines = (found.get("receipts.jsonl") or b"").split(b"\n")[:-1]
    serials = [json.loads(line)["serial"] for line in lines]
    assert [serial for serial in serials if serial in model.receipts] == model.receipts, "every receipt that was kept is there"


def check_entry(kept: Kept, place: str, found: Survivors) -> None:
    """Hold the files of an entry that is there against what was promised of it."""
    assert found.get(f"{place}/report.json") == REPORT
    start = json.loads(found[f"{place}/entry.json"] or b"")
    assert start["first_frame"] == kept.first
    core = found.get(f"{place}/core.zst")
    assert core is not None
    assert core.startswith(b"".join(FRAMES[kept.first :][: kept.promised])), "what was promised is there"
    assert b"".join(FRAMES[kept.first :][: kept.appended]).startswith(core), "and nothing but what was appended"
    end = found.get(f"{place}/end.json")
    assert end or not kept.is_ended
    if end:
        assert core == b"".join(FRAMES[kept.first :][: kept.appended]), "an end is stated of frames that are there"
    assert {name.rpartition("/")[2] for name in found if name.startswith(f"{place}/")} <= NAMES | {".end.json.new"}


@pytest.mark.slow
def test_what_the_spool_promised_is_there_whenever_a_process_ends() -> None:
    """For any order of handlers, flushes and ends."""
    run_state_machine_as_test(Keeping, settings=examples(250, 12))


PLANTED: Final[dict[str, tuple[object, str, Callable[..., object]]]] = {
    "no name is ever made durable": (directory, "sync", lambda fd: None),
    "an entry's beginning is never made durable": (SpoolEntry, "_sync_start", lambda entry: None),
    "an entry's removal begins with its files": (Spool, "remove", lambda spool, entry: remove_files_first(spool, entry)),
    "a torn receipt takes the next one with it": (directory, "_end_of_lines", lambda fd: os.fstat(fd).st_size),
}
"""What stands where in the place of what."""


def remove_files_first(spool: Spool, entry: SpoolEntry) -> None:
    """Remove an entry as it once was done."""
    for name in directory.names_in(entry._fd):
        directory.remove_file(name, entry._fd)


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each breaks the model at some end."""
    monkeypatch.setattr(*PLANTED[bug])
    with pytest.raises((AssertionError, SecurecoreError, ValueError)):
        run_state_machine_as_test(Keeping, settings=hunt(2000, 12))

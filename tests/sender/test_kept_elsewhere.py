"""A dump that its spool refuses: it counts as lost, unless a receiver has some of it, or may have all."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import StorageError
from securecore.receiver.admission import Admission
from securecore.receiver.commit import Committer
from securecore.receiver.refusals import NotAdmitted
from securecore.sender.room import NoRoomError
from securecore.sender.spool_limits import SpoolLimits
from securecore.store.growing_core import GrowingCore
from securecore.wire.messages import Ack, Receipt, Refusal, Refuse
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.local_files import noise
from tests.support.receivers import papers_of, running_receiver, send_bytes, wait_until_idle
from tests.support.scripted import Peer, Script, scripted_receiver
from tests.support.spools import make_spool

LARGE: Final = write_core([Segment(noise(20 * limits.MIB))])
"""Its headers say how long it is."""
MODES: Final = pytest.mark.parametrize("keeps_copy", [False, True], ids=["tail", "whole"])


def _cut_before_an_ack(peer: Peer) -> None:
    peer.reach(State.STREAMING)


def _cut_behind_an_ack(peer: Peer) -> None:
    peer.reach(State.STREAMING)
    peer.say(Ack(1))
    peer.hear()


def _cut_at_the_end(peer: Peer) -> None:
    peer.reach(State.ENDING)


def _refuse_at_the_end(peer: Peer) -> None:
    peer.reach(State.ENDING)
    peer.say(Refuse(Refusal.QUOTA, "at its quota", 60))


def _refuse_to_store(peer: Peer) -> None:
    peer.reach(State.ENDING)
    peer.say(Refuse(Refusal.STORAGE, "no room", 60))


def _refuse_the_commit(peer: Peer) -> None:
    peer.reach(State.ENDING)
    peer.say(Refuse(Refusal.STORAGE, "no room for the log", 60, kept=True))


def _refuse_behind_frames(peer: Peer) -> None:
    peer.reach(State.STREAMING)
    peer.say(Refuse(Refusal.SUPERSEDED, "a newer connection has taken the dump over", kept=True))


def _prove_another_dump(peer: Peer) -> None:
    peer.reach(State.ENDING)
    peer.say(Receipt(b"no receipt", b"no key"))


def _refuse_at_the_end_behind_an_ack(peer: Peer) -> None:
    peer.reach(State.ENDING)
    peer.say(Ack(1))
    peer.say(Refuse(Refusal.QUOTA, "at its quota", 60))


@MODES
@pytest.mark.parametrize(
    ("script", "core", "is_kept"),
    [
        (_cut_before_an_ack, LARGE, False), (_cut_behind_an_ack, LARGE, True), (_cut_at_the_end, b"core", True),
        (_refuse_at_the_end, b"core", False), (_refuse_at_the_end_behind_an_ack, b"core", True),
        (_refuse_to_store, b"core", False), (_refuse_the_commit, b"core", True), (_refuse_behind_frames, LARGE, True),
        (_prove_another_dump, b"core", True),
    ],
)  # fmt: skip
def test_a_dump_that_the_spool_refuses_is_kept_where_a_receiver_has_some_of_it(
    script: Script, core: bytes, is_kept: bool, keeps_copy: bool, fleet: Fleet, tmp_path: Path
) -> None:
    """Its report is there, so nobody else tells what it counts. Of frames that nobody acknowledged, nobody need have anything.

    Nor of a dump that was refused, whatever for, unless its receiver says that it keeps what came. Who sends a receipt that proves
    nothing may have all of it, and publish it later.
    """
    spool = make_spool(tmp_path, SpoolLimits(max_dumps=0))
    with scripted_receiver(fleet.receiver, script) as scripted:
        outcome = send_bytes(core, papers_of(fleet.host), [scripted.address], spool=spool, keeps_copy=keeps_copy)

    assert (outcome.receipt, outcome.spooled, outcome.is_kept) == (None, False, is_kept)
    assert isinstance(outcome.spool_failure, NoRoomError)


def _full_disk(core: GrowingCore, *data: object) -> None:
    raise StorageError("cannot write: no space left on device")


def _full_log(committer: Committer, *entry: object) -> bytes:
    raise StorageError("cannot write: no space left on device")


def _below_the_floor(admission: Admission, *growth: object) -> None:
    raise NotAdmitted(Refusal.STORAGE, "the disk is as full as it may be")


@MODES
@pytest.mark.parametrize(
    ("owner", "step", "refuse", "is_kept"),
    [
        (Admission, "_check_growth", _below_the_floor, False),
        (GrowingCore, "append", _full_disk, False),
        (GrowingCore, "append_seek_table", _full_disk, False),
        (Committer, "_append", _full_log, True),
    ],
)
def test_a_dump_whose_end_a_full_disk_has_refused_is_kept_if_anything_of_it_is_there(
    owner: type, step: str, refuse: Callable[..., object], is_kept: bool,
    keeps_copy: bool, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A real receiver, which refuses a small core in the same words once END is there: it says whether it keeps any of it.

    Where it keeps nothing, its sender must count the dump as lost: nobody else has the counts that the report told.
    """
    spool, store = make_spool(tmp_path, SpoolLimits(max_dumps=0)), tmp_path / "store"
    with running_receiver(fleet.receiver, store) as receiver:
        with monkeypatch.context() as full:
            full.setattr(owner, step, refuse)
            outcome = send_bytes(b"core" * 1000, papers_of(fleet.host), receiver.addresses, spool=spool, keeps_copy=keeps_copy)
        wait_until_idle(receiver)
        there = [path for place in ("incoming", "hosts") for path in (store / place).glob("*/*/report.json")]

    assert (outcome.receipt, outcome.spooled) == (None, False)
    assert (outcome.is_kept, len(there)) == (is_kept, int(is_kept))

"""A receiver killed at any step of a reception: whatever it had promised is there, and it can always be finished."""

import random
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.names import Address, DumpId
from securecore.sender.flush import flush
from securecore.sender.spool import Spool, create_spool, open_spool
from tests.support.certificates import Fleet
from tests.support.checker import Truth, check, published
from tests.support.kill_points import Point, armed_receiver, sampled
from tests.support.receivers import papers_of, running_receiver, send_bytes
from tests.support.stores import WEB

pytestmark = pytest.mark.slow

CORE: Final = random.Random(7).randbytes(2 * limits.PIECE_BYTES) + bytes(limits.PIECE_BYTES) + b"the end"
FIRST: Final = DumpId.make(1_000_000, bytes(10))
ID: Final = DumpId.make(2_000_000, bytes(10))
CASES: Final = ("a new store", "a resumed dump", "a second dump")
POINTS: Final = 12
"""How many steps of each case are tried where not all are."""


class Scene:
    """A store, a spool, and what was sent."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self.directory = directory
        self.store = directory / "store"
        self.truths = [truth(ID, CORE)]
        directory.mkdir(exist_ok=True)
        create_spool(str(directory / "spool"), bytes(16))

    @property
    def spool(self) -> Spool:
        """The sender's spool."""
        return open_spool(str(self.directory / "spool"))

    def send(self, receiver: Address | None, dump: DumpId = ID, core: bytes = CORE) -> None:
        """Send a dump, or what the spool holds of it, to a receiver that may end meanwhile."""
        if next(iter(self.spool.dump_ids()), None) is not None:
            self.flush([receiver] if receiver else [])
        else:
            send_bytes(core, papers_of(self.fleet.host), [receiver or Address("127.0.0.1:1")], spool=self.spool, dump=dump)

    def flush(self, receivers: list[Address]) -> list[str]:
        """Flush the spool and return what kept a dump back."""
        found = flush(self.spool, receivers, papers_of(self.fleet.host))
        return [str(one.failure) for one in found if one.failure is not None] if receivers else []

    def problems(self, *, is_settled: bool) -> list[str]:
        """Return what the checker finds."""
        root = (self.fleet.host / "ca.pem").read_bytes()
        return check(self.store, root, spools=[self.directory / "spool"], truths=self.truths, is_settled=is_settled)

    def reception(self, step: int | None) -> list[str]:
        """Have the dump received by a receiver that ends at *step*; return its steps."""
        point = Point(self.directory, step)
        with armed_receiver(point, self.fleet.receiver, self.store) as address:
            self.send(address)
        return point.steps


def truth(dump: DumpId, core: bytes) -> Truth:
    """Return what is known of a core."""
    return Truth(WEB, str(dump), core, sha256(core).hexdigest(), len(core))


def prepare(case: str, scene: Scene) -> None:
    """Bring store and spool to where the reception of a case begins."""
    if case == "a second dump":
        with running_receiver(scene.fleet.receiver, scene.store) as receiver:
            scene.send(receiver.addresses[0], FIRST, b"the first")
        scene.truths.append(truth(FIRST, b"the first"))
    if case == "a resumed dump":
        # It ends behind the second time that frames were made durable, so that some were acknowledged and some not.
        steps = Scene(scene.fleet, scene.directory.with_name("whole")).reception(None)
        durable = [at for at, words in enumerate(steps) if words.startswith("after fdatasync")]
        assert scene.reception(durable[1] + 1)[-1] == "killed"
        (core,) = scene.store.glob("incoming/*/*/core.zst")
        assert core.stat().st_size > 0
        assert len(list(scene.spool.dump_ids())) == 1


def copy_of(begun: Scene, directory: Path) -> Scene:
    """Return a scene of its own, to be killed in."""
    shutil.copytree(begun.directory, directory, ignore=shutil.ignore_patterns("control.sock"))
    scene = Scene(begun.fleet, directory)
    scene.truths = begun.truths
    return scene


def heal(scene: Scene) -> list[str]:
    """Start a receiver again, have the sender come back until its spool is empty, and return all that is wrong then."""
    with running_receiver(scene.fleet.receiver, scene.store) as receiver:
        failures = scene.flush(receiver.addresses)
    wanted = {one.dump: one.plain for one in scene.truths}
    arrived = [] if published(scene.store) == wanted else ["not every core is there, byte for byte"]
    return failures + arrived + scene.problems(is_settled=True)


@pytest.mark.parametrize("case", CASES)
def test_a_receiver_killed_at_any_step_has_lost_nothing(case: str, fleet: Fleet, tmp_path: Path) -> None:
    """The sender comes back to a new one, and the dump is there to the byte, with its receipt; nothing is left over."""
    begun = Scene(fleet, tmp_path / "begun")
    prepare(case, begun)
    counted = copy_of(begun, tmp_path / "counted")
    steps = counted.reception(None)
    assert heal(counted) == []

    wrong: dict[str, list[str]] = {}
    for step in sampled(range(len(steps)), POINTS):
        scene = copy_of(begun, tmp_path / str(step))
        last = scene.reception(step)
        # A store that was not whole yet has nothing that could be wrong.
        found = scene.problems(is_settled=False) if (scene.store / "ca.pem").exists() else []
        if found + (after := heal(scene)):
            wrong[f"{step}, behind {last[-2:]}"] = found + after
        shutil.rmtree(scene.directory)
    assert wrong == {}

"""A sender killed at any step: what the receiver acknowledged it has, what waits in the spool goes on from there, and no part of a
core is called the whole."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.flush import flush
from securecore.sender.spool import Spool, create_spool, open_spool
from tests.support.certificates import Fleet
from tests.support.checker import Truth, check, published
from tests.support.formats import PIECE, read_container
from tests.support.kernel import Installed, kernel_arguments
from tests.support.kill_points import Point, run_until_killed, sampled
from tests.support.receivers import papers_of, running_receiver, send_bytes, wait_until_idle
from tests.support.stores import WEB

pytestmark = pytest.mark.slow

CORE: Final = random.Random(8).randbytes(2 * limits.PIECE_BYTES) + bytes(limits.PIECE_BYTES) + b"the end"
NOBODY_THERE: Final = Address("127.0.0.1:1")
POINTS: Final = 10
"""How many steps of each case are tried where not all are."""
LATER_S: Final = 30 * 86400
"""When whatever a kill has left in a spool is old enough to be swept."""


class Scene:
    """A host with its handler and spool, and the store that it sends to."""

    def __init__(self, fleet: Fleet, directory: Path, receiver: Receiver) -> None:
        self.fleet = fleet
        self.directory = directory
        self.store = directory / "store"
        self.receiver = receiver
        self.spool_path = directory / "host" / "spool"
        (directory / "host").mkdir(exist_ok=True)
        create_spool(str(self.spool_path), bytes(16))

    @property
    def spool(self) -> Spool:
        """The host's spool."""
        return open_spool(str(self.spool_path))

    def truths(self) -> list[Truth]:
        """Return what is known of every dump that there is: all are of the one core."""
        places = [*self.store.glob("hosts/*/*-*"), *self.store.glob("incoming/*/*-*"), *self.spool_path.glob("dumps/[0-9a-f]*-*")]
        return [Truth(WEB, dump, CORE, sha256(CORE).hexdigest(), len(CORE)) for dump in {path.name for path in places}]

    def problems(self, *, is_settled: bool) -> list[str]:
        """Return what the checker finds, and what a sender has let go of that the receiver has not."""
        root = (self.fleet.host / "ca.pem").read_bytes()
        found = check(self.store, root, spools=[self.spool_path], truths=self.truths(), is_settled=is_settled)
        for path in self.spool_path.glob("dumps/[0-9a-f]*-*"):
            first = json.loads((path / "entry.json").read_bytes())["first_frame"]
            held = [len(read_container(core).leaves) for core in self.store.glob(f"*/*/{path.name}/core.zst")]
            if first > max(held, default=0):
                found.append(f"the spool begins at frame {first}, the receiver has {held}")
        return found

    def heal(self) -> list[str]:
        """Have what is old swept and the rest delivered; return all that is wrong then."""
        wait_until_idle(self.receiver)
        found = self.problems(is_settled=False)
        self.spool.sweep(time.time() + LATER_S)
        flushed = flush(self.spool, self.receiver.addresses, papers_of(self.fleet.host))
        found += [str(one.failure) for one in flushed if one.failure is not None]
        return found + self.problems(is_settled=True)


@pytest.fixture(autouse=True)
def small_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the receiver acknowledge every frame, as it must for senders whose rings are as small."""
    monkeypatch.setattr(limits, "ACK_EVERY_BYTES", limits.PIECE_BYTES)


@contextmanager
def scene_in(fleet: Fleet, directory: Path) -> Iterator[Scene]:
    """Have a receiver run, and a host that knows of it."""
    directory.mkdir(exist_ok=True)
    with running_receiver(fleet.receiver, directory / "store") as receiver:
        yield Scene(fleet, directory, receiver)


def run_handler(scene: Scene, point: Point) -> None:
    """Start the handler as the kernel does, and feed it the core."""
    shutil.rmtree(scene.spool_path)
    installed = Installed(scene.directory / "host", scene.fleet.host, scene.receiver.addresses)
    point.handler(installed.handler, installed.settings)
    run_until_killed([str(installed.handler), *kernel_arguments()], CORE)


def run_handler_alone(scene: Scene, point: Point) -> None:
    """The same, where no receiver can be had."""
    shutil.rmtree(scene.spool_path)
    installed = Installed(scene.directory / "host", scene.fleet.host, [NOBODY_THERE])
    point.handler(installed.handler, installed.settings)
    run_until_killed([str(installed.handler), *kernel_arguments()], CORE)


def run_send(scene: Scene, point: Point) -> None:
    """Send from a pipe, with a spool."""
    run_until_killed(point.command("send", "-", *options(scene)), CORE)


def run_flush(scene: Scene, point: Point) -> None:
    """Flush a dump that a sender has kept from its first byte."""
    send_bytes(CORE, papers_of(scene.fleet.host), [NOBODY_THERE], spool=scene.spool)
    run_until_killed(point.command("spool", "flush", *options(scene)))


def options(scene: Scene) -> list[object]:
    """Return what both commands take."""
    return ["--to", scene.receiver.addresses[0], "--identity", scene.fleet.host, "--spool", scene.spool_path]


CASES: Final = {
    "handler": run_handler,
    "handler without a receiver": run_handler_alone,
    "send": run_send,
    "flush": run_flush,
}


@pytest.mark.parametrize("case", CASES)
def test_a_sender_killed_at_any_step_has_lost_nothing_that_it_held_and_says_nothing_false(
    case: str, fleet: Fleet, tmp_path: Path
) -> None:
    """A later flush ends it; a dump that was whole in the spool arrives whole, whatever killed its flush."""
    with scene_in(fleet, tmp_path / "counted") as scene:
        point = Point(scene.directory, None)
        CASES[case](scene, point)
        steps = point.steps
        assert scene.heal() == []
        assert list(published(scene.store).values()) == [CORE]

    wrong: dict[str, list[str]] = {}
    for step in sampled(range(len(steps)), POINTS):
        with scene_in(fleet, tmp_path / str(step)) as scene:
            point = Point(scene.directory, step)
            CASES[case](scene, point)
            found = scene.heal()
            if case == "flush" and list(published(scene.store).values()) != [CORE]:
                found.append("what was in the spool has not arrived")
            if found:
                wrong[f"{step}, behind {point.steps[-2:]}"] = found
    assert wrong == {}


def test_pieces_are_as_long_as_the_checker_takes_them_to_be() -> None:
    """So that what it counts in a spool are frames."""
    assert PIECE == limits.PIECE_BYTES

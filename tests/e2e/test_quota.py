"""A host at its quota: refused in words at both ends, nothing half stored, and on it goes once there is room."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.errors import BusyError
from securecore.receiver.policy import Policy, Quota
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.crash_cores import Crash
from tests.support.local_files import noise
from tests.support.receivers import running_receiver
from tests.support.senders import Sender, sending

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a handler another user")]

MIB = limits.MIB
PREDICTED = Crash().write()
"""A core whose header says how long it is."""


def with_quota(**bounds: int) -> Policy:
    """Return the policy that gives every host so much."""
    return Policy(quota=Quota(**bounds))


def root(fleet: Fleet) -> bytes:
    """Return the root that an auditor trusts."""
    return (fleet.host / "ca.pem").read_bytes()


def first_frames(web: Sender) -> list[int]:
    """Return with which frame each spooled dump begins, oldest first."""
    return [json.loads(path.read_bytes())["first_frame"] for path in sorted(web.spool.glob("dumps/*/entry.json"))]


def refusals(web: Sender, store: Path) -> list[dict[str, Any]]:
    """Return the entries in the host's log that say that it was refused."""
    lines = (store / "audit" / web.host / "entries.jsonl").read_bytes().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == "refused"]


def delete_oldest(web: Sender, store: Path) -> None:
    """Have the running receiver delete a published dump, as its operator does."""
    oldest = min(path.name for path in web.published(store).iterdir())
    assert run(["delete", oldest, "--store", str(store), "--reason", "room"]) == 0


def test_a_host_at_its_quota_goes_on_when_a_dump_is_deleted(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dump is stopped in its middle, the next one at its beginning; what was acknowledged is not sent again."""
    store = tmp_path / "store"
    with (
        caplog.at_level(logging.INFO),
        running_receiver(fleet.receiver, store, policy=with_quota(stored_bytes=6 * MIB)) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        codes = [web.crash(noise(4 * MIB, 1)).end(), web.crash(noise(4 * MIB, 2)).end(), web.crash(noise(3 * MIB, 3)).end()]
        starts = first_frames(web)
        full = web.flush(*receiver.addresses)
        meanwhile = check(store, root(fleet), spools=[web.spool], truths=web.truths(store))
        # What the first dump has taken is room for the other two.
        for _ in range(2):
            delete_oldest(web, store)
            later = web.flush(*receiver.addresses)
        told = refusals(web, store)
    assert codes == [0, BusyError.exit_code, BusyError.exit_code]
    assert starts[0] == 1
    assert full.returncode == BusyError.exit_code
    assert "of its 6.0 MiB here; vacuum or a higher quota makes room" in full.stderr
    assert "of its 6.0 MiB here; vacuum or a higher quota makes room" in caplog.text
    assert meanwhile == []
    assert later.returncode == 0, later
    assert [(entry["code"], entry["others"]) for entry in told] == [(205, 0)]
    assert check(store, root(fleet), spools=[web.spool], is_settled=True) == []


def test_several_at_once_come_through_one_after_the_other(fleet: Fleet, tmp_path: Path) -> None:
    """Together they are too much: the oldest is finished, the others wait for it and for what vacuum makes of it."""
    store, cores = tmp_path / "store", [Crash(image=noise(5 * MIB, number)).write() for number in range(3)]
    with (
        running_receiver(fleet.receiver, store, policy=with_quota(stored_bytes=8 * MIB)) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        crashes = [web.crash(core[: 3 * MIB]) for core in cores]
        for crash, core in zip(crashes, cores, strict=True):
            crash.feed(core[3 * MIB :])
        codes = sorted(crash.end() for crash in reversed(crashes))
        arrived = [len(list(web.published(store).iterdir()))]
        truths = web.truths(store)
        while arrived[-1] < 3 and len(arrived) < 10:
            # The bound is less than the quota, so that there is room for the next one.
            assert run(["vacuum", "--host-bytes", "1MiB", "--store", str(store)]) == 0
            flushed = web.flush(*receiver.addresses)
            arrived.append(arrived[-1] + len(list(web.published(store).iterdir())))
    assert codes == [0, BusyError.exit_code, BusyError.exit_code]
    assert arrived == [1, 2, 3]
    assert flushed.returncode == 0
    assert check(store, root(fleet), spools=[web.spool], truths=truths[2:], is_settled=True) == []


def test_a_dump_that_is_predicted_too_large_is_not_begun(fleet: Fleet, tmp_path: Path) -> None:
    """Not a frame of it is stored, and all of it waits in the spool; a restart of the receiver has forgotten nothing."""
    store, policy = tmp_path / "store", with_quota(plain_bytes=2 * len(PREDICTED) - 1)
    with (
        running_receiver(fleet.receiver, store, policy=policy) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        codes = [web.crash(PREDICTED).end(), web.crash(PREDICTED).end()]
    with running_receiver(fleet.receiver, store, policy=policy) as receiver:
        again = web.flush(*receiver.addresses)
        left = (first_frames(web), list(web.incoming(store).iterdir()))
        delete_oldest(web, store)
        roomy = web.flush(*receiver.addresses)
    assert codes == [0, BusyError.exit_code]
    assert (again.returncode, roomy.returncode) == (BusyError.exit_code, 0)
    assert "of plaintext here" in again.stderr
    assert left == ([0], [])
    assert check(store, root(fleet), spools=[web.spool], is_settled=True) == []


def test_a_host_that_crashes_too_often_sends_the_rest_later(fleet: Fleet, tmp_path: Path) -> None:
    """New dumps wait; it is told for how long."""
    store = tmp_path / "store"
    with (
        running_receiver(fleet.receiver, store, policy=with_quota(dumps_per_hour=2)) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        codes = [web.crash(noise(1000, number)).end() for number in range(3)]
        later = web.flush(*receiver.addresses)
        wait_s = json.loads((web.spool / "schedule.json").read_bytes())["asked_until"] - time.time()
    with running_receiver(fleet.receiver, store, policy=with_quota(dumps_per_hour=3)) as receiver:
        assert web.flush(*receiver.addresses).returncode == 0
        truths = web.truths(store)
    assert codes == [0, 0, BusyError.exit_code]
    assert later.returncode == BusyError.exit_code
    assert "this host has begun 2 dumps within the hour, and may begin 2" in later.stderr
    assert 3000 < wait_s < 3700
    assert check(store, root(fleet), spools=[web.spool], truths=truths, is_settled=True) == []

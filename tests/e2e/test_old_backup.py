"""A store is put back from an old copy: it goes on from there, what senders still have arrives, and what is lost is seen to be."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import UnreachableError
from securecore.sender.schedule import claim
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.kernel import wait_until
from tests.support.local_files import noise
from tests.support.processes import SECURECORE, receiving
from tests.support.senders import NOWHERE, ROOT, Crash, Sender, sending

pytestmark = pytest.mark.slow

MIB = limits.MIB


class Restored:
    """A host whose receiver has the store of an earlier day again, and what it crashed before and after that day."""

    def __init__(self, web: Sender, fleet: Fleet, directory: Path) -> None:
        """Crash twice, copy the store, crash twice more, and put the copy back.

        Each time the first dump gets its receipt, and of the second the receiver acknowledges the beginning and dies.
        """
        self.web, self.fleet, self.store = web, fleet, directory / "store"
        self.root = (fleet.host / "ca.pem").read_bytes()
        self._spool_fd = os.open(web.spool, os.O_RDONLY)
        self.old, self.old_tail = self._crash_twice(1)
        # Sockets are no part of a backup.
        shutil.copytree(self.store, directory / "backup", ignore=shutil.ignore_patterns("control.sock"))
        self.lost, self.lost_tail = self._crash_twice(3)
        self.lost_id = web.receipts()[-1]["dump"]
        self.tail_id = max(web.spooled())
        shutil.rmtree(self.store)
        (directory / "backup").rename(self.store)
        os.close(self._spool_fd)

    def _crash_twice(self, seed: int) -> tuple[Crash, Crash]:
        with receiving(self.fleet.receiver, self.store) as receiver, claim(self._spool_fd) as is_ours:
            # While the claim is ours, no handler delivers what waits in the spool beside its own dump.
            assert is_ours
            self.web.send_to(*receiver.addresses)
            whole = self.web.crash(noise(MIB, seed))
            assert whole.end() == 0
            before = self.web.held_bytes(self.store)
            # Larger than what a sender keeps in memory: it has heard of acknowledged frames by the time that so much is held.
            cut = self.web.crash(noise(28 * MIB, seed + 1))
            wait_until(lambda: self.web.held_bytes(self.store) >= before + 25 * MIB or None)
            receiver.popen.send_signal(signal.SIGKILL)
            receiver.popen.wait()
            assert cut.end() == UnreachableError.exit_code
        # A tail's beginning is one that was acknowledged, so it is durable in the copy too.
        for entry in self.web.spool.glob("dumps/*/entry.json"):
            assert json.loads(entry.read_bytes())["first_frame"] >= limits.ACK_EVERY_BYTES // MIB
        self.web.send_to(NOWHERE)
        return whole, cut

    def wrongs(self, *, with_receipts: bool) -> list[str]:
        """Return what the checker says of the store as it is, by the host's receipts or without them."""
        return check(self.store, self.root, spools=[self.web.spool] if with_receipts else [])

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command that looks at the store."""
        command = [*SECURECORE, *words, "--store", str(self.store)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def states(self) -> dict[str, str]:
        """Return the state of each dump that is listed, by its id."""
        listed = self.run("list", "--json")
        assert listed.returncode == 0, listed
        return {row["id"]: row["state"] for row in json.loads(listed.stdout)}


@contextmanager
def restored(fleet: Fleet, directory: Path) -> Iterator[Restored]:
    """Have such a host while the block runs."""
    with sending(directory / "web", fleet.host, NOWHERE) as web:
        yield Restored(web, fleet, directory)


def test_receiver_goes_on_from_an_old_store_and_the_receipts_of_what_is_lost_contradict_it(fleet: Fleet, tmp_path: Path) -> None:
    """A dump whose beginning is in the copy is completed, new ones are received; the lost dump is nowhere said to be there.

    Log and store agree among themselves, so only the receipt that its sender has kept tells of it; and it still does once the log
    has another entry in that place.
    """
    with restored(fleet, tmp_path) as one:
        before = one.wrongs(with_receipts=True)
        with receiving(fleet.receiver, one.store) as receiver:
            one.web.send_to(*receiver.addresses)
            new = one.web.crash(noise(2 * MIB, 5)).end()
            one.web.flush(*receiver.addresses)
        states, receipts = one.states(), {receipt["dump"] for receipt in one.web.receipts()}
        audit, after = one.run("audit", "verify", "--json"), one.wrongs(with_receipts=True)
        assert new == 0
        assert one.wrongs(with_receipts=False) == []
        assert audit.returncode == 0, audit
        assert receipts - set(states) == {one.lost_id}
        labelled = {dump for dump in receipts & set(states) if states[dump] != "complete"}
        assert labelled == {one.tail_id}
        for crash in (one.old, one.old_tail, one.web.crashes[-1]):
            assert crash.find(one.web.published(one.store)) is not None
        for wrongs in (before, after):
            assert wrongs
            assert [words for words in wrongs if one.lost_id not in words] == []


def test_tail_whose_beginning_is_lost_is_never_passed_off_as_complete(fleet: Fleet, tmp_path: Path) -> None:
    """It is delivered with words that say how much is missing, and listed as incomplete."""
    with restored(fleet, tmp_path) as one:
        with receiving(fleet.receiver, one.store) as receiver:
            flushed = one.web.flush(*receiver.addresses)
        assert one.states().get(one.tail_id) != "complete"
        assert "MiB were lost" in flushed.stdout


def test_tail_whose_beginning_is_lost_is_delivered_and_labelled(fleet: Fleet, tmp_path: Path) -> None:
    """What the sender still has arrives; the dump is listed as incomplete, and nothing waits in the spool."""
    with restored(fleet, tmp_path) as one:
        with receiving(fleet.receiver, one.store) as receiver:
            flushed = one.web.flush(*receiver.addresses)
        assert flushed.returncode == 0, flushed
        assert one.web.spooled() == []
        assert "incomplete" in one.states().values()
        assert one.wrongs(with_receipts=False) == []

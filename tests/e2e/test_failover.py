"""Two receivers with stores of their own: every core arrives whole at one of them, or waits for the one that has its beginning."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, UnreachableError
from securecore.names import HostName
from securecore.pki.issue import issue_receiver, parse_address
from tests.support.certificates import DOMAIN, make_fleet, no_passphrase
from tests.support.checker import Truth, check
from tests.support.kernel import wait_until
from tests.support.local_files import noise
from tests.support.processes import Process, receiving
from tests.support.senders import NOWHERE, Sender, sending

pytestmark = pytest.mark.slow

MIB = limits.MIB


class Pair:
    """Two receivers' identities and stores, of which a test runs those that it likes."""

    def __init__(self, directory: Path) -> None:
        self.fleet = make_fleet(directory / "fleet", hosts=("web-1",))
        other, second = HostName(f"standby.{DOMAIN}"), directory / "fleet" / "standby"
        issue_receiver(self.fleet.pki, other, [parse_address("127.0.0.1")], second, no_passphrase, datetime.now(UTC))
        self.identities = [self.fleet.receiver, second]
        self.stores = [directory / "first", directory / "second"]

    @contextmanager
    def running(self, number: int) -> Iterator[Process]:
        """Run one of them while the block runs."""
        with receiving(self.identities[number], self.stores[number]) as receiver:
            yield receiver

    def held_by(self, sender: Sender, number: int) -> list[Truth]:
        """Return what one store has published of what was crashed."""
        names = {path.name for path in sender.published(self.stores[number]).glob("*")}
        return [truth for truth in sender.truths(*self.stores) if truth.dump in names]

    def wrongs(self, sender: Sender, *, numbers: Sequence[int] = (0, 1)) -> list[str]:
        """Return what is wrong in either store, once all is delivered: each receipt belongs to one of them.

        The spool's receipts are those of both stores, so each store is judged by the receipts of its own dumps.
        """
        root = (self.fleet.host / "ca.pem").read_bytes()
        wrong = []
        for number in numbers:
            own = self.held_by(sender, number)
            receipts = [one for one in sender.receipts() if one["dump"] in {truth.dump for truth in own}]
            wrong += check(self.stores[number], root, truths=own, receipts=receipts, is_settled=True)
        return wrong


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two receivers of one fleet."""
    return Pair(tmp_path)


def test_first_receiver_dead_from_the_start(pair: Pair, tmp_path: Path) -> None:
    """Crash and flush go to the second one, whole."""
    with pair.running(1) as second, sending(tmp_path / "web", pair.fleet.host, NOWHERE) as web:
        waits = web.crash(noise(2 * MIB, 1)).end()
        web.send_to(NOWHERE, *second.addresses)
        arrives = web.crash(noise(2 * MIB, 2)).end()
        flushed = web.flush(NOWHERE, *second.addresses)
        assert (waits, arrives, flushed.returncode) == (UnreachableError.exit_code, 0, 0), flushed
        assert len(pair.held_by(web, 1)) == len(web.receipts()) == 2
        assert pair.wrongs(web, numbers=[1]) == []
        assert web.spooled() == []


def test_first_receiver_refusing(pair: Pair, tmp_path: Path) -> None:
    """A store on a disk that refuses does not keep the core from the second receiver: the host is not told to wait."""
    with (
        pair.running(0) as first,
        pair.running(1) as second,
        sending(tmp_path / "web", pair.fleet.host, *first.addresses, *second.addresses) as web,
    ):
        # A file where a directory belongs: every OPEN is refused, though READY was said.
        (pair.stores[0] / "incoming" / web.host).touch(0o600)
        arrives = web.crash(noise(2 * MIB, 1)).end()
        (pair.stores[0] / "incoming" / web.host).unlink()
        later = web.crash(noise(2 * MIB, 2)).end()
        assert (arrives, later) == (0, 0)
        assert [len(pair.held_by(web, number)) for number in (0, 1)] == [1, 1]
        assert pair.wrongs(web) == []


# With more than the ring at the receiver, the sender has read an acknowledgement: else it would have sent no more.
@pytest.mark.parametrize("mib", [3, 20], ids=["before-an-acknowledgement", "after-one"])
def test_first_receiver_dying_in_the_middle(pair: Pair, tmp_path: Path, mib: int) -> None:
    """What nobody has acknowledged goes to the second one; a beginning that the first one holds makes the rest wait for it.

    Meanwhile new crashes go to the second one; back again, the first one is sent the rest, and each core is whole at one of them.
    """
    with pair.running(1) as second, sending(tmp_path / "web", pair.fleet.host, NOWHERE) as web:
        with pair.running(0) as first:
            web.send_to(*first.addresses, *second.addresses)
            crash = web.crash(noise(mib * MIB, 1))
            wait_until(lambda: web.held_bytes(pair.stores[0]) >= (mib - 1) * MIB or None)
            first.popen.send_signal(signal.SIGKILL)
            first.popen.wait()
            code = crash.end()
        meanwhile = web.crash(noise(MIB, 2)).end()
        elsewhere = web.flush(*first.addresses, *second.addresses)
        waiting = len(web.spooled())
        with pair.running(0) as first:
            assert web.flush(*first.addresses, *second.addresses).returncode == 0
        assert (code, meanwhile) == (UnreachableError.exit_code, 0)
        has_beginning = (mib - 1) * MIB > limits.RING_BYTES
        assert (elsewhere.returncode, waiting) == ((BusyError.exit_code, 1) if has_beginning else (0, 0)), elsewhere
        assert [len(pair.held_by(web, number)) for number in (0, 1)] == ([1, 1] if has_beginning else [0, 2])
        assert web.spooled() == []
        assert pair.wrongs(web) == []

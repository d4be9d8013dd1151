"""Signals: a real ``securecore receive`` ends in good order on SIGTERM and believes a new list on SIGHUP, an old one never."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, RefusedError, StorageError, UnreachableError
from securecore.names import Address, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.server import open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.sender import evidence
from securecore.sender.delivery import connect
from securecore.sender.patience import Wait
from securecore.store.layout import create_store, open_store
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Accept, End, Receipt, encode
from tests.support.certificates import DOMAIN, Fleet, no_passphrase
from tests.support.disk import Disk
from tests.support.hands import Hand
from tests.support.processes import PATIENCE_S, receiving
from tests.support.receivers import new_dump_id, papers_of, running_receiver


def revoke_first_host(fleet: Fleet) -> None:
    """Revoke the fleet's first host and give the receiver the new list, as an operator does."""
    revoke_name(fleet.pki, HostName(f"{fleet.host.name}.{DOMAIN}"), "keyCompromise", no_passphrase, datetime.now(UTC))
    shutil.copyfile(fleet.pki.path / "crl.pem", fleet.receiver / "crl.pem")


def send_all_but_the_end(hand: Hand) -> None:
    """Send so much of an open dump that its receiver acknowledges a part: it is then surely under way."""
    for _ in range(9):
        hand.send(os.urandom(limits.PIECE_BYTES))
    hand.wait_until_acknowledged()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    # Asked once more at the end, it need not be so any longer.
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dump_in_flight_is_finished_before_the_receiver_ends(number: signal.Signals, fleet: Fleet, tmp_path: Path) -> None:
    """After the signal nobody new is let in, who is sending gets the receipt, and the receiver's exit code is 0."""
    dump = new_dump_id()
    with (
        receiving(fleet.receiver, tmp_path / "store") as process,
        closing(Hand(fleet.host, process.addresses)) as hand,
    ):
        hand.open(dump)
        send_all_but_the_end(hand)
        process.popen.send_signal(number)
        process.logged("stopping, 1 connections")
        with pytest.raises(UnreachableError, match="refused"):
            connect(process.addresses, hand.papers.context)
        hand.send(b"the end")
        receipt = hand.delivery.end(hand.manifest(dump))
        evidence.check_receipt(hand.papers.credentials, receipt, hand.delivery.address, dump, None, time.time())
        code = process.popen.wait(PATIENCE_S)

    assert code == 0
    with open_store(str(tmp_path / "store")) as store:
        assert [str(found) for host in store.host_names() for found in store.dump_ids(host)] == [str(dump)]
        assert store.incoming() == []


@pytest.mark.slow
def test_a_stalled_transfer_does_not_keep_a_receiver_from_ending(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the bound is over the sender is told, and what it had sent is kept, durably, for when it comes back."""
    monkeypatch.setattr(limits, "SHUTDOWN_DEADLINE_S", 0.3)
    dump, path = new_dump_id(), tmp_path / "store"
    core = f"incoming/{fleet.host.name}.{DOMAIN}/{dump}/core.zst"
    create_store(str(path)).close()
    disk = Disk(path)
    disk.watch(monkeypatch)
    with running_receiver(fleet.receiver, path) as running:
        hand = Hand(fleet.host, running.addresses)
        hand.open(dump)
        send_all_but_the_end(hand)
        wait_until(lambda: (path / core).stat().st_size == hand.stored_bytes)
        began = time.monotonic()
    took_s = time.monotonic() - began

    with pytest.raises(BusyError, match="being stopped"):
        hand.delivery.wait_for_ack(Wait(PATIENCE_S))
    hand.close()
    assert 0.3 <= took_s < 5
    assert disk.survivors()[core] == (path / core).read_bytes()
    disk.close()
    with running_receiver(fleet.receiver, path) as running, closing(Hand(fleet.host, running.addresses)) as again:
        answer = again.open(dump)
    assert isinstance(answer, Accept)
    assert answer.held == 9


@pytest.mark.slow
def test_a_session_that_the_disk_holds_keeps_the_store_locked(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop does not wait for ever, and closes nothing under a thread that may still append: only the process's end does."""
    monkeypatch.setattr(limits, "SHUTDOWN_DEADLINE_S", 0.05)
    monkeypatch.setattr(limits, "PROGRESS_DEADLINE_S", 0.05)
    is_held, may_go, publish = threading.Event(), threading.Event(), IncomingDump.finish

    def stuck(dump: IncomingDump, manifest: bytes) -> None:
        is_held.set()
        may_go.wait(PATIENCE_S)
        publish(dump, manifest)

    monkeypatch.setattr(IncomingDump, "finish", stuck)
    dump = new_dump_id()
    with running_receiver(fleet.receiver, tmp_path / "store") as running, closing(Hand(fleet.host, running.addresses)) as hand:
        hand.open(dump)
        hand.send(b"a core")
        hand.put(encode(End(hand.manifest(dump))))
        assert is_held.wait(PATIENCE_S)
        running.stop()
        wait_until(lambda: "stopped, 1 connections still wait for the disk and end with the process" in caplog.messages)
        with open_store(str(tmp_path / "store")) as store, pytest.raises(StorageError, match="another receiver"):
            store.lock()
        may_go.set()
        assert isinstance(hand.answer(), Receipt)
        hand.close()
        wait_until(lambda: running.session_count == 0)
        running._close()


def test_a_signal_is_heard_on_whichever_thread_it_comes(fleet: Fleet, tmp_path: Path) -> None:
    """The main thread waits for connections, and a signal that does not interrupt that wait ends it all the same."""
    receiver = open_receiver(ReceiverSettings((Address("127.0.0.1:0"),), tmp_path / "store", fleet.receiver))
    main, has_ended, in_time = Path(f"/proc/self/task/{threading.main_thread().native_id}/stat"), threading.Event(), []

    def signal_from_beside() -> None:
        try:
            wait_until(lambda: ") S " in main.read_text())
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            in_time.append(has_ended.wait(PATIENCE_S))
        finally:
            receiver.stop()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    receiver.handle_signals()
    try:
        other = threading.Thread(target=signal_from_beside)
        other.start()
        receiver.serve()
        has_ended.set()
        other.join()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

    assert in_time == [True]
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
def test_a_revocation_counts_from_the_next_reload(own_fleet: Fleet, tmp_path: Path) -> None:
    """SIGHUP after a new crl.pem: the next connection of the revoked host is refused, others are served."""
    context = papers_of(own_fleet.host).context
    with receiving(own_fleet.receiver, tmp_path / "store") as process:
        connect(process.addresses, context).close()
        revoke_first_host(own_fleet)
        connect(process.addresses, context).close()
        process.popen.send_signal(signal.SIGHUP)
        process.logged("reloaded identity=")
        with pytest.raises(RefusedError, match="revoked on"):
            connect(process.addresses, context)
        connect(process.addresses, papers_of(own_fleet.hosts["db-2"]).context).close()


@pytest.mark.slow
def test_an_older_list_never_takes_a_revocation_back(own_fleet: Fleet, tmp_path: Path) -> None:
    """SIGHUP after somebody put an old crl.pem back: the log says so, and the newer list stays in force."""
    older = (own_fleet.receiver / "crl.pem").read_bytes()
    revoke_first_host(own_fleet)
    with receiving(own_fleet.receiver, tmp_path / "store") as process:
        (own_fleet.receiver / "crl.pem").write_bytes(older)
        process.popen.send_signal(signal.SIGHUP)
        line = process.logged("reload")[0]
        with pytest.raises(RefusedError, match="revoked on"):
            connect(process.addresses, papers_of(own_fleet.host).context)

    assert re.search(r"reload failed, the last good material stays: .* is already in use; .*pki/runbooks/after-a-restore\.md", line)

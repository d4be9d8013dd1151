"""Revocation over a restart: what was revoked stays so, whatever crl.pem somebody puts back while no receiver runs."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore import limits
from securecore.certs.profiles import HOSTS_CA
from securecore.errors import ConfigError, RefusedError
from securecore.names import HostName
from securecore.pki.issue import issue_host
from securecore.pki.revocation import revoke_name, sign_crls
from securecore.pki.rotation import finish, start, switch
from securecore.receiver.server import Receiver
from securecore.sender.delivery import connect
from tests.support.certificates import DOMAIN, Fleet, no_passphrase
from tests.support.hands import Hand
from tests.support.kernel import wait_until
from tests.support.processes import receiving
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes, wait_until_idle

ROLLED_BACK = "is already in use"


def revoke_web(fleet: Fleet) -> bytes:
    """Revoke the first host, and give the receiver the new lists; return those that it had."""
    before = (fleet.receiver / "crl.pem").read_bytes()
    revoke_name(fleet.pki, HostName(f"web-1.{DOMAIN}"), "keyCompromise", no_passphrase, datetime.now(UTC))
    distribute(fleet)
    return before


def distribute(fleet: Fleet) -> None:
    """Copy what a receiver is given."""
    for name in ("ca.pem", "crl.pem"):
        shutil.copyfile(fleet.pki.path / name, fleet.receiver / name)


def reload(running: Receiver) -> None:
    """Have a receiver take what is there now."""
    before = running.material
    running.reload()
    wait_until(lambda: running.material if running.material is not before else None)


def assert_revoked(fleet: Fleet, running: Receiver) -> None:
    """The first host is refused, the second is served."""
    with pytest.raises(RefusedError, match="revoked on"):
        connect(running.addresses, papers_of(fleet.host).context)
    assert send_bytes(b"core", papers_of(fleet.hosts["db-2"]), running.addresses).receipt


def test_older_lists_do_not_come_into_force_by_a_restart(own_fleet: Fleet, tmp_path: Path) -> None:
    """A dump was judged by the newer ones; the receiver does not start with the older ones, and does with the newer."""
    older = revoke_web(own_fleet)
    newer = (own_fleet.receiver / "crl.pem").read_bytes()
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        assert_revoked(own_fleet, running)
    (own_fleet.receiver / "crl.pem").write_bytes(older)
    with pytest.raises(ConfigError, match=ROLLED_BACK), running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass
    (own_fleet.receiver / "crl.pem").write_bytes(newer)
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        assert_revoked(own_fleet, running)


def test_lists_that_came_by_a_reload_are_known_although_no_dump_was_judged_by_them(own_fleet: Fleet, tmp_path: Path) -> None:
    """And those with which a receiver was started on a store that knows some."""
    for _ in range(2):
        with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
            older = revoke_web(own_fleet)
            reload(running)
        (own_fleet.receiver / "crl.pem").write_bytes(older)
        with pytest.raises(ConfigError, match=ROLLED_BACK), running_receiver(own_fleet.receiver, tmp_path / "store"):
            pass
        distribute(own_fleet)
    sign_crls(own_fleet.pki, no_passphrase, datetime.now(UTC), is_forced=True)
    older = (own_fleet.receiver / "crl.pem").read_bytes()
    distribute(own_fleet)
    with running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass
    (own_fleet.receiver / "crl.pem").write_bytes(older)
    with pytest.raises(ConfigError, match=ROLLED_BACK), running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass


def test_the_lists_of_a_first_start_are_known(own_fleet: Fleet, tmp_path: Path) -> None:
    """Although nobody has sent anything since: hosts seldom crash, and who was revoked is not to be the first."""
    older = revoke_web(own_fleet)
    with running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass
    (own_fleet.receiver / "crl.pem").write_bytes(older)
    with pytest.raises(ConfigError, match=ROLLED_BACK), running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_what_to_do(own_fleet: Fleet, tmp_path: Path) -> None:
    """One line, a hint, the exit code of a wrong configuration."""
    older = revoke_web(own_fleet)
    with receiving(own_fleet.receiver, tmp_path / "store") as process:
        send_bytes(b"core", papers_of(own_fleet.hosts["db-2"]), process.addresses)
    (own_fleet.receiver / "crl.pem").write_bytes(older)
    with pytest.raises(ConfigError) as caught, running_receiver(own_fleet.receiver, tmp_path / "store"):
        pass
    assert caught.value.exit_code == 3
    assert "securecore pki crl" in (caught.value.hint or "")


def test_a_host_that_is_revoked_in_mid_upload_is_not_let_in_after_a_restart(own_fleet: Fleet, tmp_path: Path) -> None:
    """What it had sent stays unpublished; it cannot resume, and its neighbour's dump is received."""
    dump = new_dump_id()
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        hand = Hand(own_fleet.host, running.addresses)
        hand.open(dump)
        for _ in range(9):
            hand.send(os.urandom(limits.PIECE_BYTES))
        hand.wait_until_acknowledged()
        hand.delivery.close()
        wait_until_idle(running)
    revoke_web(own_fleet)
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        assert_revoked(own_fleet, running)
    published = [path for path in (tmp_path / "store" / "hosts").glob(f"*/{dump}")]
    assert published == []


def test_what_says_nothing_of_the_cas_of_now_keeps_no_receiver_from_starting(own_fleet: Fleet, tmp_path: Path) -> None:
    """Lists of a CA that was let go, a file with other bytes, one that is no list."""
    store, pki, now = tmp_path / "store", own_fleet.pki, datetime.now(UTC)
    revoke_web(own_fleet)
    with running_receiver(own_fleet.receiver, store) as running:
        assert_revoked(own_fleet, running)
    start(pki, HOSTS_CA, no_passphrase, now)
    switch(pki, HOSTS_CA, now)
    finish(pki, HOSTS_CA, now, is_forced=True)
    distribute(own_fleet)
    (kept,) = (store / "crls").iterdir()
    (store / "crls" / f"{'00' * 32}.pem").write_bytes(kept.read_bytes())
    (store / "crls" / "notes").write_bytes(b"")
    issue_host(pki, HostName(f"db-2.{DOMAIN}"), tmp_path / "db-2", no_passphrase, now)
    with running_receiver(own_fleet.receiver, store) as running:
        assert send_bytes(b"core", papers_of(tmp_path / "db-2"), running.addresses).receipt

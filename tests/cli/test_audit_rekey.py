"""A receiver's new log key, end to end: logs go on, receipts stay valid, and a key that nothing leads to is named."""

import json
import logging
import shutil
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore.audit.checkpoint import verifier_key
from securecore.audit.statement import read_stated_key
from securecore.certs.profiles import RECEIVER
from securecore.errors import ConfigError
from securecore.names import HostName
from securecore.pki.install import install
from securecore.pki.issue import issue_receiver, server_subject
from securecore.pki.request import request
from securecore.pki.signing import read_request, renew, sign
from securecore.receiver import standalone
from securecore.receiver.server import Receiver, utc_now
from securecore.sender import evidence
from securecore.store.layout import open_store
from securecore.wire.messages import Gone, Open, Receipt
from tests.support.certificates import DOMAIN, RECEIVER_NAME, no_passphrase
from tests.support.dumps import REPORT
from tests.support.hands import Hand
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.rekeyed import NAME, Place, wait_until
from tests.support.stores import WEB


def test_logs_go_on_and_what_was_given_stays_valid(place: Place) -> None:
    """Two rekeyings, a dump under each key: everything verifies, the hosts' receipts fit, and a bundle of before still proves."""
    (first,) = place.deliver(b"first")
    old_bundle = place.prove(first, "old.tar")
    before = read_stated_key((place.store / "log-key.jws").read_bytes())
    ran = place.rekey()
    assert (ran.code, ran.err) == (0, "")
    assert "the one before has signed that" in ran.out
    place.deliver(b"second")
    assert place.rekey().code == 0
    place.deliver(b"third")

    assert place.everything() == [0, 0, 0, 0]
    (log,) = place.logs()
    assert len(log["earlier_verifier_keys"]) == 2
    assert read_stated_key((place.store / "log-key.jws").read_bytes()) != before
    assert (place.store / "log-keys.jsonl").read_bytes() == (place.fleet.receiver / "log-keys.jsonl").read_bytes()
    assert len({json.loads(line)["log_key"] for line in place.kept.read_bytes().splitlines()}) == 3
    assert place.check(old_bundle) == place.check(place.prove(first, "new.tar")) == 0
    assert place("show", first, "--root", place.fleet.host / "ca.pem").code == 0


def test_what_was_signed_before_there_were_histories_is_read_as_it_was(place: Place) -> None:
    """An identity and a store with one key have no file more than they had."""
    place.deliver(b"first")
    assert not (place.store / "log-keys.jsonl").exists()
    assert "successions" not in json.loads(place.kept.read_bytes())
    assert sorted(path.name for path in place.log().iterdir()) == ["checkpoint", "entries.jsonl"]
    assert place.everything() == [0, 0, 0, 0]


def test_a_running_receiver_takes_the_next_key_up_on_reload(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A dump that is under way gets its receipt, the log is handed over without another dump, and the next one is the new key's."""
    caplog.set_level(logging.INFO, "securecore.receiver")
    (first,) = place.deliver(b"first")
    with running_receiver(place.fleet.receiver, place.store) as receiver:
        dump = new_dump_id()
        with closing(Hand(place.fleet.host, receiver.addresses)) as hand:
            hand.open(dump)
            hand.send(b"under way")
            before = receiver.material.signer.public_key
            assert place.rekey().code == 0
            receiver.reload()
            wait_until(lambda: receiver.material.signer.public_key != before)
            wait_until(lambda: place.audit().code == 0)
            message = hand.delivery.end(hand.manifest(dump))
            facts = evidence.check_receipt(hand.papers.credentials, message, hand.delivery.address, dump, None, time.time())
        assert read_stated_key(facts["log_key"].encode()) == receiver.material.signer.public_key
        assert facts["successions"].startswith("securecore/log-key-succession v1\n")
        # A sender that comes late is told what the old key has signed, with the old key's statement.
        with closing(Hand(place.fleet.host, receiver.addresses)) as hand:
            message = hand.open(first)
            assert isinstance(message, Receipt)
            evidence.check_receipt(hand.papers.credentials, message, hand.delivery.address, first, None, time.time())
        assert read_stated_key(message.log_key) == before
    assert "log key rotated" in caplog.text
    assert place.audit().code == 0


def test_a_sender_that_comes_late_is_told_by_the_certificate_of_today(place: Place, tmp_path: Path) -> None:
    """The one that stated the old key may have expired since, and no sender believes a statement by that."""
    (first,) = place.deliver(b"first")
    assert place.rekey().code == 0
    renew(place.fleet.pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, utc_now(), days=300)
    install(place.fleet.receiver, (tmp_path / "reply.pem").read_bytes(), utc_now())
    later = time.time() + timedelta(days=200).total_seconds()
    with running_receiver(place.fleet.receiver, place.store) as receiver, closing(
        Hand(place.fleet.host, receiver.addresses)
    ) as hand:
        message = hand.open(first)
        assert isinstance(message, Receipt)
        evidence.check_receipt(hand.papers.credentials, message, hand.delivery.address, first, None, later)
        assert read_stated_key(message.log_key) != receiver.material.signer.public_key
    assert place.everything() == [0, 0, 0, 0]


def test_a_receiver_of_another_name_does_not_take_the_store_over(place: Place, tmp_path: Path) -> None:
    """Its certificate says another name, and its log key is the same: the logs are of the name before."""
    place.deliver(b"first")
    identity = place.fleet.receiver
    request(identity)
    subject = server_subject(RECEIVER, HostName(f"collector-2.{DOMAIN}"), [])
    sign(place.fleet.pki, subject, read_request(identity / "request.pem"), tmp_path / "reply.pem", no_passphrase, utc_now())
    install(identity, (tmp_path / "reply.pem").read_bytes(), utc_now())
    with pytest.raises(ConfigError, match="another name"), running_receiver(identity, place.store):
        pass
    assert place.audit().code == 0


def test_a_deleted_dump_is_told_of_under_the_new_key(place: Place) -> None:
    """GONE is believed by a sender that has never heard of the key."""
    (first,) = place.deliver(b"first")
    assert place.rekey().code == 0
    with open_store(str(place.store)) as store:
        standalone.delete_alone(store, HostName(WEB), first, None, place.fleet.receiver, utc_now())
    with running_receiver(place.fleet.receiver, place.store) as receiver, closing(
        Hand(place.fleet.host, receiver.addresses)
    ) as hand:
        message = hand.delivery.open(Open(first, REPORT), lambda frames: None)
        assert isinstance(message, Gone)
        proof = Receipt(message.receipt, message.log_key)
        evidence.check_receipt(hand.papers.credentials, proof, hand.delivery.address, first, None, time.time())
    assert message.successions.startswith(b"securecore/log-key-succession v1\n")
    assert place.audit().code == 0


def test_an_identity_that_was_issued_anew_goes_on_with_the_store(place: Place, tmp_path: Path) -> None:
    """The machine is lost with all its keys, and the store is not: its own statement says which key was lost."""
    place.deliver(b"first")
    shutil.rmtree(place.fleet.receiver)
    issue_receiver(place.fleet.pki, HostName(RECEIVER_NAME), [], place.fleet.receiver, no_passphrase, datetime.now(UTC))
    with pytest.raises(ConfigError, match="signed with another log key"), running_receiver(place.fleet.receiver, place.store):
        pass
    ran = place.rekey("--lost", place.store)
    assert ran.code == 0, ran.err
    assert "the one before is lost, and has not signed that" in ran.out
    with running_receiver(place.fleet.receiver, place.store):
        pass
    after = place.rekey("--lost", place.store, "--json")
    assert after.code == 3  # By now the store's key is the identity's.
    (log,) = [found for found in place.audit("--json").document if found["host"] is not None]
    assert log["earlier_verifier_keys"] == []
    key = read_stated_key((place.fleet.receiver / "log-key.jws").read_bytes())
    assert place.audit("--trust-log-key", verifier_key(NAME, key)).code == 0


def test_what_is_no_key_is_a_usage_error(place: Place) -> None:
    """A word that was mistyped must not look as if it were trusted."""
    place.deliver(b"first")
    assert place.audit("--trust-log-key", "collector").code == 2


def test_an_identity_without_a_log_key_is_an_error_in_words(place: Place) -> None:
    """And the hint says what there is to do."""
    (place.fleet.receiver / "log-key.pem").unlink()
    ran = place.rekey()
    assert ran.code == 4
    assert "--lost" in ran.err


def test_several_hosts_at_once_lose_no_receipt_while_the_key_changes(place: Place) -> None:
    """Two hosts send without a pause over two rekeyings: every dump has its receipt, and everything verifies."""
    receipts: list[object] = []
    stop = threading.Event()

    def send(host: str, receiver: Receiver) -> None:
        while not stop.is_set():
            receipts.append(send_bytes(b"core", papers_of(place.fleet.hosts[host]), receiver.addresses).receipt)

    with running_receiver(place.fleet.receiver, place.store) as receiver:
        threads = [threading.Thread(target=send, args=(host, receiver)) for host in ("web-1", "db-2")]
        for thread in threads:
            thread.start()
        for wanted in (4, 12):
            wait_until(lambda wanted=wanted: len(receipts) >= wanted)  # type: ignore[misc]
            before = receiver.material.signer.public_key
            assert place.rekey().code == 0
            receiver.reload()
            wait_until(lambda before=before: receiver.material.signer.public_key != before)  # type: ignore[misc]
        wanted = len(receipts) + 6
        wait_until(lambda: len(receipts) >= wanted)
        stop.set()
        for thread in threads:
            thread.join()
    assert all(receipts)
    assert [place.audit().code, place.verify("--all").code] == [0, 0]

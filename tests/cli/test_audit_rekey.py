"""A receiver's new log key, end to end: logs go on, receipts stay valid, and a key that nothing leads to is named."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from securecore.audit.checkpoint import verifier_key
from securecore.audit.log_reading import SAME_KEYS
from securecore.audit.statement import read_stated_key
from securecore.certs.identity_directory import load_identity
from securecore.certs.profiles import RECEIVER
from securecore.cli.main import run
from securecore.errors import ConfigError
from securecore.names import DumpId, HostName
from securecore.pki.install import install
from securecore.pki.issue import issue_receiver, log_statement, server_subject
from securecore.pki.request import request
from securecore.pki.signing import read_request, renew, sign
from securecore.receiver import standalone
from securecore.receiver.server import Receiver, utc_now
from securecore.sender import evidence
from securecore.store.layout import open_store
from securecore.wire.messages import Gone, Open, Receipt
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.dumps import REPORT
from tests.support.hands import Hand
from tests.support.kept_receipts import deliver
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import WEB, Commands, Ran

NAME = f"{RECEIVER_NAME}/securecore"


class Place(Commands):
    """A fleet of its own with a store, what web-1 has kept, and the commands that look at both."""

    def __init__(self, place: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(place / "store", fleet, capture)
        self.place, self.spool = place, place / "spool"
        self.kept = self.spool / "receipts.jsonl"

    def deliver(self, *cores: bytes) -> list[DumpId]:
        """Have web-1 send dumps to a receiver with the identity as it is now."""
        return deliver(self.fleet, self.store, self.spool, cores)

    def rekey(self, *arguments: object) -> Ran:
        """Run ``audit rekey`` on the receiver's identity."""
        code = run(["audit", "rekey", "--identity", str(self.fleet.receiver), *map(str, arguments)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def compare(self, *arguments: object) -> list[str | None]:
        """Return what each of web-1's receipts contradicts, by ``audit compare``; the exit code says the same."""
        ran = self("audit", "compare", self.kept, "--root", self.fleet.host / "ca.pem", "--json", *arguments)
        found = [row["contradicts"] for row in ran.document["receipts"]]
        assert ran.code == (0 if ran.document["ok"] else 6)
        return found

    def receipts(self, *arguments: object) -> Ran:
        """Run ``receipts verify`` on web-1."""
        root = ("--root", str(self.fleet.host / "ca.pem"))
        code = run(["receipts", "verify", "--spool", str(self.spool), *root, *map(str, arguments)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def prove(self, dump: DumpId, name: str) -> Path:
        """Write a dump's bundle."""
        ran = self("audit", "prove", dump, "-o", self.place / name, "--root", self.fleet.host / "ca.pem")
        assert ran.code == 0, ran.err
        return self.place / name

    def check(self, bundle: Path) -> int:
        """Return the exit code of ``audit check``."""
        code = run(["audit", "check", str(bundle), "--root", str(self.fleet.host / "ca.pem")])
        self._capture.readouterr()
        return code

    def everything(self, *arguments: object) -> list[int]:
        """Return the exit codes of all that verifies: the logs, the dumps, the receipts against the logs, and by themselves."""
        codes = [self.audit(*arguments).code, self.verify("--all", *arguments).code]
        return [*codes, 6 if any(self.compare(*arguments)) else 0, self.receipts(*arguments).code]


@pytest.fixture
def place(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """An empty one."""
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place", own_fleet, capsys)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails when it takes too long."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def mint_key(identity: Path, fleet: Fleet) -> None:
    """Put a log key into an identity directory that its TLS key has stated, and nothing else: what a thief of that key can do."""
    key, owner = Ed25519PrivateKey.generate(), load_identity(identity)
    token = log_statement(
        HostName(RECEIVER_NAME), key.public_key().public_bytes_raw(), owner.key_pem, owner.chain_der, datetime.now(UTC)
    )
    (identity / "log-key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (identity / "log-key.jws").write_bytes(token)
    (identity / "log-keys.jsonl").unlink(missing_ok=True)


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


def test_a_key_that_nothing_leads_to_is_not_taken_up(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by a reload, where the last good material stays, nor by a start, nor by a command that appends; the store stays."""
    (first,) = place.deliver(b"first")
    before = (place.store / "log-key.jws").read_bytes()
    with running_receiver(place.fleet.receiver, place.store) as receiver:
        good = receiver.material
        mint_key(place.fleet.receiver, place.fleet)
        receiver.reload()
        wait_until(lambda: "reload failed" in caplog.text)
        assert receiver.material is good
    assert "has signed no succession to it" in caplog.text
    with pytest.raises(ConfigError, match="signed with another log key") as caught, running_receiver(
        place.fleet.receiver, place.store
    ):
        pass
    assert "audit rekey --lost" in (caught.value.hint or "")
    assert place("delete", first, "--identity", place.fleet.receiver).code == 3
    assert (place.store / "log-key.jws").read_bytes() == before
    assert place.everything() == [0, 0, 0, 0]


def begin_anew(place: Place) -> None:
    """What a thief of the TLS key makes of the store: a history of his own under a key of his own, that agrees with itself."""
    mint_key(place.fleet.receiver, place.fleet)
    store_id = (place.store / "FORMAT").read_bytes()
    shutil.rmtree(place.store)
    place.store.mkdir(mode=0o700)
    for name, data in (("FORMAT", store_id), ("lock", b"")):
        (place.store / name).write_bytes(data)
        (place.store / name).chmod(0o600)


def test_a_log_under_a_key_that_the_tls_key_alone_has_stated_is_found_by_the_hosts(place: Place) -> None:
    """The forged store agrees with itself, so it takes what a host has kept: the old receipts do not fit it, and the next one that

    the forger gives is of a key that nothing leads to.
    """
    place.deliver(b"first", b"second")
    begin_anew(place)
    place.deliver(b"forged")
    assert place.audit().code == 0
    assert place.compare() == ["forked", "shortened", None]
    ran = place.receipts("--json")
    assert ran.code == 6
    assert all(row["ok"] for row in ran.document["receipts"])
    (found,) = ran.document["log_keys"]
    assert (found["receipt"], "is outside of the chain" in found["what"]) == ("receipts.jsonl:3", True)
    assert "is outside of the chain" in place.receipts().out


def test_a_store_put_back_to_a_replaced_key_is_found_by_the_hosts(place: Place, tmp_path: Path) -> None:
    """A thief of the old key alone puts the store back to that key and goes on with it, under the statement of then.

    That agrees with itself, and the receiver takes it over. The receipts that the host has from the key after do not fit it.
    """
    (first,) = place.deliver(b"first")
    stolen = Path(shutil.copytree(place.fleet.receiver, tmp_path / "stolen"))
    old = Path(shutil.copytree(place.store, tmp_path / "old"))
    assert place.rekey().code == 0
    place.deliver(b"second")
    shutil.rmtree(place.store)
    shutil.copytree(old, place.store)
    with open_store(str(place.store)) as store:
        standalone.delete_alone(store, HostName(WEB), first, None, stolen, utc_now())

    assert place.audit("--root", place.fleet.host / "ca.pem").code == 0
    assert place.compare()[1:] == ["forked"]
    with running_receiver(place.fleet.receiver, place.store):
        pass
    assert place.audit("--root", place.fleet.host / "ca.pem").code == 0
    assert place.compare()[1:] == ["forked"]


def test_a_stated_key_does_not_inherit_what_others_have_signed(place: Place) -> None:
    """Put in the store's log-key.jws, with the history or without it: logs and receipts are then of a key outside of the chain."""
    place.deliver(b"first")
    assert place.rekey().code == 0
    place.deliver(b"second")
    history = (place.fleet.receiver / "log-keys.jsonl").read_bytes()
    mint_key(place.fleet.receiver, place.fleet)
    shutil.copy(place.fleet.receiver / "log-key.jws", place.store)
    assert place.everything() == [6, 6, 6, 0]
    (place.store / "log-keys.jsonl").unlink()
    assert place.everything() == [6, 6, 6, 0]
    (place.store / "log-keys.jsonl").write_bytes(history)


def lose(place: Place) -> dict[str, Any]:
    """Lose the log key, put that on record, and return what ``audit rekey`` says."""
    (place.fleet.receiver / "log-key.pem").unlink()
    ran = place.rekey("--lost", place.fleet.receiver, "--json")
    assert ran.code == 0, ran.err
    return dict(ran.document)


def test_a_lost_key_is_said_in_words_and_accepted_by_who_knows_of_it(place: Place) -> None:
    """The logs go on; but nobody believes that the key was lost because the one after says so, unless told otherwise by hand."""
    (first,) = place.deliver(b"first")
    said = lose(place)
    assert said["is_lost"] is True
    place.deliver(b"second")
    ran = place.audit()
    assert ran.code == 6
    assert "is said to be lost and has signed no succession" in ran.err
    assert "--trust-log-key" in ran.err
    assert place.compare() == ["another-key", None]
    assert place.receipts().code == 6
    assert "is said to be lost" in place.receipts().out
    assert "receipt" in place("show", first, "--root", place.fleet.host / "ca.pem").out
    assert place.everything() == [6, 6, 6, 6]
    assert place.everything("--trust-log-key", said["after"]) == [0, 0, 0, 0]
    assert place.everything("--trust-log-key", said["before"]) == [6, 6, 6, 6]


def test_a_verifiers_state_goes_on_over_a_rekeying(place: Place, tmp_path: Path) -> None:
    """What the key before has signed counts along the chain, and then the new key's is remembered, of all logs."""
    state = ("--state", tmp_path / "verified.json")
    place.deliver(b"first")
    assert place.audit(*state).code == 0
    assert place.rekey().code == 0
    place.deliver(b"second")
    for by in ("by a key before the one in use", "by the key in use"):
        ran = place.audit(*state)
        assert ran.code == 0, ran.out
        assert ran.out.count(f"ok    {SAME_KEYS}: {by}") == 2


def test_a_verifiers_state_sees_a_key_that_nothing_leads_to(place: Place, tmp_path: Path) -> None:
    """A history that agrees with itself, under a key that only the TLS key has stated; the state stays as it was."""
    state = tmp_path / "verified.json"
    place.deliver(b"first", b"second")
    assert place.audit("--state", state).code == 0
    remembered = state.read_bytes()
    begin_anew(place)
    place.deliver(b"forged")
    assert place.audit().code == 0
    ran = place.audit("--state", state)
    assert ran.code == 6
    assert ran.out.count(f"FAIL  {SAME_KEYS}: under your verification of 20") == 2
    assert state.read_bytes() == remembered


def test_a_verifiers_state_of_a_lost_key_counts_for_who_trusts_the_one_after(place: Place, tmp_path: Path) -> None:
    """As a receipt of that key does: until then it is outside of the chain, and stays remembered."""
    state = tmp_path / "verified.json"
    place.deliver(b"first")
    assert place.audit("--state", state).code == 0
    said = lose(place)
    place.deliver(b"second")
    ran = place.audit("--state", state)
    assert ran.code == 6
    assert ran.out.count(f"FAIL  {SAME_KEYS}") == 2
    assert place.audit("--state", state, "--trust-log-key", said["after"]).code == 0
    assert SAME_KEYS + ": by the key in use" in place.audit("--state", state).out


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

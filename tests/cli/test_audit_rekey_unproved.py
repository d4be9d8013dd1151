"""Log keys that none before them has signed for, lost ones and replaced ones: who finds it, and by what a verifier goes on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.log_reading import SAME_KEYS
from securecore.errors import ConfigError
from securecore.names import HostName
from securecore.receiver import standalone
from securecore.receiver.server import utc_now
from securecore.store.layout import open_store
from tests.support.receivers import running_receiver
from tests.support.rekeyed import Place, mint_key, wait_until
from tests.support.stores import WEB


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
    with (
        pytest.raises(ConfigError, match="signed with another log key") as caught,
        running_receiver(place.fleet.receiver, place.store),
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

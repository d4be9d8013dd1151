"""The revocation lists of a reception, at a real receiver: kept with the dump, and found again by both commands."""

import json
import os
import shutil
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from securecore.audit import entry
from securecore.names import DumpId, HostName
from securecore.pki.revocation import revoke_name
from tests.support.certificates import Fleet, no_passphrase
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import DB, WEB, Commands, fill_store

CORE = b"the core of a process that crashed"
STEP = "the certificate was not revoked, by the lists of that time"
LISTS = "the revocation lists of every reception are in the store"


class Reception:
    """A store that a receiver of a fleet of its own has filled."""

    def __init__(self, fleet: Fleet, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.fleet = fleet
        self.store = path
        self.commands = Commands(path, fleet, capture)

    def receive(self, host: str = "web-1") -> DumpId:
        """Have a receiver that starts now take a dump."""
        return fill_store(self.fleet, self.store, [(host, CORE)])[0]

    def revoke(self, host: str) -> None:
        """Revoke a host, and give the receiver the new lists."""
        revoke_name(self.fleet.pki, HostName(host), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(self.fleet.pki.path / "crl.pem", self.fleet.receiver / "crl.pem")

    @property
    def in_force(self) -> str:
        """The digest of what the receiver has now."""
        return sha256((self.fleet.receiver / "crl.pem").read_bytes()).hexdigest()

    @property
    def kept(self) -> set[str]:
        """What the store keeps."""
        return {path.name for path in (self.store / "crls").iterdir()}

    def shown(self, dump: DumpId) -> str | None:
        """What `show` says of revocation; None when it says nothing."""
        evidence = self.commands("show", dump, "--no-analysis", "--json").document["evidence"]
        assert (evidence.pop("manifest"), evidence.pop("receipt")) == ("ok", "ok")
        return dict(evidence).get("revocation")

    def step(self, *arguments: object) -> dict[str, Any]:
        """What `verify` says of revocation."""
        (document,) = self.commands.verify(*arguments, "--json").document
        (check,) = [check for check in document["checks"] if check["what"] == STEP]
        return {**check, "whole": document["ok"]}


@pytest.fixture
def reception(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Reception:
    """An empty store, and a fleet in which the test may revoke."""
    return Reception(own_fleet, tmp_path / "store", capsys)


def test_the_lists_in_force_are_kept_once_and_referred_to(reception: Reception) -> None:
    """By each entry; the receiver's own file, byte for byte, also over a restart."""
    dumps = [reception.receive(), reception.receive()]
    digest = reception.in_force
    assert reception.kept == {f"{digest}.pem"}
    assert (reception.store / "crls" / f"{digest}.pem").read_bytes() == (reception.fleet.receiver / "crl.pem").read_bytes()
    assert [entry["crl_sha256"] for entry in reception.commands.entries()] == [digest, digest]
    for dump in dumps:
        assert reception.step(dump) == {
            "number": 6, "what": STEP, "ok": True, "detail": f"by crls/{digest}.pem", "whole": True,
        }  # fmt: skip
    assert reception.commands.audit().code == 0


def test_a_dump_is_verified_by_the_lists_of_its_time(reception: Reception) -> None:
    """What came before its host was revoked stays sound, and says by which lists; what came since refers to the new ones."""
    before, old = reception.receive(), reception.in_force
    reception.revoke(WEB)
    after = reception.receive("db-2")
    assert reception.kept == {f"{old}.pem", f"{reception.in_force}.pem"}
    assert reception.in_force != old
    found = [reception.step(dump)["detail"] for dump in (before, after)]
    assert found == [f"by crls/{old}.pem", f"by crls/{reception.in_force}.pem"]
    assert [reception.shown(dump) for dump in (before, after)] == ["ok", "ok"]
    assert reception.commands.verify("--all").code == 0


def test_a_reload_counts_from_the_next_commit(reception: Reception) -> None:
    """The lists that were in force when the dump was committed are referred to, not those of the receiver's start."""
    first = reception.in_force
    with running_receiver(reception.fleet.receiver, reception.store) as receiver:
        reception.revoke(DB)
        before = receiver.material
        receiver.reload()
        while receiver.material is before:
            os.sched_yield()
        dump = new_dump_id()
        assert send_bytes(CORE, papers_of(reception.fleet.hosts["web-1"]), receiver.addresses, dump=dump).receipt
    assert reception.kept == {f"{first}.pem", f"{reception.in_force}.pem"}
    (reception.store / "crls" / f"{first}.pem").unlink()
    assert reception.step(dump)["ok"] is True


@pytest.mark.parametrize("how", ["removed", "changed", "another one's"])
def test_lists_that_are_gone_or_others_are_found_by_both_commands(how: str, reception: Reception) -> None:
    """And named: the entry that refers to them is signed."""
    dump, old = reception.receive(), reception.in_force
    assert reception.shown(dump) == "ok"
    path = reception.store / "crls" / f"{old}.pem"
    if how == "removed":
        path.unlink()
    elif how == "changed":
        path.write_bytes(path.read_bytes().replace(b"X509", b"X508", 1))
    else:
        reception.revoke(DB)
        shutil.copyfile(reception.fleet.receiver / "crl.pem", path)
    words = f"crls/{old}.pem is missing" if how == "removed" else f"crls/{old}.pem has other bytes than its name says"
    ran = reception.commands.audit()
    assert ran.code == 6
    assert f"FAIL  {LISTS}: {words}, to which entry 1 refers" in ran.out
    assert (reception.step(dump)["ok"], reception.commands.verify(dump).code) == (False, 6)
    assert (reception.shown(dump) or "").startswith(words[: words.index(".pem")])


def test_a_store_from_before_is_valid_and_claims_nothing_of_its_lists(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries without the field verify; that no lists are known is said by both commands."""
    encode = entry.encode
    monkeypatch.setattr(entry, "encode", lambda fields: encode({k: v for k, v in fields.items() if k != "crl_sha256"}))
    dump = reception.receive()
    monkeypatch.undo()
    shutil.rmtree(reception.store / "crls")
    assert "crl_sha256" not in reception.commands.entries()[0]
    found = reception.step(dump)
    assert (found["ok"], found["whole"]) == (None, True)
    assert "earlier version" in found["detail"]
    assert reception.shown(dump) is None
    assert reception.commands.verify(dump).code == 0
    ran = reception.commands.audit()
    assert ran.code == 0
    assert f"{LISTS}: 0 files, and 1 reception without any" in ran.out


def test_a_verifier_needs_the_root_alone(reception: Reception, tmp_path: Path) -> None:
    """The lists of the receivers CA, whose certificate it has not, are passed over."""
    dump = reception.receive()
    chain = (reception.fleet.host / "ca.pem").read_bytes()
    assert chain.count(b"BEGIN CERTIFICATE") == 1
    (tmp_path / "root.pem").write_bytes(chain)
    ran = reception.commands("verify", dump, "--root", tmp_path / "root.pem", "--json")
    assert (ran.code, json.loads(ran.out)[0]["ok"]) == (0, True)

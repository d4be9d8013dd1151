"""Replacing an issuing CA: who signs, who is believed, and that no step locks anybody out."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, Refusal, judge
from securecore.certs.profiles import HOSTS_CA, RECEIVERS_CA, Profile
from securecore.certs.revocation import RevocationLists
from securecore.errors import BrokenError, NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory, open_pki
from securecore.pki.issue import issue_host, rekey
from securecore.pki.revocation import revoke_name, revoke_serial, sign_crls
from securecore.pki.rotation import finish, start, switch
from securecore.pki.signing import renew
from securecore.pki.verification import verify_log
from securecore.receiver.material import Material, load_material
from tests.support.certificates import DOMAIN, HOST_NAME, NOW, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.kernel import NOBODY
from tests.support.power import Loss, ended_at_each_call

NAME = HostName(HOST_NAME)


class Reloading:
    """A receiver that takes what is distributed, as it does on SIGHUP."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.material: Material = load_material(fleet.receiver, NOW)

    def distribute(self) -> None:
        """Copy ca.pem and crl.pem, and reload."""
        for name in ("ca.pem", "crl.pem"):
            (self._fleet.receiver / name).write_bytes((self._fleet.pki.path / name).read_bytes())
        self.material = load_material(self._fleet.receiver, NOW, self.material)

    def believes(self, identity: Path) -> bool:
        """Return whether a host is let in."""
        leaf = load_identity(identity).chain_der[0]
        return self.material.find_crl(leaf, NOW) is not None


def senders_believe(identity: Path, host: Path) -> bool:
    """Return whether a host believes a receiver: by its root, and the chain that the receiver brings."""
    receiver, anchors = load_identity(identity), load_identity(host).anchors
    try:
        judge(receiver.chain_der[0], receiver.chain_der[1:], anchors, Purpose.RECEIVER, NOW)
    except Refusal:
        return False
    return True


def issuer_of(pki: PkiDirectory, out: Path) -> int:
    """Issue db-2 again, and return the serial number of the CA that signed it."""
    issue_host(pki, HostName(f"db-2.{DOMAIN}"), out, no_passphrase, NOW)
    (one,) = [one for one in pki.ledger.read().issued.values() if one.serial == load_identity(out).certificates[0].serial_number]
    return one.issuer


def test_hosts_can_send_at_every_moment(fleet: Fleet, tmp_path: Path) -> None:
    """Old and new certificates are believed from the first step to the last, and the old ones no more after it."""
    receiver, pki = Reloading(fleet), fleet.pki
    old, web, db = pki.certificate("hosts-ca"), fleet.host, fleet.hosts["db-2"]
    start(pki, HOSTS_CA, no_passphrase, NOW)
    assert (receiver.believes(web), receiver.believes(db)) == (True, True)
    receiver.distribute()
    assert (receiver.believes(web), receiver.believes(db)) == (True, True)
    assert issuer_of(pki, tmp_path / "between") == old.serial_number
    switch(pki, HOSTS_CA, NOW)
    assert issuer_of(pki, tmp_path / "new-db") == pki.certificate("hosts-ca").serial_number != old.serial_number
    assert (receiver.believes(web), receiver.believes(tmp_path / "new-db")) == (True, True)
    rekey(pki, NAME, None, tmp_path / "new-web", no_passphrase, NOW)
    finish(pki, HOSTS_CA, NOW)
    assert (receiver.believes(web), receiver.believes(tmp_path / "new-web")) == (True, True)
    receiver.distribute()
    assert (receiver.believes(tmp_path / "new-web"), receiver.believes(tmp_path / "new-db")) == (True, True)
    assert (receiver.believes(web), receiver.believes(db)) == (False, False)


def test_hosts_believe_receivers_at_every_moment(fleet: Fleet, tmp_path: Path) -> None:
    """They need nothing new: the root is theirs, and a receiver brings its CA along."""
    pki = fleet.pki
    start(pki, RECEIVERS_CA, no_passphrase, NOW)
    receiver = Reloading(fleet)
    receiver.distribute()
    switch(pki, RECEIVERS_CA, NOW)
    rekey(pki, HostName(RECEIVER_NAME), None, tmp_path / "new", no_passphrase, NOW)
    assert (senders_believe(fleet.receiver, fleet.host), senders_believe(tmp_path / "new", fleet.host)) == (True, True)
    finish(pki, RECEIVERS_CA, NOW)
    renewed = load_material(tmp_path / "new", NOW)
    assert renewed.own.chain[1] == pki.certificate("receivers-ca")
    assert renewed.judge_host(load_identity(fleet.host).chain_der[0], NOW).name == NAME


def test_both_cas_lists_are_signed_while_both_count(fleet: Fleet, tmp_path: Path) -> None:
    """A revocation of either CA's host is heard; afterwards only the new one's list is signed."""
    receiver, pki = Reloading(fleet), fleet.pki
    start(pki, HOSTS_CA, no_passphrase, NOW)
    switch(pki, HOSTS_CA, NOW)
    rekey(pki, NAME, None, tmp_path / "web", no_passphrase, NOW)
    done = revoke_name(pki, NAME, "keyCompromise", no_passphrase, NOW)
    assert [one.authority for one in done.crls] == ["hosts-ca", "hosts-ca (previous)"]
    receiver.distribute()
    assert [receiver.believes(identity) for identity in (fleet.host, tmp_path / "web", fleet.hosts["db-2"])] == [False, False, True]
    finish(pki, HOSTS_CA, NOW, is_forced=True)
    signed = sign_crls(pki, no_passphrase, NOW, is_forced=True)
    assert [one.authority for one in signed] == ["root-ca", "hosts-ca", "receivers-ca"]
    receiver.distribute()


def test_nobody_is_left_behind_unawares(fleet: Fleet, tmp_path: Path) -> None:
    """Who has no certificate of the new CA is named; what was revoked or replaced does not count."""
    pki = fleet.pki
    start(pki, HOSTS_CA, no_passphrase, NOW)
    switch(pki, HOSTS_CA, NOW)
    with pytest.raises(PkiError, match=rf"2 have no certificate of the new CA yet: {HOST_NAME}, db-2"):
        finish(pki, HOSTS_CA, NOW)
    renew(pki, NAME, None, tmp_path / "reply.pem", no_passphrase, NOW)
    with pytest.raises(PkiError, match=r"1 have no .*: db-2"):
        finish(pki, HOSTS_CA, NOW)
    revoke_name(pki, HostName(f"db-2.{DOMAIN}"), "cessationOfOperation", no_passphrase, NOW)
    finish(pki, HOSTS_CA, NOW)


def test_steps_come_in_their_order(fleet: Fleet) -> None:
    """Whoever takes the wrong one is told the right one; a second rotation follows the first."""
    pki = fleet.pki

    def refused(hint: str, step: object, *more: object) -> None:
        with pytest.raises(PkiError) as caught:
            step(pki, HOSTS_CA, *more)  # type: ignore[operator]
        assert hint in (caught.value.hint or "")

    refused("`start`", switch, NOW)
    refused("`start`", finish, NOW)
    for number in (2, 3):
        assert start(pki, HOSTS_CA, no_passphrase, NOW).folder == pki.path / f"hosts-{number}"
        refused("`switch`", start, no_passphrase, NOW)
        refused("`switch`", finish, NOW)
        switch(pki, HOSTS_CA, NOW)
        refused("`finish`", start, no_passphrase, NOW)
        refused("`finish`", switch, NOW)
        finish(pki, HOSTS_CA, NOW, is_forced=True)
    assert [one.problem for one in verify_log(open_pki(pki.path), None)] == [None] * 5


def test_the_roots_key_is_needed_for_the_start_alone(fleet: Fleet) -> None:
    """It may go back to its safe before the CA is used."""
    key = fleet.pki.folder("root-ca") / "key.pem"
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(NotFoundError, match="the key of the root-ca is not here"):
        start(fleet.pki, HOSTS_CA, no_passphrase, NOW)
    key.touch(0o600)
    key.write_bytes(kept)
    start(fleet.pki, HOSTS_CA, no_passphrase, NOW)
    key.unlink()
    switch(fleet.pki, HOSTS_CA, NOW)
    finish(fleet.pki, HOSTS_CA, NOW, is_forced=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act for another user")
def test_a_rotation_by_root_leaves_the_directory_its_user(fleet: Fleet) -> None:
    """With a root key that root brought back, the new CA is the directory's owner's: an enroller that runs as he is can use it."""
    owner = (NOBODY, NOBODY)
    for path in (fleet.pki.path, *fleet.pki.path.rglob("*")):
        os.chown(path, *owner)
    os.chown(fleet.pki.path / "root" / "key.pem", 0, 0)
    for name in ("start", "switch", "finish"):
        step(fleet.pki, name)
    found = {path: (path.stat().st_uid, path.stat().st_gid) for path in (fleet.pki.path, *fleet.pki.path.rglob("*"))}
    assert [path for path, whose in found.items() if whose != owner] == [fleet.pki.path / "root" / "key.pem"]
    assert (fleet.pki.path / "hosts-2" / "key.pem").exists()


def test_the_new_key_is_locked_as_the_roots_is(tmp_path: Path) -> None:
    """With the same passphrase, which is asked for once."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, b"correct horse battery", NOW)
    asked: list[int] = []

    def ask() -> bytes:
        asked.append(1)
        return b"correct horse battery"

    made = start(pki, HOSTS_CA, ask, NOW)
    assert len(asked) == 1
    assert b"ENCRYPTED" in (made.folder / "key.pem").read_bytes()
    assert (made.folder / "key.pem").stat().st_mode & 0o777 == 0o600
    switch(pki, HOSTS_CA, NOW)
    assert pki.authority("hosts-ca", ask).certificate == made.certificate


def test_a_fleet_whose_directory_is_older_than_rotations_can_rotate(fleet: Fleet) -> None:
    """It has no ca.pem yet."""
    fleet.pki.ca_path.unlink()
    start(fleet.pki, HOSTS_CA, no_passphrase, NOW)
    assert fleet.pki.ca_path.read_bytes().count(b"BEGIN CERTIFICATE") == 4


def step(pki: PkiDirectory, name: str, profile: Profile = HOSTS_CA) -> None:
    """Take a step of a rotation."""
    if name == "start":
        start(pki, profile, no_passphrase, NOW)
    elif name == "switch":
        switch(pki, profile, NOW)
    else:
        finish(pki, profile, NOW, is_forced=True)


def hint_of_again(pki: PkiDirectory, name: str) -> str | None:
    """Take a step again; return what it says is to be done instead, None where it was taken."""
    try:
        step(pki, name)
    except PkiError as error:
        return error.hint or "nothing"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("name", ["start", "switch", "finish"])
def test_end_at_any_call_and_a_rerun_succeeds_or_says_what_is_next(name: str, loss: Loss, fleet: Fleet) -> None:
    """Before each call: then the same command again, or the words that it was done; the ledger and the files fit."""
    for before in {"start": [], "switch": ["start"], "finish": ["start", "switch"]}[name]:
        step(fleet.pki, before)
    ends = 0
    for left, fatal in ended_at_each_call(fleet.pki.path.parent, lambda path: step(open_pki(path / "pki"), name), loss):
        pki = open_pki(left / "pki")
        hint = hint_of_again(pki, name)
        assert hint is None or " step is `" in hint
        receiver = Reloading(Fleet(pki, left / fleet.receiver.name, {"web-1": left / fleet.host.name}))
        receiver.distribute()
        assert receiver.believes(left / fleet.host.name) == (name != "finish")
        wrong = [one.what for one in verify_log(pki, None) if one.problem is not None]
        assert wrong in ([], ["there is no certificate that was not issued"]), fatal
        ends += 1
    assert ends > 1


WORDS = b"correct horse battery"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PKI whose keys are locked, to be copied."""
    return create_pki(tmp_path_factory.mktemp("locked") / "pki", "Test", DOMAIN, WORDS, NOW).path


class SlowTypist:
    """Somebody who is asked for the passphrase, and during whose typing others do something."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self._meanwhile = list(meanwhile)

    def __call__(self) -> bytes:
        meanwhile, self._meanwhile = self._meanwhile, []
        for one in meanwhile:
            one()
        return WORDS


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_lists_are_signed_for_the_right_ca_while_a_step_is_taken(steps: int, locked: Path, tmp_path: Path) -> None:
    """A CA that was renamed or dismissed while a passphrase was typed writes its list to its own place, or nowhere."""
    pki = open_pki(Path(shutil.copytree(locked, tmp_path / "pki")))
    start(pki, HOSTS_CA, lambda: WORDS, NOW)
    others = open_pki(pki.path)
    taken = [lambda: switch(others, HOSTS_CA, NOW), lambda: finish(others, HOSTS_CA, NOW)][:steps]
    sign_crls(pki, SlowTypist(*taken), NOW, is_forced=True)
    assert [one.problem for one in verify_log(pki, None)] == [None] * 5
    assert RevocationLists.parse(pki.crl_path.read_bytes(), pki.anchors()).count == (4 if steps == 1 else 3)


@pytest.mark.slow
def test_a_ca_that_was_replaced_while_its_key_was_unlocked_signs_nothing(locked: Path, tmp_path: Path) -> None:
    """What it would sign is refused by every receiver soon: the ledger has no line more."""
    pki = open_pki(Path(shutil.copytree(locked, tmp_path / "pki")))
    start(pki, HOSTS_CA, lambda: WORDS, NOW)
    lines = len(pki.ledger.digests())
    typist = SlowTypist(lambda: switch(open_pki(pki.path), HOSTS_CA, NOW))
    with pytest.raises(PkiError, match="the hosts-ca was replaced at this moment") as caught:
        issue_host(pki, NAME, tmp_path / "web", typist, NOW)
    assert caught.value.hint == "run the command again"
    assert len(pki.ledger.digests()) == lines + 1
    issue_host(pki, NAME, tmp_path / "web", typist, NOW)


def test_a_revoked_ca_signs_nothing_until_it_is_replaced(fleet: Fleet, tmp_path: Path) -> None:
    """Everybody would refuse it; the hint says what to do, and that helps."""
    pki = fleet.pki
    revoke_serial(pki, pki.certificate("hosts-ca").serial_number, "cACompromise", no_passphrase, NOW)
    with pytest.raises(PkiError, match=r"the hosts-ca was revoked on .*, and every receiver refuses what it signs") as caught:
        issue_host(pki, NAME, tmp_path / "web", no_passphrase, NOW)
    assert "rotate-ca" in (caught.value.hint or "")
    assert not (tmp_path / "web").exists()
    start(pki, HOSTS_CA, no_passphrase, NOW)
    switch(pki, HOSTS_CA, NOW)
    issue_host(pki, NAME, tmp_path / "web", no_passphrase, NOW)
    receiver = Reloading(fleet)
    receiver.distribute()
    assert (receiver.believes(tmp_path / "web"), receiver.believes(fleet.host)) == (True, False)


def test_a_ledger_without_cas_is_told_of(fleet: Fleet) -> None:
    """Somebody has emptied it: each command that needs a CA says so, also one that never saw it full."""
    fleet.pki.ledger.path.write_bytes(b"")
    for pki, words in ((fleet.pki, "it had 9 lines, and now has none"), (open_pki(fleet.pki.path), "the ledger is an older copy")):
        for name in ("start", "switch", "finish"):
            with pytest.raises(BrokenError, match=words):
                step(pki, name)
        with pytest.raises(BrokenError, match=words):
            issue_host(pki, NAME, fleet.host.with_name("new"), no_passphrase, NOW)


def test_a_cas_name_is_its_own(fleet: Fleet) -> None:
    """Two CAs of one name would confuse every chain builder."""
    old = fleet.pki.certificate("hosts-ca")
    new = start(fleet.pki, HOSTS_CA, no_passphrase, NOW + timedelta(days=1)).certificate
    assert old.subject.public_bytes() != new.subject.public_bytes()
    assert old.public_bytes(Encoding.DER) != new.public_bytes(Encoding.DER)

"""After an older copy of a PKI was put back: what it has forgotten is found, and learned from what receivers and hosts have."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.certs.profiles import HOST, HOSTS_CA
from securecore.errors import BrokenError, ConfigError, NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory, open_pki
from securecore.pki.holders import find_newest
from securecore.pki.issue import issue_host
from securecore.pki.learning import Learned, Source, learn
from securecore.pki.noting import find_lost
from securecore.pki.revocation import MAX_NUMBER_JUMP, revoke_name, revoke_older, revoke_serial, sign_crls
from securecore.pki.rotation import start
from securecore.pki.signing import renew
from securecore.pki.tokens import make_token
from securecore.pki.verification import verify_log
from securecore.receiver.material import Material, load_material
from tests.support.certificates import (
    DOMAIN,
    HOST_NAME,
    NOW,
    RECEIVER_NAME,
    Fleet,
    Hierarchy,
    Made,
    make_fleet,
    mint,
    no_passphrase,
)

LATER = NOW + timedelta(days=1)
WEB, NEW = HostName(HOST_NAME), HostName(f"web-9.{DOMAIN}")


class Restored:
    """A fleet whose PKI was put back from a backup.

    Since then web-1 was revoked, web-9 was issued a certificate that was revoked, and one more; the receiver has the lists.
    """

    def __init__(self, path: Path) -> None:
        self.fleet: Fleet = make_fleet(path, now=NOW)
        self.pki: PkiDirectory = self.fleet.pki
        _, self.token = make_token(self.pki, NEW, timedelta(days=7), NOW)
        self.backup = Path(shutil.copytree(self.pki.path, path / "backup"))
        self.noted = path / "noted"
        revoke_name(self.pki, WEB, "keyCompromise", no_passphrase, LATER)
        issue_host(self.pki, NEW, path / "new-1", no_passphrase, LATER)
        self.stranger = load_identity(path / "new-1").certificates[0]
        revoke_name(self.pki, NEW, "superseded", no_passphrase, LATER + timedelta(hours=1))
        issue_host(self.pki, NEW, path / "new-2", no_passphrase, LATER)
        assert find_lost(self.pki, self.noted) is None
        self.identity = path / "new-2"
        self.crl = self.pki.crl_path.read_bytes()
        shutil.move(self.pki.path, path / "lost")
        shutil.copytree(self.backup, self.pki.path)
        self.pki = open_pki(self.pki.path)
        (self.fleet.receiver / "crl.pem").write_bytes(self.crl)
        self.material: Material = load_material(self.fleet.receiver, LATER)

    def learn(self, *data: bytes) -> Learned:
        """Learn from files."""
        return learn(self.pki, [Source(f"file {number}", one) for number, one in enumerate(data)], LATER)

    def distribute(self) -> None:
        """Give the receiver the PKI's lists, which it takes as at a reload or refuses."""
        (self.fleet.receiver / "crl.pem").write_bytes(self.pki.crl_path.read_bytes())
        self.material = load_material(self.fleet.receiver, LATER, self.material)

    def believes(self, identity: Path) -> bool:
        """Return whether the receiver lets a host in."""
        return self.material.find_crl(load_identity(identity).chain_der[0], LATER) is not None


@pytest.fixture
def restored(tmp_path: Path) -> Restored:
    """A PKI from a backup."""
    return Restored(tmp_path)


def test_a_forgotten_revocation_counts_again(restored: Restored) -> None:
    """With its date and reason, and whether or not the ledger has the certificate; the receiver takes the next list."""
    learned = restored.learn(restored.crl)
    assert [(entry.revoked_at, entry.reason) for entry in learned.revoked] == [
        (LATER, "keyCompromise"), (LATER + timedelta(hours=1), "superseded")
    ]  # fmt: skip
    assert [one.number for one in learned.lists] == [3]
    signed = sign_crls(restored.pki, no_passphrase, LATER)
    assert [(one.authority, one.number, one.revoked) for one in signed] == [("hosts-ca", 4, 2)]
    restored.distribute()
    assert not restored.believes(restored.fleet.host)
    assert restored.believes(restored.fleet.hosts["db-2"])
    (one,) = [one for one in restored.pki.ledger.read().issued.values() if one.names == (HOST_NAME,)]
    assert (one.revoked_at, one.reason) == (LATER, "keyCompromise")
    assert [check.problem for check in verify_log(restored.pki, None)] == [None] * 5


def test_without_it_the_receiver_takes_no_list_and_names_the_runbook(restored: Restored) -> None:
    """An older number, and then another list of the same one: either way there are two histories."""
    for _ in range(2):
        sign_crls(restored.pki, no_passphrase, LATER, is_forced=True)
        with pytest.raises(ConfigError, match="already in use") as caught:
            restored.distribute()
        assert "after-a-restore.md" in (caught.value.hint or "")


def test_a_list_of_the_same_number_is_news_too(restored: Restored) -> None:
    """The copy has signed as often as the one that was lost: it learns, and its next list is above both."""
    for _ in range(2):
        sign_crls(restored.pki, no_passphrase, LATER + timedelta(hours=2), is_forced=True)
    assert [one.number for one in restored.learn(restored.crl).lists] == [3]
    assert {one.number for one in sign_crls(restored.pki, no_passphrase, LATER + timedelta(hours=3))} == {4}
    restored.distribute()
    assert not restored.believes(restored.fleet.host)


def test_an_older_list_still_tells_what_it_names(restored: Restored) -> None:
    """Two copies that both revoked: each one's list has what the other lacks, whatever its number."""
    for _ in range(9):
        sign_crls(restored.pki, no_passphrase, LATER, is_forced=True)
    learned = restored.learn(restored.crl)
    assert (len(learned.revoked), learned.lists) == (2, ())
    assert [one.revoked for one in sign_crls(restored.pki, no_passphrase, LATER)] == [2]


def test_an_open_token_is_recalled_once_the_ledger_is_known_to_be_behind(restored: Restored) -> None:
    """It may have been used since; nothing tells. A file without news recalls nothing."""
    assert restored.learn((restored.fleet.host / "cert.pem").read_bytes()) == Learned((), (), (), ())
    assert restored.learn(restored.crl).recalled == (restored.token,)
    assert restored.pki.ledger.read().tokens[restored.token.id].state(LATER) == "recalled"


def test_what_was_learned_is_not_learned_again(restored: Restored) -> None:
    """Not a line is added."""
    files = [restored.crl, (restored.identity / "cert.pem").read_bytes()]
    restored.learn(*files)
    before = restored.pki.ledger.path.read_bytes()
    assert restored.learn(*files) == Learned((), (), (), ())
    assert restored.pki.ledger.path.read_bytes() == before


@pytest.mark.parametrize("kept", range(1, 6))
def test_learning_that_was_cut_short_is_done_again_by_the_same_files(kept: int, restored: Restored) -> None:
    """After any of its lines: the token is recalled, everything else is there in the end."""
    files = [restored.crl, (restored.identity / "cert.pem").read_bytes()]
    before = restored.pki.ledger.path.read_bytes().count(b"\n")
    restored.learn(*files)
    lines = restored.pki.ledger.path.read_bytes().splitlines(keepends=True)
    assert len(lines) - before == 5
    restored.pki.ledger.path.write_bytes(b"".join(lines[: before + kept]))
    again = open_pki(restored.pki.path)
    learn(again, [Source("file", one) for one in files], LATER)
    state = again.ledger.read()
    assert state.tokens[restored.token.id].state(LATER) == "recalled"
    assert restored.stranger.serial_number in state.strangers
    assert load_identity(restored.identity).certificates[0].serial_number in state.issued
    assert sign_crls(again, no_passphrase, LATER)[0].number == 4


def test_a_forgotten_certificate_can_be_revoked_once_it_is_learned(restored: Restored) -> None:
    """By name, as any other; it is in issued/ as it was, and the log of the PKI holds."""
    serial = load_identity(restored.identity).certificates[0].serial_number
    with pytest.raises(NotFoundError, match="never made") as caught:
        revoke_serial(restored.pki, serial, "superseded", no_passphrase, LATER)
    assert "after-a-restore.md" in (caught.value.hint or "")
    restored.learn(restored.crl)
    (known,) = restored.learn((restored.identity / "cert.pem").read_bytes()).certificates
    assert (known.profile, known.names) == (HOST, (str(NEW),))
    assert len(revoke_name(restored.pki, NEW, "keyCompromise", no_passphrase, LATER).revoked) == 1
    restored.distribute()
    assert not restored.believes(restored.identity)
    assert [check.problem for check in verify_log(restored.pki, None)] == [None] * 5


def test_a_certificate_that_is_learned_after_its_revocation_is_revoked(restored: Restored) -> None:
    """Whichever file comes first."""
    restored.learn(restored.crl)
    restored.learn((restored.identity.with_name("new-1") / "cert.pem").read_bytes())
    state = restored.pki.ledger.read()
    one = state.issued[restored.stranger.serial_number]
    assert (one.state(LATER), one.reason, state.strangers) == ("revoked", "superseded", {})


def test_a_receivers_certificate_keeps_its_names_and_addresses(tmp_path: Path) -> None:
    """So that it can be renewed: a whole identity's chain is one file."""
    backup = shutil.copytree(make_fleet(tmp_path / "a", now=NOW).pki.path, tmp_path / "backup")
    fleet = make_fleet(tmp_path / "b", now=NOW)
    ledger = fleet.pki.ledger.path
    lines = ledger.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"profile":"receiver"' in line)
    ledger.write_bytes(b"".join(lines[:at]))
    pki = open_pki(fleet.pki.path)
    (known,) = learn(pki, [Source("cert.pem", (fleet.receiver / "cert.pem").read_bytes())], LATER).certificates
    assert (known.profile.name, known.names[0], len(known.addresses) > 0) == ("receiver", RECEIVER_NAME, True)
    with pytest.raises(PkiError, match="no list and no certificate"):
        learn(open_pki(Path(backup)), [Source("cert.pem", (fleet.receiver / "cert.pem").read_bytes())], LATER)


def _of_another_fleet(restored: Restored, hierarchy: Hierarchy) -> bytes:
    return mint(HOST, issuer=hierarchy.hosts, dns=[HOST_NAME]).pem


def _new_ca(restored: Restored, hierarchy: Hierarchy) -> bytes:
    lost = open_pki(restored.fleet.pki.path.with_name("lost"))
    return (start(lost, HOSTS_CA, no_passphrase, LATER).folder / "cert.pem").read_bytes()


def _host_of_the_receivers_ca(restored: Restored, hierarchy: Hierarchy) -> bytes:
    authority = restored.pki.authority("receivers-ca", no_passphrase)
    return mint(HOST, issuer=Made(authority.certificate, authority.key, ()), dns=[HOST_NAME]).pem


BAD: dict[str, tuple[Callable[[Restored, Hierarchy], bytes], str]] = {
    "nothing": (lambda restored, hierarchy: b"", "no list and no certificate"),
    "a key": (lambda restored, hierarchy: (restored.identity / "key.pem").read_bytes(), "no list and no certificate"),
    "another fleet's": (_of_another_fleet, "no list and no certificate"),
    "a cut certificate": (lambda restored, hierarchy: (restored.identity / "cert.pem").read_bytes()[:-40], "cut off or damaged"),
    "a cut list": (lambda restored, hierarchy: restored.crl[:-40], "cut off"),
    "a host's of the receivers CA": (_host_of_the_receivers_ca, "none that this PKI makes"),
    "a CA that was made since": (_new_ca, "a CA that was made since"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_nobody_vouches_for_is_refused_and_nothing_is_recorded(kind: str, restored: Restored, hierarchy: Hierarchy) -> None:
    """Not even what the good file beside it says."""
    make, words = BAD[kind]
    before = restored.pki.ledger.path.read_bytes()
    with pytest.raises((PkiError, ConfigError), match=words):
        restored.learn(restored.crl, make(restored, hierarchy))
    assert restored.pki.ledger.path.read_bytes() == before


def test_a_file_cut_at_every_offset_tells_whole_things_or_nothing(restored: Restored) -> None:
    """Where it is refused nothing is recorded; where a cut leaves whole parts and no begun one, these count."""
    whole = restored.crl + (restored.identity / "cert.pem").read_bytes()
    before = restored.pki.ledger.path.read_bytes()
    serials = {restored.stranger.serial_number, load_identity(restored.fleet.host).certificates[0].serial_number}
    taken = set()
    for length in range(len(whole)):
        try:
            learned = restored.learn(whole[:length])
        except (PkiError, ConfigError):
            assert restored.pki.ledger.path.read_bytes() == before
        else:
            assert {entry.serial for entry in learned.revoked} in (set(), serials)
            taken.add((len(learned.certificates), len(learned.revoked)))
            restored.pki.ledger.path.write_bytes(before)
            restored.pki = open_pki(restored.pki.path)
    assert taken == {(0, 0), (0, 2), (1, 2)}


def test_what_another_copy_issued_before_is_not_taken_for_the_newest(restored: Restored) -> None:
    """The one that the host has is renewed and kept by `--older`, whatever is learned later, in whatever order."""
    pki, path = restored.pki, restored.identity.parent
    issue_host(pki, NEW, path / "in-use", no_passphrase, LATER + timedelta(hours=3))
    in_use = load_identity(path / "in-use").certificates[0].serial_number
    restored.learn((restored.identity / "cert.pem").read_bytes())
    restored.learn((path / "new-1" / "cert.pem").read_bytes(), restored.crl)
    for state in (pki.ledger.follow(), pki.ledger.read()):
        assert find_newest(state, NEW).serial == in_use
    revoke_older(pki, NEW, "superseded", no_passphrase, LATER + timedelta(hours=4))
    assert pki.ledger.follow().issued[in_use].revoked_at is None
    assert len([one for one in pki.ledger.follow().issued.values() if one.names == (str(NEW),)]) == 3


def test_an_old_ledger_beside_newer_lists_signs_nothing(restored: Restored) -> None:
    """The ledger alone was put back: nothing is written over the lists, and no key certified that may be stolen."""
    pki = restored.pki
    for name in ("hosts/crl.pem", "crl.pem"):
        shutil.copy(restored.fleet.pki.path.with_name("lost") / name, pki.path / name)
    assert "list of number 3, and the ledger's last is 1" in (find_lost(pki, None) or "")
    before = {path: path.read_bytes() for path in pki.path.rglob("*") if path.is_file()}
    with pytest.raises(BrokenError, match="older copy"):
        sign_crls(pki, no_passphrase, LATER)
    with pytest.raises(BrokenError, match="older copy"):
        revoke_name(pki, WEB, "superseded", no_passphrase, LATER)
    with pytest.raises(BrokenError, match="older copy"):
        start(pki, HOSTS_CA, no_passphrase, LATER)
    out = restored.noted.with_name("out")
    with pytest.raises(BrokenError, match="older copy"):
        issue_host(pki, NEW, out, no_passphrase, LATER)
    with pytest.raises(BrokenError, match="older copy"):
        renew(pki, WEB, None, out, no_passphrase, LATER)
    assert not out.exists()
    assert {path: path.read_bytes() for path in pki.path.rglob("*") if path.is_file()} == before
    restored.learn(pki.crl_path.read_bytes())
    assert find_lost(pki, None) is None
    assert sign_crls(pki, no_passphrase, LATER, is_forced=True)[1].number == 4


def test_an_old_copy_of_everything_is_found_by_what_was_noted_elsewhere(restored: Restored) -> None:
    """The note stays as it is, also after more was done in the copy; learning does not hide what else is lost."""
    noted = restored.noted.read_bytes()
    for _ in range(2):
        assert "were noted: lines are missing" in (find_lost(restored.pki, restored.noted) or "")
    issue_host(restored.pki, NEW, restored.identity.with_name("other"), no_passphrase, LATER)
    for _ in range(20):
        sign_crls(restored.pki, no_passphrase, LATER, is_forced=True)
    assert "another history" in (find_lost(restored.pki, restored.noted) or "")
    assert restored.noted.read_bytes() == noted
    restored.noted.unlink()
    assert find_lost(restored.pki, restored.noted) is None


def test_a_number_jump_is_bounded(own_fleet: Fleet) -> None:
    """A receiver never goes back from a number, so a slip of the keyboard must not use them up; a lower one changes nothing."""
    with pytest.raises(PkiError, match="not numbered after"):
        sign_crls(own_fleet.pki, no_passphrase, NOW, is_forced=True, after=MAX_NUMBER_JUMP + 2)
    assert {one.number for one in sign_crls(own_fleet.pki, no_passphrase, NOW, is_forced=True, after=41)} == {42}
    assert {one.number for one in sign_crls(own_fleet.pki, no_passphrase, NOW, is_forced=True, after=7)} == {43}

"""Which certificates a revocation concerns, where a key has more than one."""

from datetime import timedelta
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.certs.profiles import HOSTS_CA
from securecore.errors import PkiError
from securecore.names import HostName
from securecore.pki.issue import issue_host
from securecore.pki.ledger import Issued
from securecore.pki.revocation import revoke_name, revoke_older, revoke_serial
from securecore.pki.rotation import finish, start, switch
from securecore.pki.signing import renew
from tests.support.certificates import DOMAIN, HOST_NAME, NOW, Fleet, make_fleet, no_passphrase

LATER = NOW + timedelta(days=1)
NAME = HostName(HOST_NAME)


@pytest.fixture
def fleet(fleet: Fleet, tmp_path: Path) -> Fleet:
    """A fleet whose web-1 was renewed twice, and then given a new key."""
    for number in range(2):
        renew(fleet.pki, NAME, None, tmp_path / f"reply-{number}", no_passphrase, NOW)
    issue_host(fleet.pki, NAME, tmp_path / "rekeyed", no_passphrase, NOW)
    return fleet


def certificates_of(fleet: Fleet, name: str) -> list[Issued]:
    """Return a name's certificates, in order."""
    return [one for one in fleet.pki.ledger.read().issued.values() if one.names == (name,)]


def states_of(fleet: Fleet) -> list[str]:
    """Return the states of web-1's three certificates of one key, and of that of its new one."""
    return [one.state(LATER) for one in certificates_of(fleet, HOST_NAME)]


@pytest.mark.parametrize("which", range(3))
def test_a_compromised_key_ends_every_certificate_of_it(which: int, fleet: Fleet) -> None:
    """Whichever of them is named: whoever has the key has them all. The host's other key goes on, and so does its neighbour."""
    named = certificates_of(fleet, HOST_NAME)[which].serial
    done = revoke_serial(fleet.pki, named, "keyCompromise", no_passphrase, LATER)
    assert states_of(fleet) == ["revoked", "revoked", "revoked", "valid"]
    assert (len(done.revoked), done.same_key, [one.revoked for one in done.crls]) == (3, (), [3])
    assert [one.state(LATER) for one in certificates_of(fleet, f"db-2.{DOMAIN}")] == ["valid"]


def test_a_serial_number_for_another_reason_is_that_certificate_alone(fleet: Fleet) -> None:
    """What has the same key is told, so that nobody believes the key to be out."""
    first, *others = certificates_of(fleet, HOST_NAME)
    done = revoke_serial(fleet.pki, first.serial, "superseded", no_passphrase, LATER)
    assert [one.serial for one in done.revoked] == [first.serial]
    assert [one.serial for one in done.same_key] == [one.serial for one in others[:2]]


def test_a_key_that_is_found_stolen_after_its_certificate_was_revoked_is_out_too(fleet: Fleet) -> None:
    """The one that was named is not revoked twice; those of its key are."""
    first = certificates_of(fleet, HOST_NAME)[0]
    revoke_serial(fleet.pki, first.serial, "superseded", no_passphrase, NOW)
    done = revoke_serial(fleet.pki, first.serial, "keyCompromise", no_passphrase, LATER)
    assert ([one.serial for one in done.already], len(done.revoked)) == ([first.serial], 2)
    assert states_of(fleet) == ["revoked", "revoked", "revoked", "valid"]


def test_a_key_that_is_called_stolen_later_is_not_certified_again(tmp_path: Path) -> None:
    """One of its certificates was superseded, the other has expired: the reason is a new one, the date is not."""
    fleet, late = make_fleet(tmp_path, now=NOW), NOW + timedelta(days=91)
    renew(fleet.pki, NAME, None, tmp_path / "reply", no_passphrase, NOW)
    revoke_older(fleet.pki, NAME, "superseded", no_passphrase, NOW)
    revoke_name(fleet.pki, NAME, "keyCompromise", no_passphrase, late)
    first, second = certificates_of(fleet, HOST_NAME)
    assert (first.reason, first.revoked_at, second.state(late)) == ("keyCompromise", NOW, "expired")
    with pytest.raises(PkiError, match=r"of this key was revoked \(keyCompromise\)"):
        renew(fleet.pki, NAME, None, tmp_path / "again", no_passphrase, late)
    before = fleet.pki.ledger.path.read_bytes()
    revoke_serial(fleet.pki, first.serial, "superseded", no_passphrase, late)
    assert certificates_of(fleet, HOST_NAME)[0].reason == "keyCompromise"
    assert b'"event":"revoke"' not in fleet.pki.ledger.path.read_bytes()[len(before) :]


def test_the_newest_is_not_left_with_a_key_that_is_called_stolen(tmp_path: Path) -> None:
    """`--older` would leave the thief a certificate: it says so, and nothing is revoked."""
    fleet = make_fleet(tmp_path, now=NOW)
    renew(fleet.pki, NAME, None, tmp_path / "reply", no_passphrase, NOW)
    before = fleet.pki.ledger.path.read_bytes()
    with pytest.raises(PkiError, match="has the same key as an older one"):
        revoke_older(fleet.pki, NAME, "keyCompromise", no_passphrase, LATER)
    assert fleet.pki.ledger.path.read_bytes() == before
    assert len(revoke_older(fleet.pki, NAME, "superseded", no_passphrase, LATER).revoked) == 1


def test_older_certificates_of_a_stolen_key_go_where_the_newest_has_another(fleet: Fleet) -> None:
    """As after `pki rekey`."""
    revoke_older(fleet.pki, NAME, "keyCompromise", no_passphrase, LATER)
    assert states_of(fleet) == ["revoked", "revoked", "revoked", "valid"]


def test_a_host_is_revoked_though_one_of_its_certificates_is_of_a_ca_that_was_let_go_of(tmp_path: Path) -> None:
    """Nobody believes that one any more, and it must not keep the others in; alone it needs no revocation, and that is said."""
    fleet = make_fleet(tmp_path, now=NOW)
    old = load_identity(fleet.host).certificates[0].serial_number
    start(fleet.pki, HOSTS_CA, no_passphrase, NOW)
    switch(fleet.pki, HOSTS_CA, NOW)
    renew(fleet.pki, NAME, None, tmp_path / "reply", no_passphrase, NOW)
    finish(fleet.pki, HOSTS_CA, NOW, is_forced=True)
    with pytest.raises(PkiError, match="not in use any more"):
        revoke_serial(fleet.pki, old, "superseded", no_passphrase, LATER)
    done = revoke_name(fleet.pki, NAME, "keyCompromise", no_passphrase, LATER)
    assert ([one.authority for one in done.crls], len(done.revoked)) == (["hosts-ca"], 2)
    assert [one.state(LATER) for one in certificates_of(fleet, HOST_NAME)] == ["revoked", "revoked"]

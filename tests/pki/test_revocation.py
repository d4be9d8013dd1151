"""Revoking and signing CRLs."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, Reason, Refusal, judge
from securecore.certs.revocation import RevocationLists
from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.issue import issue_host
from securecore.pki.minting import CRL_DAYS, ROOT_CRL_DAYS
from securecore.pki.revocation import REASONS, revoke_name, revoke_serial, sign_crls
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, Fleet, make_fleet, no_passphrase

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet made at NOW."""
    return make_fleet(tmp_path, now=NOW)


def crl_of(pki: PkiDirectory, name: str) -> x509.CertificateRevocationList:
    """Return a CA's current CRL."""
    return x509.load_pem_x509_crl((pki.folder(name) / "crl.pem").read_bytes())


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Return a CRL's number."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def check(fleet: Fleet, identity: Path, purpose: Purpose, now: datetime) -> None:
    """Judge an identity and look it up in the PKI's current lists."""
    loaded, anchors = load_identity(identity), fleet.pki.anchors()
    judgement = judge(loaded.chain_der[0], [], anchors, purpose, now)
    RevocationLists.parse(fleet.pki.crl_path.read_bytes(), anchors).check(judgement, now)


def test_revoked_host_is_refused_and_its_neighbour_is_not(fleet: Fleet) -> None:
    """The new crl.pem does what revocation is for, with date and reason."""
    done = revoke_name(fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, NOW)
    assert [(one.authority, one.number, one.revoked) for one in done.crls] == [("hosts-ca", 2, 1)]
    with pytest.raises(Refusal) as caught:
        check(fleet, fleet.host, Purpose.HOST, NOW)
    assert caught.value.message == f"this host's certificate was revoked on {NOW:%Y-%m-%d} (keyCompromise)"
    check(fleet, fleet.hosts["db-2"], Purpose.HOST, NOW)
    check(fleet, fleet.receiver, Purpose.RECEIVER, NOW)


def test_name_revokes_every_valid_certificate_of_it(fleet: Fleet, tmp_path: Path) -> None:
    """All of a host's certificates go at once; those of others stay."""
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "second", no_passphrase, NOW)
    done = revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    assert len(done.revoked) == 2
    assert {serial.serial_number for serial in crl_of(fleet.pki, "hosts-ca")} == {one.serial for one in done.revoked}


def test_serial_revokes_one_certificate(fleet: Fleet, tmp_path: Path) -> None:
    """The old certificate of a host goes, the new one stays."""
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "second", no_passphrase, NOW)
    old = load_identity(fleet.host).certificates[0]
    revoke_serial(fleet.pki, old.serial_number, "superseded", no_passphrase, NOW)
    check(fleet, tmp_path / "second", Purpose.HOST, NOW)
    with pytest.raises(Refusal):
        check(fleet, fleet.host, Purpose.HOST, NOW)


def test_receiver_is_revoked_in_its_own_cas_list(fleet: Fleet) -> None:
    """The receivers CA signs for receivers."""
    done = revoke_name(fleet.pki, HostName(RECEIVER_NAME), "keyCompromise", no_passphrase, NOW)
    assert [one.authority for one in done.crls] == ["receivers-ca"]
    with pytest.raises(Refusal, match="this receiver's certificate was revoked"):
        check(fleet, fleet.receiver, Purpose.RECEIVER, NOW)


def test_issuing_ca_is_revoked_by_the_root(fleet: Fleet) -> None:
    """A stolen hosts CA takes all its hosts along."""
    serial = fleet.pki.certificate("hosts-ca").serial_number
    done = revoke_serial(fleet.pki, serial, "cACompromise", no_passphrase, NOW)
    assert [one.authority for one in done.crls] == ["root-ca"]
    with pytest.raises(Refusal, match="the certificate of the hosts CA was revoked"):
        check(fleet, fleet.host, Purpose.HOST, NOW)


def test_root_cannot_be_revoked(fleet: Fleet) -> None:
    """The message names the runbook that helps."""
    with pytest.raises(PkiError, match="a root can't be revoked") as caught:
        revoke_serial(fleet.pki, fleet.pki.certificate("root-ca").serial_number, "keyCompromise", no_passphrase, NOW)
    assert "root-key-lost.md" in (caught.value.hint or "")


def test_second_revocation_changes_nothing_but_signs_again(fleet: Fleet) -> None:
    """A rerun after a failure is harmless: the date and reason stay, the list is signed anew."""
    revoke_name(fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, NOW)
    done = revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW + timedelta(days=1))
    assert done.revoked == ()
    assert [(one.revoked_at, one.reason) for one in done.already] == [(NOW, "keyCompromise")]
    assert done.crls[0].number == 3


def test_unknown_name_and_serial_are_not_found(fleet: Fleet) -> None:
    """Nothing is recorded."""
    before = fleet.pki.ledger.path.read_bytes()
    with pytest.raises(NotFoundError, match="never made"):
        revoke_name(fleet.pki, HostName("nobody.test.example"), "superseded", no_passphrase, NOW)
    with pytest.raises(NotFoundError, match="never made"):
        revoke_serial(fleet.pki, 7, "superseded", no_passphrase, NOW)
    with pytest.raises(PkiError, match="not a reason"):
        revoke_name(fleet.pki, HostName(HOST_NAME), "because", no_passphrase, NOW)
    assert before == fleet.pki.ledger.path.read_bytes()


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_written(reason: str, fleet: Fleet) -> None:
    """Unspecified is written as no reason at all (RFC 5280 section 5.3.1)."""
    revoke_name(fleet.pki, HostName(HOST_NAME), reason, no_passphrase, NOW)
    entry = crl_of(fleet.pki, "hosts-ca")[0]
    found = [extension.value.reason.value for extension in entry.extensions if isinstance(extension.value, x509.CRLReason)]
    assert found == ([] if reason == "unspecified" else [reason])


def test_number_and_date_strictly_increase_whatever_the_clock_does(fleet: Fleet) -> None:
    """Two lists in one second, and a clock set back by a day, still make three different, ordered lists."""
    crls = [crl_of(fleet.pki, "hosts-ca")]
    for moment in (NOW, NOW, NOW - timedelta(days=1)):
        sign_crls(fleet.pki, no_passphrase, moment)
        crls.append(crl_of(fleet.pki, "hosts-ca"))
    assert [number_of(crl) for crl in crls] == [1, 2, 3, 4]
    offsets_s = [-300, 0, 1, 2]
    assert [crl.last_update_utc for crl in crls] == [NOW + timedelta(seconds=offset_s) for offset_s in offsets_s]


def test_lists_live_as_long_as_their_use_needs(fleet: Fleet) -> None:
    """Thirty days for the issuing CAs, a year for the root, whose key is off-line."""
    found = {name: crl_of(fleet.pki, name) for name in ("root-ca", "hosts-ca", "receivers-ca")}
    lives = {name: (crl.next_update_utc or NOW) - crl.last_update_utc for name, crl in found.items()}
    month, year = timedelta(days=CRL_DAYS), timedelta(days=ROOT_CRL_DAYS)
    assert lives == {"root-ca": year, "hosts-ca": month, "receivers-ca": month}


def test_absent_root_key_leaves_the_roots_list_alone(fleet: Fleet) -> None:
    """Daily work goes on without the root's key; crl.pem still holds all three lists."""
    (fleet.pki.folder("root-ca") / "key.pem").unlink()
    assert [one.authority for one in sign_crls(fleet.pki, no_passphrase, NOW)] == ["hosts-ca", "receivers-ca"]
    assert fleet.pki.crl_path.read_bytes().count(b"BEGIN X509 CRL") == 3
    check(fleet, fleet.host, Purpose.HOST, NOW)
    for name in ("hosts-ca", "receivers-ca"):
        (fleet.pki.folder(name) / "key.pem").unlink()
    with pytest.raises(NotFoundError, match="no CA's key is here"):
        sign_crls(fleet.pki, no_passphrase, NOW)


def test_absent_key_revokes_nothing(fleet: Fleet) -> None:
    """What can't be signed is not recorded either."""
    (fleet.pki.folder("hosts-ca") / "key.pem").unlink()
    before = fleet.pki.ledger.path.read_bytes()
    with pytest.raises(NotFoundError, match="is not here"):
        revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    assert before == fleet.pki.ledger.path.read_bytes()


def test_entry_stays_until_a_list_after_expiry_has_had_it(fleet: Fleet) -> None:
    """RFC 5280 section 3.3: an expired certificate is listed once more, then left out."""
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    lengths = []
    for days in (60, 91, 92):
        sign_crls(fleet.pki, no_passphrase, NOW + timedelta(days=days))
        lengths.append(len(crl_of(fleet.pki, "hosts-ca")))
    assert lengths == [1, 1, 0]


def test_name_whose_certificates_have_expired_needs_no_revocation(fleet: Fleet) -> None:
    """The message says so."""
    with pytest.raises(PkiError, match="nothing to revoke"):
        revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW + timedelta(days=91))


def test_list_that_was_rolled_back_is_noticed_on_reload(fleet: Fleet) -> None:
    """A receiver that has seen a revocation does not take the list from before it."""
    anchors = fleet.pki.anchors()
    old = RevocationLists.parse(fleet.pki.crl_path.read_bytes(), anchors)
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    new = RevocationLists.parse(fleet.pki.crl_path.read_bytes(), anchors)
    new.check_not_older_than(old)
    with pytest.raises(Exception, match="already in use"):
        old.check_not_older_than(new)


def test_new_host_is_issued_after_a_revocation(fleet: Fleet, tmp_path: Path) -> None:
    """Revoking a host's certificate does not burn its name."""
    revoke_name(fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, NOW)
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "again", no_passphrase, NOW)
    check(fleet, tmp_path / "again", Purpose.HOST, NOW)
    with pytest.raises(Refusal) as caught:
        check(fleet, fleet.host, Purpose.HOST, NOW)
    assert caught.value.reason is Reason.REVOKED


@pytest.mark.slow
def test_parallel_runs_make_one_chain_of_events(fleet: Fleet, tmp_path: Path) -> None:
    """Eight processes issue and sign at once: the ledger holds, no serial number or CRL number is used twice."""
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            issue_host(fleet.pki, HostName(f"p{number}.hosts.test.example"), tmp_path / f"p{number}", no_passphrase, NOW)
            sign_crls(fleet.pki, no_passphrase, NOW)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    state = fleet.pki.ledger.read()
    assert number_of(crl_of(fleet.pki, "hosts-ca")) == 9
    assert len([one for one in state.issued.values() if one.profile == "host"]) == 10

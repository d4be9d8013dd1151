"""Revoking and signing CRLs."""

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from securecore.certs.chain import load_pem_certificates
from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, Reason, Refusal, judge
from securecore.certs.profiles import RECEIVER
from securecore.certs.revocation import RevocationLists
from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.issue import issue_host, issue_receiver
from securecore.pki.minting import CRL_DAYS, RECEIVERS_CRL_DAYS, ROOT_CRL_DAYS
from securecore.pki.revocation import REASONS, revoke_name, revoke_older, revoke_serial, sign_crls
from securecore.pki.verification import verify_log
from tests.support.certificates import DOMAIN, HOST_NAME, NOW, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.processes import ROOT


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
        sign_crls(fleet.pki, no_passphrase, moment, is_forced=True)
        crls.append(crl_of(fleet.pki, "hosts-ca"))
    assert [number_of(crl) for crl in crls] == [1, 2, 3, 4]
    offsets_s = [-300, 0, 1, 2]
    assert [crl.last_update_utc for crl in crls] == [NOW + timedelta(seconds=offset_s) for offset_s in offsets_s]


def test_nothing_is_signed_before_it_is_due(fleet: Fleet) -> None:
    """Until a third of a list's life is left; nobody is asked for a passphrase till then, and not a byte changes."""

    def ask() -> bytes:
        pytest.fail("asked for a passphrase")

    before = {path: path.read_bytes() for path in fleet.pki.path.rglob("*") if path.is_file()}
    third = timedelta(days=CRL_DAYS) / 3
    ends = crl_of(fleet.pki, "hosts-ca").next_update_utc or NOW
    assert sign_crls(fleet.pki, ask, ends - third - timedelta(seconds=1)) == ()
    assert before == {path: path.read_bytes() for path in fleet.pki.path.rglob("*") if path.is_file()}
    signed = sign_crls(fleet.pki, no_passphrase, ends - third)
    assert [(one.authority, one.number) for one in signed] == [("hosts-ca", 2)]


@pytest.mark.parametrize("damage", ["gone", "cut", "older", "empty"])
def test_a_list_that_is_not_the_last_one_is_signed_anew(damage: str, fleet: Fleet) -> None:
    """Whatever became of the file: the ledger knows its number, and what it must name."""
    path = fleet.pki.folder("hosts-ca") / "crl.pem"
    older = path.read_bytes()
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    spoiled = {"gone": None, "cut": path.read_bytes()[:-60], "older": older, "empty": b""}[damage]
    path.unlink()
    if spoiled is not None:
        path.write_bytes(spoiled)
    assert [(one.authority, one.number, one.revoked) for one in sign_crls(fleet.pki, no_passphrase, NOW)] == [("hosts-ca", 3, 1)]
    assert fleet.pki.crl_path.read_bytes().count(b"BEGIN X509 CRL") == 3


def test_a_revocation_that_no_list_has_yet_is_due(fleet: Fleet) -> None:
    """As after a power cut between the ledger and the list."""
    serial = load_identity(fleet.host).certificates[0].serial_number
    fleet.pki.ledger.append(NOW, "revoke", {"serial": f"{serial:x}", "reason": "superseded"})
    assert [(one.authority, one.revoked) for one in sign_crls(fleet.pki, no_passphrase, NOW)] == [("hosts-ca", 1)]


def test_lists_together_are_put_right_without_a_signature(fleet: Fleet) -> None:
    """As after a power cut between a CA's list and the file with all of them."""
    whole = fleet.pki.crl_path.read_bytes()
    fleet.pki.crl_path.write_bytes(whole[: len(whole) // 2])
    assert sign_crls(fleet.pki, no_passphrase, NOW) == ()
    assert fleet.pki.crl_path.read_bytes() == whole


def test_lists_live_as_long_as_their_use_needs(fleet: Fleet) -> None:
    """Thirty days where hosts are judged by it; as long as a receiver's certificate, and a year, where the key may be off-line."""
    found = {name: crl_of(fleet.pki, name) for name in ("root-ca", "hosts-ca", "receivers-ca")}
    lives = {name: (crl.next_update_utc or NOW) - crl.last_update_utc for name, crl in found.items()}
    days = {"root-ca": ROOT_CRL_DAYS, "hosts-ca": CRL_DAYS, "receivers-ca": RECEIVERS_CRL_DAYS}
    assert lives == {name: timedelta(days=count) for name, count in days.items()}
    assert RECEIVER.default_days == RECEIVERS_CRL_DAYS


def test_absent_root_key_leaves_the_roots_list_alone(fleet: Fleet) -> None:
    """Daily work goes on without the root's key; crl.pem still holds all three lists."""
    (fleet.pki.folder("root-ca") / "key.pem").unlink()
    signed = sign_crls(fleet.pki, no_passphrase, NOW, is_forced=True)
    assert [one.authority for one in signed] == ["hosts-ca", "receivers-ca"]
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
        sign_crls(fleet.pki, no_passphrase, NOW + timedelta(days=days), is_forced=True)
        lengths.append(len(crl_of(fleet.pki, "hosts-ca")))
    assert lengths == [1, 1, 0]


def test_older_certificates_are_revoked_and_the_newest_stays(fleet: Fleet, tmp_path: Path) -> None:
    """Of each kind: a name may be a host and a receiver. Without an older one there is nothing to revoke."""
    with pytest.raises(PkiError, match="nothing to revoke"):
        revoke_older(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    for number in range(2):
        issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / f"host-{number}", no_passphrase, NOW)
    issue_receiver(fleet.pki, HostName(HOST_NAME), [], tmp_path / "receiver", no_passphrase, NOW)
    done = revoke_older(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    first, second = (load_identity(path).certificates[0].serial_number for path in (fleet.host, tmp_path / "host-0"))
    assert [one.serial for one in done.revoked] == [first, second]
    check(fleet, tmp_path / "host-1", Purpose.HOST, NOW)
    check(fleet, tmp_path / "receiver", Purpose.RECEIVER, NOW)
    with pytest.raises(NotFoundError, match="never made"):
        revoke_older(fleet.pki, HostName("nobody.hosts.test.example"), "superseded", no_passphrase, NOW)


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
    new.check_not_older_than(old, anchors)
    with pytest.raises(Exception, match="already in use"):
        old.check_not_older_than(new, anchors)


def test_new_host_is_issued_after_a_revocation(fleet: Fleet, tmp_path: Path) -> None:
    """Revoking a host's certificate does not burn its name."""
    revoke_name(fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, NOW)
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "again", no_passphrase, NOW)
    check(fleet, tmp_path / "again", Purpose.HOST, NOW)
    with pytest.raises(Refusal) as caught:
        check(fleet, fleet.host, Purpose.HOST, NOW)
    assert caught.value.reason is Reason.REVOKED


_ISSUE_AND_SIGN = """
import sys
from pathlib import Path
from securecore.certs.profiles import HOST
from securecore.names import HostName
from securecore.pki.directory import open_pki
from securecore.pki.issue import issue_host
from securecore.pki.recording import Subject
from securecore.pki.request import request
from securecore.pki.revocation import sign_crls
from securecore.pki.signing import read_request, sign
from tests.support.certificates import no_passphrase
from tests.pki.test_revocation import NOW

pki, name, out = open_pki(Path(sys.argv[1])), HostName(sys.argv[2]), Path(sys.argv[3])
key = read_request(request(out.with_name(f"{out.name}-own")).path)
print("ready", flush=True)
sys.stdin.read()
issue_host(pki, name, out, no_passphrase, NOW)
sign(pki, Subject(HOST, (name,)), key, out.with_name(f"{out.name}-reply.pem"), no_passphrase, NOW)
sign_crls(pki, no_passphrase, NOW, is_forced=True)
"""


@pytest.mark.slow
def test_parallel_runs_make_one_chain_of_events(fleet: Fleet, tmp_path: Path) -> None:
    """Sixteen processes issue and sign at once: the ledger holds, no serial number or CRL number is used twice."""
    command = [sys.executable, "-c", _ISSUE_AND_SIGN, str(fleet.pki.path)]
    names = [f"p{number}" for number in range(16)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen([*command, f"{name}.{DOMAIN}", str(tmp_path / name)], cwd=ROOT, **pipes) for name in names]
    # Whoever is ready waits for the last one: they begin together.
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0] * 16
    hosts = [one for one in fleet.pki.ledger.read().issued.values() if one.profile == "host"]
    delivered = [load_identity(tmp_path / name).certificates[0] for name in names]
    delivered += [load_pem_certificates((tmp_path / f"{name}-reply.pem").read_bytes())[0] for name in names]
    assert len({one.serial_number for one in delivered}) == 32
    assert {one.serial_number for one in delivered} <= {one.serial for one in hosts}
    assert len(hosts) == 2 + 32
    assert [number_of(crl_of(fleet.pki, name)) for name in ("hosts-ca", "root-ca")] == [17, 17]
    assert [one.problem for one in verify_log(fleet.pki, None)] == [None] * 5

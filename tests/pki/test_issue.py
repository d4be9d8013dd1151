"""Issuing: what is delivered, what is refused, and that no failure on the way loses or blocks anything."""

import base64
import errno
import ipaddress
import json
import os
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from securecore.certs import jws
from securecore.certs.identity_directory import load_identity, load_receiver_parts
from securecore.certs.judge import Purpose, judge
from securecore.certs.profiles import HOST, RECEIVER, ROOT_CA
from securecore.certs.revocation import RevocationLists
from securecore.errors import NotFoundError, PkiError, StorageError
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory, open_pki
from securecore.pki.issue import Issuance, issue_host, issue_receiver, parse_address
from tests.support.certificates import DOMAIN, HOST_NAME, NOW, RECEIVER_NAME, no_passphrase
from tests.support.disk import FailingDisk
from tests.support.power import Loss, ended_at_each_call


def host(pki: PkiDirectory, out: Path, *, name: str = HOST_NAME, days: int = 90, now: datetime = NOW) -> Issuance:
    """Issue a host."""
    return issue_host(pki, HostName(name), out, no_passphrase, now, days)


def test_host_identity_is_complete_and_believed(pki: PkiDirectory, tmp_path: Path) -> None:
    """Three files, private to their owner, and a chain that the judge believes from the identity's own root and issuing CA."""
    issued = host(pki, tmp_path / "web-1")
    modes = {path.name: path.stat().st_mode & 0o777 for path in issued.out.iterdir()}
    assert modes == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    assert issued.out.stat().st_mode & 0o777 == 0o700
    identity = load_identity(issued.out)
    judgement = judge(identity.chain_der[0], identity.chain_der[1:], identity.anchors, Purpose.HOST, NOW)
    assert HostName(HOST_NAME) == judgement.name
    assert (NOW - timedelta(minutes=5), NOW + timedelta(days=90)) == (judgement.not_before, judgement.not_after)


def test_receiver_identity_is_complete_and_believed(pki: PkiDirectory, tmp_path: Path) -> None:
    """The receiver has all CAs, all lists, the log key, and names and addresses in the order given, each once."""
    addresses = [parse_address(text) for text in ("127.0.0.1", "[::1]", "dumps.example.net", RECEIVER_NAME, "127.0.0.1")]
    issued = issue_receiver(pki, HostName(RECEIVER_NAME), addresses, tmp_path / "r", no_passphrase, NOW)
    modes = {path.name: path.stat().st_mode & 0o777 for path in issued.out.iterdir()}
    public = dict.fromkeys(["ca.pem", "cert.pem", "crl.pem", "log-key.jws"], 0o644)
    assert modes == public | dict.fromkeys(["key.pem", "log-key.pem"], 0o600)
    identity, parts = load_identity(issued.out), load_receiver_parts(issued.out)
    judgement = judge(identity.chain_der[0], identity.chain_der[1:], identity.anchors, Purpose.RECEIVER, NOW)
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expected = [
        x509.DNSName(RECEIVER_NAME),
        x509.DNSName("dumps.example.net"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    assert expected == list(names)
    RevocationLists.parse(parts.crl_pem, identity.anchors).check(judgement, NOW)


def test_log_statement_names_the_log_key(pki: PkiDirectory, tmp_path: Path) -> None:
    """The statement is signed with the receiver's own key and says whose log key this is, in canonical JSON."""
    issue_receiver(pki, HostName(RECEIVER_NAME), [], tmp_path / "r", no_passphrase, NOW)
    identity, parts = load_identity(tmp_path / "r"), load_receiver_parts(tmp_path / "r")
    token = jws.verify(parts.log_statement, jws.LOG_KEY_TYP, 65536)
    statement = json.loads(token.payload)
    assert identity.chain_der == token.chain_der
    assert token.payload == json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    assert statement == {
        "type": "securecore/log-key",
        "version": 1,
        "name": f"{RECEIVER_NAME}/securecore",
        "public_key": base64.b64encode(parts.log_key.public_key().public_bytes_raw()).decode(),
        "issued_at": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def test_issued_certificate_is_in_the_ledger_and_kept_by_serial(pki: PkiDirectory, tmp_path: Path) -> None:
    """What was delivered can be listed and revoked."""
    issued = host(pki, tmp_path / "web-1")
    serial = issued.certificate.serial_number
    kept = (pki.path / "issued" / f"{serial:x}.pem").read_bytes()
    assert x509.load_pem_x509_certificate(kept) == issued.certificate
    assert pki.ledger.read().issued[serial].names == (HOST_NAME,)


def test_several_certificates_of_one_name_are_normal_and_told(pki: PkiDirectory, tmp_path: Path) -> None:
    """The second issue says that the first one is still valid."""
    first = host(pki, tmp_path / "1")
    assert first.others == ()
    second = host(pki, tmp_path / "2")
    assert [one.serial for one in second.others] == [first.certificate.serial_number]


def test_name_outside_the_domain_is_refused(pki: PkiDirectory, tmp_path: Path) -> None:
    """The issuer checks the constraint that every verifier would check."""
    for name in ("web-1.evil.example", f"evil{DOMAIN}"):
        with pytest.raises(PkiError, match="lies outside"):
            host(pki, tmp_path / "web-1", name=name)
    assert not (tmp_path / "web-1").exists()


@pytest.mark.parametrize("days", [0, -1, 398, 10**9])
def test_lifetime_is_bounded(days: int, pki: PkiDirectory, tmp_path: Path) -> None:
    """One day to 397 days."""
    with pytest.raises(PkiError, match="lives 1 to 397 days"):
        host(pki, tmp_path / "web-1", days=days)
    assert (HOST.max_days, RECEIVER.max_days) == (397, 397)


def test_lifetime_ends_with_the_issuer(pki: PkiDirectory, tmp_path: Path) -> None:
    """Shortly before its CA ends, a leaf ends with it; in the CA's last hour and after, none is made."""
    end = pki.certificate("hosts-ca").not_valid_after_utc
    assert host(pki, tmp_path / "a", now=end - timedelta(days=10)).certificate.not_valid_after_utc == end
    for moment in (end - timedelta(minutes=59), end + timedelta(days=1)):
        with pytest.raises(PkiError, match="the CA itself ends on"):
            host(pki, tmp_path / "b", now=moment)


def test_clock_before_the_ca_is_refused(pki: PkiDirectory, tmp_path: Path) -> None:
    """A machine whose clock is behind issues nothing."""
    with pytest.raises(PkiError, match="the CA is not valid before"):
        host(pki, tmp_path / "web-1", now=NOW - timedelta(hours=1))


def test_certificate_never_begins_before_its_issuer(pki: PkiDirectory, tmp_path: Path) -> None:
    """Backdating stops at the issuer's own beginning."""
    begin = pki.certificate("hosts-ca").not_valid_before_utc
    assert begin == host(pki, tmp_path / "web-1", now=begin + timedelta(minutes=1)).certificate.not_valid_before_utc


def test_long_name_is_issued_without_common_name(pki: PkiDirectory, tmp_path: Path) -> None:
    """A common name holds 64 characters; the name is in the alternative name, which is what is read."""
    name = ".".join(["a" * 60] * 3) + f".{DOMAIN}"
    issued = host(pki, tmp_path / "long", name=name)
    assert issued.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) == []
    identity = load_identity(issued.out)
    assert name == str(judge(identity.chain_der[0], identity.chain_der[1:], identity.anchors, Purpose.HOST, NOW).name)


def test_receiver_with_too_many_names_is_refused(pki: PkiDirectory, tmp_path: Path) -> None:
    """Thirty-two names and addresses fit."""
    many = [parse_address(f"127.0.0.{number}") for number in range(1, 32)]
    issue_receiver(pki, HostName(RECEIVER_NAME), many, tmp_path / "a", no_passphrase, NOW)
    with pytest.raises(PkiError, match="33 names and addresses"):
        issue_receiver(pki, HostName(RECEIVER_NAME), [*many, parse_address("::1")], tmp_path / "b", no_passphrase, NOW)


@pytest.mark.parametrize("text", ["", "localhost", "0.0.0.0", "::", "[::]", "ff02::1", "fe80::1%eth0", "../x", "300.1.2.3", "[x]"])
def test_address_that_nobody_can_dial_is_refused(text: str) -> None:
    """The message shows what was given."""
    with pytest.raises(PkiError, match=r"not an address of a receiver|no sender can dial"):
        parse_address(text)


def test_existing_directory_is_refused_and_nothing_is_recorded(pki: PkiDirectory, tmp_path: Path) -> None:
    """Refusing comes first."""
    (tmp_path / "web-1").mkdir()
    before = (pki.path / "ledger.jsonl").read_bytes()
    with pytest.raises(PkiError, match="exists already"):
        host(pki, tmp_path / "web-1")
    assert before == (pki.path / "ledger.jsonl").read_bytes()


def test_absent_ca_key_is_named(pki: PkiDirectory, tmp_path: Path) -> None:
    """Issuing a host needs the hosts CA's key only; without it the message says where it belongs."""
    (pki.folder(ROOT_CA.name) / "key.pem").unlink()
    (pki.folder("receivers-ca") / "key.pem").unlink()
    host(pki, tmp_path / "web-1")
    with pytest.raises(NotFoundError, match=r"receivers/key\.pem: the key of the receivers-ca is not here"):
        issue_receiver(pki, HostName(RECEIVER_NAME), [], tmp_path / "r", no_passphrase, NOW)


def identity_files(kind: str) -> int:
    """Return how many files an identity of a kind holds."""
    return {"host": 3, "receiver": 6}[kind]


def issue_kind(pki: PkiDirectory, kind: str, out: Path) -> Issuance:
    """Issue a host or a receiver."""
    if kind == "host":
        return host(pki, out)
    return issue_receiver(pki, HostName(RECEIVER_NAME), [], out, no_passphrase, NOW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["host", "receiver"])
def test_full_disk_at_any_step_leaves_nothing_and_a_rerun_succeeds(
    kind: str, pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write in turn fails: no directory or temporary remains, nothing undelivered counts as valid, the rerun succeeds."""
    homes = tmp_path / "identities"
    homes.mkdir()
    for step in range(1, 50):
        disk = FailingDisk(step)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", disk)
            with suppress(StorageError):
                issue_kind(pki, kind, homes / f"{step}")
        if disk.calls < step:
            break
        delivered = {path.name for path in homes.iterdir()}
        valid = [one for one in pki.ledger.read().issued.values() if one.names and one.state(NOW) == "valid"]
        assert delivered <= {f"{step}"}
        assert len(valid) == len(delivered)
        for path in [*homes.iterdir()]:
            assert len(list(path.iterdir())) == identity_files(kind)
            path.rename(tmp_path / f"delivered-{step}")
        issued = issue_kind(pki, kind, homes / f"{step}")
        load_identity(issued.out)
        issued.out.rename(tmp_path / f"second-{step}")
        pki = create_pki(tmp_path / f"pki-{step}", "Test", DOMAIN, None, NOW)
    assert step > identity_files(kind) + 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("kind", ["host", "receiver"])
def test_end_at_any_call_and_a_rerun_succeeds(kind: str, loss: Loss, pki: PkiDirectory) -> None:
    """The process ends before each call in turn: what is delivered is whole and recorded, and the rerun succeeds without help."""
    ends = 0
    for left, fatal in ended_at_each_call(
        pki.path.parent, lambda path: issue_kind(open_pki(path / pki.path.name), kind, path / "out"), loss
    ):
        again, out = open_pki(left / pki.path.name), left / "out"
        recorded = again.ledger.read().issued
        if out.exists():
            assert load_identity(out).certificates[0].serial_number in recorded, fatal
            out.rename(left / "delivered")
        issued = issue_kind(again, kind, out)
        assert load_identity(out).certificates[0] == issued.certificate
        assert len(list(out.iterdir())) == identity_files(kind)
        assert {path.stem for path in (again.path / "issued").iterdir()} >= {f"{serial:x}" for serial in recorded}, fatal
        assert [path for path in left.iterdir() if path.name.startswith(".")] == []
        ends += 1
    assert ends > identity_files(kind) + 2


def test_undelivered_certificate_is_discarded(pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the name is taken at the last moment, the recorded certificate is marked: its key is gone."""
    real = os.rename

    def too_late(source: Path, target: Path) -> None:
        if str(target) == str(tmp_path / "web-1"):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    with pytest.raises(StorageError, match="not empty"):
        host(pki, tmp_path / "web-1")
    states = [one.state(NOW) for one in pki.ledger.read().issued.values() if one.names]
    assert states == ["discarded"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pki"]

"""Signing for keys that stay where they are: by request, again for the newest, and a new key for the same names."""

import os
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, judge
from securecore.certs.profiles import HOST, RECEIVER
from securecore.errors import BrokenError, NotFoundError, PkiError, StorageError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory, open_pki
from securecore.pki.issue import Issuance, issue_host, issue_receiver, parse_address, rekey, server_subject
from securecore.pki.keys import AskPassphrase, make_key
from securecore.pki.minting import Authority
from securecore.pki.recording import Subject
from securecore.pki.reply import parse_reply
from securecore.pki.request import request
from securecore.pki.revocation import revoke_name, revoke_serial
from securecore.pki.signing import read_request, renew, sign
from securecore.pki.signing_request import make_request, requested_key
from tests.support.certificates import DOMAIN, HOST_NAME, NOW, RECEIVER_NAME, no_passphrase
from tests.support.disk import FailingDisk

NAME = HostName(HOST_NAME)
LATER = NOW + timedelta(days=60)


def sign_host(pki: PkiDirectory, identity: Path, out: Path, now: datetime = NOW) -> Issuance:
    """Sign the request in an identity directory as that of web-1."""
    return sign(pki, Subject(HOST, (NAME,)), read_request(identity / "request.pem"), out, no_passphrase, now)


def valid(pki: PkiDirectory) -> list[int]:
    """Return the serial numbers of valid leaves."""
    return [one.serial for one in pki.ledger.read().issued.values() if one.names and one.state(NOW) == "valid"]


def test_a_request_is_answered_with_all_that_its_machine_needs(pki: PkiDirectory, tmp_path: Path) -> None:
    """Leaf, issuing CA and root; the leaf is for the key of the request, and the judge believes it."""
    made = request(tmp_path / "web-1")
    issued = sign_host(pki, tmp_path / "web-1", tmp_path / "reply.pem")
    reply = parse_reply((tmp_path / "reply.pem").read_bytes(), what="reply")
    assert (reply.leaf, reply.issuer) == (issued.certificate, pki.certificate("hosts-ca"))
    assert (reply.anchors.roots, reply.crl_pem) == ((pki.certificate("root-ca"),), b"")
    assert reply.leaf.public_key() == made.public_key
    leaf, issuer = (one.public_bytes(Encoding.DER) for one in (reply.leaf, reply.issuer))
    assert judge(leaf, [issuer], reply.anchors, Purpose.HOST, NOW).name == NAME
    assert valid(pki) == [reply.leaf.serial_number]


def test_a_receivers_reply_has_all_cas_and_lists(pki: PkiDirectory, tmp_path: Path) -> None:
    """What it needs to judge hosts."""
    request(tmp_path / "collector")
    subject = server_subject(RECEIVER, HostName(RECEIVER_NAME), [parse_address("127.0.0.1")])
    sign(pki, subject, read_request(tmp_path / "collector" / "request.pem"), tmp_path / "reply.pem", no_passphrase, NOW)
    reply = parse_reply((tmp_path / "reply.pem").read_bytes(), what="reply")
    assert set(reply.anchors.intermediates) == {pki.certificate("hosts-ca"), pki.certificate("receivers-ca")}
    assert reply.crl_pem == pki.crl_path.read_bytes()


def test_nothing_but_the_key_is_taken_from_a_request(pki: PkiDirectory, tmp_path: Path) -> None:
    """A request that asks to be a CA of another name gets what its operator says, no more."""
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"db-2.{DOMAIN}")]))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "request.pem"
    path.write_bytes(greedy.public_bytes(Encoding.PEM))
    issued = sign(pki, Subject(HOST, (NAME,)), read_request(path), tmp_path / "reply.pem", no_passphrase, NOW)
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [*names] == [x509.DNSName(HOST_NAME)]
    assert not issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    common = issued.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert [one.value for one in common] == [HOST_NAME]


def other_keys() -> dict[str, bytes]:
    """Return requests for keys of kinds that no profile knows."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = {
        "P-384": builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        "RSA": builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        "Ed25519": builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
    }
    return {name: one.public_bytes(Encoding.PEM) for name, one in made.items()}


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_a_request_for_another_kind_of_key_is_refused(kind: str) -> None:
    """The message says which kind is meant."""
    with pytest.raises(PkiError, match="not an ECDSA key on P-256"):
        requested_key(other_keys()[kind], what="request.pem")


def test_a_request_that_its_key_did_not_sign_is_refused(tmp_path: Path) -> None:
    """Whoever has only another one's public key can't have it certified; at whatever place the bytes were changed."""
    request(tmp_path / "web-1")
    pem = (tmp_path / "web-1" / "request.pem").read_bytes()
    parsed = x509.load_pem_x509_csr(pem)
    der = parsed.public_bytes(Encoding.DER)
    # Before the signature stands how many of its last bits don't count: one less, where that one is 0, is the same signature.
    unused_bits = len(der) - len(parsed.signature) - 1
    for place in (one for one in range(len(der)) if one != unused_bits):
        spoiled = bytearray(der)
        spoiled[place] ^= 1
        with pytest.raises(PkiError):
            requested_key(_as_pem(bytes(spoiled)), what="request.pem")


def test_a_request_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """In one line."""
    request(tmp_path / "web-1")
    pem = (tmp_path / "web-1" / "request.pem").read_bytes().rstrip(b"\n")
    for length in range(len(pem)):
        with pytest.raises(PkiError, match="not a certificate signing request"):
            requested_key(pem[:length], what="request.pem")


def _as_pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


def test_a_file_with_two_requests_is_not_one_of_them() -> None:
    """Whoever adds to a file on its way has nobody's key certified, at either end; text around the one is nothing (RFC 7468)."""
    pem, other = make_request(make_key()), make_request(make_key())
    for added in (other, other[:40], pem, b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"):
        for both in (pem + added, added + b"\n" + pem):
            with pytest.raises(PkiError, match="2 PEM blocks, where one request is expected"):
                requested_key(both, what="request.pem")
    assert requested_key(b"Subject:\n" + pem + b"\n", what="request.pem") == requested_key(pem, what="request.pem")


def test_renewal_is_for_the_same_key_names_and_addresses(pki: PkiDirectory, tmp_path: Path) -> None:
    """With a new serial number; the one before is named, and stays valid."""
    first = issue_receiver(pki, HostName(RECEIVER_NAME), [parse_address("127.0.0.1")], tmp_path / "r", no_passphrase, NOW)
    renewed = renew(pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, LATER)
    old, new = first.certificate, renewed.certificate
    assert (old.public_key(), first.subject) == (new.public_key(), renewed.subject)
    assert old.serial_number != new.serial_number
    assert new.not_valid_after_utc == LATER + timedelta(days=90)
    assert [one.serial for one in renewed.others] == [old.serial_number]


def test_the_newest_is_renewed_also_when_it_has_expired(pki: PkiDirectory, tmp_path: Path) -> None:
    """Whoever runs the PKI decides; an identity that slept through its renewal needs no new key for it."""
    issue_host(pki, NAME, tmp_path / "a", no_passphrase, NOW)
    second = issue_host(pki, NAME, tmp_path / "b", no_passphrase, NOW)
    renewed = renew(pki, NAME, HOST, tmp_path / "reply.pem", no_passphrase, NOW + timedelta(days=200))
    assert renewed.certificate.public_key() == second.certificate.public_key()
    assert renewed.others == ()


def test_a_revoked_key_is_not_certified_again(pki: PkiDirectory, tmp_path: Path) -> None:
    """Somebody else may have it. A new key for the same name is another matter."""
    first = issue_host(pki, NAME, tmp_path / "a", no_passphrase, NOW)
    revoke_name(pki, NAME, "keyCompromise", no_passphrase, NOW)
    with pytest.raises(PkiError, match=r"was revoked on .* \(keyCompromise\): its key is not certified again"):
        renew(pki, NAME, HOST, tmp_path / "reply.pem", no_passphrase, NOW)
    again = rekey(pki, NAME, HOST, tmp_path / "b", no_passphrase, NOW)
    assert again.certificate.public_key() != first.certificate.public_key()


def test_a_key_that_was_revoked_is_not_certified_again_by_request(pki: PkiDirectory, tmp_path: Path) -> None:
    """Not even for a thief who brings a fresh request of it; that its older certificates were superseded is no reason."""
    request(tmp_path / "web-1")
    first = sign_host(pki, tmp_path / "web-1", tmp_path / "1.pem")
    second = sign_host(pki, tmp_path / "web-1", tmp_path / "2.pem")
    revoke_serial(pki, first.certificate.serial_number, "superseded", no_passphrase, NOW)
    sign_host(pki, tmp_path / "web-1", tmp_path / "3.pem")
    revoke_serial(pki, second.certificate.serial_number, "keyCompromise", no_passphrase, NOW)
    lines = len(pki.ledger.digests())
    with pytest.raises(PkiError, match=r"of this key was revoked \(keyCompromise\): the key is not certified again"):
        sign_host(pki, tmp_path / "web-1", tmp_path / "4.pem")
    with pytest.raises(PkiError, match="not certified again"):
        renew(pki, NAME, None, tmp_path / "4.pem", no_passphrase, NOW)
    assert (len(pki.ledger.digests()), (tmp_path / "4.pem").exists()) == (lines, False)


def test_a_key_whose_every_certificate_was_revoked_is_not_certified_again(pki: PkiDirectory, tmp_path: Path) -> None:
    """For whatever reason: that is what is asked for when a machine is lost."""
    request(tmp_path / "web-1")
    sign_host(pki, tmp_path / "web-1", tmp_path / "1.pem")
    revoke_name(pki, NAME, "unspecified", no_passphrase, NOW)
    with pytest.raises(PkiError, match=r"of this key was revoked \(unspecified\)"):
        sign_host(pki, tmp_path / "web-1", tmp_path / "2.pem")


def test_a_name_that_is_revoked_while_it_is_renewed_is_not_renewed(pki: PkiDirectory, tmp_path: Path) -> None:
    """The ledger is asked again under the lock: a passphrase takes long to type."""
    request(tmp_path / "web-1")
    sign_host(pki, tmp_path / "web-1", tmp_path / "1.pem")
    real = pki.authority

    def slowly(name: str, ask: AskPassphrase) -> Authority:
        revoke_name(open_pki(pki.path), NAME, "keyCompromise", no_passphrase, NOW)
        return real(name, ask)

    pki.authority = slowly  # type: ignore[method-assign]
    with pytest.raises(PkiError, match="not certified again"):
        renew(pki, NAME, None, tmp_path / "2.pem", no_passphrase, NOW)
    assert valid(pki) == []


def test_a_key_belongs_to_one_machine(pki: PkiDirectory, tmp_path: Path) -> None:
    """Two machines made from one image ask with one key: the second is refused, while the first has a valid certificate."""
    request(tmp_path / "web-1")
    sign_host(pki, tmp_path / "web-1", tmp_path / "1.pem")
    key = read_request(tmp_path / "web-1" / "request.pem")
    for subject in (Subject(HOST, (HostName(f"db-2.{DOMAIN}"),)), server_subject(RECEIVER, NAME, [])):
        with pytest.raises(PkiError, match=rf"this is the key of host {HOST_NAME}"):
            sign(pki, subject, key, tmp_path / "2.pem", no_passphrase, NOW)
    sign(pki, Subject(HOST, (HostName(f"db-2.{DOMAIN}"),)), key, tmp_path / "2.pem", no_passphrase, NOW + timedelta(days=91))


def test_a_new_key_is_for_the_names_and_addresses_of_the_newest(pki: PkiDirectory, tmp_path: Path) -> None:
    """Nobody has to remember them."""
    addresses = [parse_address(text) for text in ("192.0.2.7", "::1", "dumps.example.net")]
    first = issue_receiver(pki, HostName(RECEIVER_NAME), addresses, tmp_path / "a", no_passphrase, NOW)
    second = rekey(pki, HostName(RECEIVER_NAME), None, tmp_path / "b", no_passphrase, NOW)
    assert first.subject == second.subject
    assert load_identity(tmp_path / "b").certificates[0].public_key() != first.certificate.public_key()


def test_a_name_of_two_kinds_is_not_guessed(pki: PkiDirectory, tmp_path: Path) -> None:
    """A machine may be a host and a receiver; a name that was never certified is said to be so."""
    issue_host(pki, NAME, tmp_path / "host", no_passphrase, NOW)
    issue_receiver(pki, NAME, [], tmp_path / "receiver", no_passphrase, NOW)
    with pytest.raises(PkiError, match="is a host and a receiver"):
        renew(pki, NAME, None, tmp_path / "reply.pem", no_passphrase, NOW)
    assert renew(pki, NAME, RECEIVER, tmp_path / "reply.pem", no_passphrase, NOW).subject.profile is RECEIVER
    with pytest.raises(NotFoundError, match="never made a receiver certificate"):
        rekey(pki, HostName(f"db-2.{DOMAIN}"), RECEIVER, tmp_path / "x", no_passphrase, NOW)


def test_a_certificate_that_somebody_exchanged_is_not_renewed(pki: PkiDirectory, tmp_path: Path) -> None:
    """The ledger knows the one that was issued."""
    first = issue_host(pki, NAME, tmp_path / "a", no_passphrase, NOW).certificate.serial_number
    second = issue_host(pki, HostName(f"db-2.{DOMAIN}"), tmp_path / "b", no_passphrase, NOW).certificate.serial_number
    (pki.path / "issued" / f"{first:x}.pem").write_bytes((pki.path / "issued" / f"{second:x}.pem").read_bytes())
    with pytest.raises(BrokenError, match="not the certificate that the ledger has"):
        renew(pki, NAME, HOST, tmp_path / "reply.pem", no_passphrase, NOW)


def test_nothing_is_overwritten_and_nothing_recorded(pki: PkiDirectory, tmp_path: Path) -> None:
    """Refusing comes first."""
    request(tmp_path / "web-1")
    (tmp_path / "reply.pem").write_text("precious")
    before = pki.ledger.path.read_bytes()
    with pytest.raises(PkiError, match="exists already"):
        sign_host(pki, tmp_path / "web-1", tmp_path / "reply.pem")
    assert (pki.ledger.path.read_bytes(), (tmp_path / "reply.pem").read_text()) == (before, "precious")


def test_a_full_disk_at_any_step_leaves_nothing_and_a_rerun_succeeds(
    pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write in turn fails: a reply is there whole or not at all, and one that nobody has is not listed as valid."""
    request(tmp_path / "web-1")
    out = tmp_path / "replies"
    out.mkdir()
    for step in range(1, 20):
        disk = FailingDisk(step)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", disk)
            with suppress(StorageError):
                sign_host(pki, tmp_path / "web-1", out / f"{step}.pem")
        if disk.calls < step:
            break
        delivered = [parse_reply(path.read_bytes(), what="reply").leaf.serial_number for path in out.iterdir()]
        assert sorted(valid(pki)) == sorted(delivered)
        if not (out / f"{step}.pem").exists():
            sign_host(pki, tmp_path / "web-1", out / f"{step}.pem")
    assert step > 4

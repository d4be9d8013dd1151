"""On the machine that holds the key: requests, and putting replies beside it."""

import os
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from securecore.audit.rekeying import rekey
from securecore.audit.statement import verify_statement
from securecore.certs.chain import fingerprint
from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, Reason, Refusal, judge
from securecore.certs.profiles import RECEIVER
from securecore.errors import ConfigError, PkiError
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory, certificate_pem
from securecore.pki.install import finish, install
from securecore.pki.issue import issue_enroller, issue_host, issue_receiver, server_subject
from securecore.pki.request import request
from securecore.pki.revocation import sign_crls
from securecore.pki.signing import read_request, renew, sign
from securecore.receiver.material import load_material
from tests.pki.test_signing import sign_host
from tests.support.certificates import DOMAIN, ENROLLER_NAME, HOST_NAME, NOW, RECEIVER_NAME, no_passphrase

NAME = HostName(HOST_NAME)
LATER = NOW + timedelta(days=60)


def reply_of(pki: PkiDirectory, identity: Path, name: str = "reply", now: datetime = NOW) -> bytes:
    """Return the reply to a host's request."""
    out = identity.with_name(f"{name}.pem")
    sign_host(pki, identity, out, now)
    return out.read_bytes()


def receiver_reply(pki: PkiDirectory, identity: Path, name: str = "reply", now: datetime = NOW) -> bytes:
    """Return the reply to a receiver's request."""
    out = identity.with_name(f"{name}.pem")
    subject = server_subject(RECEIVER, HostName(RECEIVER_NAME), [])
    sign(pki, subject, read_request(identity / "request.pem"), out, no_passphrase, now)
    return out.read_bytes()


def files(identity: Path) -> dict[str, int]:
    """Return the modes of an identity directory's files."""
    return {path.name: path.stat().st_mode & 0o777 for path in identity.iterdir()}


def test_a_host_that_never_gave_its_key_away_is_believed(pki: PkiDirectory, tmp_path: Path) -> None:
    """From request to certificate: the same three files as `pki issue` makes, and the key is the one of the beginning."""
    identity = tmp_path / "web-1"
    request(identity)
    assert files(identity) == {"key.pem": 0o600, "request.pem": 0o644}
    key = (identity / "key.pem").read_bytes()
    done = install(identity, reply_of(pki, identity), NOW)
    assert files(identity) == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    assert (identity / "key.pem").read_bytes() == key
    loaded = load_identity(identity)
    judged = judge(loaded.chain_der[0], loaded.chain_der[1:], loaded.anchors, Purpose.HOST, NOW)
    assert (judged.name, done.judgement, done.is_new_key) == (NAME, judged, False)


def test_a_receiver_that_never_gave_its_keys_away_can_start(pki: PkiDirectory, tmp_path: Path) -> None:
    """It has made its log key, and vouches for it with its certificate."""
    identity = tmp_path / "collector"
    request(identity)
    install(identity, receiver_reply(pki, identity), NOW)
    public = dict.fromkeys(["ca.pem", "cert.pem", "crl.pem", "log-key.jws"], 0o644)
    assert files(identity) == public | dict.fromkeys(["key.pem", "log-key.pem"], 0o600)
    assert load_material(identity, NOW).own.name == HostName(RECEIVER_NAME)


def test_a_running_receiver_takes_a_renewed_certificate(pki: PkiDirectory, tmp_path: Path) -> None:
    """The log key stays, and the new certificate vouches for it, also when the old one has ended."""
    identity = tmp_path / "r"
    issue_receiver(pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, NOW)
    before = load_material(identity, NOW)
    renew(pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, LATER)
    install(identity, (tmp_path / "reply.pem").read_bytes(), LATER)
    after = load_material(identity, NOW + timedelta(days=100), before)
    assert before.signer.public_key == after.signer.public_key
    assert before.own.fingerprint != after.own.fingerprint
    stated = verify_statement(after.parts.log_statement, after.identity.anchors)
    assert stated.receiver.fingerprint == after.own.fingerprint


def test_an_enroller_takes_a_renewed_certificate(pki: PkiDirectory, tmp_path: Path) -> None:
    """It keeps the CAs, by which it knows hosts, and has no CRLs and no log key: the PKI's ledger tells it who was revoked."""
    identity = tmp_path / "enroller"
    issue_enroller(pki, HostName(ENROLLER_NAME), [], identity, no_passphrase, NOW)
    before = files(identity)
    renew(pki, HostName(ENROLLER_NAME), None, tmp_path / "reply.pem", no_passphrase, LATER)
    done = install(identity, (tmp_path / "reply.pem").read_bytes(), LATER)
    assert (done.judgement.purpose, files(identity)) == (Purpose.ENROLLER, before)
    assert len(load_identity(identity).anchors.intermediates) == 2


def test_a_lost_log_key_is_not_replaced_in_silence(pki: PkiDirectory, tmp_path: Path) -> None:
    """A renewal leaves its statement, by which `audit rekey --lost` puts a new one behind it."""
    identity = tmp_path / "r"
    issue_receiver(pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, NOW)
    rekey(identity, NOW)
    lost = load_material(identity, NOW)
    (identity / "log-key.pem").unlink()
    renew(pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, NOW)
    done = install(identity, (tmp_path / "reply.pem").read_bytes(), NOW)
    assert done.lacks_log_key
    assert not (identity / "log-key.pem").exists()
    assert rekey(identity, NOW, identity).is_lost
    assert load_material(identity, NOW, lost).signer.earlier == (lost.signer.public_key, *lost.signer.earlier)


def test_a_new_key_waits_until_its_certificate_is_there(pki: PkiDirectory, tmp_path: Path) -> None:
    """The identity goes on meanwhile; then key and certificate are exchanged, and nothing is left over."""
    identity = tmp_path / "web-1"
    old = issue_host(pki, NAME, identity, no_passphrase, NOW)
    made = request(identity)
    assert made.is_rekey
    assert load_identity(identity).certificates[0] == old.certificate
    assert request(identity).public_key == made.public_key
    done = install(identity, reply_of(pki, identity, now=LATER), LATER)
    assert (done.is_new_key, load_identity(identity).certificates[0].public_key()) == (True, made.public_key)
    assert files(identity) == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}


def test_a_renewal_leaves_a_waiting_key_its_request(pki: PkiDirectory, tmp_path: Path) -> None:
    """Both may be under way at once."""
    identity = tmp_path / "web-1"
    issue_host(pki, NAME, identity, no_passphrase, NOW)
    request(identity)
    renew(pki, NAME, None, tmp_path / "renewed.pem", no_passphrase, NOW)
    assert not install(identity, (tmp_path / "renewed.pem").read_bytes(), NOW).is_new_key
    assert {"next-key.pem", "request.pem"} <= set(files(identity))
    assert install(identity, reply_of(pki, identity, now=LATER), LATER).is_new_key


def test_anothers_reply_is_refused(pki: PkiDirectory, tmp_path: Path) -> None:
    """Nothing changes."""
    for name in ("web-1", "db-2"):
        request(tmp_path / name)
    before = files(tmp_path / "db-2")
    with pytest.raises(PkiError, match="for a key that is not in"):
        install(tmp_path / "db-2", reply_of(pki, tmp_path / "web-1"), NOW)
    assert files(tmp_path / "db-2") == before


def test_an_older_reply_is_refused(pki: PkiDirectory, tmp_path: Path) -> None:
    """A file that was lying about does not undo a renewal; the same one again is no harm."""
    identity = tmp_path / "web-1"
    request(identity)
    first = reply_of(pki, identity)
    second = reply_of(pki, identity, "second", LATER)
    install(identity, second, LATER)
    with pytest.raises(PkiError, match=r"the certificate in .* is newer"):
        install(identity, first, LATER)
    install(identity, second, LATER)


def test_an_expired_or_forged_reply_is_refused_before_anything_is_written(pki: PkiDirectory, tmp_path: Path) -> None:
    """By the judge, in its words."""
    identity = tmp_path / "web-1"
    request(identity)
    reply = reply_of(pki, identity)
    with pytest.raises(Refusal) as caught:
        install(identity, reply, NOW + timedelta(days=91))
    assert caught.value.reason is Reason.EXPIRED
    other = create_pki(tmp_path / "other", "Test", DOMAIN, None, NOW)
    leaf = reply.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    forged = leaf + certificate_pem(other.certificate("hosts-ca"), other.certificate("root-ca"))
    with pytest.raises(Refusal):
        install(identity, forged, NOW)
    assert set(files(identity)) == {"key.pem", "request.pem"}


def test_the_root_may_be_named(pki: PkiDirectory, tmp_path: Path) -> None:
    """Whoever can't trust the way that the reply came says which root it must have."""
    identity = tmp_path / "web-1"
    request(identity)
    reply = reply_of(pki, identity)
    with pytest.raises(PkiError, match="its root has the fingerprint"):
        install(identity, reply, NOW, "0" * 64)
    assert not (identity / "ca.pem").exists()
    install(identity, reply, NOW, fingerprint(pki.certificate("root-ca")))


def test_another_root_is_believed_only_when_it_is_named(pki: PkiDirectory, tmp_path: Path) -> None:
    """A reply can't change whom the machine believes; named, the root comes beside the one before."""
    identity = tmp_path / "web-1"
    issue_host(pki, NAME, identity, no_passphrase, NOW)
    other = create_pki(tmp_path / "other", "Test", DOMAIN, None, NOW)
    request(identity)
    reply = reply_of(other, identity, now=LATER)
    with pytest.raises(PkiError, match="its root is not among those of"):
        install(identity, reply, LATER)
    install(identity, reply, LATER, fingerprint(other.certificate("root-ca")))
    assert set(load_identity(identity).anchors.roots) == {pki.certificate("root-ca"), other.certificate("root-ca")}


@pytest.mark.parametrize("kind", ["host", "receiver"])
@pytest.mark.parametrize("is_first", [True, False])
def test_nothing_rides_along_in_a_reply(kind: str, is_first: bool, pki: PkiDirectory, tmp_path: Path) -> None:
    """A root or a CA that somebody has added on the way comes into no ca.pem, named root or not; nothing is written."""
    identity = tmp_path / "identity"
    if not is_first:
        issued = (issue_host, issue_receiver)[kind == "receiver"]
        issued(pki, *([NAME] if kind == "host" else [HostName(RECEIVER_NAME), []]), identity, no_passphrase, NOW)  # type: ignore[operator]
    request(identity)
    reply = (reply_of if kind == "host" else receiver_reply)(pki, identity)
    other = create_pki(tmp_path / "other", "Test", DOMAIN, None, NOW)
    before = {path.name: path.read_bytes() for path in identity.iterdir()}
    mark = fingerprint(pki.certificate("root-ca"))
    lists = reply.find(b"-----BEGIN X509 CRL-----")
    place = len(reply) if lists < 0 else lists
    for ca, words in (("root-ca", "another root"), ("hosts-ca", "which its root did not sign")):
        added = reply[:place] + certificate_pem(other.certificate(ca)) + reply[place:]
        for wanted in (None, mark):
            with pytest.raises(PkiError, match=words):
                install(identity, added, NOW, wanted)
    assert {path.name: path.read_bytes() for path in identity.iterdir()} == before
    install(identity, reply, NOW, mark)


@pytest.mark.parametrize("kind", ["host", "receiver"])
def test_a_reply_has_no_blocks_that_nobody_reads(kind: str, pki: PkiDirectory, tmp_path: Path) -> None:
    """Neither a certificate behind the lists, nor a key or a request anywhere, nor lists for whom they are not."""
    identity = tmp_path / "identity"
    waiting = request(identity)
    reply = (reply_of if kind == "host" else receiver_reply)(pki, identity)
    lists, before = pki.crl_path.read_bytes(), sorted(path.name for path in identity.iterdir())
    ca, words = certificate_pem(pki.certificate("hosts-ca")), "it holds more than certificates, and lists behind them"
    added = [
        reply + (lists if kind == "host" else b"") + ca,
        reply + waiting.path.read_bytes(),
        waiting.path.read_bytes() + reply,
        reply + (identity / "key.pem").read_bytes(),
    ]
    for one in added:
        with pytest.raises(PkiError, match=words):
            install(identity, one, NOW)
    if kind == "host":
        with pytest.raises(PkiError, match="it holds CRLs, which a reply for a host does not have"):
            install(identity, reply + lists, NOW)
    assert sorted(path.name for path in identity.iterdir()) == before
    install(identity, reply, NOW)


def test_newer_lists_stay(pki: PkiDirectory, tmp_path: Path) -> None:
    """A reply that was long under way does not bring revoked hosts back."""
    identity = tmp_path / "r"
    issue_receiver(pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, NOW)
    renew(pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, NOW)
    sign_crls(pki, no_passphrase, NOW, is_forced=True)
    newest = pki.crl_path.read_bytes()
    (identity / "crl.pem").write_bytes(newest)
    install(identity, (tmp_path / "reply.pem").read_bytes(), NOW)
    assert (identity / "crl.pem").read_bytes() == newest
    renew(pki, HostName(RECEIVER_NAME), None, tmp_path / "again.pem", no_passphrase, NOW)
    (identity / "crl.pem").write_bytes(b"damaged")
    install(identity, (tmp_path / "again.pem").read_bytes(), NOW)
    assert (identity / "crl.pem").read_bytes() == newest


@pytest.mark.parametrize("kind", ["host", "receiver"])
def test_a_reply_that_is_cut_off_anywhere_changes_nothing(kind: str, pki: PkiDirectory, tmp_path: Path) -> None:
    """At each end of a line."""
    identity = tmp_path / "machine"
    request(identity)
    reply = (reply_of if kind == "host" else receiver_reply)(pki, identity)
    lines = reply.splitlines(keepends=True)
    for count in range(len(lines)):
        with pytest.raises((ConfigError, PkiError, Refusal)):
            install(identity, b"".join(lines[:count]), NOW)
        assert set(files(identity)) == {"key.pem", "request.pem"}


def test_keys_are_their_owners_alone_at_every_moment(
    pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask: each file that is opened for writing a key is made 0600, before a byte is in it."""
    made: list[int] = []
    real = os.open

    def watch(path: object, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_CREAT and re.fullmatch(r"\.?(next-|log-)?key\.pem(\.\S+)?", Path(str(path)).name):
            made.append(mode)
        return real(path, flags, mode, **more)  # type: ignore[call-overload, no-any-return]

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "open", watch)
        identity = tmp_path / "collector"
        request(identity)
        install(identity, receiver_reply(pki, identity), NOW)
        request(identity)
    finally:
        os.umask(before)
    assert made == [0o600] * 3
    assert identity.stat().st_mode & 0o777 == 0o700


def test_a_reply_that_is_of_no_use_any_more_is_not_in_the_way(pki: PkiDirectory, tmp_path: Path) -> None:
    """Older than the certificate, for another key, or expired: it is removed, and nothing else has changed."""
    identity = tmp_path / "web-1"
    request(identity)
    older, newer = reply_of(pki, identity), reply_of(pki, identity, "newer", LATER)
    request(tmp_path / "db-2")
    others = reply_of(pki, tmp_path / "db-2", "others", LATER)
    install(identity, newer, LATER)
    before = {path.name: path.read_bytes() for path in identity.iterdir()}
    for reply, moment in ((older, LATER), (others, LATER), (newer, LATER + timedelta(days=91)), (newer, LATER)):
        (identity / "reply.pem").write_bytes(reply)
        assert finish(identity, moment) is None
        assert {path.name: path.read_bytes() for path in identity.iterdir()} == before


def test_a_reply_waits_for_the_clock(pki: PkiDirectory, tmp_path: Path) -> None:
    """One that is not valid yet is said to be so, and stays: it may be the only certificate of the key."""
    identity = tmp_path / "web-1"
    request(identity)
    (identity / "reply.pem").write_bytes(reply_of(pki, identity, now=LATER))
    with pytest.raises(Refusal) as caught:
        finish(identity, NOW)
    assert caught.value.reason is Reason.NOT_YET_VALID
    done = finish(identity, LATER)
    assert done is not None
    assert done.judgement.name == NAME
    assert finish(identity, LATER) is None


def test_a_damaged_key_that_waits_keeps_no_renewal_from_the_key_in_use(pki: PkiDirectory, tmp_path: Path) -> None:
    """A renewal for the key in use is installed, whatever became of the one that waits."""
    identity = tmp_path / "web-1"
    issue_host(pki, NAME, identity, no_passphrase, NOW)
    (identity / "next-key.pem").touch(mode=0o600)
    renew(pki, NAME, None, tmp_path / "renewed.pem", no_passphrase, LATER)
    assert not install(identity, (tmp_path / "renewed.pem").read_bytes(), LATER).is_new_key

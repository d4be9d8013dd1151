"""The whole life of a fleet, by a clock that moves: nobody honest is ever refused, and nobody who was revoked ever believed."""

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, judge
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA, Profile
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.install import install
from securecore.pki.issue import server_subject
from securecore.pki.recording import Subject
from securecore.pki.request import request
from securecore.pki.revocation import revoke_name, revoke_older, sign_crls
from securecore.pki.rotation import finish, start, switch
from securecore.pki.signing import read_request, renew, sign
from securecore.pki.status import Level, find_status
from securecore.pki.verification import verify_log
from securecore.receiver.material import Material, load_material
from tests.support.certificates import DOMAIN, RECEIVER_NAME, no_passphrase

COUNT: Final = 50
THIEVES: Final = ("h7", "h23", "h49")


class Life:
    """A PKI, a receiver and hosts whose keys never leave them, and the time that it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.pki = create_pki(path / "pki", "Test", DOMAIN, None, self.now)
        self.receiver = path / "receiver"
        self.material: Material | None = None
        self.hosts: dict[str, Path] = {}
        self.revoked: list[Path] = []
        self._replies = 0

    def name(self, host: str) -> HostName:
        """Return a host's full name."""
        return HostName(f"{host}.{DOMAIN}")

    def enrol_receiver(self) -> None:
        """Make the receiver's keys on it, certify them, start it."""
        requested = request(self.receiver)
        subject = server_subject(RECEIVER, HostName(RECEIVER_NAME), [])
        sign(self.pki, subject, read_request(requested.path), self._reply(), no_passphrase, self.now)
        self._install(self.receiver)
        self.material = load_material(self.receiver, self.now)

    def certify_new_key(self, host: str) -> None:
        """Make a key on a host, its first or a further one, and certify it."""
        identity = self.hosts.setdefault(host, self.path / host)
        requested = request(identity)
        sign(self.pki, Subject(HOST, (self.name(host),)), read_request(requested.path), self._reply(), no_passphrase, self.now)
        self._install(identity)

    def renew(self, hosts: Iterable[str]) -> None:
        """Certify the keys of some hosts again."""
        for host in hosts:
            renew(self.pki, self.name(host), None, self._reply(), no_passphrase, self.now)
            self._install(self.hosts[host])

    def renew_receiver(self) -> None:
        """Certify the receiver's key again, and have it reload."""
        renew(self.pki, HostName(RECEIVER_NAME), None, self._reply(), no_passphrase, self.now)
        self._install(self.receiver)
        self._reload()

    def revoke(self, host: str) -> None:
        """Revoke a host that was stolen, with everything that it had."""
        revoke_name(self.pki, self.name(host), "keyCompromise", no_passphrase, self.now)
        self.revoked.append(self.hosts.pop(host))

    def distribute(self) -> None:
        """Copy ca.pem and crl.pem to the receiver, and have it reload."""
        for name in ("ca.pem", "crl.pem"):
            shutil.copyfile(self.pki.path / name, self.receiver / name)
        self._reload()

    def rest(self, days: int) -> None:
        """Let days go by, on each of which the timer signs what is due; everybody is believed on each."""
        for _ in range(days):
            self.now += timedelta(days=1)
            if sign_crls(self.pki, no_passphrase, self.now):
                self.distribute()
        self.check()

    def check(self) -> None:
        """Everybody honest is believed, by the receiver and by the hosts; nobody who was revoked is, with old material or new."""
        assert self.material is not None
        doubted = {host for host, identity in self.hosts.items() if not self._believes(identity)}
        assert doubted == set()
        assert [identity.name for identity in self.revoked if self._believes(identity)] == []
        receiver = load_identity(self.receiver)
        for identity in self.hosts.values():
            judged = judge(
                receiver.chain_der[0], receiver.chain_der[1:], load_identity(identity).anchors, Purpose.RECEIVER, self.now
            )
            assert str(judged.name) == RECEIVER_NAME

    def due(self) -> set[tuple[str, str]]:
        """Return the kind and name of everything that `pki status` says something of."""
        return {(one.kind, one.name) for one in find_status(self.pki.ledger.read(), self.now).items if one.problem is not None}

    def _believes(self, identity: Path) -> bool:
        assert self.material is not None
        return self.material.find_crl(load_identity(identity).chain_der[0], self.now) is not None

    def _reload(self) -> None:
        self.material = load_material(self.receiver, self.now, self.material)

    def _reply(self) -> Path:
        self._replies += 1
        return self.path / f"reply-{self._replies}.pem"

    def _install(self, identity: Path) -> None:
        install(identity, (self.path / f"reply-{self._replies}.pem").read_bytes(), self.now)


def rotate(life: Life, profile: Profile, new_ones: Iterable[Iterable[str]]) -> None:
    """Replace an issuing CA, its certificates in parts, with days between the steps."""
    start(life.pki, profile, no_passphrase, life.now)
    life.check()
    life.distribute()
    life.rest(1)
    switch(life.pki, profile, life.now)
    life.check()
    for hosts in new_ones:
        life.renew(hosts)
        life.rest(1)
    if profile is RECEIVERS_CA:
        life.renew_receiver()
        life.rest(1)
    finish(life.pki, profile, life.now)
    life.check()
    life.distribute()
    life.rest(1)


@pytest.mark.slow
def test_nobody_honest_is_ever_refused_and_nobody_revoked_ever_believed(tmp_path: Path) -> None:
    """Enrolment, revocation, CRLs, renewals, new keys and both rotations of a fleet of fifty, over half a year."""
    life = Life(tmp_path)
    life.enrol_receiver()
    for number in range(COUNT):
        life.certify_new_key(f"h{number}")
    life.check()
    assert life.due() == set()

    life.rest(10)
    for host in THIEVES:
        life.revoke(host)
    life.distribute()
    life.check()
    honest = sorted(life.hosts)
    assert len(honest) == COUNT - len(THIEVES)

    # The receivers CA's list, which no revocation has renewed, is due when its receivers are: its key comes back once for both.
    life.rest(49)
    leaves = {("host", str(life.name(host))) for host in honest} | {("receiver", RECEIVER_NAME)}
    life.now += timedelta(days=1)
    assert life.due() == leaves | {("crl", "receivers-ca")}
    life.check()
    assert {one.authority for one in sign_crls(life.pki, no_passphrase, life.now)} == {"receivers-ca"}
    life.distribute()
    life.check()
    assert life.due() == leaves
    assert find_status(life.pki.ledger.read(), life.now).level == Level.WARNING
    life.renew(honest[:20])
    life.check()
    for host in honest[20:30]:
        life.certify_new_key(host)
    life.check()
    life.renew(honest[30:])
    life.renew_receiver()
    life.check()
    assert life.due() == set()
    for host in honest[20:25]:
        revoke_older(life.pki, life.name(host), "superseded", no_passphrase, life.now)
    life.distribute()
    life.check()

    before = [shutil.copytree(life.hosts[host], tmp_path / f"old-{host}") for host in honest[:3]]
    rotate(life, HOSTS_CA, (honest[:15], honest[15:], []))
    rotate(life, RECEIVERS_CA, ())
    life.revoked += [Path(path) for path in before]
    life.rest(29)

    lines = (life.receiver / "ca.pem").read_text(), (life.receiver / "crl.pem").read_text()
    assert [text.count("-----BEGIN") for text in lines] == [3, 3]
    assert (life.receiver / "ca.pem").read_bytes() == life.pki.ca_path.read_bytes()
    assert all(one.problem is None for one in verify_log(life.pki, None))
    assert life.due() == set()

"""An independent judge: the openssl program accepts what we mint and refuses what it should."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore.names import HostName
from securecore.pki.issue import issue_host
from securecore.pki.revocation import revoke_name, revoke_serial
from tests.support.certificates import HOST_NAME, Fleet, no_passphrase

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program as an independent judge")


def verify(fleet: Fleet, identity: Path, purpose: str) -> subprocess.CompletedProcess[str]:
    """Run openssl verify, strict, with all CRLs, on an identity's chain."""
    root, chain = fleet.pki.folder("root-ca") / "cert.pem", identity / "cert.pem"
    files = ["-CAfile", str(root), "-CRLfile", str(fleet.pki.crl_path), "-untrusted", str(chain)]
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-crl_check_all", *files, str(chain)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("kind", "right", "wrong"), [("host", "sslclient", "sslserver"), ("receiver", "sslserver", "sslclient")])
def test_openssl_accepts_what_is_minted(kind: str, right: str, wrong: str, own_fleet: Fleet) -> None:
    """Host and receiver verify for their purpose, with CRLs of every CA above them, and for no other purpose."""
    identity = own_fleet.host if kind == "host" else own_fleet.receiver
    assert verify(own_fleet, identity, right).stdout == f"{identity / 'cert.pem'}: OK\n"
    assert "purpose" in verify(own_fleet, identity, wrong).stderr


def test_openssl_sees_revocations(own_fleet: Fleet) -> None:
    """A revoked host, and then every host of a revoked CA, is refused as revoked."""
    now = datetime.now(UTC)
    revoke_name(own_fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, now)
    assert "certificate revoked" in verify(own_fleet, own_fleet.host, "sslclient").stderr
    other = own_fleet.hosts["db-2"]
    assert verify(own_fleet, other, "sslclient").returncode == 0
    serial = own_fleet.pki.certificate("hosts-ca").serial_number
    revoke_serial(own_fleet.pki, serial, "cACompromise", no_passphrase, now)
    assert "certificate revoked" in verify(own_fleet, other, "sslclient").stderr
    assert verify(own_fleet, own_fleet.receiver, "sslserver").returncode == 0


def test_openssl_accepts_a_name_too_long_for_a_common_name(own_fleet: Fleet, tmp_path: Path) -> None:
    """Without a common name the subject is still not empty, so the alternative name need not be critical."""
    name = HostName(".".join(["a" * 60] * 3) + ".hosts.test.example")
    issue_host(own_fleet.pki, name, tmp_path / "long", no_passphrase, datetime.now(UTC))
    assert verify(own_fleet, tmp_path / "long", "sslclient").returncode == 0

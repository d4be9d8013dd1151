"""A CA that somebody has already: openssl's certificates work where they meet the profiles, and where not, it is said in words."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from securecore.certs.judge import Refusal
from securecore.errors import PkiError
from securecore.pki.inspection import describe
from securecore.pki.install import install
from securecore.pki.request import request
from tests.support.commands import captured
from tests.support.own_ca import OwnCa
from tests.support.receivers import running_receiver

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")]


@pytest.fixture
def own_ca(tmp_path: Path) -> OwnCa:
    """A root and two issuing CAs, of openssl."""
    (tmp_path / "ca").mkdir()
    return OwnCa(tmp_path / "ca")


def enrol(own_ca: OwnCa, identity: Path, ca: str, profile: str) -> Path:
    """Make a key on a machine, have it certified by openssl, and install the answer."""
    made = request(identity)
    leaf = own_ca.sign(ca, made.path, profile, f"{identity.name}.pem", subject=f"/O=Acme/CN={identity.name}")
    others = ["receivers", "root", "hosts"] if ca == "receivers" else ["hosts", "root"]
    lists = own_ca.together("crl.pem", ["root", "hosts", "receivers"]) if ca == "receivers" else b""
    install(identity, leaf.read_bytes() + own_ca.together("cert.pem", others) + lists, datetime.now(UTC))
    return leaf


def test_a_fleet_of_another_ca_sends_and_is_revoked(
    own_ca: OwnCa, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys that stay at home, a real receiver, a real transfer, with each receipt verified; then the CA's own list ends it."""
    host, receiver, core = tmp_path / "web-1", tmp_path / "collector", tmp_path / "core"
    leaf = enrol(own_ca, host, "hosts", "host")
    enrol(own_ca, receiver, "receivers", "receiver")
    core.write_bytes(bytes(100_000))
    securecore = captured(capsys)

    def send() -> tuple[int, str, str]:
        with running_receiver(receiver, tmp_path / "store") as running:
            return securecore("send", core, "--to", running.addresses[0], "--identity", host)

    code, _, err = send()
    assert code == 0, err
    assert securecore("verify", "--all", "--store", tmp_path / "store", "--root", receiver / "ca.pem")[0] == 0
    own_ca.revoke("hosts", leaf)
    (receiver / "crl.pem").write_bytes(own_ca.together("crl.pem", ["root", "hosts", "receivers"]))
    code, _, err = send()
    assert (code, "was revoked on" in err) == (13, True)


def test_what_the_runbook_makes_meets_the_profiles(own_ca: OwnCa, tmp_path: Path) -> None:
    """Each certificate, as that which it is meant for."""
    leaf = enrol(own_ca, tmp_path / "web-1", "hosts", "host")
    other = enrol(own_ca, tmp_path / "collector", "receivers", "receiver")
    chains = leaf.read_bytes() + own_ca.together("cert.pem", ["hosts", "root"]), other.read_bytes()
    host, hosts, root = describe(chains[0], "chain")
    receiver, receivers, _ = describe(chains[1] + own_ca.together("cert.pem", ["receivers", "root"]), "chain")
    made = {"host": host, "hosts-ca": hosts, "root-ca": root, "receiver": receiver, "receivers-ca": receivers}
    for name, one in made.items():
        profiles = one["profiles"]
        assert isinstance(profiles, dict)
        assert profiles[name] == [], name
        assert all(words for other_name, words in profiles.items() if other_name != name)


WRONG: Final = {
    "no purpose": ({"extendedKeyUsage": ""}, ["it has no extendedKeyUsage extension"]),
    "both purposes": (
        {"extendedKeyUsage": "clientAuth,serverAuth"},
        ["its extended key usage is not exactly clientAuth"],
    ),
    "as Let's Encrypt has it": (
        {"keyUsage": "critical,digitalSignature,keyEncipherment", "extendedKeyUsage": "serverAuth,clientAuth"},
        [
            "its key usage is digitalSignature keyEncipherment and not digitalSignature",
            "its extended key usage is not exactly clientAuth",
        ],
    ),
    "not critical": ({"keyUsage": "digitalSignature"}, ["its keyUsage extension is not critical"]),
    "with a comment": (
        {"nsComment": "OpenSSL"},
        ["it has an extension that a host certificate does not have: 2.16.840.1.113730.1.13"],
    ),
    "two names": (
        {"subjectAltName": "DNS:a.hosts.acme.example,DNS:b.hosts.acme.example"},
        ["the name in this host's certificate is refused: a host certificate names exactly one host, this one names 2"],
    ),
    "another domain": (
        {"subjectAltName": "DNS:web-1.evil.example"},
        ["'web-1.evil.example' lies outside the domain that its CA may sign for: 'hosts.acme.example'"],
    ),
    "an address": (
        {"subjectAltName": "DNS:web-1.hosts.acme.example,IP:192.0.2.1"},
        ["this host's certificate names something other than a host: a IPAddress"],
    ),
    "with its issuer's name": (
        {"authorityKeyIdentifier": "keyid:always,issuer:always"},
        ["its authorityKeyIdentifier holds more than a key identifier"],
    ),
}
"""What the CA's profile has otherwise, and what is said of it as a host."""


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_meet_the_profile_is_refused_and_said_in_words(
    case: str, own_ca: OwnCa, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is wrong at once, for people and for programs; and nothing of it can be installed."""
    other, words = WRONG[case]
    own_ca.add_profile("wrong", "host", **other)
    identity = tmp_path / "web-1"
    leaf = own_ca.sign("hosts", request(identity).path, "wrong", "leaf.pem", subject="/O=Acme/CN=web-1")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.read_bytes() + own_ca.together("cert.pem", ["hosts"]))
    found = describe(chain.read_bytes(), "chain.pem")[0]["profiles"]
    assert isinstance(found, dict)
    assert found["host"] == words
    assert found["receiver"]
    code, out, _ = captured(capsys)("pki", "inspect", chain)
    assert code == 0
    assert f"as a host           {'; '.join(words)}\n" in out
    before = sorted(path.name for path in identity.iterdir())
    with pytest.raises((Refusal, PkiError)):
        install(identity, chain.read_bytes() + own_ca.together("cert.pem", ["root"]), datetime.now(UTC))
    assert sorted(path.name for path in identity.iterdir()) == before


def test_another_kind_of_key_is_named(own_ca: OwnCa) -> None:
    """And what else is wrong beside it."""
    curve = ["-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-out", "r.pem", "-subj", "/O=Acme/CN=web-1"]
    subprocess.run(["openssl", "req", "-new", *curve], cwd=own_ca.path, check=True, capture_output=True)
    leaf = own_ca.sign("hosts", "r.pem", "host", "leaf.pem", days=3650, subject="/O=Acme/CN=web-1")
    found = describe(leaf.read_bytes(), "leaf.pem")[0]["profiles"]
    assert isinstance(found, dict)
    assert found["host"] == ["its key is not an ECDSA key on P-256", "it is made to live 3650 days, at most 397 are allowed"]

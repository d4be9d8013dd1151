"""`securecore pki` for keys that never leave their machine: request, sign, install, renew, rekey, as people type them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from securecore.certs.chain import fingerprint, load_pem_certificates
from securecore.certs.identity_directory import load_identity
from securecore.cli.main import run
from tests.support.certificates import HOST_NAME, RECEIVER_NAME
from tests.support.pki_commands import Runner, fails


def key_in(text: str) -> str:
    """Return the fingerprint of the key that a command has printed."""
    return text.partition("  key     ")[2].partition("\n")[0]


def test_the_life_of_a_host_whose_key_stays_at_home(pki: Runner) -> None:
    """Request, sign, install; renew with the same key; a new key; the old certificates revoked in one command."""
    requested = pki("request", "--identity", "web-1")
    signed = pki("sign", "host", "web-1", "web-1/request.pem", "--out", "reply.pem")
    assert (requested.code, signed.code) == (0, 0)
    assert len(key_in(requested.out)) == 64
    assert key_in(requested.out) == key_in(signed.out)
    installed = pki("install", "reply.pem", "--identity", "web-1")
    assert installed.out.startswith(f"web-1 is host {HOST_NAME} until ")
    key = Path("web-1/key.pem").read_bytes()

    assert pki("renew", "web-1", "--out", "renewed.pem").code == 0
    assert pki("install", "renewed.pem", "--identity", "web-1").code == 0
    assert Path("web-1/key.pem").read_bytes() == key

    assert "which waits beside the one in use" in pki("request", "--identity", "web-1").out
    assert pki("sign", "host", "web-1", "web-1/request.pem", "--out", "rekeyed.pem").code == 0
    assert "the new key has taken the old one's place" in pki("install", "rekeyed.pem", "--identity", "web-1").out
    assert Path("web-1/key.pem").read_bytes() != key

    assert pki("revoke", "web-1", "--older", "--reason", "superseded").code == 0
    rows = [row for row in json.loads(pki("list", "--json").out) if row["profile"] == "host"]
    assert [row["state"] for row in rows] == ["revoked", "revoked", "valid"]
    assert rows[2]["serial"] == f"{load_identity(Path('web-1')).certificates[0].serial_number:x}"


def test_a_receiver_whose_keys_stay_at_home(pki: Runner) -> None:
    """Names and addresses are given where it is signed, and come back with a renewal and a new key."""
    assert pki("request", "--identity", "r").code == 0
    signed = pki("sign", "receiver", "collector", "r/request.pem", "--address", "127.0.0.1", "--out", "reply.pem")
    assert f"senders may dial it as {RECEIVER_NAME}, 127.0.0.1\n" in signed.out
    installed = pki("install", "reply.pem", "--identity", "r")
    assert installed.out.endswith("a receiver that runs takes it within a minute, and at once when it gets SIGHUP\n")
    for arguments in (("renew", "collector", "--out", "renewed.pem"), ("rekey", "collector", "--out", "r2")):
        assert f"senders may dial it as {RECEIVER_NAME}, 127.0.0.1\n" in pki(*arguments).out
    assert pki("install", "renewed.pem", "--identity", "r").code == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_a_receiver_whose_log_key_is_lost_is_told_what_to_do(pki: Runner) -> None:
    """A renewal is installed, no other log key is made, and the command that is named makes one behind the lost one."""
    assert pki("issue", "receiver", RECEIVER_NAME, "--out", "r", "--address", RECEIVER_NAME).code == 0
    Path("r/log-key.pem").unlink()
    assert pki("renew", RECEIVER_NAME, "--out", "reply.pem").code == 0
    installed = pki("install", "reply.pem", "--identity", "r")
    assert installed.code == 0
    assert not Path("r/log-key.pem").exists()
    command = installed.out.rpartition("securecore ")[2].split()
    assert command == ["audit", "rekey", "--lost", "r", "--identity", "r"]
    assert run(command) == 0
    assert Path("r/log-key.pem").exists()


def test_a_receiver_that_gets_new_keys_keeps_its_log_key(pki: Runner) -> None:
    """A whole new directory has another one, with which no receiver starts on the store that is there."""
    assert pki("issue", "receiver", RECEIVER_NAME, "--out", "r", "--address", RECEIVER_NAME).code == 0
    words = pki("rekey", RECEIVER_NAME, "--out", "r-2").out
    assert "securecore receive" not in words
    assert "cert.pem and key.pem" in words
    for name in ("cert.pem", "key.pem"):
        shutil.copy(f"r-2/{name}", "r")
    assert run(["audit", "rekey", "--identity", "r"]) == 0


def test_a_request_that_openssl_made_is_signed(pki: Runner) -> None:
    """And openssl reads and verifies ours."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made = ["openssl", "req", "-new", *curve, "-keyout", "k.pem", "-out", "r.pem", "-subj", "/CN=whoever"]
    subprocess.run(made, check=True, capture_output=True)
    assert pki("sign", "host", "web-1", "r.pem", "--out", "reply.pem").code == 0
    pki("request", "--identity", "w")
    ran = subprocess.run(
        ["openssl", "req", "-in", "w/request.pem", "-noout", "-verify"], check=True, capture_output=True, text=True
    )
    assert "verify OK" in ran.stdout + ran.stderr


def test_the_root_of_a_reply_is_named_as_openssl_prints_it(pki: Runner) -> None:
    """Pairs between colons, in capitals."""
    pki("request", "--identity", "w")
    pki("sign", "host", "web-1", "w/request.pem", "--out", "reply.pem")
    (certificate,) = load_pem_certificates(Path("fleet-pki/root/cert.pem").read_bytes())
    root = fingerprint(certificate)
    pairs = ":".join(root[place : place + 2] for place in range(0, 64, 2)).upper()
    fails(pki("install", "reply.pem", "--identity", "w", "--ca-fingerprint", "12:34"), 8, "not a SHA-256 fingerprint")
    fails(pki("install", "reply.pem", "--identity", "w", "--ca-fingerprint", "0" * 64), 8, "its root has the fingerprint")
    assert f"  root    {root}\n" in pki("install", "reply.pem", "--identity", "w", "--ca-fingerprint", pairs).out


def test_what_is_wrong_is_said_in_a_line(pki: Runner) -> None:
    """No traceback for a file that is no request, no reply, or not there."""
    Path("junk").write_bytes(bytes(range(256)))
    pki("request", "--identity", "w")
    fails(pki("sign", "host", "web-1", "junk", "--out", "x"), 8, "not a certificate signing request")
    fails(pki("sign", "host", "web-1", "nothing", "--out", "x"), 4, "no such file")
    fails(pki("install", "junk", "--identity", "w"), 3, "expected 1 to")
    fails(pki("install", "w/request.pem", "--identity", "nowhere"), 4, "no identity directory there")
    fails(pki("renew", "web-1", "--out", "x"), 4, "this PKI never made a certificate")
    fails(pki("sign", "host", "web-1.elsewhere.example", "w/request.pem", "--out", "x"), 8, "lies outside")
    Path("loose").mkdir()
    Path("loose").chmod(0o777)
    fails(pki("request", "--identity", "loose"), 3, "others than its owner may write there")

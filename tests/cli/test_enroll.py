"""Enrolment on line as people use it: `pki token`, `pki serve`, `enroll`, `renew`, `pki fetch`, in real processes."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from securecore.cli.authority.options import root_fingerprint
from securecore.cli.main import run
from securecore.errors import PkiError
from securecore.pki.directory import open_pki
from securecore.pki.tokens import parse_token
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME
from tests.support.pki_commands import Result, Runner, fails
from tests.support.processes import ROOT, SECURECORE, Process

WORDS = "correct horse battery"
TIMEOUT_S = 120


@pytest.fixture
def pki(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner in a fresh, locked PKI with an enroller and a receiver, all CA keys but the hosts CA's taken away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECURECORE_PKI", str(tmp_path / "fleet-pki"))
    runner = Runner(capsys, tmp_path)
    locked = ("--passphrase-file", "words")
    Path("words").touch(mode=0o600)
    Path("words").write_text(f"{WORDS}\n")
    assert runner("init", "--org", "Test", "--domain", DOMAIN, *locked).code == 0
    issued = runner("issue", "enroller", "enrol", "--address", "127.0.0.1", "--out", "enroller", *locked)
    assert f"hosts may dial it as enrol.{DOMAIN}, 127.0.0.1\n" in issued.out
    assert runner("issue", "receiver", "collector", "--out", "collector", *locked).code == 0
    for name in ("root", "receivers"):
        Path("fleet-pki", name, "key.pem").rename(f"{name}-key.pem")
    return runner


@contextmanager
def serving(path: Path) -> Iterator[Process]:
    """Run ``securecore pki serve`` on loopback while the block runs."""
    arguments = ["pki", "serve", "--listen", "127.0.0.1:0", "--dir", str(path / "fleet-pki"), "--identity", str(path / "enroller")]
    command = [*SECURECORE, *arguments, "--passphrase-file", str(path / "words")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            yield Process(popen)
        finally:
            popen.kill()


def token_for(pki: Runner, host: str = "web-1", file: str = "token") -> str:
    """Make a token, put it into a file, and return it."""
    made = pki("token", host)
    assert made.code == 0
    assert made.out.count("\n") == 1
    Path(file).touch(mode=0o600)
    Path(file).write_text(made.out)
    return made.out.strip()


def root_of(pki: Runner) -> str:
    """Return the fingerprint of the root, as a person reads it."""
    return str(json.loads(pki("inspect", "fleet-pki/root/cert.pem", "--json").out)[0]["fingerprint"])


def command(pki: Runner, *arguments: str) -> Result:
    """Run a command that is not one of `pki`."""
    pki.capsys.readouterr()
    code = run([*arguments])
    return Result(code, *pki.capsys.readouterr())


def enrolling(pki: Runner, process: Process, *, identity: str = "web-1") -> Result:
    """Enrol a host."""
    address = str(process.addresses[0])
    return command(pki, "enroll", address, "--ca-fingerprint", root_of(pki), "--identity", identity, "--token-file", "token")


def test_the_life_of_a_host_without_a_file_that_is_carried(pki: Runner, tmp_path: Path) -> None:
    """Enrol, be told that nothing is due, renew, take a new key; a receiver fetches what was revoked; the server stops."""
    token_for(pki)
    with serving(tmp_path) as server:
        enrolled = enrolling(pki, server)
        assert enrolled.out.startswith(f"web-1 is host {HOST_NAME} until "), enrolled.err
        assert f"\n  root    {root_of(pki)}\n" in enrolled.out
        fails(enrolling(pki, server, identity="web-1-again"), 13, "the token was used already")
        assert command(pki, "renew", "--identity", "web-1").out.startswith(f"not due: {HOST_NAME} has a certificate until ")
        assert command(pki, "renew", "--identity", "web-1", "--now").code == 0
        renewed = command(pki, "renew", "--identity", "web-1", "--now", "--new-key", "--to", str(server.addresses[0]))
        assert "the new key has taken the old one's place" in renewed.out
        again = enrolling(pki, server)
        assert (again.code, again.out.splitlines()[0]) == (0, enrolled.out.splitlines()[0])
        assert "it had enrolled with this token before: nothing was left to do" in again.out

        fetching = ("fetch", str(server.addresses[0]), "--identity", "collector")
        fails(pki("fetch", "--identity", "collector"), 4, "it is not known whom to ask")
        assert pki(*fetching).out == "nothing new: 3 CAs, 3 CRLs\n"
        assert pki("revoke", "web-1", "--reason", "keyCompromise", "--passphrase-file", "words").code == 0
        # Where it was fetched before is known by now.
        again = pki("fetch", "--identity", "collector")
        assert again.out.startswith("put 3 CAs, 3 CRLs into collector\na receiver that runs takes them within a minute"), again.err
        fails(command(pki, "renew", "--identity", "web-1", "--now"), 13, "this host's certificate was revoked on")
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(TIMEOUT_S) == 0
    (listed,) = json.loads(pki("token", "--list", "--json").out)
    assert (listed["host"], listed["state"]) == (HOST_NAME, "used")
    assert pki("log", "verify").code == 0
    assert RECEIVER_NAME in pki("list").out


def test_no_secret_is_seen_where_others_look(pki: Runner, tmp_path: Path) -> None:
    """Token, its HMAC key, passphrase, private keys: not in the server's arguments, environment, log, nor where a host prints."""
    token = token_for(pki)
    with serving(tmp_path) as server:
        made = enrolling(pki, server)
        fails(enrolling(pki, server, identity="other"), 13, "token was used")
        proc = Path("/proc", str(server.popen.pid))
        seen = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        server.popen.send_signal(signal.SIGTERM)
        seen += server.rest().encode() + server.announced.encode() + made.out.encode() + made.err.encode()
    keys = [path.read_text() for path in (Path("web-1/key.pem"), Path("enroller/key.pem"), Path("fleet-pki/hosts/key.pem"))]
    secrets = [token.removeprefix("securecore-token-"), parse_token(token).key.hex(), WORDS]
    for secret in (*secrets, *(key.splitlines()[1] for key in keys)):
        assert secret.encode() not in seen


def test_a_server_that_was_killed_goes_on(pki: Runner, tmp_path: Path) -> None:
    """Tokens are in the ledger: what was open is open, what was used is used."""
    used = token_for(pki)
    with serving(tmp_path) as server:
        assert enrolling(pki, server).code == 0
    open_one = token_for(pki, "db-2")
    with serving(tmp_path) as server:
        Path("token").write_text(used)
        fails(enrolling(pki, server, identity="db-2"), 13, "the token was used already")
        Path("token").write_text(open_one)
        assert f"db-2 is host db-2.{DOMAIN}" in enrolling(pki, server, identity="db-2").out


def test_a_server_goes_on_when_it_is_told_to_reload(pki: Runner, tmp_path: Path) -> None:
    """SIGHUP ends nobody: what is there is loaded, and said to be."""
    token_for(pki)
    with serving(tmp_path) as server:
        assert server.addresses
        server.popen.send_signal(signal.SIGHUP)
        server.logged(r" loaded certificate [0-9a-f]+, valid until ")
        assert enrolling(pki, server).code == 0


def test_a_reload_that_comes_before_the_start_is_over_ends_no_server(pki: Runner, tmp_path: Path) -> None:
    """It waits for its passphrase; what it loads then is new anyhow. To systemd an end by SIGHUP is a clean one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    places = ["--dir", tmp_path / "fleet-pki", "--identity", tmp_path / "enroller", "--passphrase-file", pipe]
    command = [*SECURECORE, "pki", "serve", "--listen", "127.0.0.1:0", *places]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            with open(pipe, "wb") as writer:
                popen.send_signal(signal.SIGHUP)
                writer.write(f"{WORDS}\n".encode())
            assert Process(popen).addresses
        finally:
            popen.kill()


@pytest.mark.parametrize("cut", range(0, 64, 7))
def test_a_fingerprint_is_64_digits_in_every_usual_form(cut: int) -> None:
    """As we and openssl print it; cut anywhere, or with a digit more, it is refused."""
    mark = "5f3c0a1b" * 8
    for form in (mark, mark.upper(), ":".join(re.findall("..", mark)), f" {mark}\n"):
        assert root_fingerprint(form) == mark
    for bad in (mark[:cut], mark + "0", mark[:cut] + "g" + mark[cut + 1 :]):
        with pytest.raises(PkiError, match="not a SHA-256 fingerprint"):
            root_fingerprint(bad)


def test_a_token_comes_from_standard_input(pki: Runner, tmp_path: Path) -> None:
    """As a password manager gives it, with nothing that another user could see."""
    token = token_for(pki)
    with serving(tmp_path) as server:
        arguments = ["enroll", str(server.addresses[0]), "--ca-fingerprint", root_of(pki), "--token-file", "-", "--identity"]
        enroll = [*SECURECORE, *arguments, str(tmp_path / "w")]
        done = subprocess.run(enroll, cwd=ROOT, input=f"{token}\n".encode(), capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "w" / "cert.pem").exists()


def test_the_help_says_who_sees_a_token_there(pki: Runner) -> None:
    """Of `--token`."""
    words = re.sub(r"\s+", " ", command(pki, "enroll", "--help").out)
    assert "Every user of this machine can see it there while the command runs" in words


def test_what_is_wrong_is_said_in_a_line(pki: Runner, tmp_path: Path) -> None:
    """Each with its exit code; nothing is left behind by a command that was refused."""
    token = token_for(pki)
    good = ("--ca-fingerprint", "0" * 64, "--identity", "w")
    fails(command(pki, "enroll", "127.0.0.1:1", *good), 2, "give --token-file FILE, or --token")
    fails(command(pki, "enroll", "127.0.0.1:1", *good, "--token", token, "--token-file", "token"), 2, "give --token-file")
    fails(command(pki, "enroll", "127.0.0.1:1", *good, "--token", "x"), 8, "not a token")
    fails(command(pki, "enroll", "127.0.0.1:1", *good, "--token", token), 10, "127.0.0.1:1: connection refused")
    fails(command(pki, "enroll", "127.0.0.1:1", "--ca-fingerprint", "12", "--identity", "w", "--token", token), 8, "not a SHA-256")
    Path("token").chmod(0o644)
    fails(command(pki, "enroll", "127.0.0.1:1", *good, "--token-file", "token"), 3, "others than its owner may touch it")
    Path("token").chmod(0o600)
    Path("token").write_text("\n")
    fails(command(pki, "enroll", "127.0.0.1:1", *good, "--token-file", "token"), 3, "the token is expected there")
    assert not Path("w").exists()
    fails(command(pki, "renew", "--identity", "w"), 4, "no identity directory there")
    fails(command(pki, "renew", "--identity", "collector"), 11, "exactly clientAuth")
    fails(pki("fetch", "127.0.0.1:1", "--identity", "collector"), 10, "connection refused")
    fails(pki("token"), 2, "give a HOST, or --list, or --recall ID")
    fails(pki("token", "web-1", "--list"), 2, "give a HOST, or --list, or --recall ID")
    fails(pki("token", "web-1", "--ttl", "8d"), 8, "a token counts for 1m to 1w, not 8d")
    fails(pki("token", "web-1.elsewhere.example"), 8, "lies outside")
    fails(pki("token", "--recall", "x"), 4, "there is no token")
    serve = ("serve", "--listen", "127.0.0.1:0", "--passphrase-file", "words")
    fails(pki(*serve, "--identity", "collector"), 11, "exactly serverAuth securecoreEnroller")
    Path("fleet-pki/hosts/key.pem").rename("hosts-key.pem")
    fails(pki(*serve, "--identity", "enroller"), 4, "the key of the hosts-ca is not here")


def test_no_server_starts_on_an_old_copy(pki: Runner, tmp_path: Path) -> None:
    """Which shows by what the last one has noted."""
    shutil.copytree("fleet-pki", "backup")
    token_for(pki)
    serve = ("serve", "--listen", "127.0.0.1:0", "--passphrase-file", "words", "--identity", "enroller", "--note", "noted")
    assert pki("status", "--note", "noted").code == 0
    shutil.rmtree("fleet-pki")
    shutil.move("backup", "fleet-pki")
    fails(pki(*serve), 6, "lines are missing at its end", "after-a-restore.md")


def test_a_token_is_recalled(pki: Runner) -> None:
    """And is listed as what it is."""
    token_for(pki)
    (token_id,) = open_pki(Path("fleet-pki")).ledger.read().tokens
    assert pki("token", "--recall", token_id).out == f"token {token_id} for {HOST_NAME} counts no more\n"
    assert f"{token_id}  {HOST_NAME}  recalled" in pki("token", "--list").out
    made = json.loads(pki("token", "db-2", "--json").out)
    assert set(made) == {"token", "id", "host", "expires"}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_token_that_nobody_has_seen_counts_no_more(form: list[str], pki: Runner) -> None:
    """Onto a full disk or to a reader who has gone it is recalled; without standard output none is made."""
    command = [*SECURECORE, "pki", "token", "web-1", *form, "--dir", str(Path("fleet-pki").resolve())]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, os.fdopen(writer, "wb") as unread:
        done = [subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, check=False) for out in (full, unread)]
    assert [one.returncode for one in done] == [5, 141]
    assert b"is recalled: No space left on device" in done[0].stderr
    assert b"Traceback" not in done[0].stderr
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=ROOT, capture_output=True, check=False)
    assert closed.returncode == 3
    tokens = open_pki(Path("fleet-pki")).ledger.read().tokens.values()
    assert [one.is_recalled for one in tokens] == [True, True]

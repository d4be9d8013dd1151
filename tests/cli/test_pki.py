"""`securecore pki` as people and programs use it: what is printed, what is refused, and with which exit code."""

import inspect
import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.certs.profiles import HOST, RECEIVER
from securecore.cli import pki as pki_module
from securecore.cli.authority import issuing
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME
from tests.support.pki_commands import Runner, fails

WORDS = "correct horse battery"


def test_whole_life_of_a_fleet(pki: Runner) -> None:
    """Receiver and host are issued, listed, revoked; the list says who is what."""
    receiver = pki("issue", "receiver", "collector", "--out", "r", "--address", "127.0.0.1", "--address", "dumps.example.net")
    assert receiver.code == 0
    assert f"senders may dial it as {RECEIVER_NAME}, dumps.example.net, 127.0.0.1\n" in receiver.out
    host = pki("issue", "host", "web-1", "--out", "w")
    assert f"issued an identity for host {HOST_NAME}" in host.out
    assert "next: carry w to the host" in host.out
    assert str(load_identity(Path("w")).certificates[0].serial_number) != ""
    revoked = pki("revoke", "web-1", "--reason", "keyCompromise")
    assert revoked.code == 0
    assert f"host {HOST_NAME} (keyCompromise)" in revoked.out
    rows = json.loads(pki("list", "--json").out)
    assert [(row["profile"], row["state"]) for row in rows] == [
        ("root-ca", "valid"),
        ("hosts-ca", "valid"),
        ("receivers-ca", "valid"),
        ("receiver", "valid"),
        ("host", "revoked"),
    ]
    assert rows[3]["names"] == [RECEIVER_NAME, "dumps.example.net"]
    assert rows[3]["addresses"] == ["127.0.0.1"]
    assert (rows[4]["reason"], rows[4]["revoked_at"] is None) == ("keyCompromise", False)
    assert HOST_NAME in pki("list").out


def test_full_name_and_short_name_are_one_host(pki: Runner) -> None:
    """A name without a dot is completed with the fleet's domain; upper case is folded."""
    for number, name in enumerate(("web-1", HOST_NAME, HOST_NAME.upper())):
        assert pki("issue", "host", name, "--out", f"w{number}").code == 0
    names = {tuple(row["names"]) for row in json.loads(pki("list", "--json").out) if row["profile"] == "host"}
    assert names == {(HOST_NAME,)}


def test_second_certificate_of_a_name_is_told(pki: Runner) -> None:
    """With the command that ends the first one, which works as printed."""
    pki("issue", "host", "web-1", "--out", "w1")
    second = pki("issue", "host", "web-1", "--out", "w2")
    command = second.out.partition("to end it now: securecore pki ")[2].partition("\n")[0]
    assert pki(*command.split()).code == 0
    states = [row["state"] for row in json.loads(pki("list", "--json").out) if row["profile"] == "host"]
    assert states == ["revoked", "valid"]


def test_crl_prints_its_path_alone_on_stdout(pki: Runner) -> None:
    """So that a script can copy it."""
    path = f"{pki.path / 'fleet-pki' / 'crl.pem'}\n"
    result = pki("crl", "--now")
    assert result.out == path
    assert "hosts-ca: CRL 2, 0 revoked" in result.err
    again = pki("crl")
    assert again.out == path
    assert "hosts-ca: not due yet, its last CRL is valid until" in again.err
    (pki.path / "fleet-pki" / "root" / "key.pem").unlink()
    assert "root-ca: its key is not here; its last CRL stays, valid until" in pki("crl").err


@pytest.mark.parametrize("form", ["{0:x}", "{0:X}", "0x{0:x}", "00{0:x}"])
def test_serial_numbers_are_taken_in_every_usual_form(form: str, pki: Runner) -> None:
    """As we, openssl and browsers print them."""
    pki("issue", "host", "web-1", "--out", "w")
    serial = load_identity(Path("w")).certificates[0].serial_number
    assert pki("revoke", "--serial", form.format(serial)).code == 0


def test_serial_number_with_colons_is_taken(pki: Runner) -> None:
    """As `openssl x509 -text` prints it."""
    pki("issue", "host", "web-1", "--out", "w")
    digits = f"{load_identity(Path('w')).certificates[0].serial_number:040x}"
    colons = ":".join(digits[index : index + 2] for index in range(0, 40, 2))
    assert pki("revoke", "--serial", colons).code == 0


def test_a_key_that_lives_on_is_told(pki: Runner) -> None:
    """With the command that ends it, which works as printed; where that reason was given there is nothing to tell."""
    pki("issue", "host", "web-1", "--out", "w")
    pki("renew", "web-1", "--out", "reply")
    serial = f"{load_identity(Path('w')).certificates[0].serial_number:x}"
    first = pki("revoke", "--serial", serial, "--reason", "superseded")
    assert "its key lives on in" in first.out
    command = first.out.partition("if others may have the key: securecore pki ")[2].partition("\n")[0]
    ran = pki(*command.split())
    assert (ran.code, "lives on" in ran.out) == (0, False)
    states = [row["state"] for row in json.loads(pki("list", "--json").out) if row["profile"] == "host"]
    assert states == ["revoked", "revoked"]


def test_a_token_that_is_open_still_is_told_where_its_host_is_revoked(pki: Runner) -> None:
    """Who has it could enrol again; one of another host, and one that was recalled, is nobody's concern here."""
    assert pki("issue", "host", "web-1", "--out", "w").code == 0
    assert pki("token", "db-2").code == 0
    recalled, left = (json.loads(pki("token", "web-1", "--json").out)["id"] for _ in range(2))
    assert pki("token", "--recall", recalled).code == 0
    said = pki("revoke", "web-1", "--reason", "keyCompromise").out
    assert [line for line in said.splitlines() if left in line or recalled in line] == [
        f"token {left} still lets its holder enrol as {HOST_NAME}",
        f"  if others may have it: securecore pki token --recall {left}",
    ]


def test_bad_input_is_one_line_a_hint_and_an_exit_code(pki: Runner) -> None:
    """Every command, every kind of mistake that a person makes."""
    Path("taken").mkdir()
    Path("text").write_text("hello")
    fails(pki("init", "--org", "x", "--domain", DOMAIN, "--no-passphrase"), 8, "exists already")
    fails(pki("init", "--dir", "n", "--org", "x", "--domain", "..", "--no-passphrase"), 8, "not a domain")
    fails(pki("init", "--dir", "n", "--org", "", "--domain", DOMAIN, "--no-passphrase"), 8, "not an organisation")
    fails(pki("init", "--dir", "n", "--org", "x"), 2, "--domain")
    fails(pki("init", "--dir", "n", "--org", "x", "--domain", DOMAIN, "--no-passphrase", "--passphrase-file", "text"), 2, "exclude")
    fails(pki("issue", "host", "web-1"), 2, "--out")
    fails(pki("issue", "host", "web-1", "--out", "taken"), 8, "taken exists already")
    fails(pki("issue", "host", "../x", "--out", "w"), 2, "not a host name")
    fails(pki("issue", "host", "web 1", "--out", "w"), 2, "not a host name")
    fails(pki("issue", "host", "*", "--out", "w"), 2, "not a host name")
    fails(pki("issue", "host", "web-1.evil.example", "--out", "w"), 8, "lies outside")
    fails(pki("issue", "host", "web-1", "--out", "w", "--days", "4000"), 8, "1 to 397 days")
    fails(pki("issue", "host", "web-1", "--out", "w", "--dir", "nowhere"), 4, "nowhere: no PKI there", "pki init")
    fails(pki("issue", "receiver", "r", "--out", "r", "--address", "localhost"), 8, "not an address of a receiver")
    fails(pki("issue", "receiver", "r", "--out", "r", "--address", "0.0.0.0"), 8, "no sender can dial")
    fails(pki("revoke"), 2, "HOST")
    fails(pki("revoke", "web-1", "--serial", "1"), 2, "either")
    fails(pki("revoke", "web-9"), 4, "never made")
    fails(pki("revoke", "--serial", "xyz"), 8, "not a serial number")
    fails(pki("revoke", "--serial", "ff"), 4, "never made")
    fails(pki("inspect", "nothing"), 4, "no such file")
    fails(pki("inspect", "text"), 8, "nothing in it is known")
    fails(pki("profile", "show", "web"), 4, "no profile is called")
    fails(pki("list", "--dir", "text"), 4, "no PKI there")
    assert not Path("w").exists()
    assert not Path("r").exists()
    assert not Path("n").exists()


def test_tampered_ledger_is_broken(pki: Runner) -> None:
    """With the exit code for evidence that does not hold."""
    ledger = pki.path / "fleet-pki" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"root-ca", b"boot-ca", 1))
    fails(pki("list"), 6, "ledger.jsonl: line", "is not what was written")


def test_loose_ca_key_is_refused_with_the_command_that_mends_it(pki: Runner) -> None:
    """Modes are checked on every read."""
    key = pki.path / "fleet-pki" / "hosts" / "key.pem"
    key.chmod(0o644)
    result = pki("issue", "host", "web-1", "--out", "w")
    fails(result, 3, "its mode is 0644", f"chmod 600 {key}")


def test_inspect_says_of_each_profile_how_a_certificate_departs_from_it(pki: Runner) -> None:
    """A CA is held against those of CAs, a leaf against host and receiver; what a statement says is not taken for that."""
    pki("issue", "receiver", "r", "--out", "r")
    words = pki("inspect", "r").out
    assert "as a host           its extended key usage is not exactly clientAuth\n" in words
    assert "as a receiver       meets the profile\n" in words
    assert "as a receivers-ca   meets the profile\n" in words
    assert [one["profiles"]["receiver"] for one in json.loads(pki("inspect", "r", "--json").out)[:1]] == [[]]
    assert "\npayload             issued_at=" in pki("inspect", "r/log-key.jws").out


def test_inspect_shows_people_and_programs_the_same(pki: Runner) -> None:
    """An identity directory stands for its chain; JSON is an array."""
    pki("issue", "host", "web-1", "--out", "w")
    assert f"alternative names   dns:{HOST_NAME}\n" in pki("inspect", "w").out
    parts = json.loads(pki("inspect", "w/cert.pem", "--json").out)
    assert [part["kind"] for part in parts] == ["certificate", "certificate"]
    assert parts[0]["alternative_names"] == [f"dns:{HOST_NAME}"]


def test_profile_show_prints_toml(pki: Runner) -> None:
    """The same facts as pki/profiles/host.toml."""
    shown = tomllib.loads(pki("profile", "show", "host").out)
    file = Path(__file__).parents[2] / "pki" / "profiles" / "host.toml"
    assert shown == tomllib.loads(file.read_text())


def test_default_days_in_the_help_are_the_profiles() -> None:
    """The options repeat the number so that --help need not load the profiles."""
    for command, profile in ((issuing.issue_host, HOST), (issuing.issue_receiver, RECEIVER)):
        days = next(parameter for parameter in command.params if parameter.name == "days")
        assert days.default == profile.default_days


def test_help_loads_no_cryptography() -> None:
    """`securecore pki --help` answers at once."""
    program = "import sys; from securecore.cli.main import run; run(['pki', '--help']); print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_no_command_asks_when_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal and without an option about the passphrase, init says which option to give."""
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        result = Runner(capsys, tmp_path)("init", "--dir", "p", "--org", "x", "--domain", DOMAIN)
    fails(result, 3, "no terminal", "--passphrase-file", "--no-passphrase")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def locked(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner in a PKI that is locked with the passphrase in the file named passphrase."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECURECORE_PKI", str(tmp_path / "fleet-pki"))
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_text(WORDS + "\n")
    runner = Runner(capsys, tmp_path)
    assert runner("init", "--org", "Test", "--domain", DOMAIN, "--passphrase-file", "passphrase").code == 0
    return runner


@pytest.mark.slow
def test_passphrase_file_opens_what_it_locked(locked: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that signs takes it; another passphrase, and none at all, are told apart and change nothing."""
    option = ("--passphrase-file", "passphrase")
    assert locked("issue", "host", "web-1", "--out", "w", *option).code == 0
    assert locked("revoke", "web-1", *option).code == 0
    assert locked("crl", "--now", *option).code == 0
    wrong = locked.path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("not the passphrase\n")
    fails(locked("issue", "host", "web-2", "--out", "x", "--passphrase-file", "wrong"), 8, "does not open this key")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        fails(locked("issue", "host", "web-2", "--out", "x"), 3, "the CA key is locked", "--passphrase-file")
    assert not (locked.path / "x").exists()


@pytest.mark.slow
def test_passphrase_file_must_be_private_and_filled(locked: Runner) -> None:
    """A passphrase that others may read protects nothing; an empty one is a mistake."""
    (locked.path / "passphrase").chmod(0o644)
    fails(locked("crl", "--now", "--passphrase-file", "passphrase"), 3, "its mode is 0644")
    empty = locked.path / "empty"
    empty.touch(0o600)
    fails(locked("crl", "--now", "--passphrase-file", "empty"), 3, "its first line is empty")
    fails(locked("crl", "--now", "--passphrase-file", "nothing"), 3, "can't be read")


@pytest.mark.slow
def test_passphrase_comes_from_a_pipe(locked: Runner) -> None:
    """As in --passphrase-file <(pass show fleet)."""
    read_end, write_end = os.pipe()
    os.write(write_end, WORDS.encode() + b"\n")
    os.close(write_end)
    assert locked("crl", "--now", "--passphrase-file", f"/dev/fd/{read_end}").code == 0
    os.close(read_end)


@pytest.mark.slow
def test_passphrase_is_asked_for_on_a_terminal_twice_and_not_shown(tmp_path: Path) -> None:
    """On a terminal init asks, has it repeated, and locks the keys."""
    controller, terminal = pty.openpty()
    place = str(tmp_path / "p")
    command = [sys.executable, "-m", "securecore.cli.main", "pki", "init", "--dir", place, "--org", "x", "--domain", DOMAIN]
    program = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    child = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    shown = b""
    for prompt in (b"passphrase for the CA keys: ", b"Repeat for confirmation: "):
        while not shown.endswith(prompt):
            shown += os.read(controller, 1000)
        os.write(controller, WORDS.encode() + b"\n")
    while True:
        try:
            shown += os.read(controller, 1000)
        except OSError:  # EIO: the last process that held the terminal has ended.
            break
    os.close(controller)
    assert child.wait(timeout=60) == 0, shown
    assert WORDS.encode() not in shown
    assert b"ENCRYPTED" in (tmp_path / "p" / "hosts" / "key.pem").read_bytes()


def test_every_command_has_a_help_line() -> None:
    """Nobody has to guess."""
    for name, command in pki_module.command.commands.items():
        assert inspect.cleandoc(command.help or ""), name

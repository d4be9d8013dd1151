"""``securecore receive --config``: what the file says holds, options win over it, and a reload takes a new one without a cut."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from securecore.cli import main, receive
from securecore.errors import ConfigError, RefusedError
from securecore.names import Address, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.configuration import ReceiverConfiguration
from securecore.receiver.policy import Policy, Quota
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.wire.messages import End, Receipt, encode
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.hands import Hand
from tests.support.kernel import wait_until
from tests.support.launchers import seeing
from tests.support.machines import USER, make_root, setup
from tests.support.processes import PATIENCE_S, SECURECORE, Process
from tests.support.receivers import new_dump_id

LOOPBACK = Address("127.0.0.1:0")


@pytest.fixture
def file(fleet: Fleet, tmp_path: Path) -> Path:
    """A receiver.toml that a receiver can run with."""
    path = tmp_path / "receiver.toml"
    path.write_bytes(ReceiverConfiguration((LOOPBACK,), str(tmp_path / "store"), str(fleet.receiver)).encode())
    return path


def change(file: Path, old: str, new: str) -> None:
    """Edit a file as a person does; what is edited must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@contextmanager
def receiving_by(file: Path, *options: str) -> Iterator[Process]:
    """Run a receiver by its file while the block runs."""
    arguments = [*SECURECORE, "receive", "--config", str(file), *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            yield Process(popen)
        finally:
            popen.kill()


def test_a_file_that_is_in_order_is_said_to_be(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it leads to; no store is made by it."""
    assert main.run(["receive", "--check", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ok: {file} is understood, ")
    assert f"is {RECEIVER_NAME}'s, and {tmp_path / 'store'} is a store or can become one" in out
    assert not (tmp_path / "store").exists()


def test_without_listen_the_usual_file_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what the unit's receiver goes by; who says where to listen has no file unless it is named."""
    monkeypatch.setattr(receive, "CONFIGURATION", str(file))
    assert main.run(["receive", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"receiver": RECEIVER_NAME, "store": str(file.parent / "store")}
    file.write_text("nonsense")
    assert main.run(["receive", "--check"]) == 3
    # The file leads to an identity that is there; without it the usual one is missing.
    assert main.run(["receive", "--check", "--listen", "127.0.0.1:0", "--identity", str(file.parent / "none")]) == 4


def test_without_listen_and_file_nobody_knows_where_to_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error that names both; a file that was named and is missing, or does not say it, is the file's error."""
    monkeypatch.setattr(receive, "CONFIGURATION", str(tmp_path / "none.toml"))
    assert main.run(["receive"]) == 2
    assert f"missing option '--listen': there is no {tmp_path}/none.toml" in capsys.readouterr().err
    assert main.run(["receive", "--config", str(tmp_path / "none.toml")]) == 4
    (tmp_path / "none.toml").write_text("version = 1")
    assert main.run(["receive"]) == 3
    assert "none.toml: listen is missing" in capsys.readouterr().err


def test_who_names_a_file_means_its_store(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--store comes before --config, --config before the environment, and the environment before the usual file."""
    monkeypatch.setenv("SECURECORE_STORE", str(tmp_path / "of-the-environment"))
    monkeypatch.setattr(receive, "CONFIGURATION", str(file))
    stores = []
    for options in (["--config", str(file), "--store", str(tmp_path / "named")], ["--config", str(file)], []):
        assert main.run(["receive", "--check", "--json", *options]) == 0
        stores.append(json.loads(capsys.readouterr().out)["store"])
    assert stores == [str(tmp_path / name) for name in ("named", "store", "of-the-environment")]


@pytest.mark.parametrize("as_json", [False, True])
def test_all_that_is_wrong_is_said_at_once(as_json: bool, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every table's mistake; and, once the file is understood, identity and store."""
    options = ["receive", "--check", "--config", str(file), *(["--json"] if as_json else [])]
    change(file, "[floor]\n", "[floor]\nshare = 5\n")
    change(file, "[quota]\n", "[quota]\ndumps = 0\n")
    assert main.run(options) == 3
    quota, floor = said(capsys, as_json)
    assert "dumps must be above 0" in quota
    assert "share must be a text" in floor
    store, missing = file.parent / "foreign", file.parent / "missing"
    store.mkdir()
    (store / "letter").touch()
    file.write_bytes(ReceiverConfiguration((LOOPBACK,), str(store), str(missing)).encode())
    assert main.run(options) == 4
    about_identity, about_store = said(capsys, as_json)
    assert str(missing) in about_identity
    assert str(store) in about_store


def test_a_store_that_cannot_be_looked_at_hides_nothing_else_that_is_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where the receiver's user may not enter it; it is said in the words that a start has."""
    store, missing = file.parent / ("long" * 70), file.parent / "missing"
    file.write_bytes(ReceiverConfiguration((LOOPBACK,), str(store), str(missing)).encode())
    assert main.run(["receive", "--check", "--config", str(file)]) == 4
    about_identity, about_store = said(capsys, as_json=False)
    assert str(missing) in about_identity
    assert about_store == f"securecore: cannot open the store {store}: file name too long"


def said(capsys: pytest.CaptureFixture[str], as_json: bool) -> list[str]:
    """Return the messages of a command that was not content."""
    captured = capsys.readouterr()
    if as_json:
        document = json.loads(captured.out)
        return [error["message"] for error in (document["error"], *document["further"])]
    return [line for line in captured.err.splitlines() if line.startswith("securecore: ")]


@pytest.mark.slow
def test_a_receiver_runs_by_its_file_and_options_win(file: Path, tmp_path: Path) -> None:
    """Addresses, store and identity come from it; the store that is given on the command line is taken instead of its own."""
    with receiving_by(file) as process:
        assert [address.host for address in process.addresses] == ["127.0.0.1"]
        assert process.announced.endswith(f"store {tmp_path / 'store'}\n")
    with receiving_by(file, "--store", str(tmp_path / "other")) as process:
        assert process.announced.endswith(f"store {tmp_path / 'other'}\n")


@pytest.mark.slow
def test_a_reload_says_what_it_took_and_ends_no_connection(file: Path, fleet: Fleet) -> None:
    """A new file, a bad one, and one with what only a restart can change: the dump in flight gets its receipt all the same."""
    with receiving_by(file) as process:
        hand, dump = Hand(fleet.host, process.addresses), new_dump_id()
        hand.open(dump)
        hand.send(b"a core")
        change(file, "[quota]\n", "[quota]\ndumps = 1000\n")
        process.popen.send_signal(signal.SIGHUP)
        process.logged("reloaded configuration")
        change(file, "dumps = 1000", "dumsp = 1000")
        process.popen.send_signal(signal.SIGHUP)
        number = file.read_text().splitlines().index("dumsp = 1000") + 1
        process.logged(f"ERROR reload failed, the last good configuration stays: .{file}:{number}: unknown key .*dumsp")
        change(file, "dumsp = 1000", "")
        change(file, "127.0.0.1:0", "127.0.0.2:0")
        process.popen.send_signal(signal.SIGHUP)
        # Both may come in one read, and what is read behind a match is not looked at again.
        process.logged(r"WARNING listen has changed: that needs a restart\n(?:.*\n)*.*reloaded identity=")
        hand.put(encode(End(hand.manifest(dump))))
        assert isinstance(hand.answer(), Receipt)
        hand.close()


@pytest.mark.slow
def test_a_mistake_in_the_file_keeps_no_revocation_from_counting(own_fleet: Fleet, tmp_path: Path) -> None:
    """A reload with a bad file and a new crl.pem: the file is refused, and so is the revoked host."""
    file = tmp_path / "receiver.toml"
    file.write_bytes(ReceiverConfiguration((LOOPBACK,), str(tmp_path / "store"), str(own_fleet.receiver)).encode())
    with receiving_by(file) as process:
        Hand(own_fleet.host, process.addresses).close()
        revoke_name(own_fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.crl_path, own_fleet.receiver / "crl.pem")
        file.write_text("nonsense")
        process.popen.send_signal(signal.SIGHUP)
        process.logged("last good configuration stays(?s:.*)reloaded identity=")
        with pytest.raises(RefusedError, match="revoked on"):
            Hand(own_fleet.host, process.addresses)


@pytest.mark.slow
def test_an_identity_that_is_not_there_keeps_no_revocation_from_counting(own_fleet: Fleet, tmp_path: Path) -> None:
    """The one in force stays, and its lists are read at every reload; a path that leads to one is taken, without a restart."""
    file, copy = tmp_path / "receiver.toml", tmp_path / "copy"
    file.write_bytes(ReceiverConfiguration((LOOPBACK,), str(tmp_path / "store"), str(own_fleet.receiver)).encode())
    with receiving_by(file) as process:
        Hand(own_fleet.host, process.addresses).close()
        change(file, str(own_fleet.receiver), str(copy))
        process.popen.send_signal(signal.SIGHUP)
        process.logged(f"last good material stays: .*identity={copy} in_force={own_fleet.receiver}")
        revoke_name(own_fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.crl_path, own_fleet.receiver / "crl.pem")
        process.popen.send_signal(signal.SIGHUP)
        process.logged(f"in_force={own_fleet.receiver}(?s:.*)reloaded identity={own_fleet.receiver}")
        with pytest.raises(RefusedError, match="revoked on"):
            Hand(own_fleet.host, process.addresses)
        shutil.copytree(own_fleet.receiver, copy)
        process.popen.send_signal(signal.SIGHUP)
        process.logged(f"reloaded identity={copy}")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees other files in the place of /etc")
def test_the_units_command_runs_a_receiver_by_its_file(fleet: Fleet, tmp_path: Path) -> None:
    """As systemd starts it, with nothing but the unit's words, on a machine with the files that set-up wrote."""
    root = make_root(tmp_path / "root", fleet)
    assert setup(root, "receiver", "--listen", "127.0.0.1:0", "--user", USER) == 0
    unit = (root / "etc/systemd/system/securecore-receiver.service").read_text()
    command = unit.partition("\nExecStart=")[2].partition("\n")[0].split()
    # The service's user need not be able to read this checkout's Python, so root takes its place.
    identity = root / "etc/securecore/receiver"
    for path in (root / "var/lib/securecore/store", identity, *identity.iterdir()):
        os.chown(path, 0, 0)
    within = seeing([(root / path, Path("/", path)) for path in ("etc", "var/lib")])
    pipe = subprocess.PIPE
    with subprocess.Popen([*within, *command], cwd="/", env={}, stdout=pipe, stderr=pipe) as popen:
        try:
            assert Process(popen).announced.endswith("store /var/lib/securecore/store\n")
        finally:
            popen.kill()
    assert (root / "var/lib/securecore/store/FORMAT").exists()


@contextmanager
def serving(settings: ReceiverSettings, said_now: list[ReceiverSettings | Exception]) -> Iterator[Receiver]:
    """Run a receiver while the block runs; at each reload it is given, or refused, what is next in *said_now*."""

    def reread() -> ReceiverSettings:
        found = said_now.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    receiver = open_receiver(settings, reread)
    thread = threading.Thread(target=receiver.serve)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stop()
        thread.join(PATIENCE_S)


def test_sessions_go_by_the_last_good_policy(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the start on, and after each reload; what is wrong with the file, or with the identity, does not touch the other."""
    first, second, third = (Policy(quota=Quota(dumps=number)) for number in (1, 2, 3))
    settings = ReceiverSettings((LOOPBACK,), tmp_path / "store", fleet.receiver, policy=first)
    later = settings._replace(policy=second)
    elsewhere = later._replace(identity=tmp_path / "none", incomplete_after=timedelta(days=1), policy=third)
    found = []
    with caplog.at_level("INFO"), serving(settings, [later, ConfigError("x.toml:1: no"), elsewhere]) as receiver:
        found.append(receiver._service.policy)
        for line in ("reloaded identity=", "last good configuration stays: 'x.toml:1: no'", "last good material stays: "):
            receiver.reload()
            wait_until(partial(find_line, line, caplog))
            found.append(receiver._service.policy)
        assert str(receiver.material.own.name) == RECEIVER_NAME
    assert found == [first, second, second, third]
    assert "incomplete_after has changed: that needs a restart" in caplog.messages


def find_line(words: str, caplog: pytest.LogCaptureFixture) -> str | None:
    """Return the log's line with these words."""
    return next((line for line in caplog.messages if words in line), None)

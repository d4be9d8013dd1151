"""``doctor`` of a receiver: one that is in order is called so; each thing that can be wrong is found, and named with its remedy."""

import fcntl
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.audit.rekeying import rekey
from securecore.certs.identity_directory import load_identity, load_log_key
from securecore.cli import main
from securecore.names import HostName
from securecore.pki.issue import log_statement
from securecore.receiver import installation as receiving
from securecore.store.layout import create_store
from tests.support.certificates import DOMAIN, make_fleet
from tests.support.checkups import Fault, Machine, needs_root, replace_in, tree, write
from tests.support.file_systems import BLOCK_BYTES, fill
from tests.support.local_files import small_disk
from tests.support.machines import USER, receiver_running
from tests.support.stores import flip

RECEIVER = "/etc/securecore/receiver"
STORE = "/var/lib/securecore/store"


def test_a_receiver_in_order_is_ok_and_left_as_it_is(machine: Machine, tmp_path: Path) -> None:
    """Unit, identity, three lists, store, and the receiver that runs on it; nothing is changed."""
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        before = tree(machine.path)
        seen = machine.doctor(role="receiver")
        after = tree(machine.path)

    assert seen.code == 0
    assert seen.not_ok() == set()
    assert list(seen.findings) == [
        "configuration",
        "unit",
        "identity",
        "revocation list",
        "store",
        "store's room",
        "receiver",
        "log key",
        "receiver-wide log",
    ]
    assert [found["words"].endswith(" left") for found in seen.findings["revocation list"]] == [True] * 3
    assert seen.find("receiver", "ok")["words"] == f"runs (pid {os.getpid()})"
    assert after == before


RECEIVER_FAULTS: dict[str, tuple[Fault, str, str, str, str]] = {
    "an edited unit": (
        replace_in(receiving.SERVICE, "LimitCORE=0", "LimitCORE=infinity"), "unit", "warning", "is not what",
        "securecore setup receiver, and then",
    ),
    "a unit that is older than the file": (
        replace_in(receiving.CONFIGURATION, "127.0.0.1:4455", "127.0.0.1:445"), "unit", "warning", "is not what",
        "securecore setup receiver, and then",
    ),
    "no configuration": (
        lambda m: m.file(receiving.CONFIGURATION).unlink(), "configuration", "wrong", "receiver.toml is missing",
        "securecore setup receiver --listen",
    ),
    "a configuration with a mistake": (
        replace_in(receiving.CONFIGURATION, "[floor]", "[flor]"), "configuration", "wrong", "unknown key 'flor'", "known keys are",
    ),
    "a configuration without an address": (
        write(receiving.CONFIGURATION, "version = 1\n"), "configuration", "wrong", "names no address", "setup receiver --listen",
    ),
    "a configuration that others may change": (
        lambda m: m.file(receiving.CONFIGURATION).chmod(0o666), "configuration", "wrong", "can be written by others", "chmod go-w",
    ),
    "a unit of somebody else": (write(receiving.SERVICE, "[Unit]\n"), "unit", "wrong", "not a unit that set-up", "setup receiver"),
    "a loose key": (lambda m: m.file(f"{RECEIVER}/key.pem").chmod(0o644), "identity", "wrong", "its mode is 0644", "chmod 600"),
    "no list": (lambda m: m.file(f"{RECEIVER}/crl.pem").unlink(), "identity", "wrong", "crl.pem", ""),
    "a log key without its statement": (
        lambda m: shutil.copyfile(m.fleet.receiver / "key.pem", m.file(f"{RECEIVER}/log-key.pem")), "identity", "wrong",
        "not an Ed25519 key", "",
    ),
    "no store yet": (lambda m: shutil.rmtree(m.file(STORE)), "store", "warning", "no store", "systemctl enable --now"),
    "a receiver-wide log that does not hold": (
        lambda m: flip(m.file(f"{STORE}/audit/receiver/checkpoint"), 80), "receiver-wide log", "wrong", "hosts deliver without it",
        "securecore audit verify --store",
    ),
    "a receiver-wide log without its checkpoint": (
        lambda m: m.file(f"{STORE}/audit/receiver/checkpoint").unlink(), "receiver-wide log", "wrong", "checkpoint is missing",
        "securecore audit verify --store",
    ),
    "no receiver-wide log of hosts": (
        lambda m: m.file(f"{STORE}/audit/receiver").rename(m.file(f"{STORE}/audit/web-1.example.org")), "receiver-wide log",
        "warning", "there is none, though there are hosts' logs", "securecore audit verify --store",
    ),
    "a store that others may enter": (lambda m: m.file(STORE).chmod(0o755), "store", "wrong", "others may enter", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", RECEIVER_FAULTS)
def test_each_fault_of_a_receiver_is_found_with_its_remedy(name: str, machine: Machine) -> None:
    """As with a sender; a receiver has run here and does not run now."""
    breaking, check, level, words, remedy = RECEIVER_FAULTS[name]
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    breaking(machine)
    seen = machine.doctor(role="receiver")
    found = seen.find(check, level)

    assert words in found["words"]
    assert remedy in (found["remedy"] or "")
    assert seen.code == (3 if level == "wrong" else 0)
    assert seen.not_ok() == {check}


@pytest.mark.parametrize(("days_ago", "level", "words"), [(20, "warning", "expires on"), (32, "wrong", "ago: ")])
def test_an_old_revocation_list_is_found(
    days_ago: int, level: str, words: str, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of 28 days in the last third of its life is a warning; one that has expired is wrong, though its grace lasts."""
    old = make_fleet(tmp_path / "old", now=datetime.now(UTC) - timedelta(days=days_ago))
    aged = Machine(tmp_path / "aged", old, capsys)
    seen = aged.doctor("--identity", RECEIVER, "--store", STORE, role="receiver")
    found = seen.find("revocation list", level)

    assert words in found["words"]
    assert found["remedy"].startswith("securecore pki crl")


@needs_root
@pytest.mark.parametrize(
    ("free_bytes", "floor", "level", "words"),
    [
        (9 * limits.MIB, "", "wrong", "9.0 MiB free of 160 MiB, 8.0 MiB are to stay free: at its floor, hosts are refused"),
        (88 * limits.MIB, "", "warning", "88.0 MiB free of 160 MiB, 8.0 MiB are to stay free: little for large cores"),
        (88 * limits.MIB, 'free = "87MiB"', "wrong", "88.0 MiB free of 160 MiB, 87.0 MiB are to stay free: at its floor"),
        (9 * limits.MIB, 'share = "none"', "wrong", "9.0 MiB free of 160 MiB: full"),
    ],
)
def test_the_room_of_a_store_is_what_is_free_above_its_floor(
    free_bytes: int, floor: str, level: str, words: str, machine: Machine
) -> None:
    """By the file, or as a receiver has it without: what is free below the floor no host may have."""
    machine.file("/var/lib").mkdir(parents=True)
    with small_disk(machine.file("/var/lib/securecore"), "160m") as disk:
        machine.file("/var/lib/securecore").chmod(0o755)
        machine.set_up_receiver()
        with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
            pass
        replace_in(receiving.CONFIGURATION, "[floor]\n", f"[floor]\n{floor}\n")(machine)
        fill(disk, free_bytes // BLOCK_BYTES)

        assert words in machine.doctor(role="receiver").find("store's room", level)["words"]


@needs_root
def test_a_receiver_on_another_file_system_is_not_taken_for_one_on_this_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two file systems number their files alike. The remedy is the command, for here is no service."""
    with small_disk(tmp_path / "a", "1m") as one, small_disk(tmp_path / "b", "1m") as other:
        for disk in (one, other):
            create_store(str(disk / "store")).close()
            (disk / "store/lock").touch(0o600)
        assert (one / "store/lock").stat().st_ino == (other / "store/lock").stat().st_ino
        words = {}
        with (one / "store/lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for disk in (one, other):
                main.run(
                    ["doctor", "--json", "--offline", "--store", str(disk / "store"), "--identity", "/nonexistent/my identity"]
                )
                checks = json.loads(capsys.readouterr().out)["checks"]
                words[disk] = next((one["words"], one["remedy"]) for one in checks if one["check"] == "receiver")

    assert words[one] == (f"runs (pid {os.getpid()})", None)
    assert words[other] == (
        "none runs on this store",
        f"securecore receive --listen ADDR:PORT --store {other}/store --identity '/nonexistent/my identity'",
    )


def test_another_log_key_is_found(machine: Machine, tmp_path: Path) -> None:
    """The store keeps the statement of the key that signs; another identity's is not that one."""
    machine.set_up_receiver()
    other = make_fleet(tmp_path / "other").receiver
    other.parent.chmod(0o711)  # whatever the umask is of whoever runs this: a receiver's user walks through it
    for path in (other, *other.iterdir()):
        os.chown(path, *map(int, USER.split(":")))
    with receiver_running(other, machine.file(STORE)):
        pass

    found = machine.doctor(role="receiver").find("log key", "wrong")
    assert "audit rekey" in found["remedy"]
    assert "--lost" in found["remedy"]


def test_a_store_of_a_receiver_of_another_name_is_found(machine: Machine, tmp_path: Path) -> None:
    """A certificate for another name was installed: the log key is the same, and no reload takes that up."""
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    shutil.copytree(machine.file(RECEIVER), tmp_path / "copy")  # one that belongs to whoever runs this
    identity, (key, _) = load_identity(tmp_path / "copy"), load_log_key(tmp_path / "copy")
    name = HostName(f"collector-2.{DOMAIN}")
    token = log_statement(name, key.public_key().public_bytes_raw(), identity.key_pem, identity.chain_der, datetime.now(UTC))
    (machine.file(RECEIVER) / "log-key.jws").write_bytes(token)
    found = machine.doctor(role="receiver").find("log key", "wrong")
    assert "another name" in found["words"]


def test_a_log_key_that_is_not_taken_up_yet_is_found(machine: Machine, tmp_path: Path) -> None:
    """It was replaced in the identity, by its owner, and the receiver was not reloaded since."""
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    shutil.copytree(machine.file(RECEIVER), tmp_path / "copy")  # one that belongs to whoever runs this
    rekey(tmp_path / "copy", datetime.now(UTC))
    for path in (tmp_path / "copy").iterdir():
        (machine.file(RECEIVER) / path.name).write_bytes(path.read_bytes())
        os.chown(machine.file(RECEIVER) / path.name, *map(int, USER.split(":")))
    found = machine.doctor(role="receiver").find("log key", "warning")
    assert found["remedy"] == "systemctl reload securecore-receiver"

"""``doctor``: a set-up that is in order is called so; each thing that can be wrong with one is found, and named with its remedy."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from securecore.cli import core_pattern, main
from securecore.cli.machine import plan
from securecore.merkle import Frontier
from securecore.names import Address, DumpId, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver import installation as receiving
from securecore.receiver.server import Receiver
from securecore.sender import installation
from securecore.sender.spool import open_spool
from securecore.sender.spool_entry import EntryStart
from securecore.store.layout import create_store
from tests.support.certificates import HOST_NAME, Fleet, make_fleet, no_passphrase
from tests.support.kernel import Installed, needs_kernel, wait_until
from tests.support.local_files import small_disk
from tests.support.machines import USER, SystemLog, make_root, receiver_running, seeing, setup
from tests.support.receivers import running_receiver

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be a machine's other users")

NOWHERE = Address("127.0.0.1:9")
RECEIVER = "/etc/securecore/receiver"
STORE = "/var/lib/securecore/store"
PATTERN = installation.core_pattern(installation.HANDLER)
CORES = "/var/lib/securecore/cores"


class Seen(NamedTuple):
    """What doctor said: its exit code, and its findings of one role by their names."""

    code: int
    findings: dict[str, list[dict[str, Any]]]

    def find(self, check: str, level: str) -> dict[str, Any]:
        """Return the first finding of a check that has a level."""
        return next(found for found in self.findings[check] if found["level"] == level)

    def not_ok(self) -> set[str]:
        """Return the checks that found something, but for what a test machine cannot help: its Python's place, its disk's room."""
        names = {name for name, found in self.findings.items() if any(one["level"] != "ok" for one in found)}
        return names - {"interpreter", "spool's room", "store's room", "cores' room"}


class Machine:
    """A root that is set up as a sender and a receiver, and doctor's eyes on it."""

    def __init__(self, path: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        self.path = make_root(path, fleet)
        self.fleet = fleet
        self._capture = capture

    def file(self, path: str) -> Path:
        """Return where a file of the machine is."""
        return self.path / path.lstrip("/")

    def set_up_sender(self, *receivers: Address, user: str = USER) -> None:
        """Make the machine a sender."""
        to = [word for address in receivers for word in ("--to", str(address))]
        assert setup(self.path, "sender", *to, "--identity", "/etc/securecore/identity", "--user", user) == 0
        self._capture.readouterr()

    def set_up_local(self) -> None:
        """Make the machine keep its cores."""
        assert setup(self.path, "sender", "--local", CORES, "--format", "gz", "--keep", "10", "--user", USER) == 0
        self._capture.readouterr()

    def set_up_receiver(self) -> None:
        """Make the machine a receiver."""
        assert setup(self.path, "receiver", "--listen", "127.0.0.1:4455", "--user", USER) == 0
        self._capture.readouterr()

    def doctor(self, *options: str, role: str = "sender") -> Seen:
        """Run doctor on the machine."""
        code = main.run(["doctor", "--root", str(self.path), "--json", *options])
        document = json.loads(self._capture.readouterr().out)
        findings: dict[str, list[dict[str, Any]]] = {}
        for found in document["checks"]:
            if found["role"] == role:
                findings.setdefault(found["check"], []).append(found)
        assert (code == 3) is (document["level"] == "wrong")
        return Seen(code, findings)

    def words(self, *options: str) -> str:
        """Return what doctor tells a person."""
        main.run(["doctor", "--root", str(self.path), *options])
        return self._capture.readouterr().out


@pytest.fixture
def machine(tmp_path: Path, fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> Machine:
    """A machine of the fleet."""
    return Machine(tmp_path / "root", fleet, capsys)


def tree(place: Path) -> dict[str, tuple[object, ...]]:
    """Return all that could be changed below *place*."""
    found = {}
    for path in place.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


@pytest.mark.slow
def test_a_sender_in_order_is_ok_and_left_as_it_is(machine: Machine, receiver: Receiver) -> None:
    """Every check is made, the receiver answers a real handshake, and not a byte of the machine is changed."""
    machine.set_up_sender(*receiver.addresses)
    before = tree(machine.path)
    seen = machine.doctor()

    assert seen.code == 0
    assert seen.not_ok() == set()
    assert list(seen.findings) == [
        "core_pattern", "core_pipe_limit", "next boot", "handler", "interpreter", "configuration", "settings", "clock", "identity",
        "spool", "spool's room", "flush timer", "receiver",
    ]  # fmt: skip
    assert seen.find("core_pattern", "ok")["words"] == PATTERN
    assert HOST_NAME in seen.find("identity", "ok")["words"]
    assert "takes us, store" in seen.find("receiver", "ok")["words"]
    assert tree(machine.path) == before


def test_a_machine_that_keeps_its_cores_is_looked_at_as_one(machine: Machine) -> None:
    """Local mode has no settings, identity, spool or receiver; the pattern has its options."""
    machine.set_up_local()
    before = tree(machine.path)
    seen = machine.doctor()

    assert (seen.code, seen.not_ok()) == (0, set())
    assert list(seen.findings) == [
        "core_pattern", "core_pipe_limit", "next boot", "handler", "interpreter", "configuration", "cores", "cores' room",
    ]  # fmt: skip
    assert f"--local {CORES} --format gz --keep 10" in seen.find("core_pattern", "ok")["words"]
    assert seen.find("cores", "ok")["words"].endswith(f"{CORES}, gz, the newest 10 are kept")
    assert tree(machine.path) == before


@needs_root
@pytest.mark.parametrize(
    ("harm", "level", "words"),
    [
        (lambda cores: cores.rmdir(), "wrong", "no such file"),
        (lambda cores: cores.chmod(0o770), "wrong", "others than its owner can write there"),
        (lambda cores: cores.chmod(0o755), "warning", "others may look into it"),
        (lambda cores: os.chown(cores, 4711, 4711), "warning", "belongs to 4711:4711"),
        (lambda cores: os.chown(cores, 4711, 0), "wrong", "belongs to root's group"),
        (lambda cores: os.chown(cores, 0, 4711), "wrong", "belongs to root,"),
    ],
    ids=["missing", "writable", "readable", "another owner's", "root's group", "root's"],
)
def test_a_directory_of_cores_that_is_not_as_it_should_be(
    harm: Callable[[Path], None], level: str, words: str, machine: Machine
) -> None:
    """What would lose cores is wrong, what would show them to others is a warning; each with what mends it."""
    machine.set_up_local()
    cores = machine.file(CORES)
    for path in cores.iterdir():
        path.unlink()
    harm(cores)
    found = machine.doctor().find("cores", level)

    assert words in found["words"]
    assert found["remedy"]


@pytest.mark.parametrize("directory", ["/var/my cores", "/" + "x" * 99], ids=["a space", "too long"])
def test_a_directory_that_core_pattern_cannot_name(directory: str, machine: Machine) -> None:
    """An edited sender.toml: the other checks are made, and this one names the file and what is wrong with it."""
    machine.set_up_local()
    configuration = machine.file(installation.CONFIGURATION)
    configuration.write_text(configuration.read_text().replace(CORES, directory))
    found = machine.doctor().find("configuration", "wrong")

    assert found["words"].startswith(f"{configuration}: ")
    assert directory in found["words"]


def test_options_in_the_pattern_that_are_older_than_the_configuration(machine: Machine) -> None:
    """A changed sender.toml that was not set up again: the kernel still starts the handler with the old options."""
    machine.set_up_local()
    configuration = machine.file(installation.CONFIGURATION)
    configuration.write_text(configuration.read_text().replace("keep = 10", "keep = 20"))

    assert machine.doctor().find("core_pattern", "wrong")["remedy"] == "securecore setup sender"


def test_a_person_reads_it_from_top_to_bottom(machine: Machine) -> None:
    """Aligned, without colour where there is no terminal; a remedy under what is not ok; the count at the end."""
    machine.set_up_sender(NOWHERE)
    machine.file("/proc/sys/kernel/core_pattern").write_text("core\n")
    lines = machine.words("--offline").splitlines()

    assert lines[0] == "sender"
    assert lines[1] == "  wrong    core_pattern     is 'core': crashes do not come to securecore"
    assert lines[2] == "                            -> securecore setup sender"
    assert lines[-1].startswith("1 wrong, ")
    assert {line[28:29] for line in lines[1:-1]} & {" "} == set()
    assert "\x1b" not in "".join(lines)


def test_a_machine_that_is_neither_is_said_to_be_neither(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to look at is an error of its own, with the command that changes it."""
    assert main.run(["doctor", "--root", str(machine.path)]) == 4
    assert "neither as sender nor as receiver" in capsys.readouterr().err


Fault = Callable[[Machine], object]


def replace_in(path: str, old: str, new: str) -> Fault:
    """Return a fault: a text file that says something else."""

    def change(machine: Machine) -> None:
        text = machine.file(path).read_text()
        assert old in text
        machine.file(path).write_text(text.replace(old, new))

    return change


def write(path: str, text: str) -> Fault:
    """Return a fault: a file that is there."""

    def change(machine: Machine) -> None:
        machine.file(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        machine.file(path).write_text(text)

    return change


def keep_an_old_dump(machine: Machine) -> None:
    """Have a dump wait in the spool since long ago."""
    spool = open_spool(str(machine.file("/var/lib/securecore/spool")))
    spool.begin(EntryStart(DumpId.make(1_700_000_000_000, bytes(10)), 1, None, Frontier()), b"{}").close()


SPOOL = "/var/lib/securecore/spool"
IDENTITY = "/etc/securecore/identity"
SETUP = "securecore setup sender"

FAULTS: dict[str, tuple[Fault, str, str, str, str]] = {
    "another pattern": (
        write("/proc/sys/kernel/core_pattern", "|/tmp/evil %P\n"), "core_pattern", "wrong", "'|/tmp/evil %P'", SETUP,
    ),
    "no limit": (write("/proc/sys/kernel/core_pipe_limit", "0\n"), "core_pipe_limit", "warning", "is 0", SETUP),
    "no sysctl.d file": (lambda m: m.file(installation.SYSCTL).unlink(), "next boot", "wrong", "is missing", SETUP),
    "an edited sysctl.d file": (
        replace_in(installation.SYSCTL, "kernel.core_pattern =", "#kernel.core_pattern ="), "next boot", "wrong",
        "is not what set-up writes", SETUP,
    ),
    "a later sysctl.d file": (
        write("/etc/sysctl.d/99-zz.conf", "kernel.core_pattern=core\n"), "next boot", "wrong", "read after ours and wins",
        "take kernel.core_pattern out of",
    ),
    "another service": (
        write("/etc/systemd/system/apport.service", ""), "next boot", "warning", "apport.service sets core_pattern",
        "systemctl disable --now apport.service",
    ),
    "no handler": (lambda m: m.file(installation.HANDLER).unlink(), "handler", "wrong", "is missing", SETUP),
    "another handler": (
        replace_in(installation.HANDLER, "#!", "#!/old"), "handler", "wrong", "it begins with '#!/old", SETUP,
    ),
    "a handler that cannot start": (
        lambda m: m.file(installation.HANDLER).chmod(0o644), "handler", "wrong", "cannot be started (mode 0644)", SETUP,
    ),
    "a handler that others can write": (
        lambda m: m.file(installation.HANDLER).chmod(0o757), "handler", "wrong", "can be written by others", "chmod go-w",
    ),
    "a directory above the handler that others can write": (
        lambda m: m.file("/usr/libexec").chmod(0o777), "handler", "wrong", "can be written by others than root", "chmod go-w",
    ),
    "no configuration": (
        lambda m: m.file(installation.CONFIGURATION).unlink(), "configuration", "wrong", "is missing", f"{SETUP} --to",
    ),
    "a misspelt key": (
        replace_in(installation.CONFIGURATION, "spool =", "spol ="), "configuration", "wrong", "unknown key 'spol'", "known keys",
    ),
    "settings that are none": (write(installation.SETTINGS, "{"), "settings", "wrong", "not settings", SETUP),
    "no settings": (lambda m: m.file(installation.SETTINGS).unlink(), "settings", "wrong", "No such file", SETUP),
    "settings that others can write": (
        lambda m: m.file(installation.SETTINGS).chmod(0o666), "settings", "wrong", "only root can write", "chmod go-w",
    ),
    "settings older than the configuration": (
        replace_in(installation.CONFIGURATION, str(NOWHERE), "other.example:1"), "settings", "wrong", "does not hold yet", SETUP,
    ),
    "a clock that is behind": (
        lambda m: os.utime(m.file(installation.SETTINGS), (4e9, 4e9)), "clock", "wrong", "were written at 2096", "set-ntp",
    ),
    "a key that others can read": (
        lambda m: m.file(f"{IDENTITY}/key.pem").chmod(0o640), "identity", "wrong", "its mode is 0640", "chmod 600",
    ),
    "no certificate": (lambda m: m.file(f"{IDENTITY}/cert.pem").unlink(), "identity", "wrong", "no such file", "--identity"),
    "a receiver's identity": (
        lambda m: shutil.copytree(m.fleet.receiver, m.file(IDENTITY), dirs_exist_ok=True), "identity", "wrong", "identity", "",
    ),
    "no spool": (lambda m: shutil.rmtree(m.file(SPOOL)), "spool", "wrong", "No such file", "makes it"),
    "a spool that others may enter": (lambda m: m.file(SPOOL).chmod(0o755), "spool", "wrong", "others may look", "chmod 700"),
    "a dump that waits": (keep_an_old_dump, "spool", "warning", "1 dump in", "securecore spool flush"),
    "no timer": (lambda m: m.file(installation.TIMER).unlink(), "flush timer", "wrong", "is missing", SETUP),
    "an edited unit": (replace_in(installation.SERVICE, "Nice=10", "Nice=1"), "flush timer", "wrong", "is not what", SETUP),
    "a timer that is not enabled": (
        lambda m: m.file(installation.TIMER_LINK).unlink(), "flush timer", "wrong", "is not enabled", SETUP,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_sender_is_found_with_its_remedy(name: str, machine: Machine) -> None:
    """One thing is broken; doctor names it, says how bad it is and what mends it, and calls nothing broken that is not."""
    breaking, check, level, words, remedy = FAULTS[name]
    machine.set_up_sender(NOWHERE)
    breaking(machine)
    seen = machine.doctor("--offline")
    found = seen.find(check, level)

    assert words in found["words"]
    assert remedy in (found["remedy"] or "")
    assert seen.code == (3 if level == "wrong" else 0)
    assert seen.not_ok() - {check} <= {"settings"}


@pytest.mark.parametrize("name", ["no handler", "another pattern", "no timer", "settings older than the configuration", "no limit"])
def test_the_remedy_mends(name: str, machine: Machine) -> None:
    """What `securecore setup sender` is named for, it puts in order."""
    machine.set_up_sender(NOWHERE)
    FAULTS[name][0](machine)
    assert machine.doctor("--offline").not_ok() != set()
    assert setup(machine.path, "sender") == 0
    machine.words()

    assert machine.doctor("--offline").not_ok() == set()


@needs_root
def test_a_user_that_is_gone_and_a_spool_of_another_are_found(machine: Machine) -> None:
    """The handler's user must exist, and the spool must be its own."""
    machine.set_up_sender(NOWHERE, user="crash")
    machine.file("/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    os.chown(machine.file(SPOOL), 991, 991)
    seen = machine.doctor("--offline")

    assert "user crash of" in seen.find("settings", "wrong")["words"]
    assert "belongs to 991:991" in seen.find("spool", "wrong")["words"]
    assert seen.find("spool", "wrong")["remedy"].startswith("chown -R 990:990 ")


@pytest.mark.parametrize(("days_ago", "level", "words"), [(70, "warning", "left)"), (100, "wrong", "expired on")])
def test_a_certificate_at_its_end_is_found(
    days_ago: int, level: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the last third of its 90 days a warning, behind them wrong."""
    fleet = make_fleet(tmp_path / "old", now=datetime.now(UTC) - timedelta(days=days_ago))
    machine = Machine(tmp_path / "root", fleet, capsys)
    shutil.copytree(make_fleet(tmp_path / "new").host, machine.file(IDENTITY), dirs_exist_ok=True)
    machine.set_up_sender(NOWHERE)
    shutil.copytree(fleet.host, machine.file(IDENTITY), dirs_exist_ok=True)

    assert words in machine.doctor("--offline").find("identity", level)["words"]


@pytest.mark.slow
def test_receivers_are_tried_for_real(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is away is a warning beside one that answers, wrong alone; one that refuses us is wrong, in its own words."""
    machine = Machine(tmp_path / "root", own_fleet, capsys)
    with running_receiver(own_fleet.receiver, tmp_path / "store") as running:
        machine.set_up_sender(NOWHERE, *running.addresses)
        both = machine.doctor()
        machine.set_up_sender(NOWHERE)
        alone = machine.doctor()
        revoke_name(own_fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.crl_path, own_fleet.receiver / "crl.pem")
        running.reload()
        machine.set_up_sender(*running.addresses)
        # A reload is taken up between two connections: the first one may come before it.
        refused = wait_until(lambda: seen if (seen := machine.doctor()).code else None)

    assert both.code == 0
    assert [found["level"] for found in both.findings["receiver"]] == ["warning", "ok"]
    assert (alone.code, [found["level"] for found in alone.findings["receiver"]]) == (3, ["wrong"])
    assert "revoked" in refused.find("receiver", "wrong")["words"]


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

    found = machine.doctor(role="receiver").find("log key", "warning")
    assert found["remedy"] == "systemctl restart securecore-receiver"


def run_where(places: list[tuple[Path, Path]], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of ours where each first path stands in the second one's place."""
    command = [sys.executable, "-m", "securecore.cli.main", *arguments]
    return subprocess.run(command, preexec_fn=seeing(places), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
def test_drift_of_the_kernels_own_core_pattern_is_found(machine: Machine) -> None:
    """R26: the pattern that the kernel has at this moment, set up and then taken away, on the real /proc."""
    machine.set_up_sender(NOWHERE)
    proc, options = [(Path("/proc"), machine.file("/proc"))], ["--root", str(machine.path), "--offline", "--json"]
    with core_pattern.borrowed(PATTERN, patience_s=120):
        before = run_where(proc, "doctor", *options)
        core_pattern.CORE_PATTERN.write_text("core\n")
        after = run_where(proc, "doctor", *options)

    assert before.returncode == 0, before.stdout
    assert json.loads(before.stdout)["checks"][0]["words"] == PATTERN
    assert after.returncode == 3
    assert json.loads(after.stdout)["checks"][0] == {
        "role": "sender", "check": "core_pattern", "level": "wrong", "words": "is 'core': crashes do not come to securecore",
        "remedy": SETUP,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
def test_the_running_machine_is_looked_at_like_an_image(machine: Machine) -> None:
    """Without --root the same checks are made on /, with its own kernel, clock and services; here it is seen with other files."""
    machine.set_up_sender(NOWHERE)
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    places = [(machine.file(path), Path(path)) for path in ("/etc", "/var/lib", "/usr/libexec")]
    result = run_where(places, "doctor", "--json")
    found = {(one["role"], one["check"]): one for one in json.loads(result.stdout)["checks"]}

    assert (result.returncode, result.stderr) == (3, "")
    assert found["sender", "core_pattern"]["level"] == "wrong"
    assert found["sender", "handler"]["words"] == installation.HANDLER
    assert found["sender", "settings"]["level"] == found["sender", "identity"]["level"] == found["sender", "spool"]["level"] == "ok"
    assert found["sender", "receiver"]["words"] == "127.0.0.1:9: connection refused"
    assert found["receiver", "receiver"] == {
        "role": "receiver", "check": "receiver", "level": "wrong", "words": "none runs on this store",
        "remedy": "systemctl enable --now securecore-receiver",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.root
@needs_kernel
@pytest.mark.parametrize(("pattern", "is_told"), [(PATTERN, False), ("|/tmp/evil %P\n<3>", True)])
def test_the_timers_flush_tells_of_drift(pattern: str, is_told: bool, machine: Machine, fleet: Fleet, tmp_path: Path) -> None:
    """R26: with nothing to deliver, and nobody asking, the system log has one line when the kernel starts somebody else."""
    machine.set_up_sender(NOWHERE)
    (tmp_path / "host").mkdir()
    installed = Installed(tmp_path / "host", fleet.host, [NOWHERE])
    (tmp_path / "pattern").write_text(f"{pattern}\n")
    with SystemLog(tmp_path / "dev") as log:
        places = [
            *log.places, (machine.file("/var/lib"), Path("/var/lib")),
            (tmp_path / "pattern", Path("/proc/sys/kernel/core_pattern")),
        ]  # fmt: skip
        flush = run_where(places, "spool", "flush", "--settings", str(installed.settings))
        lines = log.lines()

    assert (flush.returncode, flush.stdout) == (0, "nothing to deliver\n")
    assert [" pattern-drift " in line for line in lines] == [True] * is_told
    assert all(line.startswith("<28>securecore[") and line.isprintable() and "|/tmp/evil %P" in line for line in lines)


def test_a_damaged_record_of_set_up_keeps_nobody_from_flushing(machine: Machine) -> None:
    """Drift is told in passing: what cannot be read of the record is doctor's business."""
    from securecore.cli.machine.drift import find_drift
    from securecore.cli.machine.root import Root

    machine.set_up_sender(NOWHERE)
    machine.file("/proc/sys/kernel/core_pattern").write_text("core\n")
    with Root(machine.path) as root:
        found = find_drift(root)
        machine.file(plan.state_path("sender")).write_text("{")
        damaged = find_drift(root)

    assert found is not None
    assert (found.installed, found.found) == (PATTERN, "core")
    assert damaged is None

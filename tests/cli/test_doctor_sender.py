"""``doctor`` of a sender: one that is in order is called so; each thing that can be wrong is found, and named with its remedy."""

import os
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore import limits
from securecore.merkle import Frontier
from securecore.names import DumpId, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.server import Receiver
from securecore.report import CrashReport
from securecore.sender import installation, storm_limits, storms
from securecore.sender.admission import Admission
from securecore.sender.spool import open_spool
from securecore.sender.spool_entry import EntryStart
from tests.support.certificates import HOST_NAME, Fleet, make_fleet, no_passphrase
from tests.support.checkups import NOWHERE, SETUP, Fault, Machine, needs_root, replace_in, tree, write
from tests.support.file_systems import BLOCK_BYTES, fill
from tests.support.kernel import wait_until
from tests.support.local_files import small_disk
from tests.support.machines import setup
from tests.support.receivers import running_receiver

SPOOL = "/var/lib/securecore/spool"
IDENTITY = "/etc/securecore/identity"
PATTERN = installation.core_pattern(installation.HANDLER)


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
        "spool", "spool's room", "receipts", "storm limits", "flush timer", "receiver",
    ]  # fmt: skip
    assert seen.find("core_pattern", "ok")["words"] == PATTERN
    assert HOST_NAME in seen.find("identity", "ok")["words"]
    assert seen.find("receipts", "ok")["words"] == "0 B in receipts.jsonl"
    assert "takes us, store" in seen.find("receiver", "ok")["words"]
    assert tree(machine.path) == before


def keep_an_old_dump(machine: Machine) -> None:
    """Have a dump wait in the spool since long ago."""
    spool = open_spool(str(machine.file("/var/lib/securecore/spool")))
    spool.begin(EntryStart(DumpId.make(1_700_000_000_000, bytes(10)), 1, None, Frontier()), b"{}").close()


def use_up_a_limit(machine: Machine) -> None:
    """Have one user's programs crash as often as may be, by the usual limits."""
    with closing(open_spool(str(machine.file(SPOOL)))) as spool:
        for number in range(storm_limits.USER_BURST + 3):
            storms.admit(spool.fd, Admission(), CrashReport(uid=33, executable_device=8, executable_inode=number))
        os.chown("storms.json", *spool.owner, dir_fd=spool.fd)


def keep_many_receipts(machine: Machine) -> None:
    """Have the receipt log become as long as it does in weeks of storms, with a hole for what it says."""
    log = machine.file(f"{SPOOL}/receipts.jsonl")
    log.touch(0o600)
    os.truncate(log, 300 << 20)


def link_the_receipt_log(machine: Machine) -> None:
    """Give the receipt log a second name, as backups with hard links do."""
    log = machine.file(f"{SPOOL}/receipts.jsonl")
    log.touch(0o600)
    log.with_name("backup").hardlink_to(log)


FAULTS: dict[str, tuple[Fault, str, str, str, str]] = {
    "a limit that is used up": (use_up_a_limit, "storm limits", "warning", "3 suppressed since 20", "[admission] in sender.toml"),
    "damaged storm limits": (
        lambda m: m.file(f"{SPOOL}/storms.json").write_bytes(b"{"), "storm limits", "warning",
        "storms.json is damaged: the next crash begins anew; nothing to be told", "and remove what is damaged",
    ),
    "storm limits with no room kept": (
        lambda m: m.file(f"{SPOOL}/storms.json").unlink(), "storm limits", "warning",
        "storms.json is missing: with a full disk no crash would be limited", SETUP,
    ),
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
    "a receipt log that nobody has parted": (
        keep_many_receipts, "receipts", "warning", "300 MiB in receipts.jsonl, which no limit bounds", "receipts.jsonl-",
    ),
    "a link in the receipt log's place": (
        lambda m: m.file(f"{SPOOL}/receipts.jsonl").symlink_to("/etc/passwd"), "receipts", "wrong", "receipts.jsonl", "",
    ),
    "a receipt log that a backup has linked": (
        link_the_receipt_log, "receipts", "wrong", "receipts.jsonl': not a regular file with one name", "",
    ),
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


@pytest.mark.parametrize(
    ("line", "check", "level", "words"),
    [
        ("dumps = 200", "spool's quota", "ok", "1 of 200 dumps, 0 B"),
        ('stored = "2GiB"', "spool's quota", "ok", "1 dump, 0 B of 2.0 GiB"),
        ('stored = "1127KiB"', "spool's quota", "warning", "1 dump, 0 B of 1.1 MiB: nearly full"),
        ('stored = "1MiB"', "spool's quota", "wrong", "1 dump, 0 B of 1.0 MiB: full, what no receiver takes is lost"),
        ("dumps = 1", "spool's quota", "wrong", "1 of 1 dump, 0 B: full, what no receiver takes is lost"),
        ('floor_free = "4096TiB"', "spool's room", "wrong", "at its floor, what no receiver takes is lost"),
    ],
)
def test_how_full_a_spool_is_against_its_limits_is_told(line: str, check: str, level: str, words: str, machine: Machine) -> None:
    """Before cores are lost for it, and when they are; with what makes room."""
    machine.set_up_sender(NOWHERE)
    with machine.file(installation.CONFIGURATION).open("a") as file:
        file.write(f"[spool_limits]\n{line}\n")
    assert setup(machine.path, "sender") == 0
    machine.words()
    keep_an_old_dump(machine)
    seen = machine.doctor("--offline")
    found = seen.find(check, level)

    assert words in found["words"]
    assert level == "ok" or "room" in (found["remedy"] or "") or "spool flush" in (found["remedy"] or "")
    assert seen.not_ok() | {"spool's room"} == {"spool", "spool's room"} | ({check} if level != "ok" else set())


@needs_root
@pytest.mark.parametrize(
    ("room_bytes", "level", "words"),
    [
        (-limits.MIB, "wrong", "7.0 MiB free of 160 MiB, 8.0 MiB are to stay free: at its floor, what no receiver takes is lost"),
        (0, "wrong", "at its floor, what no receiver takes is lost"),
        (limits.MIB, "wrong", "at its floor, what no receiver takes is lost"),
        (2 * limits.MIB, "wrong", "10.0 MiB free of 160 MiB, 8.0 MiB are to stay free: full"),
        (80 * limits.MIB, "warning", "88.0 MiB free of 160 MiB, 8.0 MiB are to stay free: little for large cores"),
    ],
)
def test_the_room_of_a_spool_is_what_is_free_above_its_floor(room_bytes: int, level: str, words: str, machine: Machine) -> None:
    """Of a large disk one twentieth is a lot, and no room: nobody is to read that it is free, up to the first core that is lost."""
    machine.file("/var/lib").mkdir(parents=True)
    with small_disk(machine.file("/var/lib/securecore"), "160m") as disk:
        machine.file("/var/lib/securecore").chmod(0o755)
        machine.set_up_sender(NOWHERE)
        fill(disk, (8 * limits.MIB + room_bytes) // BLOCK_BYTES)

        assert words in machine.doctor("--offline").find("spool's room", level)["words"]


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

"""``doctor`` on a machine that keeps its cores: what is wrong with directory, pattern, admission and storm limits is found."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore import limits
from securecore.report import CrashReport
from securecore.sender import installation, storm_limits, storms
from securecore.sender.admission import Admission
from tests.support.checkups import CORES, SETUP, Fault, Machine, needs_root, replace_in, tree, write
from tests.support.file_systems import BLOCK_BYTES, fill
from tests.support.local_files import small_disk
from tests.support.machines import USER


def test_a_machine_that_keeps_its_cores_is_looked_at_as_one(machine: Machine) -> None:
    """Local mode has no identity, spool or receiver, and of settings its admission; the pattern has its options."""
    machine.set_up_local()
    before = tree(machine.path)
    seen = machine.doctor()

    assert (seen.code, seen.not_ok()) == (0, set())
    assert list(seen.findings) == [
        "core_pattern", "core_pipe_limit", "next boot", "handler", "interpreter", "configuration", "admission", "cores",
        "cores' room", "storm limits",
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
    shutil.rmtree(cores / ".storms")
    harm(cores)
    found = machine.doctor().find("cores", level)

    assert words in found["words"]
    assert found["remedy"]


def _use_up_among_cores(machine: Machine) -> None:
    state = machine.file(f"{CORES}/.storms")
    fd = os.open(state, os.O_RDONLY)
    try:
        for number in range(storm_limits.USER_BURST + 3):
            storms.admit(fd, Admission(), CrashReport(uid=33, executable_device=8, executable_inode=number))
        os.chown("storms.json", state.stat().st_uid, state.stat().st_gid, dir_fd=fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("harm", "words", "remedy"),
    [
        (_use_up_among_cores, "3 suppressed since 20", "[admission] in sender.toml"),
        (write(f"{CORES}/.storms/storms.json", "{"), "is damaged: the next crash begins anew", "remove what is damaged"),
        (lambda m: m.file(f"{CORES}/.storms/storms.json").chmod(0), "cannot be read by its owner", "and remove what is damaged"),
        (
            lambda m: m.file(f"{CORES}/.storms/storms.json").unlink(),
            "storms.json is missing: with a full disk no crash would be limited", SETUP,
        ),
        (lambda m: shutil.rmtree(m.file(f"{CORES}/.storms")), "is missing: with a full disk no crash would be limited", SETUP),
        (lambda m: m.file(f"{CORES}/.storms").chmod(0o500), "cannot be used by its owner (mode 0500)", "chmod 0700 "),
    ],
    ids=["used up", "damaged", "unreadable", "without a file", "missing", "without a right to write"],
)  # fmt: skip
def test_the_storm_limits_of_a_machine_that_keeps_its_cores_are_looked_at(
    harm: Fault, words: str, remedy: str, machine: Machine
) -> None:
    """As those of a spool: what waits to be told, what is used up, and whether their state can be kept."""
    machine.set_up_local()
    harm(machine)
    found = machine.doctor().find("storm limits", "warning")

    assert words in found["words"]
    assert remedy in found["remedy"]


@needs_root
def test_a_state_of_the_storm_limits_that_is_not_the_handlers_is_found(machine: Machine) -> None:
    """The handler is the cores' owner when it counts: what root has made by hand takes every crash, and its log alone says so."""
    machine.set_up_local()
    state = machine.file(f"{CORES}/.storms")
    for path in (state, state / "storms.json"):
        os.chown(path, 0, 0)
    found = machine.doctor().find("storm limits", "warning")

    assert f"{state} belongs to uid 0, but the handler is {USER}: no crash is limited or counted" in found["words"]
    assert found["remedy"] == f"chown -R {USER} {state}"


@pytest.mark.parametrize("directory", ["/var/my cores", "/" + "x" * 99], ids=["a space", "too long"])
def test_a_directory_that_core_pattern_cannot_name(directory: str, machine: Machine) -> None:
    """An edited sender.toml: the other checks are made, and this one names the file and what is wrong with it."""
    machine.set_up_local()
    configuration = machine.file(installation.CONFIGURATION)
    configuration.write_text(configuration.read_text().replace(CORES, directory))
    found = machine.doctor().find("configuration", "wrong")

    assert found["words"].startswith(f"{configuration}: ")
    assert directory in found["words"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda m: m.file(installation.ADMISSION).unlink(), "No such file"),
        (write(installation.ADMISSION, "{"), "not an admission of this version"),
        (lambda m: m.file(installation.ADMISSION).chmod(0o666), "can be written by others than root"),
        (lambda m: append(m, installation.CONFIGURATION, "[admission]\nmax_size = 1\n"), "what stands there does not hold yet"),
        (lambda m: append(m, installation.CONFIGURATION, '[admission]\nrules = [{action = "exclude", user = "x"}]\n'), "is not in"),
        (replace_in(installation.CONFIGURATION, "#floor_free = ", 'floor_free = "7GiB" #'), "what stands there does not hold yet"),
    ],
    ids=["missing", "damaged", "loose", "older than the configuration", "of a user who is gone", "older than the floor"],
)
def test_an_admission_that_does_not_hold(harm: Fault, words: str, machine: Machine) -> None:
    """Cores are kept all the same, but not by what sender.toml says."""
    machine.set_up_local()
    harm(machine)
    found = machine.doctor().find("admission", "wrong")

    assert words in found["words"]
    assert found["remedy"]


def append(machine: Machine, path: str, text: str) -> None:
    """Write behind what a file of the machine says."""
    with machine.file(path).open("a") as file:
        file.write(text)


def test_options_in_the_pattern_that_are_older_than_the_configuration(machine: Machine) -> None:
    """A changed sender.toml that was not set up again: the kernel still starts the handler with the old options."""
    machine.set_up_local()
    configuration = machine.file(installation.CONFIGURATION)
    configuration.write_text(configuration.read_text().replace("keep = 10", "keep = 20"))

    assert machine.doctor().find("core_pattern", "wrong")["remedy"] == "securecore setup sender"


@needs_root
@pytest.mark.parametrize(
    ("keep", "words"), [("", "a new core is lost, or cut"), ("keep = 10\n", "a new core costs older ones, or is cut")]
)
def test_the_room_of_local_cores_is_what_is_free_above_their_floor(keep: str, words: str, machine: Machine) -> None:
    """As of a spool; and what a crash would cost."""
    machine.file("/var/lib").mkdir(parents=True)
    with small_disk(machine.file("/var/lib/securecore"), "160m") as disk:
        machine.file("/var/lib/securecore").chmod(0o755)
        machine.set_up_local()
        configuration = machine.file(installation.CONFIGURATION)
        text = configuration.read_text().replace("keep = 10\n", keep)
        configuration.write_text(text.replace("#floor_free = ", 'floor_free = "20MiB" #'))
        fill(disk, 21 * limits.MIB // BLOCK_BYTES)
        found = machine.doctor().find("cores' room", "wrong")

        assert found["words"] == f"21.0 MiB free of 160 MiB, 20.0 MiB are to stay free: at its floor, {words}"

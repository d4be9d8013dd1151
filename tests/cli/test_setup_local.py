"""``setup sender --local``: what it writes, that the handler it installs works, what it keeps, refuses, and takes back."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.sender import installation
from securecore.sender.admission import EXCLUDE, Admission, Rule
from securecore.sender.floor import Floor
from securecore.sender.settings import LocalSettings, load_local_settings
from tests.cli.test_setup import PATTERN, SENDER, snapshot
from tests.support.certificates import Fleet
from tests.support.checkups import needs_root
from tests.support.kernel import kernel_arguments
from tests.support.machines import USER, make_root, setup

CORES: Final = "/var/lib/securecore/cores"
LOCAL: Final = ["--local", CORES, "--format", "gz", "--keep", "10", "--user", USER]
LOCAL_PATTERN: Final = PATTERN.replace("/handler ", f"/handler --local {CORES} --format gz --keep 10 ")


@pytest.fixture
def root(tmp_path: Path, fleet: Fleet) -> Path:
    """A root as a machine before set-up has it."""
    return make_root(tmp_path / "root", fleet)


def pattern_of(root: Path) -> str:
    """Return what the kernel would start."""
    return (root / "proc/sys/kernel/core_pattern").read_text().rstrip("\n")


def test_all_that_the_handler_needs_is_written(root: Path) -> None:
    """The directory, private and its user's; the handler; the options in core_pattern; no other settings, no timer, no spool."""
    assert setup(root, "sender", *LOCAL) == 0
    status = (root / CORES[1:]).stat()

    assert pattern_of(root) == LOCAL_PATTERN
    assert f"kernel.core_pattern = {LOCAL_PATTERN}\n" in (root / "etc/sysctl.d/99-securecore.conf").read_text()
    assert (root / "proc/sys/kernel/core_pipe_limit").read_text() == "16\n"
    assert (stat.S_IMODE(status.st_mode), f"{status.st_uid}:{status.st_gid}") == (0o700, USER)
    assert (root / installation.HANDLER[1:]).stat().st_mode & 0o777 == 0o755
    assert json.loads((root / installation.ADMISSION[1:]).read_bytes()) == {"version": 1}, "the version's own admission"
    for path in (installation.SETTINGS, installation.SERVICE, installation.TIMER, "/var/lib/securecore/spool"):
        assert not (root / path[1:]).exists(), path


def test_the_state_of_the_storm_limits_has_its_room_before_the_first_crash(root: Path) -> None:
    """Whoever fills the disk then leaves no host without limits; a machine that was set up before has it from the next run on."""
    setup(root, "sender", *LOCAL)
    directory = root / CORES[1:] / ".storms"
    state = directory / "storms.json"
    found = state.stat()
    state.unlink()
    directory.rmdir()
    assert setup(root, "sender") == 0
    again = state.stat()

    assert [f"{status.st_uid}:{status.st_gid}" for status in (directory.stat(), found, again)] == [USER] * 3
    assert [stat.S_IMODE(status.st_mode) for status in (directory.stat(), found, again)] == [0o700, 0o600, 0o600]
    assert (found.st_size, again.st_size) == (40 * 1024, 40 * 1024)


def test_undo_clears_a_directory_that_was_there_of_all_but_cores(root: Path) -> None:
    """It was empty, and is so again."""
    (root / CORES[1:]).mkdir(parents=True)
    before = snapshot(root)
    setup(root, "sender", *LOCAL)
    assert setup(root, "sender", "--undo") == 0

    assert snapshot(root) == before


@pytest.mark.slow
def test_the_installed_pattern_works(root: Path) -> None:
    """What stands in core_pattern, taken apart at its spaces as the kernel does it, keeps a core."""
    setup(root, "sender", *LOCAL)
    handler, *words = pattern_of(root).removeprefix("|").split(" ")
    words = [str(root / word[1:]) if word == CORES else word for word in words if not word.startswith("%")]
    answer = subprocess.run([str(root / handler[1:]), *words, *kernel_arguments()], input=b"core", env={}, cwd="/", check=False)

    assert answer.returncode == 0
    assert [path.suffix for path in sorted((root / CORES[1:]).glob("[!.]*"))] == [".gz", ".json"]
    assert {f"{path.stat().st_uid}:{path.stat().st_gid}" for path in (root / CORES[1:]).iterdir()} == {USER}


def test_second_run_changes_nothing_and_needs_no_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare `setup sender` keeps what is set."""
    setup(root, "sender", *LOCAL)
    before = snapshot(root)
    capsys.readouterr()
    assert setup(root, "sender") == 0

    assert snapshot(root) == before
    assert "nothing to change" in capsys.readouterr().out


def test_one_option_changes_one_thing(root: Path) -> None:
    """What is not said stays; but a level is one of its format, and does not outlive it."""
    setup(root, "sender", *LOCAL, "--level", "9")
    assert pattern_of(root) == LOCAL_PATTERN.replace("gz", "gz --level 9")
    assert setup(root, "sender", "--keep", "3") == 0
    assert pattern_of(root) == LOCAL_PATTERN.replace("gz", "gz --level 9").replace("10", "3")
    assert setup(root, "sender", "--format", "zlib") == 0
    assert pattern_of(root) == LOCAL_PATTERN.replace("gz", "zlib").replace("10", "3")


def test_edited_configuration_is_used_and_kept(root: Path) -> None:
    """What a person wrote, comments and all."""
    setup(root, "sender", *LOCAL)
    configuration = root / "etc/securecore/sender.toml"
    text = "# ours\n" + configuration.read_text().replace("keep = 10", "keep = 20 # more")
    configuration.write_text(text)

    assert setup(root, "sender") == 0
    assert configuration.read_text() == text
    assert pattern_of(root) == LOCAL_PATTERN.replace("10", "20")


def test_a_floor_is_compiled_and_outlives_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` shows it, the handler reads it beside its admission, and a change of something else leaves it."""
    setup(root, "sender", *LOCAL)
    configuration = root / "etc/securecore/sender.toml"
    configuration.write_text(configuration.read_text().replace("#floor_free = ", 'floor_free = "2GiB" #'))
    capsys.readouterr()
    assert setup(root, "sender", "--dry-run") == 0
    assert '"free_bytes": 2147483648' in capsys.readouterr().out

    assert setup(root, "sender", "--keep", "3") == 0
    assert 'floor_free = "2GiB"' in configuration.read_text()
    found = load_local_settings(str(root / installation.ADMISSION[1:]))
    assert found == LocalSettings(floor=Floor(limits.SPOOL_FLOOR_SHARE, 2 << 30))


RULES: Final = """
[admission]
max_size = "1GiB"
rules = [{ action = "exclude", user = "nobody", signal = "SIGABRT" }]
"""

LONG_RULE: Final = f'{{ action = "exclude", executable = "/{"é" * 250}" }},'


def admission_of(root: Path) -> Admission:
    """Return what the handler would take."""
    return load_local_settings(str(root / installation.ADMISSION[1:])).admission


def write_rules(root: Path, rules: str = RULES) -> None:
    """Add rules to the configuration, and their user to the machine."""
    configuration = root / "etc/securecore/sender.toml"
    configuration.write_text(configuration.read_text() + rules)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("nobody:x:65534:65534::/:/usr/sbin/nologin\n")


def test_the_admission_is_compiled_and_outlives_other_changes(root: Path) -> None:
    """Users by their numbers; an option that is about something else leaves it, and so does a way to a receiver and back."""
    setup(root, "sender", *LOCAL)
    write_rules(root)
    wanted = Admission(max_size=1 << 30, rules=(Rule(EXCLUDE, user="65534", signal=6),))
    assert setup(root, "sender") == 0
    assert admission_of(root) == wanted
    assert [setup(root, "sender", *options) for options in (["--keep", "3"], SENDER, LOCAL)] == [0, 0, 0]
    assert admission_of(root) == wanted


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (RULES.replace("nobody", "nemo"), "nemo"),
        (RULES.replace("1GiB", "much"), "sender.toml:"),
        ("[admission]\nrules = [" + LONG_RULE * 60 + "]", "take more than 65536 bytes"),
    ],
    ids=["a user who is not there", "no size", "too much of it"],
)
def test_an_admission_that_cannot_be_compiled_changes_nothing(
    rules: str, words: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which, and what held before holds."""
    setup(root, "sender", *LOCAL)
    write_rules(root, rules)
    before = snapshot(root)
    assert setup(root, "sender") == 3
    assert words in capsys.readouterr().err
    assert snapshot(root) == before


@pytest.mark.parametrize("first", [LOCAL, SENDER], ids=["local first", "network first"])
def test_a_machine_changes_its_mind(first: list[str], root: Path) -> None:
    """From one way to the other and back; --undo then leaves no trace of either."""
    second = SENDER if first is LOCAL else LOCAL
    before = snapshot(root)
    assert [setup(root, "sender", *options) for options in (first, second, first)] == [0, 0, 0]
    assert pattern_of(root) == (LOCAL_PATTERN if first is LOCAL else PATTERN)
    assert setup(root, "sender", "--undo") == 0
    assert snapshot(root) == before


def test_undo_leaves_no_trace(root: Path) -> None:
    """Set-up, crashes that were not kept, set-up again, --undo: the tree is what it was, lock and storm limits' state gone too."""
    before = snapshot(root)
    setup(root, "sender", *LOCAL)
    (root / CORES[1:] / ".lock").touch(0o600)
    for name in ("storms.json", ".storms.json.new", "storms.json.damaged"):
        (root / CORES[1:] / ".storms" / name).touch(0o600)
    setup(root, "sender", *LOCAL, "--keep", "2")
    assert setup(root, "sender", "--undo") == 0
    assert snapshot(root) == before


def test_undo_keeps_the_cores(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that holds something outlives --undo, with all that is in it."""
    setup(root, "sender", *LOCAL)
    (root / CORES[1:] / "20261124T065359Z-nginx-4711.gz").write_bytes(b"core")
    (root / CORES[1:] / ".lock").touch(0o600)
    capsys.readouterr()
    assert setup(root, "sender", "--undo") == 0

    assert sorted(path.name for path in (root / CORES[1:]).iterdir()) == [".lock", ".storms", "20261124T065359Z-nginx-4711.gz"]
    assert f"kept               {root}{CORES}" in capsys.readouterr().out
    assert pattern_of(root) == "core"


def test_dry_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run shows the pattern and leaves the tree untouched."""
    before = snapshot(root)
    assert setup(root, "sender", *LOCAL, "--dry-run") == 0

    assert snapshot(root) == before
    assert f"+ {LOCAL_PATTERN}" in capsys.readouterr().out


@needs_root
def test_anybody_may_try_a_dry_run_where_set_up_has_been(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the directory of cores nobody else may look; what is there already is not in the way."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        root = make_root(Path(place) / "root", fleet)
        setup(root, "sender", *LOCAL)
        capsys.readouterr()
        os.seteuid(65534)
        try:
            code = setup(root, "sender", *LOCAL, "--dry-run")
        finally:
            os.seteuid(0)

    assert (code, capsys.readouterr().err.lower().count("permission denied")) == (0, 0)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--local", "cores"], 3, "absolute path"),
        (["--local", "/var/../cores"], 3, "absolute path"),
        (["--local", "/var/my cores"], 3, "plain characters"),
        (["--local", "/var/%p"], 3, "plain characters"),
        (["--local", "/var/" + "x" * 70], 3, "the kernel takes 127"),
        (["--local", CORES, "--format", "rar"], 2, "rar"),
        (["--local", CORES, "--format", "gz", "--level", "10"], 3, "level 10 does not exist: gz has 1 to 9"),
        (["--local", CORES, "--keep", "0"], 3, "keep must be 1 to"),
        (["--keep", "3"], 3, "--local is missing"),
        (["--local", CORES, *SENDER], 2, "not together with --to"),
        (["--keep", "3", "--spool", "/var/spool"], 2, "not together with --to"),
        (["--local", CORES, "--user", "root"], 3, "must not be root"),
        (["--local", "/usr/libexec/x"], 3, "can be written by others than root"),
    ],
)
def test_bad_options_are_refused(root: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is one line with an exit code, and nothing is changed."""
    (root / "usr/libexec").chmod(0o777 if options == ["--local", "/usr/libexec/x"] else 0o755)
    before = snapshot(root)
    assert setup(root, "sender", "--user", USER, *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert snapshot(root) == before


def test_a_full_directory_of_another_user_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What somebody else has filled is not taken over."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    (root / CORES[1:]).mkdir(parents=True)
    (root / CORES[1:] / "theirs").touch()
    assert setup(root, "sender", *LOCAL) == 3
    assert "is not empty and belongs to uid 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("directory", "mode", "owner", "is_taken"),
    [
        ("/srv", 0o755, 0, False), ("/var/tmp", 0o1777, 0, False), ("/var/shared", 0o775, 0, False),
        ("/var/theirs", 0o700, 4711, False), ("/var/cores", 0o755, 0, True), ("/srv", 0o700, int(USER.split(":")[0]), True),
    ],
)  # fmt: skip
def test_an_empty_directory_is_taken_only_when_it_is_nobody_s(
    directory: str, mode: int, owner: int, is_taken: bool, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/srv, /tmp and what others write in or own stay as they are; what root has made for it, or is the handler's, is used."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    place = root / directory[1:]
    place.mkdir(parents=True)
    place.chmod(mode)
    os.chown(place, owner, owner)
    before = snapshot(root)

    assert (setup(root, "sender", "--local", directory, "--user", USER) == 0) is is_taken
    assert ("may be meant for others" in capsys.readouterr().err) is not is_taken
    assert (snapshot(root) == before) is not is_taken


def test_a_missing_identity_does_not_matter(root: Path) -> None:
    """Nothing is sent, so nobody needs a certificate."""
    shutil.rmtree(root / "etc/securecore/identity")
    assert setup(root, "sender", *LOCAL) == 0

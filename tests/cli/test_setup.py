"""``setup sender`` and ``setup receiver`` in another root: what they write, what they refuse, and that --undo leaves no trace."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from securecore.cli.machine import plan
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError, StorageError
from securecore.sender import installation
from securecore.sender.configuration import DEFAULT_SPOOL
from securecore.sender.schedule import Schedule
from tests.support.launchers import as_by_the_kernel
from tests.support.machines import RECEIVER, SENDER, USER, Snapshot, setup, snapshot

PATTERN = "|/usr/libexec/securecore/handler %P %I %u %g %s %t %c %d %F"


@pytest.mark.usefixtures("loose_umask")
def test_sender_files_are_written_with_their_modes(root: Path) -> None:
    """Each file of a sender is there, with content and mode, whatever the umask is; the kernel's settings come last."""
    assert setup(root, "sender", *SENDER) == 0
    modes = {path: f"{stat.S_IMODE((root / path[1:]).stat().st_mode):04o}" for path in (
        installation.CONFIGURATION, installation.SETTINGS, installation.HANDLER, installation.SYSCTL, installation.SERVICE,
        installation.TIMER, "/var/lib/securecore", "/var/lib/securecore/spool", "/var/lib/securecore/setup-sender.json",
    )}  # fmt: skip
    assert modes == {
        "/etc/securecore/sender.toml": "0644",
        "/etc/securecore/handler.json": "0644",
        "/usr/libexec/securecore/handler": "0755",
        "/etc/sysctl.d/99-securecore.conf": "0644",
        "/etc/systemd/system/securecore-flush.service": "0644",
        "/etc/systemd/system/securecore-flush.timer": "0644",
        "/var/lib/securecore": "0755",
        "/var/lib/securecore/spool": "0700",
        "/var/lib/securecore/setup-sender.json": "0600",
    }
    assert f"kernel.core_pattern = {PATTERN}\n" in (root / "etc/sysctl.d/99-securecore.conf").read_text()
    assert (root / "proc/sys/kernel/core_pattern").read_text() == f"{PATTERN}\n"
    assert (root / "proc/sys/kernel/core_pipe_limit").read_text() == "16\n"


@pytest.mark.parametrize(("role", "options"), [("sender", SENDER), ("receiver", RECEIVER)])
def test_second_run_changes_nothing(root: Path, role: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A second run finds every step done, says so, and leaves every byte as it is."""
    setup(root, role, *options)
    before = snapshot(root)
    capsys.readouterr()
    assert setup(root, role, *options) == 0
    assert snapshot(root) == before
    assert "nothing to change" in capsys.readouterr().out


@pytest.mark.parametrize(("role", "options"), [("sender", SENDER), ("receiver", RECEIVER)])
def test_undo_leaves_no_trace(root: Path, role: str, options: list[str]) -> None:
    """After set-up, set-up again and --undo the tree is what it was, byte for byte, mode for mode."""
    before = snapshot(root)
    setup(root, role, *options)
    setup(root, role, *options)
    assert snapshot(root) != before
    assert setup(root, role, "--undo") == 0
    assert snapshot(root) == before


def test_undo_restores_what_was_replaced(root: Path) -> None:
    """Files that stood where ours went come back with content, mode and the kernel settings' former values."""
    sysctl = root / "etc/sysctl.d/99-securecore.conf"
    sysctl.write_bytes(b"kernel.core_pattern = /var/cores/%e\n\xff\n")
    sysctl.chmod(0o640)
    (root / "proc/sys/kernel/core_pattern").write_text("/var/cores/%e\n")
    (root / "proc/sys/kernel/core_pipe_limit").write_text("4\n")
    before = snapshot(root)
    setup(root, "sender", *SENDER)
    setup(root, "sender", *SENDER, "--to", "third.example:1")
    assert setup(root, "sender", "--undo") == 0
    assert snapshot(root) == before


def test_undo_keeps_what_others_have_changed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was edited since is kept beside; a core_pattern that somebody else has set since is theirs."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    configuration.write_text(configuration.read_text() + "# mine\n")
    (root / "proc/sys/kernel/core_pattern").write_text("|/usr/bin/other %P\n")
    capsys.readouterr()
    assert setup(root, "sender", "--undo") == 0
    assert not configuration.exists()
    assert (root / "etc/securecore/sender.toml.edited").read_text().endswith("# mine\n")
    assert (root / "proc/sys/kernel/core_pattern").read_text() == "|/usr/bin/other %P\n"
    assert "somebody else has set it since" in capsys.readouterr().out


def test_the_state_of_the_storm_limits_has_its_room_before_the_first_crash(root: Path) -> None:
    """Its handlers' user's, and as large as it will ever be: whoever fills the disk then leaves no host without limits."""
    setup(root, "sender", *SENDER)
    spool = root / "var/lib/securecore/spool"
    state = (spool / "storms.json").stat()

    assert (state.st_uid, state.st_mode & 0o777) == (spool.stat().st_uid, 0o600)
    assert state.st_size == 40 * 1024


def test_a_spool_of_an_earlier_set_up_gets_its_state_of_the_storm_limits(root: Path) -> None:
    """From the next run on."""
    setup(root, "sender", *SENDER)
    state = root / "var/lib/securecore/spool/storms.json"
    state.unlink()
    assert setup(root, "sender") == 0

    assert state.stat().st_size == 40 * 1024


def test_undo_removes_a_spool_that_only_knows_when_to_come_again(root: Path) -> None:
    """Nor is what storm limits have counted; without its dumps and FORMAT the rest would be no spool."""
    setup(root, "sender", *SENDER)
    (root / "var/lib/securecore/spool/schedule.json").write_bytes(Schedule(1, 5).encode())
    for name in ("storms.json", "storms.json.damaged"):
        (root / "var/lib/securecore/spool" / name).write_bytes(b"{}")
    assert setup(root, "sender", "--undo") == 0
    assert not (root / "var/lib/securecore/spool").exists()


def test_undo_keeps_dumps_that_wait(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spool that holds a dump, or receipts, outlives --undo."""
    setup(root, "sender", *SENDER)
    (root / "var/lib/securecore/spool/dumps/0193d5a8-0000-7000-8000-000000000000").mkdir()
    assert setup(root, "sender", "--undo") == 0
    assert (root / "var/lib/securecore/spool/dumps/0193d5a8-0000-7000-8000-000000000000").is_dir()
    assert "1 dump waits in it" in capsys.readouterr().out


def test_obstacle_is_met_before_anything_is_changed(root: Path) -> None:
    """What stands in the way of the last step is met before the first one."""
    (root / "proc/sys/kernel/core_pattern").unlink()
    (root / "proc/sys/kernel/core_pattern").mkdir()
    before = snapshot(root)
    assert setup(root, "sender", *SENDER) == 5
    assert snapshot(root) == before


@pytest.mark.slow
@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_interrupted_set_up_is_undone_and_finished(root: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at any of the writes: --undo puts back what was there, and a second run finishes the work."""
    options = SENDER if role == "sender" else RECEIVER
    before = snapshot(root)
    setup(root, role, *options)
    whole = snapshot(root)
    setup(root, role, "--undo")
    for name in ("write", "make_directory", "make_link", "write_in_place", "give"):
        real, count = getattr(Root, name), _calls(root, role, options, name, monkeypatch)
        for failing in range(count):
            for second in (["--undo"], options):
                calls = iter(range(1000))

                def full(self: Root, *arguments: object) -> object:
                    if next(calls) == failing:  # noqa: B023  # both are used up before the loop goes on
                        raise StorageError("no space left on device")
                    return real(self, *arguments)  # noqa: B023

                with monkeypatch.context() as patched:
                    patched.setattr(Root, name, full)
                    assert setup(root, role, *options) in (3, 5)
                assert setup(root, role, *second) in (0, 4)
                assert _without_ids(snapshot(root)) == _without_ids(whole if second is options else before), (name, failing)
                setup(root, role, "--undo")


def _calls(root: Path, role: str, options: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often set-up calls a method of Root."""
    calls, real = [], getattr(Root, name)

    def counted(self: Root, *arguments: object) -> object:
        calls.append(name)
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Root, name, counted)
        setup(root, role, *options)
    setup(root, role, "--undo")
    return len(calls)


def _without_ids(found: Snapshot) -> Snapshot:
    """Leave out the spool's random id, and the order of the records."""
    changing = ("var/lib/securecore/spool/FORMAT", "var/lib/securecore/setup-sender.json", "var/lib/securecore/setup-receiver.json")
    return {path: entry[:3] if path in changing else entry for path, entry in found.items()}


def test_undo_without_set_up_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--undo where nothing was set up says so and changes nothing."""
    before = snapshot(root)
    assert setup(root, "sender", "--undo") == 4
    assert "no `setup sender` to undo" in capsys.readouterr().err
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "content",
    [
        b"{}", b"[", b"[]", b"null", b"[" * 5000, b'{"version": 2, "records": []}', b'{"version": 1, "records": {"a": 1}}',
        b'{"version": 1, "records": [{"kind": "file"}]}',
        b'{"version": 1, "records": [{"kind": ["file"]}]}',
        b'{"version": 1, "records": [{"kind": "file", "path": 1, "before": null, "written": ""}]}',
        b'{"version": 1, "records": [{"kind": "file", "path": ["/a"], "before": null, "written": ""}]}',
        b'{"version": 1, "records": [{"kind": "file", "path": "/a\\u0000", "before": null, "written": ""}]}',
        b'{"version": 1, "records": [{"kind": "file", "path": "/a", "before": [], "written": ""}]}',
        b'{"version": 1, "records": [{"kind": "file", "path": "/a", "before": {"content": "", "mode": 1e999, "owner": [0, 0]}}]}',
        b'{"version": 1, "records": [{"kind": "directory", "path": 1, "before": null}]}',
    ],
)  # fmt: skip
def test_damaged_record_is_refused(root: Path, content: bytes) -> None:
    """A record that we have not written is a configuration error, not a crash."""
    (root / "var/lib/securecore").mkdir(parents=True)
    (root / "var/lib/securecore/setup-sender.json").write_bytes(content)
    assert setup(root, "sender", "--undo") == 3


def test_record_cut_at_every_offset_is_refused(root: Path) -> None:
    """But for the newline at its end, no beginning of the record is taken for the whole, so that no change is forgotten."""
    assert setup(root, "sender", *SENDER) == 0
    path, opened = root / "var/lib/securecore/setup-sender.json", Root(root)
    whole = path.read_bytes()
    for other in [*(whole[:cut] for cut in range(len(whole) - 1)), whole + b"x"]:
        path.write_bytes(other)
        with pytest.raises(ConfigError, match="not a record"):
            plan.load_records("sender", opened)


@pytest.mark.parametrize(("role", "options"), [("sender", SENDER), ("receiver", RECEIVER)])
def test_dry_run_changes_nothing(root: Path, role: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run shows each file's content as a difference and leaves the tree untouched."""
    before = snapshot(root)
    assert setup(root, role, *options, "--dry-run") == 0
    assert snapshot(root) == before
    shown = capsys.readouterr().out
    assert "would be written" in shown
    assert "+ExecStart=" in shown


@pytest.mark.parametrize(
    "target",
    [
        installation.HANDLER, installation.SETTINGS, installation.SYSCTL, installation.CONFIGURATION, installation.SERVICE,
        installation.TIMER, installation.TIMER_LINK, DEFAULT_SPOOL, plan.state_path("sender"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_hostile_file_is_refused(root: Path, tmp_path: Path, target: str, kind: str) -> None:
    """A link, FIFO or directory where a file goes is refused; what a link leads to stays as it is, and nothing else is changed."""
    victim, place = tmp_path / "victim", root / target[1:]
    victim.write_text("precious")
    for directory in reversed(place.parents):
        directory.mkdir(mode=0o755, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
        (place / "theirs").write_text("x")
    else:
        place.symlink_to(victim if kind == "link" else tmp_path / "nothing")
    names = sorted(snapshot(root)) if kind == "fifo" else snapshot(root)
    assert setup(root, "sender", *SENDER) in (3, 5)
    assert victim.read_text() == "precious"
    assert (sorted(snapshot(root)) if kind == "fifo" else snapshot(root)) == names


def test_linked_directory_does_not_lead_out_of_the_root(root: Path, tmp_path: Path) -> None:
    """A directory on the way that is a symbolic link is refused: nothing is written behind it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(root / "etc/sysctl.d")
    (root / "etc/sysctl.d").symlink_to(outside)
    assert setup(root, "sender", *SENDER) == 5
    assert list(outside.iterdir()) == []


def test_writable_handler_path_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """core_pattern is never pointed at a handler below a directory that others than root may write (R26)."""
    (root / "usr/libexec").chmod(0o777)
    before = snapshot(root)
    assert setup(root, "sender", *SENDER) == 3
    assert "usr/libexec can be written by others than root (mode 0777)" in capsys.readouterr().err
    assert snapshot(root) == before


def test_sticky_directory_is_only_warned_of(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a sticky directory nobody can replace what root made: allowed, and said."""
    (root / "usr/libexec").chmod(0o1777)
    assert setup(root, "sender", *SENDER) == 0
    assert "where everybody may write" in capsys.readouterr().err


def test_rival_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other sysctl.d files that set core_pattern are named: those that lose and those that win."""
    (root / "usr/lib/sysctl.d").mkdir(parents=True)
    (root / "usr/lib/sysctl.d/50-coredump.conf").write_text("kernel.core_pattern=|/usr/lib/systemd/systemd-coredump %P\n")
    (root / "etc/sysctl.d/99-zz.conf").write_text("# mine\n kernel/core_pattern = core\n")
    (root / "etc/sysctl.conf").write_text("#kernel.core_pattern = core\n")
    assert setup(root, "sender", *SENDER) == 0
    warnings = capsys.readouterr().err
    assert "50-coredump.conf sets core_pattern too; ours is read later" in warnings
    assert "99-zz.conf sets core_pattern too, is read after ours and wins" in warnings
    assert "sysctl.conf sets" not in warnings


def test_loose_key_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that others may read is refused, with the command that mends it."""
    (root / "etc/securecore/identity/key.pem").chmod(0o644)
    assert setup(root, "sender", *SENDER) == 3
    assert "chmod 600" in capsys.readouterr().err


def test_user_of_another_root_is_made_at_its_first_boot(root: Path) -> None:
    """Numbers that the root's passwd file does not have get a sysusers.d file, which systemd understands."""
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    assert setup(root, "sender", *SENDER, "--user", USER) == 0
    uid, gid = USER.split(":")
    text = (root / "usr/lib/sysusers.d/securecore-sender.conf").read_text()
    assert text.startswith(f"g securecore {gid}\nu securecore {uid}:{gid} ")
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers here to read the file")
    answer = subprocess.run(["systemd-sysusers", "--dry-run", f"--root={root}"], capture_output=True, check=False, text=True)
    assert answer.returncode == 0, answer.stderr
    assert f"user 'securecore' (securecore) with UID {uid} and GID {gid}" in answer.stdout + answer.stderr


def test_both_roles_are_undone_one_by_one(root: Path) -> None:
    """On a machine that is both, undoing one role leaves the other whole; undoing both leaves no trace."""
    before = snapshot(root)
    setup(root, "receiver", *RECEIVER)
    only_receiver = snapshot(root)
    setup(root, "sender", *SENDER)
    setup(root, "sender", "--undo")
    assert snapshot(root) == only_receiver
    setup(root, "receiver", "--undo")
    assert snapshot(root) == before


@pytest.mark.slow
def test_handler_runs_as_the_kernel_starts_it(root: Path) -> None:
    """The installed script starts with descriptors 1 and 2 closed, no environment, in /, and refuses arguments that are none.

    The settings are not reached: a process that the kernel has not started has no arguments of our core_pattern.
    """
    setup(root, "sender", *SENDER)
    script = str(root / "usr/libexec/securecore/handler")

    for arguments in ([], ["x"], ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"], ["-1"] * 8):
        answer = subprocess.run([*as_by_the_kernel(), script, *arguments], input=b"core", cwd="/", check=False)
        assert answer.returncode == 3


def test_record_tells_what_was_there(root: Path) -> None:
    """The record names each place once, and keeps the first former value when set-up runs again."""
    setup(root, "sender", *SENDER)
    setup(root, "sender", *SENDER, "--to", "third.example:1")
    records = json.loads((root / "var/lib/securecore/setup-sender.json").read_text())["records"]
    places = [(record["kind"], record["path"]) for record in records]
    assert len(places) == len(set(places))
    assert next(record for record in records if record["path"] == "/proc/sys/kernel/core_pattern")["before"] == "core"

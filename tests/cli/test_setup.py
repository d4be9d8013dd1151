"""``setup sender`` and ``setup receiver`` in another root: what they write, what they refuse, and that --undo leaves no trace."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from securecore.cli.machine import plan
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError, StorageError
from securecore.names import Address
from securecore.receiver.configuration import ReceiverConfiguration, load_configuration, parse_receiver_configuration
from securecore.sender import installation
from securecore.sender.admission import Admission, Rule
from securecore.sender.configuration import DEFAULT_SPOOL
from securecore.sender.patience import usual_patience
from securecore.sender.schedule import Schedule
from securecore.sender.settings import load_settings
from tests.support.certificates import Fleet
from tests.support.machines import USER, make_root, setup

SENDER = ["--to", "collector.example:4455", "--to", "[fd00::5]:4455", "--identity", "/etc/securecore/identity", "--user", USER]
RECEIVER = ["--listen", "0.0.0.0:4455", "--user", USER]
PATTERN = "|/usr/libexec/securecore/handler %P %I %u %g %s %t %c %d %F"

Snapshot = dict[str, tuple[object, ...]]


@pytest.fixture
def root(tmp_path: Path, fleet: Fleet) -> Path:
    """A root as a machine before set-up has it, with both identities carried there."""
    return make_root(tmp_path / "root", fleet)


def snapshot(root: Path) -> Snapshot:
    """Return everything below *root*: kinds, modes, owners, contents and where links lead."""
    found: Snapshot = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
    return found


@pytest.fixture
def loose_umask() -> Iterator[None]:
    """The loosest umask there is."""
    before = os.umask(0)
    yield
    os.umask(before)


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


def test_handler_settings_are_what_the_options_say(root: Path) -> None:
    """The compiled settings load, and hold the options' receivers in order, and the user's numbers."""
    assert setup(root, "sender", *SENDER) == 0
    settings = load_settings(str(root / "etc/securecore/handler.json"))
    assert [str(address) for address in settings.receivers] == ["collector.example:4455", "[fd00::5]:4455"]
    assert settings.identity == "/etc/securecore/identity"
    assert f"{settings.uid}:{settings.gid}" == USER
    owner = (root / "var/lib/securecore/spool").stat()
    assert f"{owner.st_uid}:{owner.st_gid}" == USER


def test_rules_are_compiled_with_the_numbers_of_their_users(root: Path) -> None:
    """The handler asks no directory of users; who edits the file and runs set-up again keeps what was written."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    rules = (
        '[admission]\ncore_limit = "ignore"\nrules = [{ action = "exclude", user = "root" }, { action = "exclude", user = "7" }]\n'
    )
    configuration.write_text(written := configuration.read_text() + rules)
    assert setup(root, "sender") == 0
    admission = load_settings(str(root / "etc/securecore/handler.json")).admission

    assert admission == Admission(core_limit="ignore", rules=(Rule("exclude", user="0"), Rule("exclude", user="7")))
    assert configuration.read_text() == written


def test_a_rule_for_a_user_who_is_not_there_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be a rule that silently never fits."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    configuration.write_text(configuration.read_text() + '[admission]\nrules = [{ action = "exclude", user = "nemo" }]\n')
    before = snapshot(root)
    capsys.readouterr()

    assert setup(root, "sender") == ConfigError.exit_code
    assert "rule 1: user 'nemo' is not in /etc/passwd" in capsys.readouterr().err
    assert snapshot(root) == before


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


def test_undo_removes_a_spool_that_only_knows_when_to_come_again(root: Path) -> None:
    """When the next flush is due is nothing to keep; without its dumps and FORMAT the rest would be no spool."""
    setup(root, "sender", *SENDER)
    (root / "var/lib/securecore/spool/schedule.json").write_bytes(Schedule(1, 5).encode())
    assert setup(root, "sender", "--undo") == 0
    assert not (root / "var/lib/securecore/spool").exists()


def test_undo_keeps_dumps_that_wait(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spool that holds a dump, or receipts, outlives --undo."""
    setup(root, "sender", *SENDER)
    (root / "var/lib/securecore/spool/dumps/0193d5a8-0000-7000-8000-000000000000").mkdir()
    assert setup(root, "sender", "--undo") == 0
    assert (root / "var/lib/securecore/spool/dumps/0193d5a8-0000-7000-8000-000000000000").is_dir()
    assert "1 dumps wait in it" in capsys.readouterr().out


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


def test_edited_configuration_is_compiled_and_kept(root: Path) -> None:
    """A bare `setup sender` compiles what a person wrote, comments and all untouched."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    text = "# ours\n" + configuration.read_text().replace("collector.example:4455", "other.example:1")
    configuration.write_text(text)
    assert setup(root, "sender") == 0
    assert configuration.read_text() == text
    settings = load_settings(str(root / "etc/securecore/handler.json"))
    assert str(settings.receivers[0]) == "other.example:1"


def test_deadlines_that_a_person_wrote_are_compiled(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table at the end of the file reaches the handler's settings, survives other options, and a wrong one names its line."""
    setup(root, "sender", *SENDER)
    configuration, compiled = root / "etc/securecore/sender.toml", root / "etc/securecore/handler.json"
    assert load_settings(str(compiled)).deadlines is None
    configuration.write_text(configuration.read_text() + "[deadlines]\nconnect = 20\nhold = 0.5\n")
    assert setup(root, "sender", "--to", "third.example:1") == 0
    assert load_settings(str(compiled)).deadlines == usual_patience()._replace(connect_s=20, hold_s=0.5)
    lines = configuration.read_text().splitlines()
    configuration.write_text("\n".join(lines).replace("hold = 0.5", "hold = 601"))
    capsys.readouterr()
    assert setup(root, "sender") == 3
    assert f"sender.toml:{lines.index('hold = 0.5') + 1}: hold must be seconds" in capsys.readouterr().err


def test_unknown_key_names_file_and_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt key is an error that names the file and the line."""
    (root / "etc/securecore/sender.toml").write_text("version = 1\nreciever = 'x'\n")
    assert setup(root, "sender", *SENDER) == 3
    assert "etc/securecore/sender.toml:2: unknown key 'reciever'" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 3, "--to or --identity is missing"),
        (["--to", "nowhere"], 2, "not an address"),
        ([*SENDER, "--identity", "relative"], 3, "identity must be an absolute path"),
        ([*SENDER, "--identity", "/nowhere"], 4, "no identity directory there"),
        ([*SENDER, "--identity", "/etc/securecore/receiver"], 3, "identity"),
        ([*SENDER, "--spool", "/var/../spool"], 3, "spool must be an absolute path"),
        ([*SENDER, "--to", "collector.example:0"], 3, "a port above 0"),
        ([*SENDER, "--user", "root"], 3, "must not be root"),
        ([*SENDER, "--user", "0:0"], 3, "must not be root"),
        ([*SENDER, "--user", "-x;"], 3, "is no user"),
        ([*SENDER, "--user", "nobody-here"], 3, "user nobody-here is not in"),
    ],
)
def test_bad_sender_options_are_refused(
    root: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is one line with an exit code, and nothing is changed."""
    before = snapshot(root)
    assert setup(root, "sender", *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 3, "/etc/securecore/receiver.toml names no address to listen on yet, and --listen is missing"),
        ([*RECEIVER, "--identity", "/etc/securecore/identity"], 4, "crl.pem"),
        ([*RECEIVER, "--identity", "/home/me/id"], 3, "no home directories"),
        ([*RECEIVER, "--store", "/tmp/store"], 3, "a /tmp of its own"),
        ([*RECEIVER, "--store", "store"], 3, "must be an absolute path"),
        ([*RECEIVER, "--store", "/var/my store"], 3, "must not have spaces"),
    ],
)
def test_bad_receiver_options_are_refused(
    root: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is one line with an exit code, and nothing is changed."""
    before = snapshot(root)
    assert setup(root, "receiver", *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert snapshot(root) == before


def test_loose_key_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that others may read is refused, with the command that mends it."""
    (root / "etc/securecore/identity/key.pem").chmod(0o644)
    assert setup(root, "sender", *SENDER) == 3
    assert "chmod 600" in capsys.readouterr().err


def test_full_store_of_another_user_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that somebody else has filled is not half taken over."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's store")
    store = root / "var/lib/securecore/store"
    store.mkdir(parents=True)
    (store / "FORMAT").write_text("securecore-store 1\n")
    assert setup(root, "receiver", *RECEIVER) == 3
    assert "chown -R 990:990" in capsys.readouterr().err


def test_receiver_files_belong_to_its_user(root: Path) -> None:
    """The store is private and the service's, and so is the identity that it must read without being root."""
    assert setup(root, "receiver", *RECEIVER, "--user", "crash") == 0
    store = (root / "var/lib/securecore/store").stat()
    assert (stat.S_IMODE(store.st_mode), f"{store.st_uid}:{store.st_gid}") == (0o700, USER)
    for path in (root / "etc/securecore/receiver", *(root / "etc/securecore/receiver").iterdir()):
        assert f"{path.stat().st_uid}:{path.stat().st_gid}" == USER
    assert "\nUser=crash\n" in (root / "etc/systemd/system/securecore-receiver.service").read_text()
    assert not (root / "usr/lib/sysusers.d").exists(), "the user is there already"


@pytest.mark.usefixtures("loose_umask")
def test_receiver_goes_by_a_file_that_everybody_may_read(root: Path) -> None:
    """What the options say stands there; the unit names the file, and what systemd must know beforehand."""
    options = ["--listen", "[::]:443", "--store", "/srv/store", "--incomplete-after", "2d", "--user", "crash"]
    assert setup(root, "receiver", *options) == 0
    file = root / "etc/securecore/receiver.toml"
    assert load_configuration(file) == ReceiverConfiguration(
        (Address("[::]:443"),), "/srv/store", incomplete_after=timedelta(days=2)
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    unit = (root / "etc/systemd/system/securecore-receiver.service").read_text()
    assert " receive --config /etc/securecore/receiver.toml\n" in unit
    assert "\nReadWritePaths=/srv/store\n" in unit
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit


def test_receiver_is_vacuumed_every_day_by_its_own_file(root: Path) -> None:
    """A timer is enabled whose unit runs as the store's owner; --undo takes all of it back."""
    before = snapshot(root)
    assert setup(root, "receiver", *RECEIVER, "--store", "/srv/store", "--user", "crash") == 0
    units = root / "etc/systemd/system"
    service = (units / "securecore-vacuum.service").read_text()
    assert " vacuum --if-any --config /etc/securecore/receiver.toml\n" in service
    assert "\nUser=crash\n" in service
    assert "\nReadWritePaths=/srv/store\n" in service
    assert os.readlink(units / "timers.target.wants/securecore-vacuum.timer") == "/etc/systemd/system/securecore-vacuum.timer"
    assert setup(root, "receiver", "--undo") == 0
    assert {path for path in snapshot(root) if "vacuum" in path} == {path for path in before if "vacuum" in path} == set()


def test_what_a_person_wrote_about_a_receiver_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without options set-up takes the file as it is, and the unit follows it; what an option changes, it changes alone."""
    setup(root, "receiver", *RECEIVER, "--user", "crash")
    file, service = root / "etc/securecore/receiver.toml", root / "etc/systemd/system/securecore-receiver.service"
    mine = 'version = 1 # mine\nlisten = ["0.0.0.0:80"]\n[connections]\ntotal = 512\n[quota]\ndumps = 7\n'
    file.write_text(mine)
    assert setup(root, "receiver") == 0
    assert file.read_text() == mine
    unit = service.read_text()
    assert "CAP_NET_BIND_SERVICE" in unit
    assert "\nLimitNOFILE=8192\n" in unit
    assert "\nUser=crash\n" in unit
    capsys.readouterr()
    assert setup(root, "receiver") == 0
    assert "nothing to change" in capsys.readouterr().out
    assert setup(root, "receiver", "--incomplete-after", "1d") == 0
    found, before = load_configuration(file), parse_receiver_configuration(mine.encode(), "x")
    assert found == before._replace(incomplete_after=timedelta(days=1))
    assert service.read_text() == unit


def test_a_mistake_in_receiver_toml_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named with its place, and the unit stays as it is."""
    setup(root, "receiver", *RECEIVER)
    (root / "etc/securecore/receiver.toml").write_text("version = 1\n[qota]\n")
    before = snapshot(root)
    assert setup(root, "receiver", *RECEIVER) == 3
    assert f"{root}/etc/securecore/receiver.toml:2: unknown key 'qota'" in capsys.readouterr().err
    assert snapshot(root) == before


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

    def close_output() -> None:
        os.close(1)
        os.close(2)

    for arguments in ([], ["x"], ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"], ["-1"] * 8):
        answer = subprocess.run([script, *arguments], input=b"core", env={}, cwd="/", check=False, preexec_fn=close_output)
        assert answer.returncode == 3


def test_record_tells_what_was_there(root: Path) -> None:
    """The record names each place once, and keeps the first former value when set-up runs again."""
    setup(root, "sender", *SENDER)
    setup(root, "sender", *SENDER, "--to", "third.example:1")
    records = json.loads((root / "var/lib/securecore/setup-sender.json").read_text())["records"]
    places = [(record["kind"], record["path"]) for record in records]
    assert len(places) == len(set(places))
    assert next(record for record in records if record["path"] == "/proc/sys/kernel/core_pattern")["before"] == "core"

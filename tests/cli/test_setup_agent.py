"""``setup sender`` where the kernel can hand cores to the agent: what it picks and says, changing it, and taking it back."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.cli.machine import drift, systemd
from securecore.cli.machine.root import Root
from securecore.errors import StorageError
from securecore.sender import agent_units, installation, renewal_units
from securecore.sender.configuration import SenderConfiguration, parse_configuration
from tests.support.machines import SENDER, USER, Snapshot, awaken, setup, snapshot

PIPE_PATTERN = installation.core_pattern(installation.HANDLER)
LOCAL = ["--local", "/var/lib/securecore/cores", "--user", USER]


@pytest.fixture
def awake(root: Path) -> Path:
    """A machine whose kernel has the socket, and whose systemd runs."""
    awaken(root)
    return root


def pattern(root: Path) -> str:
    """Return what the machine's kernel goes by."""
    return (root / "proc/sys/kernel/core_pattern").read_text().rstrip("\n")


def go_by_the_agent(root: Path) -> None:
    """Do what the agent's unit does when the agent has started."""
    (root / "proc/sys/kernel/core_pattern").write_text(f"{installation.agent_pattern()}\n")


def links(root: Path) -> set[str]:
    """Return the names of the units that are enabled."""
    return {path.name for path in (root / "etc/systemd/system").glob("*.wants/*")}


def way(root: Path) -> str:
    """Return what sender.toml remembers."""
    said = parse_configuration((root / installation.CONFIGURATION[1:]).read_bytes(), "sender.toml")
    assert isinstance(said, SenderConfiguration)
    return said.kernel


def test_the_agent_is_picked_where_it_can_run(awake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its units are enabled and no timer beside them; until it runs, and when the machine boots, the kernel starts the handler."""
    assert setup(awake, "sender", *SENDER) == 0

    assert "the kernel hands cores to the agent, at /run/securecore/coredump.sock\n" in capsys.readouterr().out
    assert way(awake) == "agent"
    assert links(awake) == {"securecore-agent.socket", "securecore-agent.service"}
    assert pattern(awake) == PIPE_PATTERN
    assert f"kernel.core_pattern = {PIPE_PATTERN}\n" in (awake / installation.SYSCTL[1:]).read_text()
    assert (awake / installation.HANDLER[1:]).exists()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "proc/sys/kernel/core_modes").unlink(), "nobody knows which kernel will run "),
        (lambda root: (root / "proc/sys/kernel/core_modes").write_text("file\npipe\n"), "this kernel has no coredump socket"),
        (lambda root: (root / "proc/sys/kernel/osrelease").write_text("6.16.12\n"), "the coredump socket of Linux 6.16.12 "),
        (lambda root: shutil.rmtree(root / "run/systemd"), "no systemd runs here"),
    ],
    ids=["unknown kernel", "no socket", "a socket that does not ask", "no systemd"],
)  # fmt: skip
def test_the_handler_is_picked_where_the_agent_cannot_run(
    harm: Callable[[Path], object], words: str, awake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the agent is written, and one line says why."""
    harm(awake)
    assert setup(awake, "sender", *SENDER) == 0

    assert f"the kernel starts the handler for each crash: {words}" in capsys.readouterr().out
    assert (way(awake), links(awake)) == ("pipe", {"securecore-flush.timer"})
    assert not (awake / agent_units.SERVICE[1:]).exists()


def test_an_image_can_be_given_the_agent(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever builds it may know its kernel better; what is not known is said, and a boot begins with the handler anyway."""
    assert setup(root, "sender", *SENDER, "--kernel", "agent") == 0

    assert "at /run/securecore/coredump.sock, if it can: nobody knows which kernel will run" in capsys.readouterr().out
    assert links(root) == {"securecore-agent.socket", "securecore-agent.service"}


def test_a_machine_that_is_set_up_stays_as_it_is(awake: Path) -> None:
    """Without a word on the command line: also one whose file is from before there was a choice."""
    setup(awake, "sender", *SENDER, "--kernel", "pipe")
    file = awake / installation.CONFIGURATION[1:]
    file.write_text(file.read_text().replace('kernel = "pipe"\n', ""))
    before = snapshot(awake)
    assert setup(awake, "sender") == 0
    assert (snapshot(awake), way(awake)) == (before, "pipe")

    assert setup(awake, "sender", "--kernel", "auto") == 0
    assert way(awake) == "agent"


def test_a_second_run_beside_the_agent_changes_nothing(awake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that goes by the agent is what was wanted: it is not turned back, and that is no drift either."""
    setup(awake, "sender", *SENDER)
    go_by_the_agent(awake)
    before = snapshot(awake)
    capsys.readouterr()
    assert setup(awake, "sender") == 0

    assert "nothing to change" in capsys.readouterr().out
    assert snapshot(awake) == before
    with Root(awake) as opened:
        assert drift.find_drift(opened) is None


def test_a_change_of_the_way_leaves_nothing_of_the_other(awake: Path) -> None:
    """From the pipe to the agent and back, and again: each time the machine is as if it had been set up so at once."""
    fresh = {}
    for wanted in ("pipe", "agent"):
        setup(awake, "sender", *SENDER, "--kernel", wanted)
        fresh[wanted] = _without_records(snapshot(awake))
        setup(awake, "sender", "--undo")
    setup(awake, "sender", *SENDER, "--kernel", "pipe")
    for wanted in ("agent", "pipe", "agent"):
        assert setup(awake, "sender", "--kernel", wanted) == 0
        assert _without_records(snapshot(awake)) == fresh[wanted]
        if wanted == "agent":
            go_by_the_agent(awake)


def _without_records(found: Snapshot) -> Snapshot:
    """Leave out the spool's random id, what undoing needs, and directories of links: one may be left empty."""
    changing = ("var/lib/securecore/spool/FORMAT", "var/lib/securecore/setup-sender.json")
    kept = {path: entry for path, entry in found.items() if not path.endswith(".wants")}
    return {path: entry[:3] if path in changing else entry for path, entry in kept.items()}


def test_the_kernel_lets_go_of_the_agent_before_its_units_go(awake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that a socket needs is taken away while the kernel still connects to it."""
    setup(awake, "sender", *SENDER)
    go_by_the_agent(awake)
    capsys.readouterr()
    assert setup(awake, "sender", "--kernel", "pipe") == 0
    lines = capsys.readouterr().out.splitlines()
    order = [line.split() for line in lines if line.startswith("  set ") or line.startswith("  removed ")]

    assert [os.path.basename(path) for _, path in order] == [
        "core_pattern",
        *["securecore-agent.socket"] * 2,
        *["securecore-agent.service"] * 2,
    ]
    assert pattern(awake) == PIPE_PATTERN


@pytest.mark.parametrize("ways", [["agent"], ["pipe", "agent"], ["agent", "pipe"], ["pipe", "agent", "pipe"]])
@pytest.mark.parametrize("is_running", [True, False], ids=["the agent runs", "it does not"])
def test_undo_leaves_no_trace(ways: list[str], is_running: bool, awake: Path) -> None:
    """Whatever the way was, and whether or not the kernel goes by the agent: the tree is what it was, its pattern too."""
    before = snapshot(awake)
    for wanted in ways:
        setup(awake, "sender", *SENDER, "--kernel", wanted)
    if is_running and ways[-1] == "agent":
        go_by_the_agent(awake)
    assert setup(awake, "sender", "--undo") == 0
    assert snapshot(awake) == before


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("pipe", "agent"), ("agent", "pipe")])
def test_an_interrupted_change_is_finished_and_undone(ways: tuple[str, str], awake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses any one of the acts: a second run finishes the change, and --undo takes all of it back."""
    first, then = ways
    before = snapshot(awake)
    setup(awake, "sender", *SENDER, "--kernel", first)
    setup(awake, "sender", "--kernel", then)
    whole = _without_records(snapshot(awake))
    setup(awake, "sender", "--undo")
    for name in ("write", "make_link", "remove", "write_in_place"):
        real, count = getattr(Root, name), 1
        failing = 0
        while failing < count:
            setup(awake, "sender", *SENDER, "--kernel", first)
            if first == "agent":
                go_by_the_agent(awake)
            calls = iter(range(1000))

            def full(self: Root, *arguments: object) -> object:
                if (number := next(calls)) == failing:  # noqa: B023  # both are used up before the loop goes on
                    raise StorageError(f"no space left on device at call {number}")
                return real(self, *arguments)  # noqa: B023

            with monkeypatch.context() as patched:
                patched.setattr(Root, name, full)
                code = setup(awake, "sender", "--kernel", then)
            # The first call that does not fail any more is one behind the last.
            count = failing + 2 if code else failing + 1
            if failing % 2:
                assert setup(awake, "sender", "--kernel", then) == 0
                assert _without_records(snapshot(awake)) == whole, (name, failing)
            assert setup(awake, "sender", "--undo") == 0
            assert snapshot(awake) == before, (name, failing)
            failing += 1


@pytest.fixture
def told(awake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A systemctl of our own: what it was told since the last time, each with how the kernel's pattern began at that moment."""
    log, programs = tmp_path / "told", tmp_path / "programs"
    programs.mkdir()
    kernel = awake / "proc/sys/kernel/core_pattern"
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$(head -c 2 {kernel}) $*" >> {log}\n')
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd, "is_running", lambda root: True)

    def take() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return lines

    return take


def test_systemd_is_told_when_the_kernel_is_out_of_the_way(awake: Path, told: Callable[[], list[str]]) -> None:
    """What starts is there by then, and the agent stops when no crash comes to it any more."""
    setup(awake, "sender", *SENDER)
    assert told() == ["|/ daemon-reload", "|/ restart securecore-agent.service"]

    go_by_the_agent(awake)
    setup(awake, "sender", "--kernel", "pipe")
    assert told() == [
        "|/ stop securecore-agent.service securecore-agent.socket securecore-renew.timer",
        "|/ daemon-reload", "|/ start securecore-flush.timer",
    ]  # fmt: skip

    setup(awake, "sender", "--kernel", "agent")
    assert told() == ["|/ daemon-reload", "|/ restart securecore-agent.service"]
    go_by_the_agent(awake)
    setup(awake, "sender", "--undo")
    assert told() == [
        "@@ disable --now securecore-agent.service securecore-agent.socket securecore-flush.timer", "co daemon-reload",
    ]  # fmt: skip


def test_an_agent_that_does_not_start_is_told(
    awake: Path, told: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The set-up is whole and no core is lost: the handler goes on having them, and a warning says where to look."""
    assert setup(awake, "sender", *SENDER) == 0
    assert told()
    assert "because the agent does not run: systemctl status securecore-agent.service" in capsys.readouterr().err


@pytest.mark.parametrize(("said", "words"), [("Job failed.\\nSee journalctl.", "See journalctl."), ("", "ended with 4")])
def test_what_systemd_refuses_is_told_in_its_words(
    said: str, words: str, awake: Path, tmp_path: Path, told: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line, or without one the code: a sentence for a person."""
    (tmp_path / "programs/systemctl").write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexit 4\n")
    assert setup(awake, "sender", *SENDER) == 0
    assert told() == []
    assert f"warning: systemctl restart securecore-agent.service: {words}\n" in capsys.readouterr().err


def test_cores_that_are_to_stay_here_need_no_agent(awake: Path) -> None:
    """Local mode has the pipe: its units go with the change, and a kernel that went by the agent starts the handler again."""
    setup(awake, "sender", *SENDER)
    go_by_the_agent(awake)
    assert setup(awake, "sender", *LOCAL) == 0

    assert pattern(awake).startswith("|/usr/libexec/securecore/handler --local ")
    assert links(awake) == set()
    assert not (awake / agent_units.SOCKET[1:]).exists()
    assert setup(awake, "sender", *LOCAL, "--kernel", "agent") == 2


def test_a_dry_run_shows_the_agents_units_and_changes_nothing(awake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it does with everything else."""
    before = snapshot(awake)
    assert setup(awake, "sender", *SENDER, "--dry-run") == 0
    shown = capsys.readouterr().out

    assert "+ListenStream=/run/securecore/coredump.sock" in shown
    assert "+ExecStartPost=+" in shown
    assert snapshot(awake) == before


@pytest.mark.parametrize("kernel", ["agent", "pipe"])
def test_a_host_that_was_enrolled_is_renewed_by_one_of_the_two(kernel: str, awake: Path) -> None:
    """By a timer, or by the agent; a timer of an operator's own comes back when all is undone."""
    (awake / "etc/securecore/identity/enroller").write_text("enrol.example:4456\n")
    own = awake / renewal_units.TIMER[1:]
    (awake / renewal_units.TIMER_LINK[1:]).parent.mkdir(parents=True)
    own.write_text("[Timer]\nOnCalendar=weekly\n")
    (awake / renewal_units.TIMER_LINK[1:]).symlink_to(renewal_units.TIMER)
    before = snapshot(awake)
    assert setup(awake, "sender", *SENDER, "--kernel", kernel) == 0

    assert ("securecore-renew.timer" in links(awake)) is (kernel == "pipe")
    assert own.read_bytes() == renewal_units.renew_timer()
    assert "renew --identity /etc/securecore/identity\n" in (awake / renewal_units.SERVICE[1:]).read_text()
    assert setup(awake, "sender", "--undo") == 0
    assert snapshot(awake) == before


def test_a_host_that_is_not_enrolled_has_no_timer_for_it(awake: Path) -> None:
    """A timer of an operator's own stays; ours goes when the address of the enroller is gone."""
    own = awake / renewal_units.TIMER[1:]
    own.parent.mkdir(parents=True)
    own.write_text("[Timer]\nOnCalendar=weekly\n")
    setup(awake, "sender", *SENDER, "--kernel", "pipe")
    assert own.read_text() == "[Timer]\nOnCalendar=weekly\n"

    enroller = awake / "etc/securecore/identity/enroller"
    enroller.write_text("enrol.example:4456\n")
    setup(awake, "sender")
    assert "securecore-renew.timer" in links(awake)
    enroller.unlink()
    setup(awake, "sender")
    assert "securecore-renew.timer" not in links(awake)
    assert not own.exists()

"""Between the handler and the agent: who listens is seen without connecting, and a real kernel is told, or refuses."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from securecore.cli import core_pattern
from securecore.cli.machine import handover
from securecore.cli.machine.kernel_setting import CORE_PATTERN, SetSysctl, read_setting, set_sysctl, undo_setting
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError
from securecore.sender import installation
from tests.support.kernel import needs_kernel

PIPE_PATTERN = installation.core_pattern(installation.HANDLER)
LIVE = Path("/")

MODES = Path("/proc/sys/kernel/core_modes")
has_sockets = pytest.mark.skipif(
    not MODES.exists() or "socket" not in MODES.read_text().split(), reason="needs a kernel with coredump sockets"
)


def _shows_inits_sockets() -> bool:
    try:
        return Path("/proc/1/net/unix").read_bytes().count(b"\n") > 0
    except OSError:
        return False


@pytest.fixture
def place() -> Iterator[str]:
    """Where a socket can be, in a path that is short enough."""
    with TemporaryDirectory(dir="/run" if Path("/run").is_dir() and _is_writable() else None) as directory:
        yield f"{directory}/coredump.sock"


def _is_writable() -> bool:
    try:
        with TemporaryDirectory(dir="/run"):
            return True
    except OSError:
        return False


def bound(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that has a path."""
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(path)
    return made


@pytest.mark.skipif(not _shows_inits_sockets(), reason="init's sockets may not be seen here")
def test_who_listens_is_seen_without_connecting(place: str) -> None:
    """Only a stream socket on which listen(2) was called counts, by its whole path, and as long as it is open."""
    with Root(LIVE) as root, closing(bound(place)) as stream:
        assert not handover.is_listening(root, place)
        stream.listen(1)
        assert handover.is_listening(root, place)
        assert not handover.is_listening(root, place[:-1])
        assert not handover.is_listening(root, f"{place} ")
        stream.close()
        assert not handover.is_listening(root, place)
    Path(place).unlink()
    with Root(LIVE) as root, closing(bound(place, socket.SOCK_SEQPACKET)) as packets:
        packets.listen(1)
        assert not handover.is_listening(root, place)


@pytest.mark.parametrize(
    "line", ["", "x", "0: 2 0 zz 1 1 5 /a", "0: 2 0 10000 0001", "0: 2 0 10000 0001 01 5 /a /b", "0: 2 0 10000 1 1 5"]
)
def test_a_line_that_is_none_is_passed_over(line: str, tmp_path: Path) -> None:
    """What the kernel writes for sockets without a path, and what it never writes."""
    (tmp_path / "proc/1/net").mkdir(parents=True)
    (tmp_path / "proc/1/net/unix").write_text(f"Num RefCount Protocol Flags Type St Inode Path\n{line}\n")
    with Root(tmp_path) as root:
        assert not handover.is_listening(root, "/a")


def test_a_machine_with_many_sockets_is_looked_at_to_the_end(tmp_path: Path) -> None:
    """Twenty thousand other sockets of services and sessions, whose lines are longer than any file that set-up writes."""
    (tmp_path / "proc/1/net").mkdir(parents=True)
    others = "0000: 00000002 00000000 00010000 0001 01 5 /run/user/1000/systemd/private\n" * 20_000
    (tmp_path / "proc/1/net/unix").write_text(f"Num RefCount Protocol Flags Type St Inode Path\n{others}0: 2 0 10000 1 1 5 /a\n")
    with Root(tmp_path) as root:
        assert handover.is_listening(root, "/a")
        assert not handover.is_listening(root, "/b")


@needs_kernel
@has_sockets
def test_the_kernel_goes_by_the_agent_while_somebody_listens(place: str) -> None:
    """Before that it is left with the handler, and it gets the handler back; the kernel's own pattern says so each time."""
    with core_pattern.borrowed(PIPE_PATTERN, patience_s=120), Root(LIVE) as root, ExitStack() as open_sockets:
        with pytest.raises(ConfigError, match="nobody listens there"):
            handover.hand_to_agent(root, place)
        assert read_setting(CORE_PATTERN, root) == PIPE_PATTERN

        open_sockets.enter_context(closing(bound(place))).listen(1)
        assert handover.hand_to_agent(root, place)
        assert read_setting(CORE_PATTERN, root) == f"@@{place}"
        assert handover.hand_to_handler(root, place)
        assert read_setting(CORE_PATTERN, root) == PIPE_PATTERN


@needs_kernel
@has_sockets
@pytest.mark.parametrize("pattern", ["@@run/coredump.sock", "@@/run/../coredump.sock", f"@@/{'x' * 110}"])
def test_a_pattern_that_the_kernel_refuses_is_told_in_words(pattern: str) -> None:
    """EINVAL says nothing to anybody; what was there before stays."""
    with core_pattern.borrowed(PIPE_PATTERN, patience_s=120), Root(LIVE) as root:
        with pytest.raises(ConfigError, match=r"the kernel takes no '@@.*' \(EINVAL\)") as caught:
            set_sysctl(root, CORE_PATTERN, pattern)
        assert "Linux 6.17" in (caught.value.hint or "")
        assert read_setting(CORE_PATTERN, root) == PIPE_PATTERN


@needs_kernel
@has_sockets
def test_what_set_up_has_recorded_is_put_back_whoever_has_the_cores() -> None:
    """A real pattern that leads to the agent is ours as well as the handler's; that of another program is not."""
    with core_pattern.borrowed("core", patience_s=120), Root(LIVE) as root:
        also = (installation.agent_pattern(),)
        step = SetSysctl("kernel.core_pattern", PIPE_PATTERN, ours=handover.OURS, default="core", also=also)
        record = step.record(root)
        step.do(root)
        for ours in (PIPE_PATTERN, installation.agent_pattern()):
            set_sysctl(root, CORE_PATTERN, ours)
            assert step.is_done(root)
            assert undo_setting(record, root) == ("restored", f"{CORE_PATTERN}  core")
            assert read_setting(CORE_PATTERN, root) == "core"
        set_sysctl(root, CORE_PATTERN, "|/usr/bin/other %P")
        assert (undo_setting(record, root) or ("",))[0] == "kept"


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("way", ["agent", "pipe"])
def test_the_units_command_leaves_a_pattern_that_is_not_ours(way: str) -> None:
    """Whoever has set it since has a reason; the journal says so, and the agent goes on."""
    with core_pattern.borrowed("core.%p", patience_s=120), Root(LIVE) as root:
        command = [sys.executable, "-I", "-m", "securecore.cli.machine.handover", way]
        answer = subprocess.run(command, capture_output=True, check=False, text=True)
        assert read_setting(CORE_PATTERN, root) == "core.%p"

    assert (answer.returncode, answer.stdout) == (0, "")
    assert answer.stderr == "core_pattern is 'core.%p', which is not ours: it stays; `securecore doctor` says more\n"

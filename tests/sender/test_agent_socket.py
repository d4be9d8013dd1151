"""The socket that the agent listens at: made where it is safe, taken from systemd, and never another's."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from securecore.errors import BusyError, ConfigError, SecurecoreError, StorageError
from securecore.sender import agent_limits
from securecore.sender.agent_socket import Listener, check_path, find_readiness, open_listener


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a socket may be made, in a directory that is not there yet."""
    return tmp_path / "securecore" / "coredump.sock"


@pytest.fixture
def listening(place: Path) -> Iterator[Listener]:
    """An agent's listener, made at that place."""
    made = open_listener(str(place), {}, os.getpid())
    yield made
    if made.socket.fileno() >= 0:
        made.close()


def mode_of(path: Path) -> int:
    """Return the permissions."""
    return stat.S_IMODE(path.lstat().st_mode)


def test_socket_and_directory_are_closed_to_others(place: Path) -> None:
    """0600 in 0700, whatever the umask."""
    before = os.umask(0)
    try:
        made = open_listener(str(place), {}, os.getpid())
    finally:
        os.umask(before)
    modes = mode_of(place), mode_of(place.parent), mode_of(place.parent / "agent.lock")
    made.close()

    assert modes == (0o600, 0o700, 0o600)


def test_a_second_agent_is_turned_away_and_the_first_goes_on(place: Path, listening: Listener) -> None:
    """Its socket stays."""
    with pytest.raises(BusyError, match="another agent listens"):
        open_listener(str(place), {}, os.getpid())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))


def test_a_socket_that_a_killed_agent_has_left_is_replaced(place: Path) -> None:
    """Nobody holds the lock, so nobody listens."""
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    made = open_listener(str(place), {}, os.getpid())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    made.close()


def test_a_socket_that_systemd_listens_at_is_left_alone(place: Path, systemds: socket.socket) -> None:
    """Its agent was stopped, so nobody has the lock: with another in its place the kernel would find nobody once that has ended."""
    with pytest.raises(BusyError, match="listens at") as refused:
        open_listener(str(place), {}, os.getpid())

    assert "systemctl start securecore-agent" in (refused.value.hint or "")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
        systemds.accept()[0].close()


def test_a_socket_of_our_own_ends_with_us(place: Path, listening: Listener) -> None:
    """Where it is gone, anybody sees that no agent is there; the next one may come."""
    listening.close()
    assert not place.exists()
    open_listener(str(place), {}, os.getpid()).close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_else_stands_there_is_not_touched(place: Path, kind: str, tmp_path: Path) -> None:
    """It is somebody's; a link is not followed."""
    place.parent.mkdir(mode=0o700)
    target = tmp_path / "target"
    target.write_text("somebody's")
    if kind == "file":
        place.write_text("somebody's")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(target)
    with pytest.raises(StorageError, match="something else than a socket stands there"):
        open_listener(str(place), {}, os.getpid())

    assert place.exists()
    assert target.read_text() == "somebody's"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o770, 0o777, 0o701])
def test_a_directory_that_others_may_enter_is_refused(place: Path, mode: int) -> None:
    """They could take the socket's place, or connect to it."""
    place.parent.mkdir()
    place.parent.chmod(mode)
    with pytest.raises(ConfigError, match="may enter") as refused:
        open_listener(str(place), {}, os.getpid())
    assert "chmod 700" in (refused.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("how", ["writable by all", "writable by a group", "another's"])
def test_a_place_that_others_could_put_aside_is_refused(how: str, tmp_path: Path) -> None:
    """Whoever may rename a directory on the way has the kernel find another, and hand every core of the machine over there."""
    above = tmp_path / "above"
    (above / "between").mkdir(parents=True, mode=0o755)
    if how == "another's":
        os.chown(above, 1000, 0)
    else:
        above.chmod(0o777 if how == "writable by all" else 0o775)
    with pytest.raises(ConfigError, match=f"^{above}: others than root may") as refused:
        open_listener(str(above / "between" / "own" / "coredump.sock"), {}, os.getpid())

    assert refused.value.hint
    assert list((above / "between").iterdir()) == []


def test_a_directory_where_nobody_moves_what_is_anothers_is_no_obstacle(tmp_path: Path) -> None:
    """The sticky bit, as of /tmp."""
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(0o1777)
    open_listener(str(tmp_path / "above" / "own" / "coredump.sock"), {}, os.getpid()).close()


def test_a_linked_directory_is_refused(place: Path, tmp_path: Path) -> None:
    """The kernel follows no link on its way, so nobody would be found there."""
    (tmp_path / "real").mkdir(mode=0o700)
    place.parent.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a link"):
        open_listener(str(place), {}, os.getpid())


@pytest.mark.parametrize(
    "path", ["", "a.sock", "/run/../a", "/run//a", "/run/a/", "/run/a b", "/run/\u00e4", "/run/a\n", "/run/" + "a" * 103]
)
def test_a_path_that_the_kernel_does_not_take_is_refused(path: str) -> None:
    """Whole, plain, without `..`, and 107 characters at most: fs/coredump.c validates, or does not find it."""
    with pytest.raises(ConfigError):
        check_path(path)


def test_the_longest_path_is_taken() -> None:
    """107 characters, and the end."""
    check_path("/run/" + "a" * 102)


def test_a_parent_that_is_missing_is_named(tmp_path: Path) -> None:
    """Only the socket's own directory is made."""
    with pytest.raises(ConfigError, match="parent is not there"):
        open_listener(str(tmp_path / "a" / "b" / "c.sock"), {}, os.getpid())


ACTIVATED = """
import os, sys
from securecore.errors import SecurecoreError
from securecore.sender.agent_socket import open_listener
os.dup2(int(sys.argv[3]), 3)
environment = {"LISTEN_FDS": sys.argv[2], "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "x"}
try:
    found = open_listener(sys.argv[1], environment, os.getpid())
except SecurecoreError as error:
    print(type(error).__name__, error.message)
else:
    print(found.socket.fileno(), found.is_own, environment, os.get_inheritable(found.socket.fileno()))
    found.close()
"""


def activate(path: Path, handed: int, count: str = "1") -> str:
    """Return what an agent says that systemd starts with *handed* as its descriptor 3."""
    return subprocess.run(
        [sys.executable, "-c", ACTIVATED, str(path), count, str(handed)],
        pass_fds=(handed,), capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def systemds(place: Path) -> Iterator[socket.socket]:
    """A socket as systemd makes it for ListenStream= and SocketMode=0600."""
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
        place.chmod(0o600)
        made.listen(4096)
        yield made


def test_a_socket_of_systemds_is_taken_and_left_where_it_is(place: Path, systemds: socket.socket) -> None:
    """It goes on listening when the agent ends, so that no crash is skipped meanwhile; the variables are for nobody else."""
    said = activate(place, systemds.fileno())

    assert said == "3 False {} False"
    assert place.exists()


def count_waiting(place: Path) -> int:
    """Return how many connections fit into a backlog where nobody accepts, made as the kernel makes them: without waiting."""
    with ExitStack() as stack:
        for number in range(4096):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(place))
            except BlockingIOError:
                return number
    raise AssertionError("there is no bound")


def test_as_many_crashes_wait_as_the_backlog_takes_and_no_more(place: Path, listening: Listener) -> None:
    """The kernel skips what comes beyond, as it says in its log; listen(2) counts one more."""
    assert count_waiting(place) == agent_limits.BACKLOG + 1


def test_the_bound_holds_for_a_socket_of_systemds_too(place: Path, systemds: socket.socket) -> None:
    """Whatever its unit says, or does not say."""
    activate(place, systemds.fileno())
    assert count_waiting(place) == agent_limits.BACKLOG + 1


def test_a_socket_of_systemds_at_another_place_is_refused(place: Path, systemds: socket.socket, tmp_path: Path) -> None:
    """core_pattern leads to --socket."""
    (tmp_path / "other").mkdir(mode=0o700)
    assert activate(tmp_path / "other" / "x.sock", systemds.fileno()).startswith("ConfigError the socket from LISTEN_FDS")


def test_a_socket_of_systemds_that_others_may_connect_to_is_refused(place: Path, systemds: socket.socket) -> None:
    """SocketMode= is 0666 unless the unit says otherwise."""
    place.chmod(0o666)
    assert "mode is 0666, others may connect" in activate(place, systemds.fileno())


def test_a_socket_of_systemds_that_nobody_can_reach_is_refused(place: Path, systemds: socket.socket) -> None:
    """Somebody has removed its file: the agent would wait there for ever, and the kernel, handed over to it, lose every crash."""
    place.unlink()
    assert activate(place, systemds.fileno()) == f"ConfigError {place}: the file of systemd's socket is not there any more"


@pytest.mark.parametrize("count", ["0", "2", "x", "-1", "1" * 500])
def test_any_other_number_of_sockets_is_refused(place: Path, systemds: socket.socket, count: str) -> None:
    """One is expected."""
    assert activate(place, systemds.fileno(), count).startswith("ConfigError one socket is expected")


def test_what_is_no_listening_socket_is_refused(place: Path, systemds: socket.socket, tmp_path: Path) -> None:
    """A file, or the end of a connection."""
    ours, other = socket.socketpair()
    with (tmp_path / "file").open("wb") as file, ours, other:
        said = [activate(place, fd) for fd in (file.fileno(), ours.fileno())]
    assert all(words.startswith("ConfigError") for words in said)


def test_variables_for_another_process_are_not_ours(place: Path) -> None:
    """As where a service's child is an agent: it makes its own, and nobody behind it sees them."""
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1)}
    made = open_listener(str(place), environment, os.getpid())
    made.close()

    assert made.is_own
    assert environment == {}


@pytest.mark.parametrize("is_abstract", [False, True])
def test_who_is_waited_for_says_that_it_is_ready(tmp_path: Path, is_abstract: bool) -> None:
    """At either kind of place that sd_notify(3) knows; the variable is taken away, for nobody waits for the children."""
    place = f"@{tmp_path}" if is_abstract else str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": place, "HOME": "/"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(place.replace("@", "\0"))
        find_readiness(environment)()

        assert systemd.recv(100) == b"READY=1"
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_where_nobody_waits_nobody_is_told(environment: dict[str, str]) -> None:
    """Started by hand, or by somebody who is gone by now."""
    find_readiness(environment)()


def test_nothing_is_left_open_by_a_refusal(place: Path, listening: Listener) -> None:
    """Neither lock nor directory."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SecurecoreError):
        open_listener(str(place), {}, os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before

"""How a sender finds its receiver: every address of a name has its turn, and nothing takes longer than the deadline."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from securecore.sender.delivery import Place, dial
from tests.support.certificates import Fleet, make_fleet
from tests.support.crash_cores import Crash
from tests.support.processes import receiving, secluded, send_file

NAME = "both.example"
NAMES = f"127.0.0.1 {NAME}\n::1 {NAME}\n"


@contextmanager
def deaf() -> Iterator[Place]:
    """Yield an address where a connection is neither made nor refused: a listener whose queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        yield socket.AF_INET, listener.getsockname()


def test_an_address_where_nobody_answers_leaves_time_for_the_next() -> None:
    """Two of three addresses swallow what is sent to them; the third is reached before the deadline of all."""
    with deaf() as first, deaf() as second, socket.create_server(("127.0.0.1", 0)) as listener:
        third: Place = (socket.AF_INET, listener.getsockname())
        with dial([first, second, third], time.monotonic() + 0.9) as connection:
            assert connection.getpeername() == listener.getsockname()


def test_all_addresses_together_take_no_longer_than_one() -> None:
    """However many addresses a name has, when the deadline is over nothing more is tried."""
    with deaf() as place, socket.create_server(("127.0.0.1", 0)) as listener:
        alive: Place = (socket.AF_INET, listener.getsockname())
        with pytest.raises(TimeoutError):
            dial([place, alive], time.monotonic())


def test_a_family_that_this_machine_does_not_have_is_passed_over() -> None:
    """A host without IPv6 whose receiver has an IPv6 address too reaches it by the other one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        missing: Place = (socket.AF_X25, ("1",))  # type: ignore[attr-defined,unused-ignore]
        alive: Place = (socket.AF_INET, listener.getsockname())
        with dial([missing, alive], time.monotonic() + 5) as connection:
            assert connection.getpeername() == listener.getsockname()


@pytest.mark.slow
@pytest.mark.parametrize("only", ["127.0.0.1", "[::1]"])
def test_a_name_with_two_addresses_is_reached_where_somebody_listens(only: str, tmp_path: Path) -> None:
    """The receiver listens on one of the two addresses that its name has; a sender that dials the name finds it."""
    fleet = make_fleet(tmp_path / "fleet", addresses=[NAME])
    (tmp_path / "core").write_bytes(Crash().write())
    with (
        secluded(tmp_path, NAMES) as network,
        receiving(fleet.receiver, tmp_path / "store", listen=[f"{only}:4455"], within=network.within),
    ):
        sent = send_file(tmp_path / "core", f"{NAME}:4455", fleet.host, within=network.within)

    assert (sent.returncode, sent.stderr) == (0, "")


_SILENT_RESOLVER = """
import socket, sys
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
print("ready", flush=True)
sys.stdin.read()
"""

_IMPATIENT = """
import sys
from securecore import limits
limits.CONNECT_DEADLINE_S = 0.2
from securecore.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_resolver_that_never_answers_does_not_hold_a_sender(fleet: Fleet, tmp_path: Path) -> None:
    """The deadline of a connection counts for the look-up of the name too, whatever the resolver's own patience."""
    (tmp_path / "core").write_bytes(Crash().write())
    arguments = ["send", str(tmp_path / "core"), "--to", "collector.example:4455", "--identity", str(fleet.host)]
    with secluded(tmp_path, "", resolver="nameserver 127.0.0.1\noptions timeout:30 attempts:1\n") as network:
        resolver = [*network.within, sys.executable, "-c", _SILENT_RESOLVER]
        with subprocess.Popen(resolver, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
            assert popen.stdout is not None
            assert popen.stdout.readline() == b"ready\n"
            ran = subprocess.run(
                [*network.within, sys.executable, "-c", _IMPATIENT, *arguments],
                cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
            )  # fmt: skip
            popen.kill()

    assert ran.returncode == 10
    assert ran.stderr.splitlines()[0] == "securecore: collector.example:4455: its name could not be looked up in time"

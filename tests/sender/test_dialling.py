"""How a sender finds its receiver: every address of a name has its turn, and nothing takes longer than the deadline."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from securecore.errors import BusyError, UnreachableError, UntrustedError
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import delivery
from securecore.sender.delivery import Delivery, Place, connect
from securecore.sender.dialling import Dialler, dial
from securecore.sender.patience import usual_patience
from tests.support.certificates import Fleet, make_fleet
from tests.support.crash_cores import Crash
from tests.support.kernel import wait_until
from tests.support.processes import receiving, secluded, send_file
from tests.support.receivers import papers_of, running_receiver

NAME = "both.example"
NAMES = f"127.0.0.1 {NAME}\n::1 {NAME}\n"


@contextmanager
def deaf() -> Iterator[Place]:
    """Yield an address where a connection is neither made nor refused: a listener whose queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        yield socket.AF_INET, listener.getsockname()


@contextmanager
def silent() -> Iterator[Place]:
    """Yield an address where a connection is made and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield socket.AF_INET, listener.getsockname()


MISSING: Final[Place] = (socket.AF_X25, ("1",))  # type: ignore[attr-defined,unused-ignore]
"""A place of a family that this machine does not have."""


def alive(receiver: Receiver) -> Place:
    """Return where *receiver* listens."""
    return socket.AF_INET, ("127.0.0.1", receiver.addresses[0].port)


@pytest.fixture
def stand_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A resolver whose answer the test gives."""

    def answer(*places: Place) -> None:
        monkeypatch.setattr(delivery, "_resolve", lambda address, deadline_s: list(places))

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("other", [deaf, silent])
def test_an_address_where_nobody_answers_leaves_time_for_the_next(
    other: Callable[[], AbstractContextManager[Place]],
    fleet: Fleet,
    receiver: Receiver,
    stand_for: Callable[..., None],
) -> None:
    """Two of three addresses swallow what is sent to them, before or after TCP's handshake; the third is reached in time."""
    with other() as first, other() as second:
        stand_for(first, second, alive(receiver))
        reached = connect(receiver.addresses, papers_of(fleet.host).context, deadline_s=3)

    assert reached.store == receiver.store_id
    reached.close()


def test_all_addresses_together_take_no_longer_than_one(fleet: Fleet, receiver: Receiver, stand_for: Callable[..., None]) -> None:
    """However many addresses a name has, when the deadline is over nothing more is tried."""
    stand_for(alive(receiver), alive(receiver))
    with pytest.raises(UnreachableError, match="did not answer in time"):
        connect(receiver.addresses, papers_of(fleet.host).context, deadline_s=0)

    assert receiver.session_count == 0


def test_a_family_that_this_machine_does_not_have_is_passed_over(
    fleet: Fleet, receiver: Receiver, stand_for: Callable[..., None]
) -> None:
    """A host without IPv6 whose receiver has an IPv6 address too reaches it by the other one."""
    stand_for(MISSING, alive(receiver))
    connect(receiver.addresses, papers_of(fleet.host).context).close()


def test_a_stranger_at_one_address_is_told_before_a_silence_at_another(
    fleet: Fleet, own_fleet: Fleet, tmp_path: Path, stand_for: Callable[..., None]
) -> None:
    """Whoever spoke tells more than an address that is not there."""
    with running_receiver(own_fleet.receiver, tmp_path / "strangers") as stranger:
        stand_for(alive(stranger), MISSING)
        with pytest.raises(UntrustedError):
            connect(stranger.addresses, papers_of(fleet.host).context)


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


class Late(Delivery):
    """A connection that nobody waits for any more."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        """Say so."""
        self.closed.set()


def test_a_connection_that_comes_too_late_is_closed() -> None:
    """Who waits for it gives up between two looks; the thread that has it then is the only one to know of it."""
    late, has_left = Late(), threading.Event()

    def call() -> Delivery:
        has_left.wait()
        return late

    def check() -> NoReturn:
        raise BusyError("no time")

    with pytest.raises(BusyError, match="no time"):
        dial(call, check)
    has_left.set()

    assert late.closed.wait(60)


def test_what_ends_a_call_ends_the_wait() -> None:
    """Who waits is told why, as if the call were its own."""

    def call() -> NoReturn:
        raise UnreachableError("nobody is there")

    with pytest.raises(UnreachableError, match="nobody is there"):
        dial(call, lambda: None)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Address], float]]:
    """Who is dialled, and how long each has."""
    seen: list[tuple[list[Address], float]] = []

    def connect_and_note(receivers: list[Address], *rest: Any, deadline_s: float, **named: Any) -> Delivery:
        seen.append((receivers, deadline_s))
        return connect(receivers, *rest, deadline_s=deadline_s, **named)

    monkeypatch.setattr(delivery, "connect", connect_and_note)
    return seen


def test_a_connection_that_was_begun_is_the_one_that_is_had(
    fleet: Fleet, receiver: Receiver, dialled: list[tuple[list[Address], float]]
) -> None:
    """The receiver is dialled once, before anybody asks, for the share of the time that the first of three has."""
    dialler = Dialler()
    context, patience, first = papers_of(fleet.host).context, usual_patience(), receiver.addresses[0]
    dialler.begin([first, Address("127.0.0.1:1"), Address("127.0.0.1:2")], context, patience)
    wait_until(lambda: receiver.session_count == 1 or None)
    reached = dialler.connect(first, context, patience.connect_s, patience)

    assert dialled == [([first], patience.connect_s / 3)]
    assert reached.store == receiver.store_id
    reached.close()


def test_what_was_begun_is_had_once(fleet: Fleet, receiver: Receiver, dialled: list[tuple[list[Address], float]]) -> None:
    """Another connection to the same receiver, as for what waits in the spool, is another one."""
    dialler = Dialler()
    context, patience = papers_of(fleet.host).context, usual_patience()
    dialler.begin(receiver.addresses, context, patience)
    one, other = (dialler.connect(receiver.addresses[0], context, patience.connect_s, patience) for _ in range(2))

    assert len(dialled) == 2
    assert one is not other
    one.close()
    other.close()


def test_why_there_is_no_connection_is_told_to_who_asks(fleet: Fleet) -> None:
    """As if it were dialled only then; the next receiver's turn comes as ever."""
    dialler = Dialler()
    context, patience, nobody = papers_of(fleet.host).context, usual_patience(), [Address("127.0.0.1:1")]
    dialler.begin(nobody, context, patience)

    with pytest.raises(UnreachableError, match="connection refused"):
        dialler.connect(nobody[0], context, patience.connect_s, patience)


def test_what_was_begun_for_another_context_is_given_up(
    fleet: Fleet, receiver: Receiver, dialled: list[tuple[list[Address], float]]
) -> None:
    """What is shown to a receiver is what its sender has now, and the connection that nobody wants is closed."""
    dialler = Dialler()
    patience, context = usual_patience(), papers_of(fleet.host).context
    dialler.begin(receiver.addresses, papers_of(fleet.host).context, patience)
    wait_until(lambda: receiver.session_count == 1 or None)
    reached = dialler.connect(receiver.addresses[0], context, patience.connect_s, patience)

    assert len(dialled) == 2
    wait_until(lambda: receiver.session_count == 1 or None)
    assert reached.store == receiver.store_id
    reached.close()


def test_where_no_thread_can_be_started_nothing_is_begun_and_nothing_is_lost(
    fleet: Fleet, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, dialled: list[tuple[list[Address], float]]
) -> None:
    """Somebody may have used up all processes; who asks then dials by itself."""
    dialler = Dialler()

    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    context, patience = papers_of(fleet.host).context, usual_patience()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        dialler.begin(receiver.addresses, context, patience)
    assert dialled == []

    dialler.connect(receiver.addresses[0], context, patience.connect_s, patience).close()

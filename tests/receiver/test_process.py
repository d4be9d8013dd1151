"""``securecore receive`` as a process: where it says that it listens, how it is stopped, and that it comes back at once."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from securecore.errors import BusyError, StorageError
from securecore.names import Address
from securecore.sender.delivery import connect
from securecore.sender.patience import Wait
from tests.support.certificates import RECEIVER_NAME, Fleet
from tests.support.crash_cores import Crash
from tests.support.hands import Hand
from tests.support.processes import PATIENCE_S, SECURECORE, receiving, send_file
from tests.support.receivers import new_dump_id, papers_of

pytestmark = pytest.mark.slow

TIME_WAIT = "06"
"""State of a socket in /proc/net/tcp: include/net/tcp_states.h."""


def receive(fleet: Fleet, store: Path, *options: str, listen: str = "127.0.0.1:0") -> list[str]:
    """Return the command line of a receiver."""
    return [*SECURECORE, "receive", "--listen", listen, "--identity", str(fleet.receiver), "--store", str(store), *options]


def states_of(address: Address) -> list[str]:
    """Return the states of this machine's TCP sockets at one end of which an IPv4 address stands."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[3] for row in rows if row[1] == f"0100007F:{address.port:04X}"]


def wait_until_hung_up(hand: Hand) -> None:
    """Read, below TLS, until the receiver has ended its side: so it, and not we, is the one to keep its port in TIME_WAIT."""
    hand.delivery._socket.settimeout(PATIENCE_S)
    while socket.socket.recv(hand.delivery._socket, 65536):
        pass


def test_a_script_reads_the_port_from_one_line_of_json(fleet: Fleet, tmp_path: Path) -> None:
    """Several listeners with ports that the kernel chose: one document, and each address in it takes a core."""
    (tmp_path / "core").write_bytes(Crash().write())
    arguments = receive(fleet, tmp_path / "store", "--listen", "[::1]:0", "--json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            assert popen.stdout is not None
            document = json.loads(popen.stdout.readline())
            codes = [send_file(tmp_path / "core", one["address"], fleet.host).returncode for one in document["listening"]]
        finally:
            popen.kill()

    assert codes == [0, 0]
    assert [(one["host"], one["address"]) for one in document["listening"]] == [
        (host, f"{written}:{one['port']}")
        for one, host, written in zip(document["listening"], ("127.0.0.1", "::1"), ("127.0.0.1", "[::1]"), strict=True)
    ]
    assert {key: document[key] for key in ("receiver", "store")} == {"receiver": RECEIVER_NAME, "store": str(tmp_path / "store")}
    assert document["store_id"] in (tmp_path / "store" / "FORMAT").read_text()


def test_each_listener_has_a_line_that_a_person_reads(fleet: Fleet, tmp_path: Path) -> None:
    """`listening on ADDRESS (…), store STORE`, as it can be dialled, on standard output, which says nothing else."""
    with receiving(fleet.receiver, tmp_path / "store", listen=["127.0.0.1:0", "[::1]:0"]) as process:
        for address in process.addresses:
            connect([address], papers_of(fleet.host).context).close()
        process.popen.terminate()
        process.rest()
        assert process.popen.stdout is not None
        assert process.popen.stdout.read() == b""

    assert re.fullmatch(
        r"(listening on (127\.0\.0\.1|\[::1\]):\d+ \(TLS 1\.3, client certificate required\), store \S+\n){2}", process.announced
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_receiver_comes_back_at_once_on_its_port(number: signal.Signals, fleet: Fleet, tmp_path: Path) -> None:
    """Stopped or killed with a host connected, its port full of sockets in TIME_WAIT: the next one has port and store at once."""
    address = None
    for _ in range(3):
        with receiving(fleet.receiver, tmp_path / "store", listen=[str(address or "127.0.0.1:0")]) as process:
            (address,) = process.addresses
            with closing(Hand(fleet.host, [address])) as hand:
                process.popen.send_signal(number)
                wait_until_hung_up(hand)
            process.rest()
        assert TIME_WAIT in states_of(address)

    assert "Traceback" not in process.said


def test_a_second_receiver_on_a_store_hears_that_there_is_one(fleet: Fleet, tmp_path: Path) -> None:
    """Another port, the same store: one line, a code of its own, and the first one goes on."""
    with receiving(fleet.receiver, tmp_path / "store") as process:
        second = subprocess.run(receive(fleet, tmp_path / "store"), capture_output=True, text=True, check=False)
        connect(process.addresses, papers_of(fleet.host).context).close()

    assert (second.returncode, second.stdout) == (StorageError.exit_code, "")
    assert re.fullmatch(r"securecore: .*another receiver.*\n(  hint: .*\n)?", second.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_dumps_in_flight(number: signal.Signals, fleet: Fleet, tmp_path: Path) -> None:
    """The first lets a dump finish, the second tells its sender to come back later; both end with exit code 0."""
    with receiving(fleet.receiver, tmp_path / "store") as process, closing(Hand(fleet.host, process.addresses)) as hand:
        hand.open(new_dump_id())
        hand.send(b"a beginning")
        process.popen.send_signal(number)
        process.logged("stopping, 1 connections; a second signal does not wait for them")
        process.popen.send_signal(number)
        with pytest.raises(BusyError, match="being stopped"):
            hand.delivery.wait_for_ack(Wait(PATIENCE_S))
        hand.close()
        said = process.rest()

    assert process.popen.returncode == 0
    assert "stopped\n" in said


_PATIENT = """
import sys
from securecore import limits
limits.HANDSHAKE_DEADLINE_S = 600.0
from securecore.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", [b"", b"\x16\x03\x01"], ids=["silent", "in its hello"])
def test_a_stop_does_not_wait_for_strangers(words: bytes, fleet: Fleet, tmp_path: Path) -> None:
    """Who is still in its handshake has no dump: one signal ends a receiver, however long handshakes may take."""
    with receiving(fleet.receiver, tmp_path / "store", "-v", program=[sys.executable, "-c", _PATIENT]) as process:
        with socket.create_connection((process.addresses[0].host, process.addresses[0].port)) as stranger:
            stranger.sendall(words)
            process.logged("connected")
            process.popen.terminate()
            code = process.popen.wait(PATIENCE_S)
        said = process.rest()

    assert code == 0
    assert re.search("WARNING failed host=- peer=127.0.0.1:\\d+ error='the receiver is being stopped'\n", said)
    assert said.endswith("INFO    stopped\n")


@contextmanager
def on_a_terminal(arguments: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run a program that has a terminal, and yield it with the other end of that."""
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            ["setsid", "--ctty", *arguments], stdin=slave, stdout=slave, stderr=slave
        ) as popen:
            os.close(slave)
            try:
                yield popen, master
            finally:
                popen.kill()
    finally:
        os.close(master)


def read_terminal(master: int, until: str | None) -> str:
    """Return what a program writes on its terminal, until it has written *until* or, with None, until it is gone."""
    text, deadline = "", time.monotonic() + PATIENCE_S
    while until is None or until not in text:
        assert select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0], text
        try:
            text += os.read(master, 65536).decode()
        except OSError:  # EIO: nobody has the terminal any more
            assert until is None, text
            break
    return text


def test_ctrl_c_on_a_terminal_ends_a_receiver_in_good_order(fleet: Fleet, tmp_path: Path) -> None:
    """A person who watches with -v and presses Ctrl-C: connected hosts are told, exit code 0, no traceback."""
    with on_a_terminal(receive(fleet, tmp_path / "store", "-v")) as (popen, master):
        announced = read_terminal(master, "certificate required")
        found = re.search(r"listening on (\S+) ", announced)
        assert found is not None
        with closing(Hand(fleet.host, [Address(found[1])])) as hand:
            os.write(master, b"\x03")
            with pytest.raises(BusyError, match="being stopped"):
                hand.delivery.wait_for_ack(Wait(PATIENCE_S))
        rest = read_terminal(master, None)
        code = popen.wait(PATIENCE_S)

    assert code == 0
    assert "Traceback" not in rest
    assert rest.rstrip().endswith("INFO    stopped")

"""Sixteen senders at once, and a receiver that is killed or stopped and comes back again and again: everything arrives."""

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.sender.spool import create_spool
from tests.support.certificates import Fleet
from tests.support.checker import Truth, check
from tests.support.kernel import wait_until
from tests.support.processes import SECURECORE, Process, receiving
from tests.support.stores import DB, WEB

pytestmark = pytest.mark.slow

HOSTS: Final = {"web-1": WEB, "db-2": DB}
SENDERS: Final = 16
ENDS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
"""How each life of the receiver ends but the last."""
PIECES: Final = 6


def core_of(number: int) -> bytes:
    """Return a core that is like no other's: noise, and zeroes."""
    return random.Random(number).randbytes(PIECES * limits.PIECE_BYTES) + bytes(2 * limits.PIECE_BYTES) + b"%d" % number


@contextmanager
def started(fleet: Fleet, directory: Path, to: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run all senders, half of them for each host, every host with one spool; none outlives the block."""
    running = []
    for number in range(SENDERS):
        host = list(HOSTS)[number % len(HOSTS)]
        words = ["send", str(directory / f"core-{number}"), "--to", to, "--identity", str(fleet.hosts[host])]
        command = [*SECURECORE, *words, "--spool", str(directory / host)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        yield running
    finally:
        for sender in running:
            sender.kill()
            sender.wait()


def free_port() -> int:
    """Return a port that nobody listens on; the receiver takes it again in each life."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def stored_bytes(store: Path) -> int:
    """Return how much of all cores has come in; what is renamed or removed meanwhile does not count."""
    total = 0
    for path in (*store.glob("incoming/*/*/core.zst"), *store.glob("hosts/*/*/core.zst")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


def is_over(senders: Sequence["subprocess.Popen[bytes]"]) -> bool:
    """Return whether no sender is left to wait for."""
    return all(sender.poll() is not None for sender in senders)


def end(receiver: Process, how: signal.Signals) -> None:
    """End a life of the receiver and wait for it to be over."""
    receiver.popen.send_signal(how)
    receiver.popen.wait(60)


def test_all_cores_arrive_at_a_receiver_that_is_killed_and_stopped_meanwhile(fleet: Fleet, tmp_path: Path) -> None:
    """Each life ends once more has come in than in the one before; the last one is offered what waits in the spools."""
    store, port = tmp_path / "store", free_port()
    cores = {f"core-{number}": core_of(number) for number in range(SENDERS)}
    for name, core in cores.items():
        (tmp_path / name).write_bytes(core)
    for host in HOSTS:
        create_spool(str(tmp_path / host), os.urandom(16))

    with started(fleet, tmp_path, f"127.0.0.1:{port}") as senders:
        for how in ENDS:
            before = stored_bytes(store)
            with receiving(fleet.receiver, store, listen=[f"127.0.0.1:{port}"]) as receiver:
                wait_until(lambda before=before: is_over(senders) or stored_bytes(store) > before + limits.MIB or None)
                end(receiver, how)
        for sender in senders:
            sender.wait(120)

    root, spools = (fleet.host / "ca.pem").read_bytes(), [tmp_path / host for host in HOSTS]
    early = truths_of(sorted(store.glob("hosts/*/*")), cores)
    assert check(store, root, spools=spools, truths=early) == []
    with receiving(fleet.receiver, store, listen=[f"127.0.0.1:{port}"]) as last:
        for host in HOSTS:
            words = ["--spool", str(tmp_path / host), "--to", str(last.addresses[0]), "--identity", str(fleet.hosts[host])]
            subprocess.run([*SECURECORE, "spool", "flush", *words], capture_output=True, check=True)
        end(last, signal.SIGTERM)
    truths = truths_of(sorted(store.glob("hosts/*/*")), cores)
    assert sorted(truth.sha256 for truth in truths) == sorted(sha256(core).hexdigest() for core in cores.values())
    assert check(store, root, spools=spools, truths=truths, is_settled=True) == []
    # Stopped in order or not, each life but the first began with something that an earlier one had left.
    assert len(early) < SENDERS


def truths_of(dumps: list[Path], cores: dict[str, bytes]) -> list[Truth]:
    """Return what was sent as each dump, which its report names."""
    found = []
    for dump in dumps:
        core = cores[json.loads((dump / "report.json").read_bytes())["core_name"]]
        found.append(Truth(dump.parent.name, dump.name, core, sha256(core).hexdigest(), len(core)))
    return found

"""Descriptors run out, at a receiver with many clients, in a handler, in a flush: dumps wait until there are some."""

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError, UnreachableError
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.kernel import wait_until
from tests.support.local_files import noise
from tests.support.processes import Process, receiving
from tests.support.senders import NOWHERE, sending

pytestmark = pytest.mark.slow

MIB = limits.MIB
NOFILE = resource.RLIMIT_NOFILE
HANDLER_MIN = 11
"""The core's own descriptor is 10 (handler.py, step 1)."""
ENOUGH = 5
"""Descriptors that a receiver opens at once in a commit."""


def leave_descriptors(receiver: Process, spare: int) -> None:
    """Let a running receiver open so many files more than it has open now, and no other."""
    pid = receiver.popen.pid
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    most = 0
    while most - len({fd for fd in taken if fd < most}) < spare:
        most += 1
    hard = resource.prlimit(pid, NOFILE)[1]
    resource.prlimit(pid, NOFILE, (most, hard))


def restore_descriptors(receiver: Process) -> None:
    """Let it open as many as it may."""
    hard = resource.prlimit(receiver.popen.pid, NOFILE)[1]
    resource.prlimit(receiver.popen.pid, NOFILE, (hard, hard))


def test_receiver_that_runs_out_in_a_commit_gives_a_receipt_or_none(fleet: Fleet, tmp_path: Path) -> None:
    """A dump comes in, and then so many descriptors are left: it has its receipt, or the spool has it until there are more."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, *receiver.addresses) as web:
        codes = []
        for spare in range(ENOUGH + 1):
            crash = web.crash(noise(MIB, spare) + b"the end")
            wait_until(lambda: web.held_bytes(store) >= MIB or None)
            leave_descriptors(receiver, spare)
            codes.append(crash.end())
            restore_descriptors(receiver)
            flushed = web.flush(*receiver.addresses)
            assert flushed.returncode == 0, flushed
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
        receiver.popen.terminate()
        said = receiver.rest()
    assert set(codes[:-1]) <= {0, BusyError.exit_code, UnreachableError.exit_code}
    assert (codes[0], codes[-1]) == (UnreachableError.exit_code, 0)
    assert "Traceback" not in said


def test_receiver_whose_clients_hold_every_descriptor_serves_again_when_they_go(fleet: Fleet, tmp_path: Path) -> None:
    """Thirty connections that say nothing have them all: some make room, and a crash finds so much of it, or waits in the spool."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    within = ("prlimit", "--nofile=48:48")
    with (
        receiving(fleet.receiver, store, within=within) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
        ExitStack() as idle,
    ):
        where = (receiver.addresses[0].host, receiver.addresses[0].port)
        for _ in range(30):
            idle.enter_context(socket.create_connection(where))
        receiver.logged("accept failed: Too many open files")
        waits = web.crash(noise(MIB, 1)).end()
        spooled = len(web.spooled())
        idle.close()
        flushed = wait_until(lambda: found if (found := web.flush(*receiver.addresses)).returncode == 0 else None)
        later = web.crash(noise(MIB, 2)).end()
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
    assert waits in (0, UnreachableError.exit_code, BusyError.exit_code)
    assert (spooled, later) == (int(waits != 0), 0)
    assert ("receipt verified" in flushed.stdout) == (waits != 0)


@pytest.mark.parametrize("has_receiver", [True, False], ids=["delivering", "spooling"])
def test_handler_that_may_open_next_to_nothing_keeps_the_core(fleet: Fleet, tmp_path: Path, has_receiver: bool) -> None:
    """Eleven descriptors, with the core's at 10, are enough for either way."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, NOWHERE) as web:
        if has_receiver:
            web.send_to(*receiver.addresses)
        code = web.crash(noise(9 * MIB), limits=[(NOFILE, HANDLER_MIN)]).end()
        assert code == (0 if has_receiver else UnreachableError.exit_code)
        assert len(web.spooled()) == (0 if has_receiver else 1)
        assert web.flush(*receiver.addresses).returncode == 0
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []


def test_flush_that_runs_out_at_any_step_keeps_what_it_has_not_delivered(fleet: Fleet, tmp_path: Path) -> None:
    """From too few to open the spool to enough: each time in words, and nothing is removed without its receipt."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, NOWHERE) as web:
        for seed in range(2):
            web.crash(noise(MIB, seed)).end()
        codes = []
        for most in range(5, 10):
            flushed = web.flush(*receiver.addresses, limits=[(NOFILE, most)])
            codes.append(flushed.returncode)
            assert "Traceback" not in flushed.stderr
            assert check(store, root, spools=[web.spool], truths=web.truths(store)) == []
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
    assert set(codes[:-1]) <= {StorageError.exit_code, UnreachableError.exit_code}
    assert codes[-1] == 0

"""A receiver does not go on without its caretaker, log keeper or control socket: it ends with an error, to be started again."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import Bug, NotFoundError, PeerError, StorageError
from securecore.names import Address, HostName
from securecore.receiver import control
from securecore.receiver.caretaker import Caretaker
from securecore.receiver.control import ControlServer
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.store.layout import create_store, open_store
from tests.support.certificates import Fleet
from tests.support.dumps import dump_id
from tests.support.power import swallowing
from tests.support.stores import WEB


class Unforeseen(Exception):
    """An error that is none of ours and none of the disk's."""


@pytest.fixture
def stopped(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """A receiver that does not serve yet; a thread that ends with Unforeseen does so without a word."""
    monkeypatch.setattr(threading, "excepthook", swallowing(Unforeseen, threading.excepthook))
    return open_receiver(ReceiverSettings((Address("127.0.0.1:0"),), tmp_path / "store", fleet.receiver))


def fail(*arguments: object) -> None:
    """Meet what nobody has thought of."""
    raise Unforeseen("month must be in 1..12")


def test_a_receiver_without_its_caretaker_ends(
    stopped: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In good order, with a line in the log and an error that ends the command; the store is free for the next start."""
    monkeypatch.setattr(Caretaker, "look", fail)
    with pytest.raises(Bug, match="caretaker has ended"):
        stopped.serve()
    assert "caretaker has ended by itself: the receiver stops" in caplog.text
    with open_store(str(tmp_path / "store")) as store:
        store.lock().close()


def test_a_receiver_without_its_log_keeper_ends(
    stopped: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same: hosts' logs would grow, and nobody would say so."""
    monkeypatch.setattr(limits, "WIDE_LOG_EVERY_S", 0.0)
    monkeypatch.setattr(LogKeeper, "look", fail)
    monkeypatch.setattr(LogKeeper, "close", lambda keeper: None)
    with pytest.raises(Bug, match="log keeper has ended"):
        stopped.serve()
    assert "log keeper has ended by itself: the receiver stops" in caplog.text
    with open_store(str(tmp_path / "store")) as store:
        store.lock().close()


def test_a_receiver_without_its_control_socket_ends(
    stopped: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same; who has asked hears that there is no answer."""
    monkeypatch.setattr(control, "take_core", fail)
    errors: list[StorageError] = []

    def ask() -> None:
        with open_store(str(tmp_path / "store")) as store:
            try:
                control.ask_for_core(store, HostName(WEB), dump_id(1))
            except StorageError as error:
                errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Bug, match="control socket has ended"):
        stopped.serve()
    asking.join()
    assert "does not answer" in str(errors[0])
    assert "control socket has ended by itself: the receiver stops" in caplog.text


def test_a_receiver_that_is_stopped_has_lost_nothing(stopped: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Its threads end because it has ended them."""
    stopped.stop()
    stopped.serve()
    assert "by itself" not in caplog.text


def test_a_request_that_cannot_be_accepted_is_taken_later(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a descriptor left for it, it waits in the backlog; the thread that will take it goes on."""
    refusals = iter(range(2))
    monkeypatch.setattr(control, "_PAUSE_S", 0.01)
    accept = socket.socket.accept

    def refuse_at_first(listener: socket.socket) -> object:
        if listener.family is socket.AF_UNIX and next(refusals, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    with open_store(str(tmp_path / "store")) as store:
        # The first one is answered by the accept that is under way since the start.
        monkeypatch.setattr(socket.socket, "accept", refuse_at_first)
        for _ in range(2):
            with pytest.raises(NotFoundError):
                control.ask_for_core(store, HostName(WEB), dump_id(1))
    assert caplog.text.count("control request cannot be taken: Too many open files") == 2


@pytest.mark.parametrize("field", ["host", "dump", "verb", "reason"])
@pytest.mark.parametrize("depth", [1, 400, 950])
def test_lists_in_lists_are_refused(field: str, depth: int, tmp_path: Path) -> None:
    """However deep: no request ends the thread that reads it."""
    fields = {"verb": '"delete"', "host": f'"{WEB}"', "dump": f'"{dump_id(1)}"', "reason": "null"} | {
        field: "[" * depth + "]" * depth
    }
    request = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}\n"
    ours, theirs = socket.socketpair()
    with ours, theirs, create_store(str(tmp_path / "store")) as store:
        theirs.sendall(request.encode("ascii"))
        ControlServer(store, None, None, None)._answer(ours)  # type: ignore[arg-type]
        assert f'"code": {PeerError.exit_code}' in theirs.recv(4096).decode("ascii")

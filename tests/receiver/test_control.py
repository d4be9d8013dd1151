"""The control socket: who may ask, what is asked, and that nothing is handed out before the log says so."""

import fcntl
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.log import HostLog
from securecore.dump.reader import open_container
from securecore.errors import ConfigError, NotFoundError, SecurecoreError, StorageError
from securecore.names import DumpId, HostName
from securecore.receiver import control
from securecore.receiver.policy import Policy, Quota
from securecore.receiver.server import Receiver
from securecore.store import census
from securecore.store import usage as usage_module
from securecore.store.census import Found
from securecore.store.layout import Store, open_store
from securecore.store.usage import Usage
from tests.support.certificates import Fleet
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.stores import WEB, fill_store

HOST = HostName(WEB)
CORE = b"the core of a process that crashed"


@pytest.fixture
def dump(receiver: Receiver, fleet: Fleet) -> DumpId:
    """A dump that the running receiver has stored."""
    identifier = new_dump_id()
    assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=identifier).receipt is not None
    return identifier


@pytest.fixture
def store(dump: DumpId, tmp_path: Path) -> Iterator[Store]:
    """The running receiver's store, opened as a command opens it."""
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


def extractions(store: Store) -> list[dict[str, Any]]:
    """Return what the log says of who extracted what."""
    lines = (Path(store.path) / "audit" / WEB / "entries.jsonl").read_text("ascii").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == "extracted"]


def connect(store: Store) -> socket.socket:
    """Return a connection to the control socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(f"/proc/self/fd/{store.fd}/{control.SOCKET}")
    return connection


def answer_to(store: Store, data: bytes) -> Any:
    """Say anything, and nothing more, to the control socket; return the answer."""
    with connect(store) as connection:
        try:
            connection.sendall(data)
        except BrokenPipeError:
            pass  # It has heard enough to answer.
        connection.shutdown(socket.SHUT_WR)
        line, fds, _flags, _address = socket.recv_fds(connection, 65536, 1)
    for fd in fds:
        os.close(fd)
    answer = json.loads(line)
    assert line.endswith(b"\n")
    assert bool(fds) == bool(answer.get("ok"))
    return answer


def test_a_core_is_handed_out_for_reading_and_the_log_says_to_whom(store: Store, dump: DumpId) -> None:
    """The entry has the uid that the kernel vouches for and the user's name; the descriptor cannot write."""
    core = control.ask_for_core(store, HOST, dump)

    assert core is not None
    assert b"".join(open_container(core).pieces()) == CORE
    assert fcntl.fcntl(core, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(core)
    (entry,) = extractions(store)
    uid = os.getuid()
    assert (entry["dump"], entry["host"], entry["uid"], entry["user"]) == (str(dump), WEB, uid, pwd.getpwuid(uid).pw_name)


def test_the_socket_is_its_owners_alone(store: Store) -> None:
    """0600 in a directory that is 0700."""
    assert os.stat(control.SOCKET, dir_fd=store.fd).st_mode & 0o777 == 0o600


def test_no_entry_no_core(store: Store, dump: DumpId, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the entry cannot be made durable, the answer is the error, without a descriptor; afterwards it works again."""

    def refuse(log: HostLog, entry: bytes) -> bytes:
        raise StorageError("cannot write: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HostLog, "append", refuse)
        answer = answer_to(store, json.dumps({"verb": "extract", "host": WEB, "dump": str(dump)}).encode() + b"\n")
        with pytest.raises(StorageError, match="refused: cannot write: no space left on device"):
            control.ask_for_core(store, HOST, dump)

    assert answer == {"error": "cannot write: no space left on device", "code": 5}
    assert extractions(store) == []
    core = control.ask_for_core(store, HOST, dump)
    assert core is not None
    os.close(core)
    assert len(extractions(store)) == 1


_ASK_AS_NOBODY = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
connection.connect("control.sock")
try:
    connection.sendall(sys.argv[1].encode() + b"\\n")
except BrokenPipeError:
    pass  # it refuses before it reads
line, fds, _, _ = socket.recv_fds(connection, 4096, 1)
print(line.decode().strip(), len(fds))
"""
REFUSED = {"error": "only root and the store's owner may ask the receiver", "code": 3}


def request_for(dump: DumpId) -> str:
    """Return a good request."""
    return json.dumps({"verb": "extract", "host": WEB, "dump": str(dump)})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_gets_nothing_even_past_all_modes(store: Store, dump: DumpId) -> None:
    """With directory and socket opened to everybody, the kernel's word on who asks still refuses who is neither root nor owner."""
    os.chmod(store.path, 0o711)
    os.chmod(control.SOCKET, 0o666, dir_fd=store.fd)

    command = [sys.executable, "-c", _ASK_AS_NOBODY, request_for(dump)]
    asked = subprocess.run(command, cwd=store.path, capture_output=True, text=True, check=True)

    answer, descriptors = asked.stdout.rsplit(" ", 1)
    assert (json.loads(answer), int(descriptors)) == (REFUSED, 0)
    assert extractions(store) == []


def test_who_asks_is_what_the_kernel_says(store: Store, dump: DumpId, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request can carry any name; a peer whom the kernel calls by another uid than root's and the owner's is refused."""
    other = os.geteuid() + 1
    monkeypatch.setattr(control, "_peer_uid", lambda connection: other)

    claim = json.dumps(json.loads(request_for(dump)) | {"uid": 0, "user": "root"})

    assert answer_to(store, claim.encode() + b"\n") == REFUSED
    with pytest.raises(ConfigError, match="only root and the store's owner"):
        control.ask_for_core(store, HOST, dump)
    assert extractions(store) == []


MALFORMED = {
    "nothing": b"",
    "an empty line": b"\n",
    "garbage": b"\x00\xff\xfe garbage\n",
    "half a line": b'{"verb": "extract", "host": "we',
    "no object": b'["extract"]\n',
    "null": b"null\n",
    "no verb": b"{}\n",
    "an unknown verb": b'{"verb": "delete"}\n',
    "a verb that is no text": b'{"verb": ["extract"]}\n',
    "no dump": b'{"verb": "extract", "host": "web-1.example.org"}\n',
    "a host that is a path": b'{"verb": "extract", "host": "../../etc", "dump": "x"}\n',
    "half a character": b'{"verb": "extract", "host": "\\ud800.example.org", "dump": "x"}\n',
    "a dump that is a path": b'{"verb": "extract", "host": "web-1.example.org", "dump": "../x"}\n',
    "numbers": b'{"verb": "extract", "host": 1, "dump": 1e999}\n',
    "too long": b'{"verb": "extract", "host": "' + b"x" * 10_000 + b'"}\n',
    "too deep": b"[" * 4000 + b"\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_gets_an_error_and_the_server_goes_on(data: bytes, store: Store, dump: DumpId) -> None:
    """No entry, no descriptor; the next request is answered as ever."""
    answer = answer_to(store, data)

    assert answer["code"] == 12
    assert answer["error"]
    assert extractions(store) == []
    assert answer_to(store, request_for(dump).encode() + b"\n") == {"ok": True}
    assert len(extractions(store)) == 1


@pytest.mark.slow
def test_a_request_cut_at_every_offset_gets_an_error(store: Store, dump: DumpId) -> None:
    """But for the newline at its end, no beginning of a request is one, nor is it with another behind."""
    whole = request_for(dump).encode()
    for other in [*(whole[:cut] for cut in range(len(whole))), whole + b"x\n", whole + whole + b"\n"]:
        assert answer_to(store, other)["code"] == 12
    assert extractions(store) == []
    assert answer_to(store, whole) == {"ok": True}


def test_who_leaves_or_stalls_is_dropped_and_the_server_goes_on(
    store: Store, dump: DumpId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a client that is gone before it is answered nor one that never ends its line holds up the next for longer than
    its deadline."""
    connect(store).close()
    monkeypatch.setattr(control, "_DEADLINE_S", 0.05)
    with connect(store) as stalled:
        stalled.sendall(b'{"verb": ')

        assert answer_to(store, request_for(dump).encode() + b"\n") == {"ok": True}
        assert stalled.recv(1) == b""


class Dripping:
    """A client of which a byte comes every four seconds, by a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.received = 0
        self._timeout = 0.0

    def settimeout(self, seconds: float) -> None:
        """Bound the next wait."""
        self._timeout = seconds

    def recv(self, size: int) -> bytes:
        """Wait for a byte, or as long as one may."""
        self.now += min(4.0, self._timeout)
        if self._timeout < 4.0:
            raise TimeoutError("timed out")
        self.received += 1
        return b" "


def test_bytes_that_drip_in_renew_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has its deadline as a whole: requests are answered one by one, and the next one waits."""
    client = Dripping()
    monkeypatch.setattr(control.time, "monotonic", lambda: client.now)
    with pytest.raises(TimeoutError):
        control._read_request(client)  # type: ignore[arg-type]
    assert (client.now, client.received) == (control._DEADLINE_S, 2)


def test_a_dump_that_is_not_there_is_not_found(store: Store) -> None:
    """The error that the receiver met comes back as the same kind, and no log is made for a host that has none."""
    with pytest.raises(NotFoundError, match="no dump"):
        control.ask_for_core(store, HOST, new_dump_id())
    with pytest.raises(NotFoundError, match="no dump"):
        control.ask_for_core(store, HostName("nope.example.org"), new_dump_id())

    assert extractions(store) == []
    assert [str(host) for host in store.audited_hosts()] == [WEB]


def test_a_dead_receivers_socket_is_nobody(fleet: Fleet, tmp_path: Path) -> None:
    """No socket, and one that nobody listens on any more: no receiver runs there."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    with open_store(str(tmp_path / "store")) as store:
        assert control.ask_for_core(store, HOST, dump) is None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(f"/proc/self/fd/{store.fd}/{control.SOCKET}")
        assert control.ask_for_core(store, HOST, dump) is None


ANSWERS = [
    b"", b"garbage\n", b"[]\n", b'{"ok": true}\n', b'{"error": "no", "code": 99}\n', b'{"code": []}\n', b'{"error": {}}\n',
    b'{"error": "no", "code": 5, "hint": []}\n',
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none_is_one_clean_error(answer: bytes, fleet: Fleet, tmp_path: Path) -> None:
    """Whatever listens there, the command gets a descriptor or an error of ours."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    with open_store(str(tmp_path / "store")) as store, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"/proc/self/fd/{store.fd}/{control.SOCKET}")
        listener.listen()
        thread = threading.Thread(target=_answer_once, args=(listener, answer))
        thread.start()

        with pytest.raises(SecurecoreError):
            control.ask_for_core(store, HOST, dump)

        thread.join()


def test_an_answer_cut_at_every_offset_is_one_clean_error(fleet: Fleet, tmp_path: Path) -> None:
    """A receiver that dies within its answer has not answered; what it met is said only when it said all of it."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    whole = json.dumps({"error": "no such dump", "code": NotFoundError.exit_code}).encode()
    with open_store(str(tmp_path / "store")) as store, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"/proc/self/fd/{store.fd}/{control.SOCKET}")
        listener.listen()
        for cut in range(len(whole) + 1):
            thread = threading.Thread(target=_answer_once, args=(listener, whole[:cut]))
            thread.start()
            with pytest.raises(NotFoundError if cut == len(whole) else StorageError):
                control.ask_for_core(store, HOST, dump)
            thread.join()


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)


def test_a_refusal_that_comes_before_the_request_is_heard(fleet: Fleet, tmp_path: Path) -> None:
    """The server may refuse who asks before it reads what; the words still reach the person."""
    (dump,) = fill_store(fleet, tmp_path / "store", [("web-1", CORE)])
    with open_store(str(tmp_path / "store")) as store, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"/proc/self/fd/{store.fd}/{control.SOCKET}")
        listener.listen()
        connected = socket.socket.connect

        def connect_and_be_refused(connection: socket.socket, address: str) -> None:
            connected(connection, address)
            peer, _ = listener.accept()
            peer.sendall(json.dumps(REFUSED).encode() + b"\n")
            peer.close()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", connect_and_be_refused)
            with pytest.raises(ConfigError, match="refused: only root and the store's owner"):
                control.ask_for_core(store, HOST, dump)


def test_neither_a_deletion_nor_a_stop_waits_for_a_count(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A count takes minutes: a dump is deleted meanwhile, and a receiver that is stopped ends and leaves its store unlocked."""
    dumps = [new_dump_id() for _ in range(2)]
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        for identifier in dumps:
            assert send_bytes(CORE, papers_of(fleet.host), receiver.addresses, dump=identifier).receipt is not None
    is_looking, may_look, stop = threading.Event(), threading.Event(), Usage.stop

    def look(*arguments: object) -> Found:
        is_looking.set()
        assert may_look.wait(30)
        return census.look(*arguments)  # type: ignore[arg-type]

    def stop_counting(usage: Usage, timeout_s: float) -> bool:
        may_look.set()
        return stop(usage, timeout_s)

    monkeypatch.setattr(usage_module, "look", look)
    monkeypatch.setattr(Usage, "stop", stop_counting)
    policy, path = Policy(quota=Quota(dumps=9)), tmp_path / "store"
    with running_receiver(fleet.receiver, path, policy=policy), open_store(str(path)) as store:
        assert is_looking.wait(20)
        assert control.ask_for_deletion(store, HOST, dumps[0], None)
        assert not may_look.is_set()
    assert caplog.messages[-1] == "stopped"
    with open_store(str(path)) as store:
        store.lock().close()
        assert store.dump_ids(HOST) == dumps[1:]

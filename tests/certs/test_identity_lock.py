"""The lock of an identity directory: one run at a time changes it, others wait, and not for ever."""

import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from securecore.certs import identity_lock
from securecore.certs.identity_lock import IdentityLock
from securecore.errors import ConfigError, NotFoundError, StorageError
from tests.support.processes import PATIENCE_S, ROOT

_HOLDER = """
import sys
from pathlib import Path
from securecore.certs.identity_lock import IdentityLock
with IdentityLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A directory."""
    (tmp_path / "identity").mkdir(0o700)
    return tmp_path / "identity"


def test_one_at_a_time(identity: Path) -> None:
    """The second waits until the first is done."""
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with IdentityLock(identity):
            order.append("second")

    thread = threading.Thread(target=second)
    with IdentityLock(identity):
        thread.start()
        assert waiting.wait(PATIENCE_S)
        order.append("first")
    thread.join(PATIENCE_S)
    assert order == ["first", "second"]


def test_who_holds_it_for_too_long_is_named_to_the_others(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with how to find him; when he is killed the lock is free, and nothing is left behind."""
    monkeypatch.setattr(identity_lock, "WAIT_S", 0.05)
    command = [sys.executable, "-c", _HOLDER, str(identity)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match=r"another run has been changing it for 0\.05 s") as caught, IdentityLock(identity):
            pass
        assert f"fuser -v {identity}" in (caught.value.hint or "")
        holder.kill()
        holder.wait(PATIENCE_S)
    with IdentityLock(identity):
        assert list(identity.iterdir()) == []


def test_what_is_not_there_is_locked_once_it_is(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever makes it; until then there is no descriptor of it."""
    monkeypatch.setattr(identity_lock, "WAIT_S", 0.0)
    with IdentityLock(identity / "new") as lock:
        with pytest.raises(NotFoundError, match="no identity directory there"):
            _ = lock.fd
        (identity / "new").mkdir()
        lock.take()
        lock.take()
        assert stat.S_ISDIR(Path(f"/proc/self/fd/{lock.fd}").stat().st_mode)
        with pytest.raises(ConfigError, match="another run"), IdentityLock(identity / "new"):
            pass
    with IdentityLock(identity / "new"):
        pass


def test_a_directory_that_cannot_be_opened_is_told_in_a_line(identity: Path) -> None:
    """A link that leads to itself; a file is not locked, for whoever looks at it says that it is no directory."""
    (identity / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="loop: can't be opened: Too many levels"), IdentityLock(identity / "loop"):
        pass
    (identity / "file").touch()
    with IdentityLock(identity / "file"):
        pass

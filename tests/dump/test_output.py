"""New files: nothing is there before they are whole, whatever ends the writer."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from securecore.dump.output import NewFile
from securecore.errors import StorageError

WRITER = """
import os, sys
from securecore.dump.output import NewFile
with NewFile(sys.argv[1]) as file:
    print(os.write(file.fd, b"half"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def no_unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_TMPFILE, as NFS."""
    real = os.open

    def without(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", without)


def write(path: Path, data: bytes = b"data") -> None:
    """Write and publish a file."""
    with NewFile(str(path)) as file:
        os.write(file.fd, data)
        file.publish()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_writer_leaves_nothing_in_the_way(number: signal.Signals, tmp_path: Path) -> None:
    """Ended in the middle: no name is there, and the next run writes the file."""
    target = tmp_path / "core"
    with subprocess.Popen([sys.executable, "-c", WRITER, target], stdin=-1, stdout=-1) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"4\n"
        assert list(tmp_path.iterdir()) == []
        writer.send_signal(number)
        assert writer.wait() == -number

    assert list(tmp_path.iterdir()) == []
    write(target)
    assert (target.read_bytes(), list(tmp_path.iterdir())) == (b"data", [target])


def test_a_name_that_was_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Linked, never renamed over: StorageError, and the other file is what it was."""
    with NewFile(str(tmp_path / "core")) as file:
        (tmp_path / "core").write_bytes(b"mine")
        with pytest.raises(StorageError, match="cannot create 'core': file exists"):
            file.publish()

    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("core", b"mine")]


@pytest.mark.usefixtures("no_unnamed")
def test_where_files_need_names_the_file_is_aside_until_it_is_whole(tmp_path: Path) -> None:
    """Its aside name goes with it, published or not."""
    with NewFile(str(tmp_path / "core")):
        assert [path.name for path in tmp_path.iterdir()] == [".core.new"]
    assert list(tmp_path.iterdir()) == []

    write(tmp_path / "core")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("core", b"data")]


@pytest.mark.usefixtures("no_unnamed")
def test_what_another_run_is_writing_is_left_alone(tmp_path: Path) -> None:
    """The aside name is taken: by a run at work or one that was killed; a person decides."""
    (tmp_path / ".core.new").write_bytes(b"half")

    with pytest.raises(StorageError, match=r"\.core\.new: already exists") as raised:
        NewFile(str(tmp_path / "core"))
    assert raised.value.hint == "another run writes it, or was killed: then remove it"
    assert (tmp_path / ".core.new").read_bytes() == b"half"

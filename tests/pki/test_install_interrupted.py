"""Requests and replies on the machine that holds the key, where a process is killed or a disk refuses."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.install import install
from securecore.pki.issue import issue_host, issue_receiver
from securecore.pki.request import request
from securecore.receiver.material import load_material
from tests.pki.test_install import LATER, NAME, files, receiver_reply, reply_of
from tests.support.certificates import NOW, RECEIVER_NAME, no_passphrase
from tests.support.disk import FailingDisk
from tests.support.power import Loss, ended_at_each_call
from tests.support.processes import ROOT

_WRITTEN_IN_PART = """
import os, sys
from datetime import datetime, UTC
from pathlib import Path
from securecore.pki.install import install
from securecore.pki.request import request

real = os.fsync
def fsync(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].lstrip(".").startswith(sys.argv[2]):
        os.ftruncate(descriptor, 0)
        os._exit(9)
    real(descriptor)

os.fsync = fsync
identity = Path(sys.argv[1])
install(identity, Path(sys.argv[3]).read_bytes(), datetime.now(UTC)) if len(sys.argv) > 3 else request(identity)
"""


@pytest.mark.parametrize("name", ["key.pem", "next-key.pem", "log-key.pem"])
def test_a_key_is_whole_or_not_there(name: str, pki: PkiDirectory, tmp_path: Path) -> None:
    """Killed while it is written, with none of it on disk: the same command again makes it."""
    identity = tmp_path / "machine"
    if name == "next-key.pem":
        issue_host(pki, NAME, identity, no_passphrase, NOW)
    elif name == "log-key.pem":
        request(identity)
        receiver_reply(pki, identity)
    else:
        identity.mkdir(mode=0o700)
    more = [str(tmp_path / "reply.pem")] if name == "log-key.pem" else []
    command = [sys.executable, "-c", _WRITTEN_IN_PART, str(identity), name, *more]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert not (identity / name).exists()
    if more:
        install(identity, (tmp_path / "reply.pem").read_bytes(), NOW)
        assert load_material(identity, NOW).own.name == HostName(RECEIVER_NAME)
    else:
        request(identity)
    assert (identity / name).stat().st_size > 0
    assert not [path for path in identity.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
def test_end_at_any_call_and_the_same_reply_again_finishes_it(loss: Loss, pki: PkiDirectory, tmp_path: Path) -> None:
    """A receiver that gets a new key: the process ends before each call; then the identity is whole, with the new key."""
    place = tmp_path / "place"
    place.mkdir()
    issue_receiver(pki, HostName(RECEIVER_NAME), [], place / "r", no_passphrase, NOW)
    made = request(place / "r")
    reply = receiver_reply(pki, place / "r", now=LATER)
    ends = 0
    for left, fatal in ended_at_each_call(place, lambda path: install(path / "r", reply, LATER), loss):
        install(left / "r", reply, LATER)
        assert load_material(left / "r", LATER).identity.certificates[0].public_key() == made.public_key, fatal
        assert {"next-key.pem", "request.pem"} & set(files(left / "r")) == set()
        ends += 1
    assert ends > 6


def test_a_full_disk_leaves_the_identity_as_it_was_until_the_exchange(
    pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write may come between the renames of a key and its certificate."""
    identity = tmp_path / "web-1"
    issue_host(pki, NAME, identity, no_passphrase, NOW)
    request(identity)
    reply = reply_of(pki, identity, now=LATER)
    steps: list[str] = []
    real_rename, real_open = os.rename, os.open

    def rename(source: Path, target: Path) -> None:
        steps.append(f"rename {Path(target).name}")
        real_rename(source, target)

    def opened(path: object, flags: int, *more: int, **named: int) -> int:
        if flags & os.O_CREAT:
            steps.append(f"make {Path(str(path)).name}")
        return real_open(path, flags, *more, **named)  # type: ignore[arg-type, call-overload, no-any-return]

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "open", opened)
    install(identity, reply, LATER)
    place = steps.index("rename key.pem")
    assert steps[place : place + 2] == ["rename key.pem", "rename cert.pem"]


def test_a_disk_that_refuses_is_told_in_a_line(pki: PkiDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the identity still works."""
    identity = tmp_path / "web-1"
    issue_host(pki, NAME, identity, no_passphrase, NOW)
    request(identity)
    reply = reply_of(pki, identity, now=LATER)
    monkeypatch.setattr(os, "fsync", FailingDisk(1))
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        install(identity, reply, LATER)
    load_identity(identity)

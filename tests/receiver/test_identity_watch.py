"""A receiver notices by itself that its identity directory has changed: it waits for rest, and takes each change once."""

import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore.certs import identity_directory
from securecore.errors import RefusedError
from securecore.names import Address, HostName
from securecore.pki.revocation import revoke_name
from securecore.receiver.configuration import ReceiverConfiguration
from securecore.receiver.identity_watch import IdentityWatch
from tests.support.certificates import HOST_NAME, Fleet, no_passphrase
from tests.support.hands import Hand
from tests.support.processes import receiving

FILES = (
    identity_directory.CA, identity_directory.CERTIFICATE, identity_directory.KEY, identity_directory.CRL,
    identity_directory.LOG_KEY, identity_directory.LOG_STATEMENT, identity_directory.LOG_KEYS,
)  # fmt: skip

_IMPATIENT = """\
import sys
from securecore.receiver import identity_watch
identity_watch.LOOK_EVERY_S = 0.02
from securecore.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_file_is_taken_once_it_is_at_rest(name: str, tmp_path: Path) -> None:
    """At the second look that finds it the same, and then not again; so is a file that comes, and one that goes."""
    watch = IdentityWatch(tmp_path)
    for change in (
        lambda: (tmp_path / name).write_bytes(b"1"),
        lambda: (tmp_path / name).write_bytes(b"of another length"),
        lambda: os.utime(tmp_path / name, ns=(1, 1)),
        (tmp_path / name).unlink,
    ):
        change()
        assert [watch.look(tmp_path) for _ in range(4)] == [False, True, False, False]


def test_what_still_changes_is_waited_for(tmp_path: Path) -> None:
    """Certificate and key are replaced one after the other; half of it would not load."""
    watch, seen = IdentityWatch(tmp_path), []
    for name in ("cert.pem", "key.pem", "crl.pem"):
        (tmp_path / name).write_bytes(b"new")
        seen.append(watch.look(tmp_path))

    assert seen == [False] * 3
    assert watch.look(tmp_path)


def test_what_is_put_back_in_time_is_no_change(tmp_path: Path) -> None:
    """Nothing is loaded for what is there no more at the second look."""
    watch = IdentityWatch(tmp_path)
    (tmp_path / "crl.pem").write_bytes(b"new")
    assert not watch.look(tmp_path)
    (tmp_path / "crl.pem").unlink()
    assert [watch.look(tmp_path) for _ in range(3)] == [False] * 3


def test_another_directory_is_loaded_once_more(tmp_path: Path) -> None:
    """Whoever has named it in the file has it loaded with that, but a list may have come in between then and the first look."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "crl.pem").write_bytes(b"another")
    watch = IdentityWatch(tmp_path)
    (other / "crl.pem").write_bytes(b"copied once it was loaded")
    assert [watch.look(other) for _ in range(4)] == [False, True, False, False]
    (other / "crl.pem").write_bytes(b"newer")
    assert [watch.look(other) for _ in range(2)] == [False, True]


@pytest.mark.slow
def test_a_copied_list_counts_without_a_signal(own_fleet: Fleet, tmp_path: Path) -> None:
    """A host that was revoked is refused once crl.pem has been copied; a file that somebody is editing is left for a reload."""
    file = tmp_path / "receiver.toml"
    listen = (Address("127.0.0.1:0"),)
    file.write_bytes(ReceiverConfiguration(listen, str(tmp_path / "store"), str(own_fleet.receiver)).encode())
    program = [sys.executable, "-c", _IMPATIENT]
    with receiving(own_fleet.receiver, tmp_path / "store", "--config", str(file), program=program) as process:
        Hand(own_fleet.host, process.addresses).close()
        file.write_text("nonsense")
        revoke_name(own_fleet.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, datetime.now(UTC))
        shutil.copyfile(own_fleet.pki.crl_path, own_fleet.receiver / "crl.pem")
        process.logged("reloaded identity=")
        with pytest.raises(RefusedError, match="revoked on"):
            Hand(own_fleet.host, process.addresses)
        process.popen.terminate()

        assert "configuration" not in process.rest()

"""The catalogue's file: it outlives a process, is shared, is made again when it is damaged, and is nobody else's."""

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from securecore.audit.log import HostLogs
from securecore.errors import StorageError
from securecore.names import HostName
from securecore.store.catalogue import Catalogue, open_catalogue
from securecore.store.layout import Store
from tests.support.dumps import Signer, core_bytes, dump_id, store_dump

CORE = core_bytes(1, 40)


def listed(catalogue: Catalogue, host: HostName | None = None) -> list[str]:
    catalogue.reconcile(host)
    return [row.id for row in catalogue.rows(host)]


def test_rows_outlive_the_process(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """What one process has found, the next one reads."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    catalogue.reconcile()
    catalogue.close()
    with open_catalogue(store) as again:
        assert [row.id for row in again.rows()] == [str(dump_id(1))]


def test_two_processes_share_it(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """Two open catalogues of one store see each other's rows."""
    with open_catalogue(store) as other:
        for number, one in enumerate((catalogue, other), start=1):
            store_dump(store, logs, signer, dump_id(number), CORE)
            one.reconcile()
        assert len(catalogue.rows()) == len(other.rows()) == 2


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 4080, b"\x00" * 4096])
def test_a_corrupt_catalogue_is_rebuilt(content: bytes, store: Store, logs: HostLogs, signer: Signer) -> None:
    """A file that is no database is thrown away and everything is listed again."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = Path(store.path) / "catalogue.sqlite"
    path.write_bytes(content)
    path.chmod(0o600)
    with open_catalogue(store) as opened:
        assert listed(opened) == [str(dump_id(1))]


def test_damage_behind_the_header_is_rebuilt(store: Store, logs: HostLogs, signer: Signer) -> None:
    """Damage that only shows when a table is read is mended on the way, too."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    with open_catalogue(store) as opened:
        opened.reconcile()
        opened._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(store.path) / "catalogue.sqlite"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with open_catalogue(store) as opened:
        assert [row.id for row in opened.rows()] == [str(dump_id(1))]


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 99", "CREATE TABLE other (x)"])
def test_another_versions_catalogue_is_rebuilt(statement: str, store: Store, logs: HostLogs, signer: Signer) -> None:
    """Tables of another version, or another program's, are thrown away."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    connection = sqlite3.connect(Path(store.path) / "catalogue.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with open_catalogue(store) as opened:
        assert listed(opened) == [str(dump_id(1))]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a store away")
def test_another_users_store_is_listed_from_memory(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """Where the store is not ours nothing is written, and everything is listed."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    catalogue.reconcile()
    catalogue.close()
    store_dump(store, logs, signer, dump_id(2), CORE)
    os.chown(store.path, 65534, 65534)
    before = {path.name: path.stat().st_mtime_ns for path in Path(store.path).iterdir()}
    with open_catalogue(store) as opened:
        assert set(listed(opened)) == {str(dump_id(1)), str(dump_id(2))}
    assert {path.name: path.stat().st_mtime_ns for path in Path(store.path).iterdir()} == before


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "hard link"])
def test_a_planted_catalogue_is_refused(kind: str, store: Store, tmp_path: Path) -> None:
    """A link, FIFO, directory or second name in the catalogue's place is refused; what it leads to is untouched."""
    target, path = tmp_path / "target", Path(store.path) / "catalogue.sqlite"
    target.write_bytes(b"")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.link(target, path)
    with pytest.raises(StorageError, match="not a regular file"):
        open_catalogue(store)
    assert target.read_bytes() == b""
    assert not (tmp_path / "nothing").exists()


def test_its_files_are_private(store: Store) -> None:
    """The database and its side files are 0600 even when the umask takes nothing away."""
    old = os.umask(0)
    try:
        with open_catalogue(store) as opened:
            opened.reconcile()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(store.path).glob("catalogue*")}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}
    assert "catalogue.sqlite" in modes

"""The store's tree: who may open it, and what becomes a place in it."""

import os
import stat
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.dump import directory
from securecore.errors import BrokenError, ConfigError, NotFoundError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Place, Store, create_store, open_store
from tests.support.disk import Disk, run_until
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id

DB = HostName("db-2.hosts.test.example")


def plant_dump(store: Store, identifier: DumpId, host: HostName = WEB, place: Place = Place.HOSTS) -> Path:
    path = Path(store.path) / place.value / str(host) / str(identifier)
    path.mkdir(parents=True, mode=0o700)
    return path


def test_a_new_store_opens_with_its_id(store: Store) -> None:
    """The id that a store was made with is the one that it opens with, and FORMAT says so in two lines."""
    with open_store(store.path) as again:
        assert again.store_id == store.store_id
    assert (Path(store.path) / "FORMAT").read_text() == f"securecore-store 1\n{store.store_id}\n"


@pytest.mark.parametrize("place", [*Place, "audit"])
def test_a_hosts_directory_is_durable_whenever_the_process_before_was_killed(place: Place | str, tmp_path: Path) -> None:
    """Whoever is given it may rely on its name, also where another process made it and was killed before its sync."""

    def enter(path: Path) -> None:
        with open_store(str(path)) as store:
            os.close(store.host_directory(place, WEB) if isinstance(place, Place) else store.audit_directory(WEB, create=True))

    name = f"{place.value if isinstance(place, Place) else place}/{WEB}"
    for fatal in range(1, 5):
        path = tmp_path / str(fatal)
        create_store(str(path)).close()
        disk = Disk(path)
        run_until(fatal, disk, partial(enter, path))
        run_until(None, disk, partial(enter, path))
        assert name in disk.survivors(), f"killed before call {fatal}"
        disk.close()


def test_a_hosts_directory_is_durable_after_a_sync_that_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that made it goes on, and makes it durable before it gives it out."""
    disk = Disk(Path(store.path))
    with monkeypatch.context() as patch:
        patch.setattr(directory, "sync", refuse_to_sync)
        with pytest.raises(StorageError):
            store.host_directory(Place.INCOMING, WEB)
    disk.watch(monkeypatch)
    os.close(store.host_directory(Place.INCOMING, WEB))
    assert f"incoming/{WEB}" in disk.survivors()
    disk.close()


def test_a_hosts_directory_costs_a_sync_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An fsync takes milliseconds also where nothing has changed, and each dump asks for its host's directories."""
    os.close(store.host_directory(Place.INCOMING, WEB))
    monkeypatch.setattr(directory, "sync", refuse_to_sync)
    os.close(store.host_directory(Place.INCOMING, WEB))
    with pytest.raises(StorageError):
        store.host_directory(Place.INCOMING, DB)


def refuse_to_sync(fd: int) -> None:
    raise StorageError("cannot make a write durable")


def test_modes_with_no_umask(tmp_path: Path) -> None:
    """Everything in a store is its owner's alone even when the umask takes nothing away."""
    old = os.umask(0)
    try:
        with create_store(str(tmp_path / "store")) as store:
            begin(store, dump_id(1), core_bytes()).close()
            os.close(store.audit_directory(WEB, create=True))
            store.put_log_key(b"statement", b"anchors")
            store.lock().close()
    finally:
        os.umask(old)
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_store_is_not_made_over_another(store: Store) -> None:
    """Making a store where one is refuses and leaves its id."""
    with pytest.raises(StorageError, match="'FORMAT' is already there"):
        create_store(store.path)
    assert open_store(store.path).store_id == store.store_id


def test_a_store_is_not_made_among_other_files(tmp_path: Path) -> None:
    """A directory that holds anything else is refused."""
    (tmp_path / "letter").touch()
    tmp_path.chmod(0o700)
    with pytest.raises(StorageError, match="'letter' is already there"):
        create_store(str(tmp_path))


@pytest.mark.parametrize("left", [[], ["incoming"], ["incoming", "hosts", "audit"], ["audit/", "lock", ".FORMAT.new"]])
def test_a_half_made_store_is_finished(left: list[str], tmp_path: Path) -> None:
    """Whatever a crash left of a store that has no FORMAT yet, making it again succeeds."""
    (tmp_path / "store").mkdir(mode=0o700)
    for name in left:
        path = tmp_path / "store" / name
        path.touch() if name in ("lock", ".FORMAT.new") else path.mkdir()
    create_store(str(tmp_path / "store")).close()
    open_store(str(tmp_path / "store")).close()


def test_a_second_name_of_format_goes_with_the_first_lock(store: Store) -> None:
    """What a crash left that came between the two names of FORMAT does not stay for ever, and FORMAT does."""
    root = Path(store.path)
    os.link(root / "FORMAT", root / ".FORMAT.new")
    store.lock().close()
    assert not (root / ".FORMAT.new").exists()
    with open_store(store.path) as again:
        assert again.store_id == store.store_id


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_a_store_that_others_may_enter_is_refused(mode: int, store: Store) -> None:
    """Any right of group or others is an error that names the command to mend it."""
    os.chmod(store.path, mode)
    with pytest.raises(ConfigError, match="others may enter") as raised:
        open_store(store.path)
    assert raised.value.hint == f"chmod 0700 {store.path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_root_reads_another_users_store_but_does_not_append(store: Store) -> None:
    """Root may look at a service's store, and is refused the lock, because its files would shut the service out."""
    os.chown(store.path, 65534, 65534)
    with open_store(store.path) as again, pytest.raises(ConfigError, match="belongs to another user"):
        again.lock()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not two lines"),
        (b"securecore-store 2\n3b241101-e2bb-4255-8caf-4136c566a962\n", "this version reads"),
        (b"securecore-store 1\nnonsense\n", "not a store id"),
        (b"securecore-store 1\n3b241101-e2bb-4255-8caf-4136c566a962", "not two lines"),
        (b"securecore-store 1\n3b241101-e2bb-4255-8caf-4136c566a962\nmore\n", "not two lines"),
        (b"\xff\n\n", "this version reads"),
    ],
)
def test_a_strange_format_is_refused(text: bytes, words: str, store: Store) -> None:
    """A FORMAT of another version, cut off or with anything more is not opened."""
    (Path(store.path) / "FORMAT").write_bytes(text)
    with pytest.raises(BrokenError, match=words):
        open_store(store.path)


def test_a_format_cut_at_every_offset_is_refused(store: Store) -> None:
    """No beginning of FORMAT is one, nor is it with a byte behind."""
    path = Path(store.path) / "FORMAT"
    whole = path.read_bytes()
    for other in [*(whole[:cut] for cut in range(len(whole))), whole + b"x", whole + b"\n"]:
        path.write_bytes(other)
        with pytest.raises(BrokenError):
            open_store(store.path)
    path.write_bytes(whole)
    open_store(store.path).close()


def test_no_store(tmp_path: Path) -> None:
    """A missing directory and one without FORMAT are not found."""
    tmp_path.chmod(0o700)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFoundError, match="no store in"):
            open_store(str(path))


def test_the_lock_is_exclusive(store: Store) -> None:
    """One holder at a time, among openers of one process too; closing gives it back."""
    held = store.lock()
    with open_store(store.path) as other:
        with pytest.raises(StorageError, match="another receiver"):
            other.lock()
        held.close()
        other.lock().close()


def use_everything(path: str) -> None:
    with open_store(path) as store:
        store.lock().close()
        store.host_names()
        store.audited_hosts()
        store.incoming()


@pytest.mark.parametrize("name", ["FORMAT", "lock", "hosts", "audit", "incoming"])
def test_links_in_the_store_are_not_followed(name: str, store: Store, tmp_path: Path) -> None:
    """A symbolic link at any place that the store uses is refused, and nothing appears behind it."""
    (tmp_path / "elsewhere").mkdir()
    path = Path(store.path) / name
    path.unlink() if path.is_file() else path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        use_everything(store.path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_names_that_are_none_are_skipped(store: Store) -> None:
    """What is no host name or no dump id is not listed."""
    plant_dump(store, dump_id(1))
    (Path(store.path) / "hosts" / "lost+found").mkdir()
    (Path(store.path) / "hosts" / str(WEB) / "notes.txt").touch()
    assert store.host_names() == [WEB]
    assert store.dump_ids(WEB) == [dump_id(1)]
    assert store.dump_ids(DB) == []


@pytest.mark.slow
@given(st.text())
def test_hostile_text_never_becomes_a_place(text: str) -> None:
    """Text with a slash, a dot in an odd place, a control character or nothing in it is neither host nor dump."""
    for kind in (HostName, DumpId.parse):
        try:
            name = str(kind(text))
        except NameRefused:
            continue
        assert name == text
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        assert ".." not in name
        assert name[0] not in ".-"


def test_a_host_may_be_called_like_a_file(store: Store) -> None:
    """No host name meets a file of ours: ca.pem is a legal one."""
    store.put_log_key(b"statement", b"anchors")
    for name in ("ca.pem", "log-key.jws", "catalogue.sqlite", "core.zst"):
        os.close(store.audit_directory(HostName(name), create=True))
        plant_dump(store, dump_id(1), HostName(name))
    assert (store.read_log_key(), store.read_anchors()) == (b"statement", b"anchors")


def test_published_comes_before_incoming(store: Store) -> None:
    """A dump is opened where it is published; else where it is coming in; else it is not found."""
    plant_dump(store, dump_id(1), place=Place.INCOMING)
    assert store.find_place(WEB, dump_id(1)) is Place.INCOMING
    with store.open_dump(WEB, dump_id(1)) as files:
        assert not files.is_published
    plant_dump(store, dump_id(1))
    assert store.find_place(WEB, dump_id(1)) is Place.HOSTS
    with store.open_dump(WEB, dump_id(1)) as files:
        assert files.is_published
    assert store.find_place(WEB, dump_id(2)) is None
    with pytest.raises(NotFoundError, match="no dump"):
        store.open_dump(WEB, dump_id(2))


def test_dump_files_read_what_is_there(store: Store) -> None:
    """Files that are missing are None, a missing core is not found."""
    path = plant_dump(store, dump_id(1))
    with store.open_dump(WEB, dump_id(1)) as files:
        assert (files.read_report(), files.read_manifest(), files.read_receipt(), files.core_bytes()) == (None, None, None, 0)
        with pytest.raises(NotFoundError, match=r"core\.zst is missing"):
            files.open_core()
        (path / "report.json").write_bytes(REPORT)
        (path / "core.zst").write_bytes(b"core")
        fd = files.open_core()
        assert (files.read_report(), os.read(fd, 10), files.core_bytes()) == (REPORT, b"core", 4)
        os.close(fd)


def test_missing_audit_log(store: Store) -> None:
    """A log is made when asked for, else not found."""
    with pytest.raises(NotFoundError, match="no audit log"):
        store.audit_directory(WEB, create=False)
    os.close(store.audit_directory(WEB, create=True))
    os.close(store.audit_directory(WEB, create=False))
    assert store.audited_hosts() == [WEB]


def test_the_log_key_is_replaced_whole(store: Store) -> None:
    """A later statement takes the place of an earlier one."""
    assert store.read_log_key() is None
    store.put_log_key(b"one", b"root")
    store.put_log_key(b"two", b"root")
    assert (store.read_log_key(), store.read_anchors()) == (b"two", b"root")


def test_the_change_mark_follows_the_directory(store: Store) -> None:
    """Adding and removing a dump changes the mark, nothing else does."""
    assert store.change_mark(Place.HOSTS, WEB) == (0, 0)
    path = plant_dump(store, dump_id(1))
    before = store.change_mark(Place.HOSTS, WEB)
    assert store.change_mark(Place.HOSTS, WEB) == before
    path.rmdir()
    assert store.change_mark(Place.HOSTS, WEB)[0] == before[0]

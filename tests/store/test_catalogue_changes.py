"""Dumps that are finished, deleted or taken back while the catalogue is read or brought up to date: each is listed once."""

import shutil
from pathlib import Path

import pytest

from securecore.audit.log import HostLogs
from securecore.names import HostName
from securecore.store.catalogue import Catalogue
from securecore.store.layout import Place, Store
from securecore.store.reading import DumpFiles
from securecore.store.recovery import take_back
from tests.support.dumps import WEB, Signer, begin, core_bytes, dump_id, dump_path, store_dump

CORE = core_bytes(1, 40)


def listed(catalogue: Catalogue, host: HostName | None = None) -> list[str]:
    catalogue.reconcile(host)
    return [row.id for row in catalogue.rows(host)]


def test_a_dump_that_is_finished_while_it_is_listed(
    store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that comes behind our look at it is not one that cannot be read."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = dump_path(store, dump_id(1), "incoming")
    path.parent.mkdir(parents=True, exist_ok=True)
    dump_path(store, dump_id(1)).rename(path)
    manifest = (path / "manifest.jws").read_bytes()
    for name in ("manifest.jws", "receipt"):
        (path / name).unlink()
    real = DumpFiles.core_bytes

    def core_bytes(files: DumpFiles) -> int:
        (path / "manifest.jws").write_bytes(manifest)
        return real(files)

    monkeypatch.setattr(DumpFiles, "core_bytes", core_bytes)

    catalogue.reconcile()

    assert [(row.outcome, row.has_manifest) for row in catalogue.rows()] == [(None, False)]


def test_a_published_dump_is_listed_once(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """A dump that was coming in and is then published has one row."""
    incoming = begin(store, dump_id(1), CORE)
    catalogue.reconcile()
    assert [row.state for row in catalogue.rows()] == ["incomplete"]
    incoming.discard()
    store_dump(store, logs, signer, dump_id(1), CORE)
    catalogue.reconcile()
    assert [row.state for row in catalogue.rows()] == ["complete"]


def test_reconcile_follows_the_directories(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """Dumps that were added or removed behind the catalogue's back are so in the next list."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    store_dump(store, logs, signer, dump_id(2), CORE)
    assert set(listed(catalogue)) == {str(dump_id(1)), str(dump_id(2))}
    shutil.rmtree(dump_path(store, dump_id(1)))
    assert listed(catalogue) == [str(dump_id(2))]
    shutil.copytree(dump_path(store, dump_id(2)), dump_path(store, dump_id(3)))
    assert set(listed(catalogue)) == {str(dump_id(2)), str(dump_id(3))}
    shutil.rmtree(Path(store.path) / "hosts" / str(WEB))
    assert listed(catalogue) == []


@pytest.mark.parametrize("moment", ["without a manifest", "with its manifest"])
def test_a_dump_that_is_taken_back_while_it_is_listed(
    moment: str, store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read on the way is no row of a published dump: once it was received whole, it is listed as complete."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    published, incoming = dump_path(store, dump_id(1)), dump_path(store, dump_id(1), "incoming")
    manifest = (published / "manifest.jws").read_bytes()
    names = store.dump_names(Place.HOSTS, WEB)
    incoming.parent.mkdir(parents=True, exist_ok=True)
    published.rename(incoming)
    if moment == "without a manifest":
        (incoming / "manifest.jws").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(store, "dump_names", lambda place, host: names)
        catalogue.reconcile()
    (incoming / "manifest.jws").write_bytes(manifest)
    incoming.rename(published)
    catalogue.reconcile()
    assert [(row.state, row.outcome) for row in catalogue.rows()] == [("complete", "complete")]


def test_a_dump_that_is_deleted_while_it_is_listed(
    store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not listed as damaged: it was moved before the first of its files was removed."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    real = DumpFiles.read_manifest

    def read_manifest(files: DumpFiles) -> bytes | None:
        dump_path(store, dump_id(1)).rename(Path(store.path) / "elsewhere")
        (Path(store.path) / "elsewhere" / "manifest.jws").unlink()
        return real(files)

    monkeypatch.setattr(DumpFiles, "read_manifest", read_manifest)

    assert listed(catalogue) == []


def test_a_dump_that_is_taken_back_while_the_directories_are_read_counts_once(
    store: Store, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was published when these were read, and is coming in when those are: vacuum must not count its bytes twice."""
    dump = begin(store, dump_id(1), CORE)
    dump.give_up()
    dump.put_receipt(b"receipt")
    dump.publish()
    hosts_in = store.hosts_in

    def take_it_back(place: Place) -> list[HostName]:
        if place is Place.INCOMING:
            take_back(store, WEB, dump_id(1))
        return hosts_in(place)

    with monkeypatch.context() as patch:
        patch.setattr(store, "hosts_in", take_it_back)
        catalogue.reconcile()
    assert [held.id for held in catalogue.held()] == [str(dump_id(1))]
    assert catalogue.coming_in() == catalogue.coming_in(WEB) == []
    catalogue.reconcile()
    assert catalogue.held() == []
    assert [held.id for held in catalogue.coming_in()] == [str(dump_id(1))]


def test_a_dump_that_was_damaged_and_received_again(store: Store, logs: HostLogs, signer: Signer, catalogue: Catalogue) -> None:
    """A row without what a manifest says is read again once something in the host's directory has changed."""
    store_dump(store, logs, signer, dump_id(1), CORE)
    path = dump_path(store, dump_id(1))
    manifest, receipt = (path / "manifest.jws").read_bytes(), (path / "receipt").read_bytes()
    (path / "manifest.jws").unlink()
    (path / "receipt").write_bytes(b"")
    catalogue.reconcile()
    assert [row.state for row in catalogue.rows()] == ["incomplete"]
    (path / "manifest.jws").write_bytes(manifest)
    (path / "receipt").write_bytes(receipt)
    store_dump(store, logs, signer, dump_id(2), CORE)
    catalogue.reconcile()
    assert [row.state for row in catalogue.rows()] == ["complete", "complete"]

"""Kept CRLs: each once, whole, durable and private, under its digest."""

import os
import stat
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from securecore.errors import StorageError
from securecore.store.crls import CrlArchive, CrlFile, find_problem, read_crl
from securecore.store.layout import Store, create_store
from tests.support.disk import Disk, run_until

PEM = b"-----BEGIN X509 CRL-----\nbytes\n-----END X509 CRL-----\n"
CRL = CrlFile.of(PEM)
NAME = f"crls/{sha256(PEM).hexdigest()}.pem"


def test_each_is_kept_once_under_its_digest(store: Store) -> None:
    """Whoever keeps it, and however often; another one stands beside it."""
    for archive in (CrlArchive(store), CrlArchive(store)):
        archive.keep(CRL)
        archive.keep(CRL)
        archive.keep(CrlFile.of(b"another"))
    assert {path.name for path in (Path(store.path) / "crls").iterdir()} == {
        f"{sha256(data).hexdigest()}.pem" for data in (PEM, b"another")
    }
    assert (read_crl(store, CRL.sha256), find_problem(store, CRL.sha256)) == (PEM, None)


def test_they_are_their_owners_alone(store: Store) -> None:
    """0600 in 0700 even when the umask takes nothing away."""
    old = os.umask(0)
    try:
        CrlArchive(store).keep(CRL)
    finally:
        os.umask(old)
    path = Path(store.path) / NAME
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_a_store_from_before_has_none(store: Store) -> None:
    """Nothing is there until something is kept, and that is said."""
    assert (read_crl(store, CRL.sha256), find_problem(store, CRL.sha256)) == (None, f"{NAME} is missing")


def test_ended_before_every_call(tmp_path: Path) -> None:
    """Killed anywhere, it is there whole or not at all; and once a later life has kept it, a power cut leaves it."""
    fatal, is_done = 0, False
    while not is_done:
        fatal += 1
        path = tmp_path / f"store-{fatal}"
        with create_store(str(path)) as store, closing(Disk(path)) as disk:
            is_done = run_until(fatal, disk, lambda store=store: keep(store)) is not None
            assert disk.survivors().get(NAME, PEM) == PEM
            assert not (path / NAME).exists() or (path / NAME).read_bytes() == PEM
            assert run_until(None, disk, lambda store=store: keep(store))
            assert disk.survivors()[NAME] == PEM
    assert fatal > 6


def keep(store: Store) -> bool:
    """Keep the list as a process does that begins."""
    CrlArchive(store).keep(CRL)
    return True


def test_one_whose_bytes_have_changed_is_written_anew(store: Store) -> None:
    """That it had changed is found before; a receiver that has the list puts it right."""
    CrlArchive(store).keep(CRL)
    (Path(store.path) / NAME).write_bytes(b"changed")
    assert find_problem(store, CRL.sha256) == f"{NAME} has other bytes than its name says"
    CrlArchive(store).keep(CRL)
    assert find_problem(store, CRL.sha256) is None


def test_what_is_planted_is_not_followed(store: Store, tmp_path: Path) -> None:
    """Neither read nor written."""
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (Path(store.path) / "crls").mkdir(mode=0o700)
    (Path(store.path) / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="not a regular file"):
        CrlArchive(store).keep(CRL)
    assert "not a regular file" in (find_problem(store, CRL.sha256) or "")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"

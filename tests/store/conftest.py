"""A store, and what is beside it, for the tests that begin with an empty one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.audit.log import HostLogs
from securecore.store.catalogue import Catalogue, open_catalogue
from securecore.store.layout import Store, create_store
from tests.support.certificates import Hierarchy
from tests.support.dumps import Signer, logs_of, make_log_signer, make_signer
from tests.support.yards import Yard


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store."""
    with create_store(str(tmp_path / "store")) as made:
        yield made


@pytest.fixture
def logs(store: Store) -> Iterator[HostLogs]:
    """The store's audit logs."""
    made = logs_of(store, make_log_signer())
    yield made
    made.close()


@pytest.fixture
def signer(hierarchy: Hierarchy) -> Signer:
    """The host web-1."""
    return make_signer(hierarchy)


@pytest.fixture
def catalogue(store: Store) -> Iterator[Catalogue]:
    """The store's catalogue."""
    with open_catalogue(store) as opened:
        yield opened


@pytest.fixture
def yard(tmp_path: Path, hierarchy: Hierarchy) -> Iterator[Yard]:
    """A new store with nothing in it."""
    with create_store(str(tmp_path / "store")) as store:
        made = Yard(store, make_signer(hierarchy), make_log_signer())
        yield made
        made.logs.close()

"""Fixtures that several tests of the receiver share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.store.layout import create_store
from tests.support.certificates import Hierarchy
from tests.support.dumps import Keys, begin, make_log_signer, make_signer
from tests.support.gates import Gate
from tests.support.old_dumps import ID, SENT, Life


@pytest.fixture
def life(tmp_path: Path, keys: Keys) -> Life:
    """A receiver whose store has a dump of one frame that is coming in."""
    with create_store(str(tmp_path / "store")) as store:
        begin(store, ID, SENT).close()
    return Life(tmp_path / "store", keys)


@pytest.fixture
def gate(tmp_path: Path, hierarchy: Hierarchy) -> Iterator[Gate]:
    """An empty store and a policy without bounds."""
    made = Gate(tmp_path / "store", make_signer(hierarchy), make_log_signer())
    yield made
    made.close()

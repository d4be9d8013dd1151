"""A log key, and a store with one dump."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.statement import encode_payload, verify_statement
from securecore.certs import jws
from securecore.certs.profiles import RECEIVER
from securecore.store.layout import create_store
from tests.support.certificates import Hierarchy, make_hierarchy, mint
from tests.support.dumps import LOG_NAME, NOW, logs_of, make_log_signer, make_signer, store_dump
from tests.support.one_dump import CORE, ID, Stored


@pytest.fixture(scope="module")
def own_hierarchy() -> Hierarchy:
    """A hierarchy that is valid around NOW."""
    return make_hierarchy(now=NOW)


@pytest.fixture
def stored(tmp_path: Path, own_hierarchy: Hierarchy) -> Iterator[Stored]:
    """A store with one dump."""
    log_signer = make_log_signer()
    receiver = mint(RECEIVER, issuer=own_hierarchy.receivers, now=NOW)
    payload = encode_payload(LOG_NAME, log_signer.public_key, NOW.isoformat())
    token = jws.sign(payload, receiver.key_pem, [receiver.der], jws.LOG_KEY_TYP)
    with create_store(str(tmp_path / "store")) as store:
        logs = logs_of(store, log_signer)
        made = Stored(
            store, logs, log_signer, verify_statement(token, own_hierarchy.anchors), own_hierarchy, make_signer(own_hierarchy)
        )
        store_dump(store, logs, made.signer, ID, CORE)
        yield made
        logs.close()


@pytest.fixture
def signer() -> LogSigner:
    """A log key."""
    return make_log_signer()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty log directory."""
    (tmp_path / "log").mkdir(mode=0o700)
    return tmp_path / "log"

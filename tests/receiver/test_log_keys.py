"""A store and the log keys of its receiver: which keys it takes, and how all of its logs pass to the next one."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from securecore.audit.checkpoint import origin_of, verify_checkpoint
from securecore.audit.log import HostLogs
from securecore.audit.succession import LogKeys, verify_log_keys
from securecore.errors import BrokenError, ConfigError
from securecore.names import HostName
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.log_keys import check_store, put_log_keys
from securecore.store.layout import Store, create_store
from tests.support.certificates import DOMAIN, Hierarchy, make_hierarchy
from tests.support.dumps import NOW, WEB, log_of, logs_of
from tests.support.entries import ENTRIES
from tests.support.log_keys import Dynasty, make_dynasty

DB = HostName(f"db-2.{DOMAIN}")
ANCHORS = b"the root"


@pytest.fixture(scope="module")
def own_hierarchy() -> Hierarchy:
    """A hierarchy that is valid around NOW."""
    return make_hierarchy(now=NOW)


@pytest.fixture
def keys(own_hierarchy: Hierarchy) -> Dynasty:
    """Three log keys."""
    return make_dynasty(own_hierarchy, 3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    with create_store(str(tmp_path / "store")) as made:
        yield made


def of(keys: Dynasty, hierarchy: Hierarchy, at: int) -> LogKeys:
    """Return one of the keys with those before it, as an identity directory has them."""
    return verify_log_keys(keys.lines[at].statement, keys.history, hierarchy.anchors)


def kept(store: Store, keys: Dynasty, at: int) -> tuple[LogKeeper, HostLogs]:
    """Return what keeps the store's logs with one of the keys, once it has begun."""
    logs = logs_of(store, keys.signer(at))
    keeper = LogKeeper(store, keys.signer(at), lambda: NOW)
    keeper.follow(logs)
    keeper.begin()
    return keeper, logs


def end(keeper: LogKeeper, logs: HostLogs) -> None:
    """Close all of it."""
    keeper.close()
    logs.close()


def signed_by(store: Store, keys: Dynasty, host: str) -> list[int]:
    """Return which of the keys has signed a log's checkpoint; ``receiver`` is the receiver-wide log."""
    note = (Path(store.path) / "audit" / host / "checkpoint").read_bytes()
    origin = keys.name if host == "receiver" else origin_of(keys.name, HostName(host))
    found = []
    for at, key in enumerate(keys.public_keys):
        with suppress(BrokenError):
            verify_checkpoint(note, origin, key)
            found.append(at)
    return found


def test_a_store_takes_a_key_to_which_its_own_has_handed_over(store: Store, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """One step or several on, and the same one again; with the history from the second key on."""
    for at in (0, 2, 2):
        put_log_keys(store, of(keys, own_hierarchy, at), ANCHORS)
        assert store.read_log_key() == keys.lines[at].statement
        assert store.read_log_keys() == (keys.history if at else None)


def test_a_store_takes_no_other_key(store: Store, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Neither a stranger's nor one that its own has taken the place of: an identity that was put back."""
    put_log_keys(store, of(keys, own_hierarchy, 1), ANCHORS)
    for other in (of(make_dynasty(own_hierarchy), own_hierarchy, 0), of(keys, own_hierarchy, 0)):
        with pytest.raises(ConfigError, match="signed with another log key"):
            put_log_keys(store, other, ANCHORS)
        assert store.read_log_key() == keys.lines[1].statement


def test_a_store_takes_no_key_of_another_name(store: Store, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """Also where the key is the same: a renamed receiver would make all logs another's, which hold under its name alone."""
    ours = of(keys, own_hierarchy, 0)
    put_log_keys(store, ours, ANCHORS)
    renamed = ours._replace(key=ours.key._replace(name=f"collector-2.{DOMAIN}/securecore"))
    with pytest.raises(ConfigError, match="another name"):
        check_store(store, renamed)


def test_a_statement_that_is_none_binds_nobody(store: Store, keys: Dynasty, own_hierarchy: Hierarchy) -> None:
    """A store without one, or with what is no statement: its logs say whose they are."""
    check_store(store, of(keys, own_hierarchy, 0))
    store.put_log_key(b"nonsense", ANCHORS)
    put_log_keys(store, of(keys, own_hierarchy, 0), ANCHORS)
    assert store.read_log_key() == keys.lines[0].statement


def test_a_start_hands_all_logs_over(store: Store, keys: Dynasty, caplog: pytest.LogCaptureFixture) -> None:
    """The hosts' and the receiver-wide one; a log that does not hold is named, and keeps no other from it."""
    broken = HostName(f"mail.{DOMAIN}")
    keeper, logs = kept(store, keys, 0)
    for host in (WEB, DB, broken):
        log_of(logs, host).append(ENTRIES[0])
    end(keeper, logs)
    note = Path(store.path) / "audit" / str(broken) / "checkpoint"
    note.write_bytes(note.read_bytes().replace(b"\n1\n", b"\n2\n"))
    caplog.set_level(logging.ERROR, "securecore.receiver")

    end(*kept(store, keys, 2))
    assert [signed_by(store, keys, str(host)) for host in (WEB, DB, "receiver")] == [[2], [2], [2]]
    assert f"audit log not handed over to the log key in use host={broken}" in caplog.text
    assert str(WEB) not in caplog.text


def test_another_key_is_used_while_logs_are_open(store: Store, keys: Dynasty) -> None:
    """The thread hands over what is open and what is not, and the receiver-wide log with it, without being asked again."""
    keeper, logs = kept(store, keys, 0)
    for host in (WEB, DB):
        log_of(logs, host).append(ENTRIES[0])
    keeper.start()
    keeper.use(keys.signer(1))
    with logs.using(WEB) as log:
        log.append(ENTRIES[1])
    keeper.stop()
    assert keeper.has_ended(60)
    keeper.use(keys.signer(2))
    keeper.begin()
    end(keeper, logs)
    assert [signed_by(store, keys, str(host)) for host in (WEB, DB, "receiver")] == [[2], [2], [2]]

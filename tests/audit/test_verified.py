"""What a verifier remembers: read back as it was written, and refused when it is anything else."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.verified import VerifiedLogs
from securecore.errors import ConfigError
from securecore.names import StoreId
from tests.support.dumps import LOG_NAME, NOW, WEB

STORE = StoreId.make(bytes(16))


@pytest.fixture
def remembered(signer: LogSigner) -> VerifiedLogs:
    """A host's log of two entries, and the receiver-wide log with one."""
    logs = VerifiedLogs(STORE, LOG_NAME)
    logs.take(signer.sign(origin_of(LOG_NAME, WEB), 2, b"\x02" * 32), NOW)
    logs.take(signer.sign(LOG_NAME, 1, b"\x01" * 32), NOW)
    return logs


def test_what_was_written_is_read_back(remembered: VerifiedLogs) -> None:
    """Of each log size, root, moment and the checkpoint as it was signed."""
    read = VerifiedLogs.parse(remembered.encode(), STORE, LOG_NAME)

    for origin, words in ((origin_of(LOG_NAME, WEB), "entries 0 to 1 were"), (LOG_NAME, "entry 0 was")):
        found = read.find(origin)
        assert found is not None
        assert found == remembered.find(origin)._replace(at=found.at)  # type: ignore[union-attr]
        assert abs(found.at - NOW).total_seconds() < 0.001
        assert found.words() == f"{words} verified on 2026-11-22"
    assert read.hosts == [WEB]
    assert read.encode() == remembered.encode()


def test_of_an_empty_log_nothing_is_remembered(signer: LogSigner) -> None:
    """Every log begins with no entries."""
    logs = VerifiedLogs(STORE, LOG_NAME)
    logs.take(signer.sign(origin_of(LOG_NAME, WEB), 0, bytes(32)), NOW)
    assert logs.find(origin_of(LOG_NAME, WEB)) is None


def test_a_file_cut_at_every_offset_is_refused(remembered: VerifiedLogs) -> None:
    """Nothing of it is believed."""
    whole = remembered.encode()
    for end in range(len(whole) - 1):
        with pytest.raises(ConfigError, match="is not what"):
            VerifiedLogs.parse(whole[:end], STORE, LOG_NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "securecore-verified 2"},
        {"logs": None},
        {"logs": [1]},
        {"logs": [{"checkpoint": "x", "verified_at": "2026-11-22T09:14:22.123Z"}]},
        {"logs": [{"checkpoint": 5, "verified_at": "2026-11-22T09:14:22.123Z"}]},
        {"logs": [{}]},
    ],
)
def test_another_form_is_refused(change: dict[str, Any], remembered: VerifiedLogs) -> None:
    """Also of what a later version may write."""
    text = json.dumps(json.loads(remembered.encode()) | change).encode()
    with pytest.raises(ConfigError, match="is not what"):
        VerifiedLogs.parse(text, STORE, LOG_NAME)


@pytest.mark.parametrize("moment", ["yesterday", "2026-11-22T09:14:22", "0001-01-01T00:00:00+14:00", 5, None])
def test_a_time_that_is_none_is_refused(moment: object, remembered: VerifiedLogs) -> None:
    """A time without its zone is none either."""
    fields = json.loads(remembered.encode())
    fields["logs"][0]["verified_at"] = moment
    with pytest.raises(ConfigError, match="is not what"):
        VerifiedLogs.parse(json.dumps(fields).encode(), STORE, LOG_NAME)


def test_a_log_of_another_receiver_is_refused(remembered: VerifiedLogs, signer: LogSigner) -> None:
    """Also where the file says that it is of this one."""
    other = LogSigner("other.example/securecore", signer._key)
    fields = json.loads(remembered.encode())
    fields["logs"][0]["checkpoint"] = other.sign(f"{other.name}/{WEB}", 2, bytes(32)).decode()
    with pytest.raises(ConfigError, match="is not what"):
        VerifiedLogs.parse(json.dumps(fields).encode(), STORE, LOG_NAME)


def test_another_store_or_receiver_is_named(remembered: VerifiedLogs) -> None:
    """A store that stands in the place of the one that was verified has not grown: it is another."""
    for store, receiver in ((StoreId.make(b"\x01" * 16), LOG_NAME), (STORE, "other.example/securecore")):
        with pytest.raises(ConfigError, match="is of the logs of") as refused:
            VerifiedLogs.parse(remembered.encode(), store, receiver)
        assert str(STORE) in refused.value.message
        assert LOG_NAME in refused.value.message


def test_the_newest_counts(remembered: VerifiedLogs, signer: LogSigner) -> None:
    """One checkpoint for each log."""
    later = datetime(2026, 12, 1, tzinfo=UTC)
    remembered.take(signer.sign(origin_of(LOG_NAME, WEB), 9, b"\x09" * 32), later)
    found = remembered.find(origin_of(LOG_NAME, WEB))
    assert found is not None
    assert (found.size, found.root, found.at) == (9, b"\x09" * 32, later)

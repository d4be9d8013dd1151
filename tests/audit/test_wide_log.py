"""The receiver-wide log: what its entries say, and what opening makes of what a crash or a hand has left."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.audit import wide_log
from securecore.audit.checkpoint import LogSigner, verify_checkpoint
from securecore.audit.entry import WideHead, deleted_entry, encode, find_wide_head
from securecore.audit.wide_log import Tree, WideLog, check_log, parse_said, said_entry
from securecore.errors import BrokenError
from securecore.merkle import leaf_hash, root_of
from securecore.names import HostName
from tests.support.dumps import LOG_NAME, NOW, WEB, dump_id, make_log_signer, opened
from tests.support.stores import files_of, flip

DB = HostName("db-2.example.org")
ONE, TWO = Tree(1, bytes([1] * 32)), Tree(2, bytes([2] * 32))


@pytest.fixture
def signer() -> LogSigner:
    """The receiver's log key."""
    return make_log_signer()


@pytest.fixture
def log(tmp_path: Path, signer: LogSigner) -> Iterator[WideLog]:
    """A log that is empty yet, in *tmp_path*."""
    with opened(tmp_path) as fd:
        made = WideLog.open(fd, signer)
    yield made
    made.close()


def reopen(place: Path, signer: LogSigner) -> WideLog:
    """Return the log as another process finds it."""
    with opened(place) as fd:
        log = WideLog.open(fd, signer)
        log.close()
    return log


def test_what_was_said_is_there_again(log: WideLog, tmp_path: Path, signer: LogSigner) -> None:
    """Of each host the newest; the log is signed under the log key's own name."""
    log.say({WEB: ONE, DB: TWO}, NOW)
    log.say({WEB: TWO}, NOW)

    assert reopen(tmp_path, signer).said == log.said == {WEB: TWO, DB: TWO}
    lines = (tmp_path / "entries.jsonl").read_bytes().splitlines()
    found = verify_checkpoint((tmp_path / "checkpoint").read_bytes(), LOG_NAME, signer.public_key)
    assert (found.size, found.root) == log.head == (3, root_of([leaf_hash(line) for line in lines]))


def test_opening_parses_one_entry_of_each_host(
    log: WideLog, tmp_path: Path, signer: LogSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are hashed: a start must not take an hour where busy hosts have been said each minute for years."""
    for size in range(1, 20):
        log.say({WEB: Tree(size, bytes(32)), DB: Tree(2 * size, bytes(32))}, NOW)
    parsed: list[bytes] = []
    monkeypatch.setattr(wide_log, "parse_said", lambda entry: parsed.append(entry) or parse_said(entry))

    found = reopen(tmp_path, signer)

    assert len(parsed) == 2
    assert found.said == log.said == {WEB: Tree(19, bytes(32)), DB: Tree(38, bytes(32))}
    assert found.head == log.head


def test_whole_entries_behind_the_checkpoint_are_signed_at_once(log: WideLog, tmp_path: Path, signer: LogSigner) -> None:
    """A crash came between: what hosts' entries say of the log from now on is durable and signed. What is torn is cut off."""
    log.say({WEB: ONE}, NOW)
    log.close()
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(said_entry(NOW, DB, ONE) + b"\n" + said_entry(NOW, WEB, TWO)[:40])

    found = reopen(tmp_path, signer)

    assert (found.said, found.head.size) == ({WEB: ONE, DB: ONE}, 2)
    checkpoint = verify_checkpoint((tmp_path / "checkpoint").read_bytes(), LOG_NAME, signer.public_key)
    assert (checkpoint.size, checkpoint.root) == found.head


@pytest.mark.parametrize("how", ["a flipped bit", "shorter", "no checkpoint", "another's key"])
def test_a_damaged_log_is_not_opened(how: str, log: WideLog, tmp_path: Path, signer: LogSigner) -> None:
    """As a host's log."""
    log.say({WEB: ONE, DB: ONE}, NOW)
    entries = tmp_path / "entries.jsonl"
    if how == "a flipped bit":
        flip(entries, 40)
    elif how == "shorter":
        entries.write_bytes(entries.read_bytes().splitlines(keepends=True)[0])
    elif how == "no checkpoint":
        (tmp_path / "checkpoint").unlink()

    with opened(tmp_path) as fd:
        key = make_log_signer() if how == "another's key" else signer
        with pytest.raises(BrokenError):
            check_log(fd, LOG_NAME, key.public_key)
        with pytest.raises(BrokenError):
            WideLog.open(fd, key)


def test_a_log_that_a_receiver_appends_to_is_sound(log: WideLog, tmp_path: Path, signer: LogSigner) -> None:
    """What stands behind the checkpoint may be an append under way; nothing is changed by the look."""
    log.say({WEB: ONE, DB: ONE}, NOW)
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(said_entry(NOW, DB, ONE)[:30])
    before = files_of(tmp_path)

    with opened(tmp_path) as fd:
        assert check_log(fd, LOG_NAME, signer.public_key) == 2
    assert files_of(tmp_path) == before


def test_no_descriptor_is_left_of_a_log_that_is_not_opened(log: WideLog, tmp_path: Path, signer: LogSigner) -> None:
    """Of one that is signed and says nothing that we know, too."""
    log.say({WEB: ONE}, NOW)
    log.close()
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(encode({"event": "checkpoint", "time": "t", "host": "x"}) + b"\n")
    before = len(os.listdir("/proc/self/fd"))

    with opened(tmp_path) as fd, pytest.raises(BrokenError, match="says no checkpoint"):
        WideLog.open(fd, signer)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_entry_says_a_checkpoint() -> None:
    """And an event that this version does not know says none."""
    assert parse_said(said_entry(NOW, WEB, TWO)) == (WEB, TWO)
    assert parse_said(encode({"event": "rotated", "time": "t"})) is None


def test_an_entry_cut_at_every_offset_says_none() -> None:
    """It is no entry."""
    entry = said_entry(NOW, WEB, TWO)
    for end in range(len(entry)):
        with pytest.raises(BrokenError):
            parse_said(entry[:end])


@pytest.mark.parametrize(
    "changes",
    [{"size": -1}, {"size": None}, {"size": 1 << 63}, {"root": "ab"}, {"root": None}, {"host": "one"}, {"host": "../x.y"}],
)
def test_an_entry_that_says_none_is_refused(changes: dict[str, str | int | None]) -> None:
    """Sizes, roots and names are held to their forms."""
    fields: dict[str, str | int | None] = {"event": "checkpoint", "time": "t", "host": str(WEB), "size": 1, "root": "a" * 64}
    with pytest.raises(BrokenError):
        parse_said(encode(fields | changes))


def test_no_text_forges_what_an_entry_says_of_the_log() -> None:
    """The two fields are found in an entry as fields, or not at all."""
    forged = f'"wide_root":"{"a" * 64}","wide_size":7,'
    assert find_wide_head(deleted_entry(NOW, dump_id(1), WEB, uid=0, user=forged, reason=forged)) is None
    head = WideHead(7, bytes([10] * 32))
    said = encode({"event": "x", "time": "t", "wide_size": head.size, "wide_root": head.root.hex()})
    assert find_wide_head(said) == head
    assert find_wide_head(encode({"event": "x", "time": "t", "wide_size": "7", "wide_root": head.root.hex()})) is None

"""`audit verify` and the receiver-wide log: what is removed or put back whole is found, as long as something else tells of it."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore.audit.checkpoint import LogSigner, parse_checkpoint
from securecore.audit.log import HostLog
from securecore.audit.proof import parse_proof
from securecore.audit.wide_log import Tree, WideLog, said_entry
from securecore.certs.identity_directory import load_log_key
from securecore.cli.wide_log import NONE_YET
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, HostName
from securecore.receiver.log_keeper import LogKeeper
from securecore.receiver.server import utc_now
from tests.support.certificates import DOMAIN, Fleet
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.samples import AS_SAID, Sample
from tests.support.stores import DB, WEB, Commands, fill_store, flip

NAME = f"collector.{DOMAIN}/securecore"
SIGNED = "the checkpoint is signed with the log's key"
WHOLE = "every entry is whole and canonical"
ROOT = "the entries give the checkpoint's root"
GROWTH = "no host's log has ever become shorter, or another"
STATES = "the log contains every state of it that hosts' logs tell of"
HOSTS = "every host that it names has its log, as it says"
NAMED = "every host with a dump is named in it"


def wide(commands: Commands) -> Path:
    """Return the log's directory."""
    return commands.store / "audit" / "receiver"


def failed(commands: Commands, *arguments: object) -> list[str]:
    """Return the checks of the receiver-wide log that do not hold."""
    return [check["what"] for check in commands.wide_log(*arguments)["checks"] if check["ok"] is False]


def receive(commands: Commands, host: str, core: bytes = b"one more") -> DumpId:
    """Have a receiver store one more dump of a host, by its short name."""
    dump = new_dump_id()
    with running_receiver(commands.fleet.receiver, commands.store) as receiver:
        assert send_bytes(core, papers_of(commands.fleet.hosts[host]), receiver.addresses, dump=dump).receipt
    return dump


def put_back(place: Path, entries: bytes, checkpoint: bytes) -> None:
    """Give a log entries and a checkpoint that it had."""
    (place / "entries.jsonl").write_bytes(entries)
    (place / "checkpoint").write_bytes(checkpoint)


def remove_host(commands: Commands, host: str) -> None:
    """Remove all that there is of a host, as if it had never been."""
    for place in ("hosts", "audit"):
        shutil.rmtree(commands.store / place / host)


def test_an_honest_store_is_ok(sample: Sample) -> None:
    """And says how many hosts it knows; its key is for other readers of signed notes."""
    ran, found = sample.audit(), sample.wide_log()

    assert ran.code == 0
    assert f"all hosts  log {NAME}" in ran.out
    assert "all hosts  ok  " in ran.out
    assert (found["host"], found["origin"], found["ok"], found["contradicted"], found["unnamed"]) == (None, NAME, True, [], [])
    assert found["verifier_key"].startswith(f"{NAME}+")
    assert [check["number"] for check in found["checks"]] == list(range(1, 8))
    assert failed(sample, "--host", "db-2") == []


def test_a_host_that_was_removed_whole_is_named(sample: Sample) -> None:
    """Without its dumps, its receipts and its log, which nothing else in the store tells of; asked for by name, too."""
    remove_host(sample, DB)

    ran, one = sample.audit(), sample.audit("--host", "db-2")

    assert (ran.code, one.code) == (6, 6)
    assert f"{DB}  BROKEN  0 entries" in ran.out
    assert f"FAIL  {HOSTS}: {DB} (its log is gone)" in ran.out
    assert failed(sample) == [HOSTS]
    assert sample.wide_log()["contradicted"] == [{"host": DB, "problem": "its log is gone"}]
    assert f"{WEB}  ok" in ran.out
    assert sample.audit("--host", "web-1").code == 0


def test_of_hosts_that_were_not_looked_at_nothing_is_said(sample: Sample) -> None:
    """Asked for one host, no other's log is said to be there: it may be gone."""
    assert f"ok    {HOSTS}: 2 hosts\n" in sample.audit().out

    remove_host(sample, DB)
    ran = sample.audit("--host", "web-1")

    assert ran.code == 0
    assert f"ok    {HOSTS}: 1 host, and 1 other not looked at\n" in ran.out


def test_a_host_that_was_put_back_with_its_dumps_and_receipts_is_found(sample: Sample) -> None:
    """Its log and what is left of it agree with each other: all newer receipts are gone. The receiver-wide log said more."""
    lines = (sample.log() / "entries.jsonl").read_bytes().splitlines(keepends=True)
    put_back(sample.log(), b"".join(lines[:2]), parse_proof((sample.first / "receipt").read_bytes()).checkpoint)
    for dump in sample.dumps[1:3]:
        shutil.rmtree(sample.dump(dump))

    ran = sample.audit()

    assert (ran.code, sample.failed(), failed(sample)) == (6, [AS_SAID], [HOSTS])
    words = "the log has 2 entries, a checkpoint in the receiver-wide log says 4: it was put back to an earlier state"
    assert f"FAIL  {AS_SAID}: {words}" in ran.out
    assert sample.wide_log()["contradicted"] == [{"host": WEB, "problem": words}]


def test_what_a_host_got_back_goes_on_being_found(sample: Sample) -> None:
    """Its log has grown since, beyond what was said: it is another."""
    remove_host(sample, DB)
    for _ in range(3):
        receive(sample, "db-2")

    assert sample.audit().code == 6
    assert sample.wide_log()["contradicted"][0]["host"] == DB
    assert "the log does not begin as it did under a checkpoint in the receiver-wide log of 2 entries" in sample.audit().out


@pytest.mark.parametrize("starts", [False, True])
def test_the_removal_of_the_log_itself_is_found(starts: bool, sample: Sample) -> None:
    """Hosts' entries say what it was. A new one, that a start makes, does not begin as the old one did."""
    shutil.rmtree(wide(sample))
    remove_host(sample, DB)
    if starts:
        with running_receiver(sample.fleet.receiver, sample.store):
            pass

    assert sample.audit().code == 6
    assert failed(sample) == ([STATES] if starts else [SIGNED, WHOLE, STATES, NAMED])


def test_a_log_that_was_put_back_with_a_host_is_found_by_another_hosts_entry(sample: Sample) -> None:
    """Whose newest entry says that the log was longer when it was written."""
    receive(sample, "web-1")
    lines = (wide(sample) / "entries.jsonl").read_bytes().splitlines(keepends=True)
    before = list(takewhile(lambda line: json.loads(line)["host"] != DB, lines))
    tree = root_of([leaf_hash(line[:-1]) for line in before])
    put_back(wide(sample), b"".join(before), signer_of(sample).sign(NAME, len(before), tree))
    remove_host(sample, DB)

    assert failed(sample) == failed(sample, "--host", "web-1") == [STATES]


def edit(sample: Sample, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the entries."""
    path = wide(sample) / "entries.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def sign_as_another(sample: Sample) -> None:
    """Sign the same log with another key, of the same name."""
    found = parse_checkpoint((wide(sample) / "checkpoint").read_bytes())
    other = LogSigner(NAME, Ed25519PrivateKey.generate())
    (wide(sample) / "checkpoint").write_bytes(other.sign(NAME, found.size, found.root))


def put_a_file_there(sample: Sample) -> None:
    """Put an empty file in the log's place."""
    shutil.rmtree(wide(sample))
    wide(sample).write_bytes(b"")


def put_a_link_there(sample: Sample) -> None:
    """Put a link to the log in its place."""
    aside = sample.store.parent / "w"
    wide(sample).rename(aside)
    wide(sample).symlink_to(aside)


TAMPERING: dict[str, tuple[Callable[[Sample], object], list[str]]] = {
    "an entry edited": (lambda sample: flip(wide(sample) / "entries.jsonl", 60), [ROOT, GROWTH, STATES]),
    "an entry removed": (lambda sample: edit(sample, lambda lines: lines[1:]), [ROOT, STATES]),
    "entries reordered": (lambda sample: edit(sample, lambda lines: lines[::-1]), [ROOT, GROWTH, STATES]),
    "the log cut off": (lambda sample: edit(sample, lambda lines: lines[:1]), [ROOT, STATES, NAMED]),
    "no entries": (lambda sample: (wide(sample) / "entries.jsonl").unlink(), [WHOLE, ROOT, STATES, NAMED]),
    "no checkpoint": (lambda sample: (wide(sample) / "checkpoint").unlink(), [SIGNED]),
    "a host's checkpoint": (lambda sample: shutil.copy(sample.log() / "checkpoint", wide(sample)), [SIGNED]),
    "another key": (sign_as_another, [SIGNED]),
    "a file in its place": (put_a_file_there, [SIGNED, WHOLE, STATES, NAMED]),
    "a link in its place": (put_a_link_there, [SIGNED, WHOLE, STATES, NAMED]),
}
"""What is done to the log, and the checks that find it."""


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_and_named(what: str, sample: Sample) -> None:
    """By the checks that it breaks, and by no others."""
    spoil, expected = TAMPERING[what]
    spoil(sample)

    assert (sample.audit().code, failed(sample)) == (6, expected)
    assert sample.wide_log()["ok"] is False


def test_a_whole_entry_behind_the_checkpoint_accuses_nobody(sample: Sample) -> None:
    """What no key has signed says nothing of a host yet: an append may be under way."""
    line = said_entry(utc_now(), HostName("never.example.org"), Tree(7, bytes(32)))
    with (wide(sample) / "entries.jsonl").open("ab") as file:
        file.write(line + b"\n" + line[:30])

    assert sample.audit().code == 0
    assert sample.wide_log()["unsigned"] == 1


def signer_of(sample: Sample) -> LogSigner:
    """Return the receiver's own log key."""
    key, _ = load_log_key(sample.fleet.receiver)
    return LogSigner(NAME, key)


def test_a_host_that_becomes_shorter_is_found_whoever_signs_it(sample: Sample) -> None:
    """No receiver says that; a size that went down is named."""
    fd = os.open(wide(sample), os.O_RDONLY | os.O_DIRECTORY)
    log = WideLog.open(fd, signer_of(sample))
    log.say({HostName(WEB): Tree(1, bytes(32))}, utc_now())
    log.close()
    os.close(fd)

    assert GROWTH in failed(sample)
    assert f"the log of {WEB} has 1 entry, and had 4, or others, before" in sample.audit().out


def test_a_host_with_a_dump_that_is_not_named_is_found(sample: Sample) -> None:
    """Only who has the log key can make such a log; and a receiver whose own was damaged when the host was new."""
    lines = (wide(sample) / "entries.jsonl").read_bytes().splitlines()
    for path in wide(sample).iterdir():
        path.unlink()
    fd = os.open(wide(sample), os.O_RDONLY | os.O_DIRECTORY)
    log = HostLog.open(fd, NAME, signer_of(sample))
    log.append_all([line for line in lines if json.loads(line)["host"] != DB])
    log.close()
    os.close(fd)

    assert NAMED in failed(sample)
    assert sample.wide_log()["unnamed"] == [DB]


def test_a_store_from_before_the_log_is_no_damage_until_the_next_start(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in it tells of one. The start makes it, and names all hosts in it."""
    commands = Commands(tmp_path / "store", fleet, capsys)
    with monkeypatch.context() as patch:
        for name in ("begin", "follow", "look"):
            patch.setattr(LogKeeper, name, lambda *arguments: None)
        fill_store(fleet, commands.store, [("web-1", b"one"), ("db-2", b"two")])

    before = commands.audit()
    assert before.code == 0
    assert f"all hosts  {NONE_YET}" in before.out
    assert [found["host"] for found in commands.audit("--json").document] == [DB, WEB]

    with running_receiver(fleet.receiver, commands.store):
        pass
    assert commands.audit().code == 0
    assert commands.wide_log()["entries"] == 2
    remove_host(commands, WEB)
    assert commands.audit().code == 6


def test_a_damaged_log_of_a_store_without_hosts_is_found(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty store has one, and nothing to say of it; unless it does not hold."""
    commands = Commands(tmp_path / "store", fleet, capsys)
    with running_receiver(fleet.receiver, commands.store):
        pass
    assert commands.audit() == (0, "no audit logs, and no dumps\n", "")
    flip(wide(commands) / "checkpoint", 80)
    assert commands.audit().code == 6


def test_an_honest_store_is_ok_while_its_receiver_says_more(sample: Sample) -> None:
    """Between any two of the looks: what is said is durable before it is said."""
    with running_receiver(sample.fleet.receiver, sample.store) as receiver:
        send_bytes(b"core", papers_of(sample.fleet.hosts["db-2"]), receiver.addresses, dump=new_dump_id())
        assert sample.audit().code == 0
        receiver._keeper.look()
        assert sample.audit().code == 0

"""``audit compare``: whatever was done to a store behind its hosts' backs, the receipts that they kept contradict it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from securecore.audit.entry import extracted_entry
from securecore.names import HostName, StoreId
from securecore.pki.issue import issue_receiver, parse_address
from securecore.receiver.server import utc_now
from tests.support.certificates import DOMAIN, Fleet, no_passphrase
from tests.support.kept_receipts import deliver
from tests.support.receivers import running_receiver
from tests.support.stores import DB, WEB, files_of, flip
from tests.support.witnessed import Witnessed, append


def test_an_honest_store_contradicts_nothing(kept: Witnessed) -> None:
    """Each receipt is of its history, and nothing in the store is touched."""
    before = files_of(kept.store)

    ran = kept.compare()

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{DB}  ok  1 receipt fits this store's log, of 2 entries", f"{WEB}  ok  3 receipts fit this store's log, of 4 entries",
    ]  # fmt: skip
    assert kept.kinds() == {WEB: [None] * 3, DB: [None]}
    assert files_of(kept.store) == before


def test_a_log_that_grows_keeps_its_receipts(kept: Witnessed, tmp_path: Path) -> None:
    """Beside a running receiver, and when dumps were extracted and deleted since; receipts of later dumps fit too."""
    append(kept, [extracted_entry(utc_now(), kept.dumps[0], HostName(WEB), uid=0, user="root")])
    kept.delete(kept.dumps[1])
    deliver(kept.fleet, kept.store, tmp_path / "web-1", [b"fourth"])
    with running_receiver(kept.fleet.receiver, kept.store):
        assert kept.kinds() == {WEB: [None] * 4, DB: [None]}


def test_every_receipt_of_a_document_says_what_it_is(kept: Witnessed) -> None:
    """Where it stands, whose it is, and the log that it was held against."""
    kept.put_back_to_the_first()

    document = kept.compare("--json").document

    assert (document["ok"], document["receiver"]) == (False, f"collector.{DOMAIN}")
    assert document["store"] in (kept.store / "FORMAT").read_text()
    assert document["receipts"][1] == {
        "receipt": f"{kept.web}:2",
        "host": WEB,
        "dump": str(kept.dumps[1]),
        "entry": 2,
        "checkpoint_size": 3,
        "ok": False,
        "contradicts": "shortened",
        "detail": "the log has 2 entries, this receipt was given when it had 3",
    }
    assert document["logs"][1] == {"host": WEB, "ok": True, "entries": 2, "problem": None}


def test_a_host_put_back_whole_to_an_older_checkpoint_is_found(kept: Witnessed) -> None:
    """The receiver really signed that, and all that is left in the store agrees with it: only what the host has kept does not."""
    kept.put_back_to_the_first()

    ran = kept.compare()

    assert kept.audit().code == 0
    assert ran.code == 6
    assert f"{WEB}  BROKEN  2 of 3 receipts do not fit this store's log, of 2 entries\n" in ran.out
    words = "shortened: the log has 2 entries, this receipt was given when it had 4"
    assert f"  {kept.web}:3  {kept.dumps[2].short}  {words}\n" in ran.out
    assert f"{DB}  ok  " in ran.out
    assert kept.kinds() == {WEB: [None, "shortened", "shortened"], DB: [None]}


def test_a_host_that_was_removed_is_found(kept: Witnessed) -> None:
    """Without dumps and without a log there is nothing in the store that could miss it; also where only it is asked about."""
    shutil.rmtree(kept.store / "hosts" / WEB)
    shutil.rmtree(kept.log())
    kept.put_the_wide_log_back()

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: ["unknown-host"] * 3, DB: [None]}
    assert kept.compare("--host", "web-1").code == 6
    assert f"unknown-host: the store has no log of {WEB}" in kept.compare().out


def test_an_entry_rewritten_and_signed_again_is_found(kept: Witnessed) -> None:
    """With the log key, and with the receipts in the store: from that entry on no receipt fits, and which one it was is told."""
    kept.rewrite(lambda entries: entries[2].update(program="innocent"))

    ran = kept.compare()

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: [None, "forked", "forked"], DB: [None]}
    assert f"{kept.dumps[1].short}  forked: entry 2 of the log is another than the one that this receipt proves" in ran.out
    assert f"{kept.dumps[2].short}  forked: the entry that this receipt proves is there, and another of the first 4" in ran.out


def test_an_entry_left_out_is_found(kept: Witnessed) -> None:
    """With its dump, and with all that came behind it signed again."""
    shutil.rmtree(kept.dump(kept.dumps[1]))
    kept.rewrite(lambda entries: entries.__delitem__(2))

    assert kept.audit().code == 0
    assert kept.kinds() == {WEB: [None, "forked", "shortened"], DB: [None]}


def test_entries_in_another_order_are_found(kept: Witnessed) -> None:
    """All of them are there, and signed; the dumps' are turned around, behind the certificate's.

    What they say of the receiver-wide log, which had named their host meanwhile, gives it away too.
    """
    kept.rewrite(lambda entries: entries.__setitem__(slice(1, None), entries[:0:-1]))

    assert kept.audit().code == 6
    assert kept.kinds() == {WEB: ["forked"] * 3, DB: [None]}


@pytest.mark.parametrize("name", ["core.zst", "manifest.jws"])
def test_a_dump_that_is_not_as_the_log_says_is_found(kept: Witnessed, name: str) -> None:
    """The log holds, and what it says was received is not there."""
    (kept.first / name).unlink()

    assert kept.kinds() == {WEB: ["dump", None, None], DB: [None]}
    assert f"{kept.dumps[0].short}  dump: its dump is not in the store as the log says: " in kept.compare().out


def test_a_dump_that_was_put_back_is_found(kept: Witnessed, tmp_path: Path) -> None:
    """The log says that it was deleted."""
    shutil.copytree(kept.first, tmp_path / "backup")
    kept.delete(kept.dumps[0])
    assert kept.kinds() == {WEB: [None] * 3, DB: [None]}
    shutil.copytree(tmp_path / "backup", kept.first)

    assert kept.kinds() == {WEB: ["dump", None, None], DB: [None]}
    assert "dump: the log says that its dump was deleted, and it is there" in kept.compare().out


def test_another_store_of_the_same_receiver_is_found(kept: Witnessed, tmp_path: Path) -> None:
    """One that began anew under the same name; and one that only calls itself another."""
    other = Witnessed(tmp_path / "other", kept.fleet, kept._capture)
    deliver(kept.fleet, other.store, tmp_path / "other/web-1", [b"again"])
    (kept.store / "FORMAT").write_text(f"securecore-store 1\n{StoreId.make(bytes(16))}\n")

    assert other.kinds(kept.web, kept.db) == {WEB: ["another-store"] * 3, DB: ["another-store"]}
    assert kept.kinds() == {WEB: ["another-store"] * 3, DB: ["another-store"]}


class Reissued(NamedTuple):
    """A store of a fleet of its own, and another receiver's identity under the same root."""

    kept: Witnessed
    identity: Path


@pytest.fixture
def reissue(own_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Reissued]:
    """Has a host's dumps stored, and then an identity issued for a receiver, whose statement takes the place of the store's."""

    def make(name: str) -> Reissued:
        kept = Witnessed(tmp_path, own_fleet, capsys)
        kept.dumps = deliver(own_fleet, kept.store, tmp_path / "web-1", [b"first", b"second"])
        identity = tmp_path / "reissued"
        addresses = [parse_address("127.0.0.1")]
        issue_receiver(own_fleet.pki, HostName(f"{name}.{DOMAIN}"), addresses, identity, no_passphrase, utc_now())
        shutil.copy(identity / "log-key.jws", kept.store / "log-key.jws")
        return Reissued(kept, identity)

    return make


def test_a_store_that_calls_itself_another_receivers_is_found(reissue: Callable[[str], Reissued]) -> None:
    """Whoever can write it may put the statement of any receiver of the fleet there; it is nobody's secret."""
    kept, _ = reissue("backup")

    assert kept.kinds(kept.web) == {WEB: ["another-receiver"] * 2}


def test_another_key_of_the_same_receiver_does_not_make_the_log_its_own(reissue: Callable[[str], Reissued]) -> None:
    """The receipts fit its entries, but nothing in the store says whose word its checkpoint is, or has theirs handed over to it."""
    kept, _ = reissue("collector")

    ran = kept.compare(kept.web)

    assert (ran.code, kept.kinds(kept.web)) == (6, {WEB: ["another-key"] * 2})
    assert "the log does not hold by itself: checkpoint is not signed by the log's key" in ran.out


def test_a_history_rewritten_under_a_new_key_of_the_same_receiver_is_found(reissue: Callable[[str], Reissued]) -> None:
    """A receipt comes with the statement of the key that signed it: where the log departs from it that is said, else the key."""
    kept, identity = reissue("collector")
    kept.rewrite(lambda entries: entries[2].update(program="innocent"), identity)

    assert kept.audit().code == 0
    assert kept.kinds(kept.web) == {WEB: ["another-key", "forked"]}


def test_a_log_that_does_not_hold_by_itself_is_broken(kept: Witnessed) -> None:
    """Though every receipt fits what is there."""
    flip(kept.log() / "checkpoint", -5)

    ran = kept.compare()

    assert ran.code == 6
    assert f"{WEB}  BROKEN  3 receipts fit this store's log, of 4 entries\n" in ran.out
    assert "\n  the log does not hold by itself: checkpoint " in ran.out

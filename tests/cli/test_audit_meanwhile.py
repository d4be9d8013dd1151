"""`audit verify` beside a receiver at work: what is deleted while it compares is neither gone nor unproved."""

from collections.abc import Callable

import pytest

from securecore.audit.log_verification import Entered
from securecore.cli import holdings
from securecore.names import HostName
from securecore.store.layout import Place, Store, open_store
from securecore.store.reading import DumpFiles
from securecore.store.relocation import move_dump
from tests.support.samples import GONE, RECEIPTS, Sample
from tests.support.stores import DB, WEB, flip


@pytest.fixture
def at_its_receipt(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, Callable[[], object]], None]:
    """Have something done once, between the opening of a dump and the reading of its receipt."""
    real = DumpFiles.read_receipt

    def arrange(dump: object, act: Callable[[], object]) -> None:
        done: list[object] = []

        def read_receipt(files: DumpFiles) -> bytes | None:
            if files.dump_id == dump and not done:
                done.append(True)
                act()
            return real(files)

        monkeypatch.setattr(DumpFiles, "read_receipt", read_receipt)

    return arrange


Arrange = Callable[[object, Callable[[], object]], None]


def test_a_dump_that_is_deleted_under_our_eyes_needs_no_receipt(sample: Sample, at_its_receipt: Arrange) -> None:
    """The log, which is read later, says that it was deleted."""
    at_its_receipt(sample.dumps[0], lambda: sample.delete(sample.dumps[0]))

    ran = sample.audit("--host", "web-1")

    assert (ran.code, sample.failed()) == (0, [])
    assert "2 dumps, and 1 more that was deleted" in ran.out


def test_a_dump_that_is_listed_and_gone_when_it_is_opened_needs_none(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was deleted between the two."""
    real, dump = Store.dump_ids, sample.dumps[0]

    def dump_ids(store: Store, host: HostName) -> object:
        listed = real(store, host)
        if host == WEB and sample.first.exists():
            sample.delete(dump)
        return listed

    monkeypatch.setattr(Store, "dump_ids", dump_ids)

    assert sample.audit("--host", "web-1").code == 0


def test_a_receipt_that_is_removed_where_it_stands_is_missing(sample: Sample, at_its_receipt: Arrange) -> None:
    """Nothing of ours does that."""
    at_its_receipt(sample.dumps[0], (sample.first / "receipt").unlink)

    assert sample.audit().code == 6
    assert sample.failed() == [RECEIPTS]


@pytest.mark.parametrize("host", [WEB, DB])
def test_a_dump_that_is_deleted_behind_the_look_at_the_log_is_not_gone(
    host: str, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood under incoming, and its entry said that it was received; the log that is looked at again says more.

    One of several of a host, and a host's only one.
    """
    dump, real, deleted = sample.dumps[2 if host == WEB else 3], holdings.find_problem, []

    def find_problem(store: Store, owner: HostName, entered: Entered) -> str | None:
        if not deleted:
            deleted.append(dump)
            sample.delete(dump, host)
        return real(store, owner, entered)

    with open_store(str(sample.store)) as store:
        move_dump(store, HostName(host), dump, Place.HOSTS, Place.INCOMING)
    monkeypatch.setattr(holdings, "find_problem", find_problem)

    assert (sample.audit("--host", host).code, deleted) == (0, [dump])


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_dump_on_its_way_out_is_there_until_the_log_says_otherwise(is_whole: bool, sample: Sample) -> None:
    """A deletion moves a dump first and then writes its entry; with another manifest it is not that dump."""
    with open_store(str(sample.store)) as store:
        move_dump(store, HostName(WEB), sample.dumps[0], Place.HOSTS, Place.DELETING)
    if not is_whole:
        flip(sample.dump(sample.dumps[0], place="deleting") / "manifest.jws", 10)

    verified, audited = sample.verify("--all"), sample.audit()

    assert (verified.code, audited.code) == ((0, 0) if is_whole else (6, 6))
    assert sample.failed() == ([] if is_whole else [GONE])

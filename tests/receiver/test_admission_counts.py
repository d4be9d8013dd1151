"""What admission counts of a host, and when: nothing that no bound asks for, and nobody waits for another's count."""

import threading

import pytest

from securecore import limits
from securecore.names import DumpId, HostName
from securecore.receiver.refusals import NotAdmitted, refuse
from securecore.store.account import Amount
from securecore.store.usage import HostUsage, Usage
from securecore.store.writer import IncomingDump
from securecore.wire.messages import Refusal
from tests.support.certificates import DOMAIN
from tests.support.dumps import REPORT, WEB, begin, dump_id
from tests.support.gates import CORE, GIB, MIB, Gate

DB = HostName(f"db-2.{DOMAIN}")


def test_a_receiver_without_quotas_counts_nothing(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million dumps cost it nothing."""
    gate.put(1)
    gate.restart()
    monkeypatch.setattr(Usage, "_count", None)
    assert gate.offer(2, 1 << 40)
    dump = begin(gate.store, dump_id(3), CORE)
    gate.admission.opened(dump, None)
    gate.admission.check_growth(dump, Amount(MIB, MIB))
    dump.close()


def test_where_no_rate_is_bounded_nobody_goes_through_what_was_begun(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may begin dumps without end, each gone again at its first frame; all hosts would wait while they are gone through."""
    gate.quota(stored_bytes=GIB, dumps=9)
    gate.put(1)
    monkeypatch.setattr(Usage, "find", None)
    assert gate.offer(2)
    gate.quota(dumps=1)
    with pytest.raises(NotAdmitted, match="has 1 of its 1 dump here"):
        gate.offer(2)


def test_where_no_rate_is_bounded_what_was_begun_is_not_remembered(gate: Gate) -> None:
    """It would take memory for an hour of dumps. A rate that is set later counts from then on."""
    gate.quota(stored_bytes=GIB)
    for number in range(20):
        gate.now += 1
        gate.offer(number)
        IncomingDump.begin(gate.store, WEB, dump_id(number), REPORT).discard()
    assert len(gate.usage.of(WEB).begun_s) <= 1
    gate.quota(dumps_per_hour=3)
    for number in (20, 21):
        gate.offer(number)
        IncomingDump.begin(gate.store, WEB, dump_id(number), REPORT).discard()
    with pytest.raises(NotAdmitted, match="has begun 3 dumps within the hour, and may begin 3"):
        gate.offer(22)


def test_what_takes_long_to_count_is_counted_aside(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump does not wait for the end of it: its host hears when to come again, and is let in then."""
    gate.put(1)
    gate.quota(dumps=2)
    gate.restart()
    may_count, count = threading.Event(), Usage._count
    monkeypatch.setattr(limits, "COUNT_PATIENCE_S", 0.0)
    monkeypatch.setattr(Usage, "_count", lambda *arguments: may_count.wait(20) and count(*arguments))
    with pytest.raises(NotAdmitted, match="is still being counted") as refused:
        gate.offer(2)
    assert refuse(refused.value)[::2] == (Refusal.BUSY, limits.COUNT_RETRY_AFTER_S)
    may_count.set()
    assert gate.usage.is_counted_within(WEB, 20)
    assert gate.offer(2)


def test_no_host_waits_for_the_count_of_another(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where one is to be counted again just when it is asked what it has."""
    gate.quota(dumps=2, dumps_per_hour=9)
    gate.put(1)
    gate.usage.of(WEB)
    gate.usage.of(DB)
    is_counting, may_count, count, find = threading.Event(), threading.Event(), Usage._count, Usage.find
    found: list[HostUsage | None] = []

    def count_slowly(*arguments: object) -> None:
        is_counting.set()
        assert may_count.wait(20)
        count(*arguments)  # type: ignore[arg-type]

    def find_none(usage: Usage, host: HostName, but_for: DumpId | None = None) -> HostUsage | None:
        if not found:
            usage._account(host).is_counted = False
        found.append(find(usage, host, but_for))
        return found[-1]

    monkeypatch.setattr(Usage, "_count", count_slowly)
    monkeypatch.setattr(Usage, "find", find_none)
    offers: list[bool] = []
    waiting = threading.Thread(target=lambda: offers.append(gate.offer(2)))
    waiting.start()
    assert is_counting.wait(20)
    with gate.admission.receiving(DB, dump_id(1)):
        assert gate.admission.check_opening(DB, dump_id(1), None)
    may_count.set()
    waiting.join(20)
    assert offers == [True]
    assert found[0] is None


def test_hosts_with_a_quota_are_counted_before_they_ask(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the receiver's start on; of a host without one nothing is counted."""
    gate.put(1)
    gate.restart()
    gate.admission.count_ahead()
    counted = [gate.usage._account(WEB).is_counted]
    gate.quota(dumps=2)
    gate.admission.count_ahead()
    assert [*counted, gate.usage._account(WEB).is_counted] == [False, True]

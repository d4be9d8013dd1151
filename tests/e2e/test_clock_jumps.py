"""Clocks jump by years, at either end, between dumps and in them: dumps arrive or wait, and all arrive once the clock is right."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import ClockError, ConfigError, RefusedError, UntrustedError
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.clocks import DAY_S, YEAR_S, Clock
from tests.support.kernel import wait_until
from tests.support.local_files import noise
from tests.support.processes import SECURECORE, receiving
from tests.support.senders import ROOT, sending

pytestmark = pytest.mark.slow

MIB = limits.MIB
AHEAD_S, BEHIND_S = 7 * YEAR_S, -7 * YEAR_S
"""Beyond every certificate's validity, in either direction."""
DIRECTIONS = ["forward", "back"]


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock that is right."""
    return Clock(tmp_path / "clock")


@pytest.mark.parametrize(
    ("jump_s", "code"), [(AHEAD_S, UntrustedError.exit_code), (BEHIND_S, ClockError.exit_code)], ids=DIRECTIONS
)
def test_sender_whose_clock_jumps_in_a_dump_and_crashes_meanwhile_delivers_both_by_the_right_clock(
    fleet: Fleet, tmp_path: Path, clock: Clock, jump_s: int, code: int
) -> None:
    """The dump under way is stored, but its receipt proves nothing by such a clock: it waits, and is not sent a second time.

    By a clock that is behind, a certificate is not yet valid, which is known to be the clock; by one ahead it has expired.
    """
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, *receiver.addresses) as web:
        web.environment = clock.environment
        under_way = web.crash(noise(9 * MIB, 1))
        wait_until(lambda: web.held_bytes(store) >= 8 * MIB or None)
        clock.turn(jump_s)
        in_dump, meanwhile = under_way.end(), web.crash(noise(MIB, 2)).end()
        flushed = web.flush(*receiver.addresses)
        kept = len(web.spooled())
        assert check(store, root, spools=[web.spool], truths=web.truths(store)) == []
        clock.turn(0)
        healed = web.flush(*receiver.addresses)
        later = web.crash(noise(MIB, 3)).end()
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
    assert (in_dump, meanwhile, flushed.returncode, kept) == (UntrustedError.exit_code, code, code, 2)
    assert "compare this machine's clock" in flushed.stderr
    assert (healed.returncode, later) == (0, 0)
    assert sorted(re.findall(r"\((\d) frames? sent now\)", healed.stdout)) == ["0", "1"]


@pytest.mark.parametrize(("jump_s", "code"), [(AHEAD_S, RefusedError.exit_code), (BEHIND_S, ClockError.exit_code)], ids=DIRECTIONS)
def test_receiver_whose_clock_jumps_in_a_dump_refuses_it_until_its_clock_is_right(
    fleet: Fleet, tmp_path: Path, clock: Clock, jump_s: int, code: int
) -> None:
    """It judges certificates again at the end of a dump: that dump, and every other one meanwhile, waits with its sender."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with (
        receiving(fleet.receiver, store, within=clock.within) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        before = web.crash(noise(MIB, 1)).end()
        under_way = web.crash(noise(9 * MIB, 2))
        wait_until(lambda: web.held_bytes(store) >= 8 * MIB or None)
        clock.turn(jump_s)
        codes = [under_way.end(), web.crash(noise(MIB, 3)).end(), web.flush(*receiver.addresses).returncode]
        kept = len(web.spooled())
        assert check(store, root, spools=[web.spool], truths=web.truths(store)) == []
        clock.turn(0)
        healed, later = web.flush(*receiver.addresses), web.crash(noise(MIB, 4)).end()
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
    assert (before, codes, kept) == (0, [code] * 3, 2)
    assert (healed.returncode, later) == (0, 0)


def test_entries_keep_their_order_where_the_receivers_clock_goes_to_and_fro(fleet: Fleet, tmp_path: Path, clock: Clock) -> None:
    """An entry's place is its index: times that run backwards are no damage, and receipts, log and listing agree."""
    root, store = (fleet.host / "ca.pem").read_bytes(), tmp_path / "store"
    with (
        receiving(fleet.receiver, store, within=clock.within) as receiver,
        sending(tmp_path / "web", fleet.host, *receiver.addresses) as web,
    ):
        for days in (3, 0, 2, 1):
            clock.turn(days * DAY_S)
            assert web.crash(noise(MIB, days)).end() == 0
        receipts, dumps = web.receipts(), [one.dump for one in web.truths(store)]
        command = [*SECURECORE, "audit", "log", "--json", "--store", str(store)]
        entries = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
        assert check(store, root, spools=[web.spool], truths=web.truths(store), is_settled=True) == []
    times = [receipt["received_at"] for receipt in receipts]
    assert [(receipt["dump"], receipt["index"]) for receipt in receipts] == [(dump, index) for index, dump in enumerate(dumps, 1)]
    assert [entry["dump"] for entry in entries if entry["event"] == "received"] == dumps
    assert sorted(times) == [times[1], times[3], times[2], times[0]]


@pytest.mark.parametrize("jump_s", [AHEAD_S, BEHIND_S], ids=DIRECTIONS)
def test_receiver_does_not_start_by_a_clock_that_is_years_wrong(fleet: Fleet, tmp_path: Path, clock: Clock, jump_s: int) -> None:
    """Its own certificate is not valid by it: it says so, ends with "config", and has touched no store."""
    clock.turn(jump_s)
    command = [*SECURECORE, "receive", "--listen", "127.0.0.1:0", "--identity", str(fleet.receiver), "--store", str(tmp_path / "s")]
    refused = subprocess.run([*clock.within, *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, (tmp_path / "s").exists()) == (ConfigError.exit_code, False), refused
    assert "Traceback" not in refused.stderr

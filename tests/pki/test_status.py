"""What ends soon, by a clock that the test moves."""

from datetime import timedelta
from pathlib import Path

import pytest

from securecore.names import HostName
from securecore.pki.issue import issue_enroller, issue_host
from securecore.pki.minting import crl_days
from securecore.pki.revocation import revoke_name, sign_crls
from securecore.pki.status import GONE_AFTER, Level, Status, find_status
from tests.support.certificates import ENROLLER_NAME, HOST_NAME, NOW, Fleet, no_passphrase


def status(fleet: Fleet, days: float) -> Status:
    """Return the status so many days after NOW."""
    return find_status(fleet.pki.ledger.read(), NOW + timedelta(days=days))


def level_of(fleet: Fleet, days: float, kind: str, name: str) -> Level:
    """Return how bad one thing is."""
    (item,) = [item for item in status(fleet, days).items if (item.kind, item.name) == (kind, name)]
    assert (item.problem is None) == (item.level is Level.OK)
    return item.level


def test_a_new_fleet_needs_nothing(fleet: Fleet) -> None:
    """Three leaves, three CAs, three CRLs."""
    found = status(fleet, 0)
    assert (found.level, found.gone) == (Level.OK, 0)
    kinds = ["crl"] * 3 + ["host"] * 2 + ["hosts-ca", "receiver", "receivers-ca", "root-ca"]
    assert sorted(item.kind for item in found.items) == kinds


@pytest.mark.parametrize(
    ("days", "level"),
    [(59.9, Level.OK), (60.1, Level.WARNING), (80.9, Level.WARNING), (81.1, Level.CRITICAL), (90.1, Level.CRITICAL)],
)
def test_a_leaf_is_renewed_in_its_last_third(days: float, level: Level, fleet: Fleet) -> None:
    """And it is urgent in the last tenth."""
    assert level_of(fleet, days, "host", HOST_NAME) is level


def test_an_enroller_is_renewed_like_any_other(fleet: Fleet, tmp_path: Path) -> None:
    """Else no host could be, and nobody would know why."""
    issue_enroller(fleet.pki, HostName(ENROLLER_NAME), [], tmp_path / "enroller", no_passphrase, NOW)
    assert [level_of(fleet, days, "enroller", ENROLLER_NAME) for days in (59, 61, 91)] == [Level.OK, Level.WARNING, Level.CRITICAL]


def test_the_newest_certificate_counts(fleet: Fleet, tmp_path: Path) -> None:
    """What it has replaced may end; one that was revoked is not asked for, and leaves no older one behind."""
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "again", no_passphrase, NOW + timedelta(days=60))
    assert level_of(fleet, 91, "host", HOST_NAME) is Level.OK
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW + timedelta(days=61))
    assert HOST_NAME not in [item.name for item in status(fleet, 62).items]


def test_a_machine_that_nobody_misses_is_gone(fleet: Fleet) -> None:
    """It is counted, and alarms nobody for ever."""
    days = 90 + GONE_AFTER.days
    assert level_of(fleet, days - 0.1, "host", HOST_NAME) is Level.CRITICAL
    found = status(fleet, days + 0.1)
    assert (found.gone, [item for item in found.items if item.kind == "host"]) == (3, [])


@pytest.mark.parametrize("name", ["root-ca", "hosts-ca", "receivers-ca"])
def test_a_crl_is_due_in_its_last_third_and_a_signature_mends_it(name: str, fleet: Fleet) -> None:
    """Critical only once it has ended: the receivers' grace begins then. `pki crl` signs just what is due here."""
    life = crl_days(name)
    assert [level_of(fleet, life * part, "crl", name) for part in (0.6, 0.7, 1.1)] == [Level.OK, Level.WARNING, Level.CRITICAL]
    sign_crls(fleet.pki, no_passphrase, NOW + timedelta(days=life * 0.7))
    assert level_of(fleet, life * 0.7, "crl", name) is Level.OK


@pytest.mark.parametrize(("name", "life", "longest", "usual"), [("hosts-ca", 1826, 397, 90), ("root-ca", 3652, 1826, 397)])
def test_a_ca_is_replaced_before_it_cuts_what_it_signs(name: str, life: int, longest: int, usual: int, fleet: Fleet) -> None:
    """It must outlive the longest certificate that it may be asked for."""
    days = [life - longest - 1, life - longest + 1, life - usual + 1, life + 1]
    levels = [Level.OK, Level.WARNING, Level.CRITICAL, Level.CRITICAL]
    assert [level_of(fleet, day, name, name) for day in days] == levels


def test_the_worst_comes_first(fleet: Fleet) -> None:
    """Then what ends soonest."""
    items = status(fleet, 61).items
    assert [item.level for item in items] == sorted((item.level for item in items), reverse=True)
    assert items[0].kind == "crl"
    assert status(fleet, 61).level is Level.CRITICAL


@pytest.mark.parametrize(("name", "is_away"), [("root-ca", True), ("hosts-ca", False), ("receivers-ca", True)])
def test_a_list_whose_key_is_often_away_asks_for_the_key(name: str, is_away: bool, fleet: Fleet) -> None:
    """No timer signs it: somebody has to bring the key."""
    items = status(fleet, crl_days(name) * 0.7).items
    (problem,) = [item.problem for item in items if (item.kind, item.name) == ("crl", name)]
    assert ("bring its key" in (problem or "")) == is_away

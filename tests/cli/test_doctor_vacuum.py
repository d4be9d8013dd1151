"""``doctor`` of deletions: whether what receiver.toml wants gone will go, and is not kept out by a quota before that."""

import pytest

from securecore.cli.checkup.findings import Level
from securecore.cli.checkup.vacuum import check_vacuum
from securecore.cli.machine import systemd
from securecore.cli.machine.receiver import find_service_user
from securecore.cli.machine.root import Root
from securecore.receiver import installation as receiving
from securecore.receiver import vacuum_timer
from securecore.receiver.configuration import ReceiverConfiguration
from securecore.receiver.policy import Policy
from securecore.store.retention import Retention
from tests.support.checkups import NOWHERE, Fault, Machine, replace_in
from tests.support.machines import receiver_running

RECEIVER = "/etc/securecore/receiver"
STORE = "/var/lib/securecore/store"

VACUUM_FAULTS: dict[str, tuple[Fault, str, str, str]] = {
    "no unit": (lambda m: m.file(vacuum_timer.SERVICE).unlink(), "vacuum timer", "vacuum.service is missing", "setup receiver"),
    "a unit for another store": (
        replace_in(vacuum_timer.SERVICE, STORE, "/srv/cores"), "vacuum timer", "is not what this installation", "setup receiver",
    ),
    "no timer": (lambda m: m.file(vacuum_timer.TIMER).unlink(), "vacuum timer", "vacuum.timer is missing", "setup receiver"),
    "a timer that is not enabled": (
        lambda m: m.file(vacuum_timer.TIMER_LINK).unlink(), "vacuum timer", "is not enabled",
        "systemctl enable --now securecore-vacuum.timer",
    ),
    "a quota that is used up first": (
        replace_in(receiving.CONFIGURATION, "[quota]\n", "[quota]\nstored = '100GiB'\n"), "retention", "stored of [quota] 100GiB",
        "a lower host_stored",
    ),
    "a host's quota that is used up first": (
        replace_in(receiving.CONFIGURATION, "[floor]\n", "[quota.hosts.'a.b']\nstored = '1GiB'\n[floor]\n"), "retention",
        "stored of quota of a.b 1GiB", "a lower host_stored",
    ),
    "a quota of dumps that is used up first": (
        replace_in(receiving.CONFIGURATION, "[quota]\n", "[quota]\ndumps = 5000\n"), "retention",
        "host_dumps is 5000, and dumps of [quota] 5000", "a lower host_dumps",
    ),
    "a host's quota of dumps that is used up first": (
        replace_in(receiving.CONFIGURATION, "[floor]\n", "[quota.hosts.'a.b']\ndumps = 20\n[floor]\n"), "retention",
        "dumps of quota of a.b 20", "a lower host_dumps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VACUUM_FAULTS)
def test_what_keeps_dumps_from_going_is_found_where_they_are_to_go(name: str, machine: Machine) -> None:
    """Where the file says nothing of that, nobody misses a timer; where it does, one that is in order is called so."""
    breaking, check, words, remedy = VACUUM_FAULTS[name]
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    replace_in(receiving.CONFIGURATION, "[retention]\n", "[retention]\nhost_stored = '100GiB'\nhost_dumps = 5000\n")(machine)
    before = machine.doctor(role="receiver")
    breaking(machine)
    seen = machine.doctor(role="receiver")
    found = seen.find(check, "warning")
    assert before.find("vacuum timer", "ok")["words"] == "enabled"
    assert before.not_ok() == set()
    assert words in found["words"]
    assert remedy in found["remedy"]
    assert seen.not_ok() == {check}
    assert seen.code == 0


@pytest.mark.parametrize(("is_there", "is_active", "words"), [
    (False, False, "no systemd runs here"), (True, False, "is enabled and not active"), (True, True, "waiting for its next time"),
])  # fmt: skip
def test_a_vacuum_timer_is_asked_for_where_systemd_runs(
    is_there: bool, is_active: bool, words: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine itself: to be enabled is not to be at work."""
    machine.set_up_receiver()
    said = ReceiverConfiguration((NOWHERE,), policy=Policy(retention=Retention(max_dumps=1)))
    monkeypatch.setattr(systemd, "is_running", lambda root: is_there)
    monkeypatch.setattr(systemd, "is_active", lambda unit: is_active and unit == "securecore-vacuum.timer")
    with Root(machine.path) as root:
        root.is_live = True
        (found,) = check_vacuum(said, find_service_user(root), root)
    assert words in found.words
    assert (found.level is Level.OK) is is_active

"""``doctor`` of the timers that renew and fetch: one in order, and each thing that can be wrong."""

import pytest

from securecore.cli.checkup.findings import Level
from securecore.cli.checkup.timers import Timer, check_timer
from securecore.cli.machine import systemd
from securecore.cli.machine.root import Root
from securecore.receiver import fetch_timer
from tests.support.checkups import Fault, Machine, replace_in
from tests.support.machines import receiver_running, setup

RECEIVER = "/etc/securecore/receiver"
STORE = "/var/lib/securecore/store"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda m: None, None),
        (lambda m: m.file(fetch_timer.TIMER).unlink(), "securecore-fetch.timer is missing"),
        (replace_in(fetch_timer.SERVICE, "UMask=0077", "UMask=0000"), "is not what this installation writes"),
        (lambda m: m.file(fetch_timer.TIMER_LINK).unlink(), "is not enabled: revoked hosts go on being taken"),
    ],
    ids=["in order", "no timer", "an edited service", "not enabled"],
)
def test_what_fetches_a_receivers_lists_is_looked_at(harm: Fault, words: str | None, machine: Machine) -> None:
    """Once it has fetched them from an enroller; what is wrong with it `setup receiver` mends."""
    machine.set_up_receiver()
    with receiver_running(machine.file(RECEIVER), machine.file(STORE)):
        pass
    assert "fetch timer" not in machine.doctor(role="receiver").findings
    machine.file(f"{RECEIVER}/enroller").write_text("enrol.example:4456\n")
    assert machine.doctor(role="receiver").find("fetch timer", "wrong")["remedy"] == "securecore setup receiver"
    assert setup(machine.path, "receiver") == 0
    machine.words()
    harm(machine)
    seen = machine.doctor(role="receiver")

    assert seen.not_ok() == (set() if words is None else {"fetch timer"})
    if words is not None:
        found = seen.find("fetch timer", "wrong")
        assert words in found["words"]
        assert setup(machine.path, "receiver") == 0
        machine.words()
        assert machine.doctor(role="receiver").not_ok() == set()


@pytest.mark.parametrize(("is_there", "is_active", "level", "words", "remedy"), [
    (False, False, Level.WARNING, "no systemd runs here", "by hand"),
    (True, False, Level.WRONG, "is enabled and not active", "systemctl start some.timer"),
    (True, True, Level.OK, "enabled, and waiting for its next time", None),
])  # fmt: skip
def test_a_timer_is_asked_for_where_systemd_runs(
    is_there: bool, is_active: bool, level: Level, words: str, remedy: str | None, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine itself: to be enabled is not to be at work."""
    link = machine.file("/etc/some.timer")
    link.symlink_to("/usr/some.timer")
    monkeypatch.setattr(systemd, "is_running", lambda root: is_there)
    monkeypatch.setattr(systemd, "is_active", lambda unit: is_active and unit == "some.timer")
    with Root(machine.path) as root:
        root.is_live = True
        found = check_timer(Timer("some", {}, "/etc/some.timer", "/usr/some.timer", "cost", "by hand", "setup"), root)

    assert (found.level, found.words, found.remedy) == (level, words, remedy)

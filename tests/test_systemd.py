"""What our systemd units have in common."""

import pytest

from securecore import systemd
from securecore.errors import ConfigError
from securecore.names import Address
from securecore.receiver import fetch_timer, vacuum_timer
from securecore.receiver.installation import receiver_service
from securecore.sender.agent_units import agent_service
from securecore.sender.installation import flush_service
from securecore.sender.renewal_units import renew_service

PYTHON, PLACE, USER = "/bin/true", "/srv/place", "securecore"
AGENT = agent_service(PYTHON, PLACE, PLACE)
OF_ROOT = {"flush": flush_service(PYTHON), "renew": renew_service(PYTHON, PLACE)}
OF_A_USER = {
    "receiver": receiver_service(PYTHON, [Address("0.0.0.0:4455")], PLACE, 256, USER),
    "fetch": fetch_timer.fetch_service(PYTHON, PLACE, USER),
    "vacuum": vacuum_timer.vacuum_service(PYTHON, PLACE, USER),
}


def missing(unit: bytes, lines: str) -> list[str]:
    """Return which of *lines* a unit does not have."""
    present = unit.decode().splitlines()
    return [line for line in lines.splitlines() if line not in present]


@pytest.mark.parametrize("name", ["agent", *OF_ROOT, *OF_A_USER])
def test_every_service_has_the_sandbox(name: str) -> None:
    """What none of them needs, none may do."""
    unit = ({"agent": AGENT} | OF_ROOT | OF_A_USER)[name]

    assert missing(unit, systemd.SANDBOX) == []
    assert missing(unit, systemd.NOT_FOR_THE_AGENT) == ([] if name != "agent" else systemd.NOT_FOR_THE_AGENT.splitlines())


@pytest.mark.parametrize("name", OF_A_USER)
def test_what_never_was_root_may_make_no_call_of_roots(name: str) -> None:
    """The filter that takes them away follows the one that allows: the first one decides what a filter is (systemd.exec(5))."""
    lines = OF_A_USER[name].decode().splitlines()

    assert missing(OF_A_USER[name], systemd.SERVICE_USER) == []
    assert [line for line in lines if line.startswith("SystemCallFilter=")] == [
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
    ]


@pytest.mark.parametrize("name", ["agent", "renew", *OF_A_USER])
def test_a_service_waits_for_the_disk_that_it_writes_to(name: str) -> None:
    """Before a disk is there, its empty mount point would be taken for an empty store or spool, and what is put there is hidden.

    Not so for the flush, which makes no spool, comes again soon, and must not mount time and again what somebody has unmounted.
    """
    unit = ({"agent": AGENT} | OF_ROOT | OF_A_USER)[name]

    assert f"\nRequiresMountsFor={PLACE}" in unit.decode().partition("[Service]")[0]
    assert b"RequiresMountsFor" not in OF_ROOT["flush"]


@pytest.mark.parametrize("path", ["/a b", "/a%b", "/a$b", '/a"b', "/a'b", "/a\\b", "/a\nUser=root"])
def test_a_path_that_would_say_more_is_refused_wherever_it_stands(path: str) -> None:
    """No other path makes up for it."""
    for paths in ((path, PLACE), (PLACE, path)):
        with pytest.raises(ConfigError, match="a path in a systemd unit"):
            systemd.check_paths(*paths)


def test_a_service_has_its_users_own_group_unless_it_is_given_one() -> None:
    """systemd takes the user's group where a unit names none (systemd.exec(5))."""
    assert systemd.run_as(USER, None) == "User=securecore\n"
    assert systemd.run_as(USER, "990") == "User=securecore\nGroup=990\n"

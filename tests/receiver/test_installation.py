"""A receiver's unit: systemd understands it, and a receiver can live with what it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import ConfigError
from securecore.names import Address
from securecore.receiver import fetch_timer, installation, vacuum_timer
from tests.support.certificates import Fleet


def unit(
    *, listen: str = "0.0.0.0:4455", store: str = "/var/lib/securecore/store", connections: int = 256, group: str | None = None
) -> str:
    """Return a unit's text."""
    return installation.receiver_service("/bin/true", [Address(listen)], store, connections, "securecore", group).decode()


def test_unit_has_descriptors_for_every_connection() -> None:
    """As many as the configuration lets in, and no more than the kernel gives to a process."""
    assert "\nLimitNOFILE=4096\n" in unit()
    assert f"\nLimitNOFILE={1 << 20}\n" in unit(connections=limits.MOST_CONNECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("listen", ["0.0.0.0:4455", "[fe80::1%eth0]:444"])
def test_unit_is_what_systemd_understands(tmp_path: Path, listen: str) -> None:
    """systemd-analyze finds nothing wrong with the unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    service = tmp_path / "securecore-receiver.service"
    service.write_text(unit(listen=listen, group="990"))
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", service], capture_output=True, check=False, text=True)
    assert [line for line in answer.stderr.splitlines() if "securecore" in line] == []


@pytest.mark.slow
def test_vacuum_units_are_what_systemd_understands(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with service and timer."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    service, timer = tmp_path / "securecore-vacuum.service", tmp_path / "securecore-vacuum.timer"
    service.write_bytes(vacuum_timer.vacuum_service("/bin/true", "/var/lib/securecore/store", "securecore", "990"))
    timer.write_bytes(vacuum_timer.vacuum_timer())
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", service, timer], capture_output=True, check=False, text=True)
    assert [line for line in answer.stderr.splitlines() if "securecore" in line] == []


@pytest.mark.slow
def test_fetch_units_are_what_systemd_understands(tmp_path: Path) -> None:
    """The same."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    service, timer = tmp_path / "securecore-fetch.service", tmp_path / "securecore-fetch.timer"
    service.write_bytes(fetch_timer.fetch_service("/bin/true", "/etc/securecore/receiver", "securecore", "990"))
    timer.write_bytes(fetch_timer.fetch_timer())
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", service, timer], capture_output=True, check=False, text=True)
    assert [line for line in answer.stderr.splitlines() if "securecore" in line] == []
    with pytest.raises(ConfigError, match="systemd unit"):
        fetch_timer.fetch_service("/bin/true", "/etc/a b", "securecore")


def test_a_vacuum_may_write_nowhere_but_to_the_store() -> None:
    """As the store's owner, without a capability or a network; a path that would say more is refused."""
    text = vacuum_timer.vacuum_service("/bin/true", "/srv/store", "securecore").decode()
    for line in ("User=securecore", "CapabilityBoundingSet=", "ReadWritePaths=/srv/store", "PrivateNetwork=yes"):
        assert f"\n{line}\n" in text
    with pytest.raises(ConfigError, match="systemd unit"):
        vacuum_timer.vacuum_service("/bin/true", "/srv/a b", "securecore")


def test_capability_only_for_low_ports() -> None:
    """No capability at all, but for the one that a port below 1024 needs."""
    assert "\nCapabilityBoundingSet=\n" in unit()
    assert "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in unit(listen="0.0.0.0:443")


@pytest.mark.parametrize("store", ["/a b", "/a%b", "/a$b", '/a"b', "/a\\b", "/a\nUser=root"])
def test_path_that_would_mean_something_else_in_a_unit_is_refused(store: str) -> None:
    """Spaces, quotes, specifiers and new lines cannot get into a unit."""
    with pytest.raises(ConfigError, match="systemd unit"):
        unit(store=store)


_CHECK = """\
import ctypes, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
from securecore.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_receiver_lives_without_writable_and_executable_memory(tmp_path: Path, fleet: Fleet) -> None:
    """MemoryDenyWriteExecute in the unit holds: a receiver loads its identity, opens its store and listens under the same rule."""
    arguments = [
        "receive",
        "--check",
        "--listen",
        "127.0.0.1:0",
        "--store",
        str(tmp_path / "store"),
        "--identity",
        str(fleet.receiver),
    ]
    answer = subprocess.run([sys.executable, "-c", _CHECK, *arguments], capture_output=True, check=False, text=True)
    if answer.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert answer.returncode == 0, answer.stderr

"""``setup receiver`` in another root: what it writes, what it refuses, and that it keeps what a person wrote."""

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from securecore.names import Address
from securecore.receiver.configuration import ReceiverConfiguration, load_configuration, parse_receiver_configuration
from tests.support.machines import RECEIVER, USER, setup, snapshot


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 3, "/etc/securecore/receiver.toml names no address to listen on yet, and --listen is missing"),
        ([*RECEIVER, "--identity", "/etc/securecore/identity"], 4, "crl.pem"),
        ([*RECEIVER, "--identity", "/home/me/id"], 3, "no home directories"),
        ([*RECEIVER, "--store", "/tmp/store"], 3, "a /tmp of its own"),
        ([*RECEIVER, "--store", "store"], 3, "must be an absolute path"),
        ([*RECEIVER, "--store", "/var/my store"], 3, "must not have spaces"),
    ],
)
def test_bad_receiver_options_are_refused(
    root: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is one line with an exit code, and nothing is changed."""
    before = snapshot(root)
    assert setup(root, "receiver", *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert snapshot(root) == before


def test_full_store_of_another_user_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that somebody else has filled is not half taken over."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's store")
    store = root / "var/lib/securecore/store"
    store.mkdir(parents=True)
    (store / "FORMAT").write_text("securecore-store 1\n")
    assert setup(root, "receiver", *RECEIVER) == 3
    assert "chown -R 990:990" in capsys.readouterr().err


def test_receiver_files_belong_to_its_user(root: Path) -> None:
    """The store is private and the service's, and so is the identity that it must read without being root."""
    assert setup(root, "receiver", *RECEIVER, "--user", "crash") == 0
    store = (root / "var/lib/securecore/store").stat()
    assert (stat.S_IMODE(store.st_mode), f"{store.st_uid}:{store.st_gid}") == (0o700, USER)
    for path in (root / "etc/securecore/receiver", *(root / "etc/securecore/receiver").iterdir()):
        assert f"{path.stat().st_uid}:{path.stat().st_gid}" == USER
    assert "\nUser=crash\n" in (root / "etc/systemd/system/securecore-receiver.service").read_text()
    assert not (root / "usr/lib/sysusers.d").exists(), "the user is there already"


@pytest.mark.usefixtures("loose_umask")
def test_receiver_goes_by_a_file_that_everybody_may_read(root: Path) -> None:
    """What the options say stands there; the unit names the file, and what systemd must know beforehand."""
    options = ["--listen", "[::]:443", "--store", "/srv/store", "--incomplete-after", "2d", "--user", "crash"]
    assert setup(root, "receiver", *options) == 0
    file = root / "etc/securecore/receiver.toml"
    assert load_configuration(file) == ReceiverConfiguration(
        (Address("[::]:443"),), "/srv/store", incomplete_after=timedelta(days=2)
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    unit = (root / "etc/systemd/system/securecore-receiver.service").read_text()
    assert " receive --config /etc/securecore/receiver.toml\n" in unit
    assert "\nReadWritePaths=/srv/store\n" in unit
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit


def test_receiver_is_vacuumed_every_day_by_its_own_file(root: Path) -> None:
    """A timer is enabled whose unit runs as the store's owner; --undo takes all of it back."""
    before = snapshot(root)
    assert setup(root, "receiver", *RECEIVER, "--store", "/srv/store", "--user", "crash") == 0
    units = root / "etc/systemd/system"
    service = (units / "securecore-vacuum.service").read_text()
    assert " vacuum --if-any --config /etc/securecore/receiver.toml\n" in service
    assert "\nUser=crash\n" in service
    assert "\nReadWritePaths=/srv/store\n" in service
    assert os.readlink(units / "timers.target.wants/securecore-vacuum.timer") == "/etc/systemd/system/securecore-vacuum.timer"
    assert setup(root, "receiver", "--undo") == 0
    assert {path for path in snapshot(root) if "vacuum" in path} == {path for path in before if "vacuum" in path} == set()


def test_a_receiver_that_has_fetched_its_lists_does_so_every_hour(root: Path) -> None:
    """A timer whose unit is the identity's owner and writes nowhere else; it goes with the enroller's address, and by --undo."""
    enroller = root / "etc/securecore/receiver/enroller"
    enroller.write_text("enrol.example:4456\n")
    before, units = snapshot(root), root / "etc/systemd/system"
    assert setup(root, "receiver", *RECEIVER, "--user", "crash") == 0
    service, link = (units / "securecore-fetch.service").read_text(), units / "timers.target.wants/securecore-fetch.timer"
    assert " pki fetch --identity /etc/securecore/receiver\n" in service
    for line in ("User=crash", "CapabilityBoundingSet=", "ReadWritePaths=/etc/securecore/receiver"):
        assert f"\n{line}\n" in service
    assert os.readlink(link) == "/etc/systemd/system/securecore-fetch.timer"
    assert f"{enroller.stat().st_uid}:{enroller.stat().st_gid}" == USER
    assert setup(root, "receiver", "--undo") == 0
    assert snapshot(root) == before

    setup(root, "receiver", *RECEIVER)
    enroller.unlink()
    assert setup(root, "receiver") == 0
    assert not link.is_symlink()
    assert not (units / "securecore-fetch.service").exists()


def test_what_a_person_wrote_about_a_receiver_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without options set-up takes the file as it is, and the unit follows it; what an option changes, it changes alone."""
    setup(root, "receiver", *RECEIVER, "--user", "crash")
    file, service = root / "etc/securecore/receiver.toml", root / "etc/systemd/system/securecore-receiver.service"
    mine = 'version = 1 # mine\nlisten = ["0.0.0.0:80"]\n[connections]\ntotal = 512\n[quota]\ndumps = 7\n'
    file.write_text(mine)
    assert setup(root, "receiver") == 0
    assert file.read_text() == mine
    unit = service.read_text()
    assert "CAP_NET_BIND_SERVICE" in unit
    assert "\nLimitNOFILE=8192\n" in unit
    assert "\nUser=crash\n" in unit
    capsys.readouterr()
    assert setup(root, "receiver") == 0
    assert "nothing to change" in capsys.readouterr().out
    assert setup(root, "receiver", "--incomplete-after", "1d") == 0
    found, before = load_configuration(file), parse_receiver_configuration(mine.encode(), "x")
    assert found == before._replace(incomplete_after=timedelta(days=1))
    assert service.read_text() == unit


def test_a_mistake_in_receiver_toml_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named with its place, and the unit stays as it is."""
    setup(root, "receiver", *RECEIVER)
    (root / "etc/securecore/receiver.toml").write_text("version = 1\n[qota]\n")
    before = snapshot(root)
    assert setup(root, "receiver", *RECEIVER) == 3
    assert f"{root}/etc/securecore/receiver.toml:2: unknown key 'qota'" in capsys.readouterr().err
    assert snapshot(root) == before

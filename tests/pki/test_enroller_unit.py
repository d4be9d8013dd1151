"""The enroller's unit of the runbook: what the runbook does by hand, done, makes `pki serve` run as the unit has it run."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from securecore.certs.chain import fingerprint
from securecore.names import HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import open_pki
from securecore.pki.enrolling import enroll
from securecore.pki.issue import issue_enroller, parse_address
from securecore.pki.tokens import make_token, parse_token
from tests.support.certificates import DOMAIN, ENROLLER_NAME, HOST_NAME
from tests.support.enrolment import HOUR
from tests.support.machines import Snapshot, snapshot
from tests.support.processes import PATIENCE_S, Process
from tests.support.services import SERVICE_USER, as_service

RUNBOOK = (Path(__file__).parents[2] / "pki/runbooks/enrol-online.md").read_text("utf-8")
PKI = "var/lib/securecore-pki"
PASSPHRASE = b"of the hosts CA"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a service its user"),
    pytest.mark.slow,
]


def blocks() -> list[str]:
    """Return what stands between fences, without the indent of the list."""
    return [re.sub(r"(?m)^   ", "", block) for block in re.findall(r"(?ms)^   ```\n(.*?)^   ```$", RUNBOOK)]


def unit() -> dict[str, str]:
    """Return what the unit says, its lines joined as systemd does (systemd.syntax(7))."""
    text = next(block for block in blocks() if "pki serve" in block and "[Service]" in block)
    return dict(line.split("=", 1) for line in re.sub(r"\\\n\s*", "", text).splitlines() if "=" in line)


@pytest.fixture
def machine() -> Iterator[Path]:
    """A root with a PKI and an enroller's identity in the places that the runbook names, root's as yet."""
    with TemporaryDirectory() as place:
        root = Path(place)
        for directory in (root, root / "var/lib", root / "etc/securecore"):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (root, root / "var", root / "var/lib", root / "etc", root / "etc/securecore"):
            directory.chmod(0o755)
        now = datetime.now(UTC)
        pki = create_pki(root / PKI, "Test", DOMAIN, PASSPHRASE, now)
        addresses = [parse_address("127.0.0.1")]
        identity = root / "etc/securecore/enroller"
        issue_enroller(pki, HostName(ENROLLER_NAME), addresses, identity, lambda: PASSPHRASE, now)
        (root / "passphrase").write_bytes(PASSPHRASE + b"\n")
        yield root


def placed(words: list[str], root: Path) -> list[str]:
    """Return the words of a command for a root below a directory, and for a user who has numbers only."""
    moved = [f"{root}{word}" if re.match(r"/(etc|var)/", word) else word for word in words]
    owner = f"{SERVICE_USER}:{SERVICE_USER}"
    return [owner if word == "securecore-pki:securecore-pki" else word for word in moved]


def prepare(root: Path) -> None:
    """Do what the runbook does before the unit, but for making the user."""
    commands = next(block for block in blocks() if "useradd" in block).splitlines()
    for command in commands:
        words = command.split()
        if words[0] == "useradd":
            assert words[-1] == unit()["User"]
            continue
        words = [str(SERVICE_USER) if word == "securecore-pki" else word for word in words]
        subprocess.run(placed(words, root), cwd=root, check=True)


@contextmanager
def started(root: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start what the unit starts, as its user, with the capabilities that it gives; end it behind the block."""
    program, *arguments = unit()["ExecStart"].split()
    assert program.endswith("/securecore")
    words = placed(arguments, root)
    words[words.index("--listen") + 1] = "127.0.0.1:0"
    assert (unit()["CapabilityBoundingSet"], unit()["NoNewPrivileges"]) == ("", "yes")
    with subprocess.Popen(as_service(*words), cwd="/", env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def outside(root: Path) -> Snapshot:
    """Return all of a root but what the unit lets its process write."""
    writable = unit()["ReadWritePaths"].lstrip("/")
    return {path: entry for path, entry in snapshot(root).items() if not path.startswith(writable)}


def test_an_enroller_runs_as_the_runbook_says(machine: Path) -> None:
    """Its user reads the passphrase, the key and the identity, enrols a host, and writes nothing but where the unit lets it."""
    now = datetime.now(UTC)
    pki = open_pki(machine / PKI)
    token = parse_token(make_token(pki, HostName(HOST_NAME), HOUR, now)[0])
    prepare(machine)
    before = outside(machine)
    with started(machine) as popen:
        address = Process(popen).addresses[0]
        with TemporaryDirectory() as host:
            root = fingerprint(pki.certificate("root-ca"))
            done = enroll(address, root, token, Path(host, "identity"), now)

    assert str(done.judgement.name) == HOST_NAME
    assert outside(machine) == before


def test_a_passphrase_as_a_credential_of_systemd_has_it_is_refused(machine: Path) -> None:
    """What an access list of systemd's makes of a file's mode says that others than its owner may read it: the runbook has none."""
    prepare(machine)
    assert not re.search(r"^LoadCredential", RUNBOOK, re.MULTILINE)
    (machine / "etc/securecore/hosts-ca").chmod(0o440)
    with started(machine) as popen:
        said = popen.communicate(timeout=PATIENCE_S)[1].decode()

    assert (popen.returncode, "its mode is 0440, others than its owner may touch it" in said) == (3, True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with it."""
    service = tmp_path / "securecore-enroller.service"
    text = next(block for block in blocks() if "[Service]" in block)
    service.write_text(text.replace("/opt/securecore/bin/securecore", "/bin/true"))
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", service], capture_output=True, check=False, text=True)
    assert [line for line in answer.stderr.splitlines() if "securecore" in line] == []

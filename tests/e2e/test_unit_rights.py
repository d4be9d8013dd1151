"""What our units may do is enough for what they do: a crash is reported as fully, and a certificate renewed, with those rights."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from securecore.names import HostName
from securecore.pki.enrolling import enroll
from securecore.pki.fetching import fetch
from securecore.pki.issue import issue_host, issue_receiver
from securecore.pki.revocation import revoke_name
from securecore.receiver import fetch_timer
from securecore.receiver.server import Receiver
from securecore.sender import agent_units, renewal_units
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.enrolment import Place
from tests.support.kernel import NOBODY, Host, crashing_into, needs_kernel, start_crash, write_script
from tests.support.services import SERVICE_USER, as_service

pytestmark = [
    pytest.mark.root, pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights up, or take another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, of util-linux"),
]  # fmt: skip

# Between the kernel and the handler: gives up what the unit does not leave, and becomes the handler, with the same descriptors.
_CONFINED = """#!{python} -I
import os, sys
os.execvp("setpriv", [*{setpriv!r}, {handler!r}, *sys.argv[1:]])
"""


def rights(unit: bytes) -> list[str]:
    """Return the beginning of a command that has what the unit leaves its process, by setpriv(1)."""
    said = dict(line.split("=", 1) for line in unit.decode().splitlines() if "=" in line)
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in said["CapabilityBoundingSet"].split()]
    return ["setpriv", f"--bounding-set={','.join(['-all', *kept])}", "--inh-caps=-all", "--no-new-privs"]


@needs_kernel
def test_a_handler_sees_no_less_with_the_agents_rights(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """Another user's process, of which only who may look into it can tell: each field is reported, and the core delivered."""
    reports = []
    for name in ("free", "confined"):
        host = Host(tmp_path / name, fleet.hosts["web-1"], receiver.addresses)
        program = host.handler
        if name == "confined":
            program = tmp_path / name / "between"
            begin = rights(agent_units.agent_service("/bin/true", "/spool", "/identity"))
            write_script(program, _CONFINED.format(python=sys.executable, setpriv=begin, handler=str(host.handler)))
        with crashing_into(program):
            start_crash(["sh", "-c", "kill -SEGV $$"], Path("/"), NOBODY).wait()
            (receipt,) = host.wait_for_receipts(1)
        (found,) = (tmp_path / "store").glob(f"**/{receipt['dump']}/report.json")
        reports.append(json.loads(found.read_bytes()))

    free, confined = reports
    assert (free["uid"], free["executable"]) == (confined["uid"], confined["executable"])
    assert {name for name, value in free.items() if value is not None} == {n for n, value in confined.items() if value is not None}
    assert confined["uid"] == NOBODY


def test_a_certificate_is_renewed_with_no_capability_at_all(tmp_path: Path) -> None:
    """Key, certificate and address are root's own, so root's uid is enough; what the unit runs is what is run."""
    place, identity, now = Place(tmp_path), tmp_path / "identity", datetime.now(UTC)
    with place.serving() as address:
        enroll(address, place.root_fingerprint, place.token()[0], identity, now)
        before = (identity / "cert.pem").read_bytes()
        unit = renewal_units.renew_service(sys.executable, str(identity))
        command = next(line for line in unit.decode().splitlines() if line.startswith("ExecStart=")).partition("=")[2].split(" ")
        idle = subprocess.run([*rights(unit), *command], capture_output=True, check=False, text=True)
        assert idle.stdout.startswith("not due: "), idle.stderr
        renewed = subprocess.run([*rights(unit), *command, "--now", "--new-key"], capture_output=True, check=False, text=True)

    assert renewed.returncode == 0, renewed.stderr
    assert (identity / "cert.pem").read_bytes() != before


def test_lists_are_fetched_by_the_identitys_owner_alone(tmp_path: Path) -> None:
    """The receiver's user, with nothing but its own directory: what was revoked arrives, and every file stays the user's."""
    place, identity, now = Place(tmp_path), tmp_path / "collector", datetime.now(UTC)
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, now)
    issue_host(place.pki, HostName(HOST_NAME), tmp_path / "web-1", no_passphrase, now)
    with place.serving() as address, TemporaryDirectory() as public:
        fetch(address, identity, now)
        home = Path(public, "receiver")
        shutil.copytree(identity, home)
        Path(public).chmod(0o755)
        for path in (home, *home.iterdir()):
            os.chown(path, SERVICE_USER, SERVICE_USER)
        revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, now)
        unit = fetch_timer.fetch_service("/python", str(home), "securecore").decode()
        command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).split(" ")
        words = command[command.index("securecore.cli.main") + 1 :]
        answer = subprocess.run(as_service(*words), capture_output=True, check=False, text=True, cwd="/", env={})
        owners = {path.stat().st_uid for path in (home, *home.iterdir())}
        crl = (home / "crl.pem").read_bytes()

    assert (answer.returncode, answer.stderr) == (0, "")
    assert crl == place.pki.crl_path.read_bytes() != (identity / "crl.pem").read_bytes()
    assert owners == {SERVICE_USER}

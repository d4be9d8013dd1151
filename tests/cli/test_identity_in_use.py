"""Commands that change an identity directory: two at once do not meet, and who waits in vain is told why."""

import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore.audit.rekeying import rekey
from securecore.certs import identity_lock
from securecore.certs.identity_directory import load_identity
from securecore.certs.identity_lock import IdentityLock
from securecore.cli.main import run
from securecore.errors import SecurecoreError
from securecore.names import HostName
from securecore.pki.enrolling import enroll, find_own, renew
from securecore.pki.install import install
from securecore.pki.issue import issue_receiver
from securecore.pki.signing import renew as renew_by_hand
from securecore.receiver.material import load_material
from tests.support.certificates import RECEIVER_NAME, Fleet, no_passphrase
from tests.support.enrolment import Place
from tests.support.processes import PATIENCE_S


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "pki request --identity {}",
        "pki install {}/reply.pem --identity {}",
        "pki fetch 127.0.0.1:1 --identity {}",
        "enroll 127.0.0.1:1 --ca-fingerprint {mark} --token {token} --identity {}",
        "renew --identity {}",
        "audit rekey --identity {}",
    ],
)
def test_a_command_says_that_another_is_at_work(
    words: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it has changed anything, or asked anybody."""
    monkeypatch.setattr(identity_lock, "WAIT_S", 0.02)
    kind = fleet.receiver if "fetch" in words or "rekey" in words else fleet.host
    identity = Path(shutil.copytree(kind, tmp_path / "identity"))
    (identity / "reply.pem").write_text("not looked at before its turn")
    before = {path.name: path.read_bytes() for path in identity.iterdir()}
    arguments = words.replace("{}", str(identity)).replace("{mark}", "0" * 64).replace("{token}", "securecore-token-" + "5a" * 32)
    with IdentityLock(identity):
        assert run(arguments.split()) == 3
    heard = capsys.readouterr().err
    assert heard.startswith(f"securecore: identity {identity}: another run has been changing it for 0.02 s\n")
    assert {path.name: path.read_bytes() for path in identity.iterdir()} == before


def at_once(*runs: Callable[[], object]) -> list[object]:
    """Run all at one time, each in a thread, and return what came of them: a value, or an error of ours."""
    together, results = threading.Barrier(len(runs)), []

    def one(work: Callable[[], object]) -> None:
        together.wait()
        try:
            results.append(work())
        except SecurecoreError as error:
            results.append(error)

    threads = [threading.Thread(target=one, args=(work,)) for work in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert len(results) == len(runs)
    return results


def test_two_enrolments_of_one_machine_at_once_are_one(place: Place) -> None:
    """In a directory that neither finds there, with one token: both end with the certificate that one of them got."""
    secret, _ = place.token()
    web = place.directory / "web-1"
    with place.serving() as address:
        done = at_once(*[lambda: enroll(address, place.root_fingerprint, secret, web, place.now).judgement.serial] * 3)
    kept = find_own(web, place.now).serial
    assert kept in done
    # Who comes at the very moment in which the directory is made is told so, and has changed nothing.
    others = [one for one in done if one != kept]
    assert [one for one in others if not (isinstance(one, SecurecoreError) and "another run is making" in one.message)] == []
    assert len(place.hosts()) == 1
    assert sorted(path.name for path in web.iterdir()) == ["ca.pem", "cert.pem", "enroller", "key.pem"]


def test_renewals_with_new_keys_at_once_leave_one_whole_identity(place: Place) -> None:
    """Each takes its turn; the key there is that of the certificate there, and no other waits."""
    secret, _ = place.token()
    web = place.directory / "web-1"
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, web, place.now)
        done = at_once(*[lambda: renew(address, web, place.now, is_rekey=True).judgement.serial] * 4)
    assert len(place.hosts()) == 5
    assert find_own(web, place.now).serial in done
    assert not any(isinstance(one, SecurecoreError) for one in done)
    assert load_identity(web).certificates
    assert sorted(path.name for path in web.iterdir()) == ["ca.pem", "cert.pem", "enroller", "key.pem"]


def test_a_new_log_key_and_a_new_certificate_at_once_fit(place: Place) -> None:
    """`audit rekey` and `pki install` both write a receiver's statement; whichever is last, it fits what is there."""
    identity, moment = place.directory / "collector", datetime.now(UTC)
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, place.now)
    for number in range(8):
        reply = place.directory / f"reply-{number}.pem"
        later = place.now + timedelta(seconds=number)
        renew_by_hand(place.pki, HostName(RECEIVER_NAME), None, reply, no_passphrase, later)

        def put(data: bytes = reply.read_bytes()) -> object:
            with IdentityLock(identity):
                return install(identity, data, moment)

        done = at_once(put, lambda: rekey(identity, moment))
        assert not any(isinstance(one, SecurecoreError) for one in done)
        load_material(identity, moment)

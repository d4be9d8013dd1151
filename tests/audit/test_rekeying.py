"""A new log key in an identity directory: whole at every instant, finished by the next run, and its owner's alone."""

import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from securecore import limits
from securecore.audit.keyring import load_keyring
from securecore.audit.rekeying import Rekeying, rekey
from securecore.audit.statement import read_stated_key
from securecore.audit.succession import parse_history, verify_log_keys, verify_succession
from securecore.certs import identity_lock
from securecore.certs.identity_directory import load_identity, load_log_key
from securecore.errors import ConfigError, NotFoundError, SecurecoreError, StorageError
from securecore.names import HostName
from securecore.pki.install import install
from securecore.pki.issue import issue_receiver
from securecore.pki.signing import renew
from securecore.receiver.material import load_material
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Fleet, no_passphrase
from tests.support.disk import Disk, run_until
from tests.support.kill_points import Point, run_until_killed, sampled

NOW = datetime.now(UTC)


@pytest.fixture
def identity(fleet: Fleet, tmp_path: Path) -> Path:
    """A receiver's identity that the test may change."""
    return Path(shutil.copytree(fleet.receiver, tmp_path / "identity"))


def keys_of(identity: Path) -> list[bytes]:
    """Return the log key in use and those before it, by what the directory proves; the statement that it shows is that key's."""
    found = load_keyring(identity, load_identity(identity).anchors)
    assert load_material(identity, datetime.now(UTC)).signer.public_key == found.signer.public_key
    return [found.signer.public_key, *found.keys.key.earlier]


def check_nobody_can_read(identity: Path) -> None:
    """Fail where a file that holds a private key, whatever it is called, is open to others than its owner."""
    for path in identity.iterdir():
        if b"PRIVATE KEY" in path.read_bytes() or "key.pem" in path.name:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_key_hands_over_to_the_next(identity: Path) -> None:
    """The old key has signed the new one, which is in its place with its statement; nothing else is changed."""
    before, files = keys_of(identity), {path.name: path.read_bytes() for path in identity.iterdir()}
    done = rekey(identity, NOW)
    assert (done.before.public_key, done.is_lost, done.was_interrupted) == (before[0], False, False)
    assert keys_of(identity) == [done.after.public_key, *before]
    changed = {path.name for path in identity.iterdir() if path.read_bytes() != files.get(path.name)}
    assert changed == {"log-key.pem", "log-key.jws", "log-keys.jsonl"}
    assert read_stated_key((identity / "log-key.jws").read_bytes()) == done.after.public_key
    check_nobody_can_read(identity)
    assert [rekey(identity, NOW).before.public_key, len(keys_of(identity))] == [done.after.public_key, 3]


def test_killed_at_any_call_the_identity_is_whole_and_the_next_run_finishes(identity: Path, tmp_path: Path) -> None:
    """Before each call that changes the disk the process ends, or the power: what is left loads, with the old key or the new one,

    and a run after that leaves a chain from the first key without a gap, and no key that nobody has.
    """
    first = keys_of(identity)[0]
    for fatal in range(1, 100):
        work = Path(shutil.copytree(identity, tmp_path / f"killed-{fatal}"))
        disk = Disk(work)
        done = run_until(fatal, disk, lambda work=work: rekey(work, NOW))
        disk.restore(tmp_path / f"cut-{fatal}")
        disk.close()
        for left in (work, tmp_path / f"cut-{fatal}"):
            check_nobody_can_read(left)
            keys = keys_of(left)
            assert keys in ([first], [keys[0], first])
            again = rekey(left, NOW)
            assert keys_of(left)[-1] == first
            assert len(keys_of(left)) == (len(keys) if again.was_interrupted and len(keys) == 2 else len(keys) + 1)
            assert {path.name for path in left.iterdir()} == {path.name for path in identity.iterdir()} | {"log-keys.jsonl"}
        if done is not None:
            break
        shutil.rmtree(work)
        shutil.rmtree(tmp_path / f"cut-{fatal}")
    assert done is not None
    assert fatal > 15


@pytest.mark.slow
def test_the_command_killed_with_sigkill_is_finished_by_the_next(identity: Path, tmp_path: Path) -> None:
    """The same with the real program: its exit code is 0 at the second time, and the key was never open to others."""
    first = keys_of(identity)[0]

    def command(step: int | None, work: Path) -> Point:
        point = Point(tmp_path, step)
        ran = run_until_killed(point.command("audit", "rekey", "--identity", work))
        assert ran.returncode == (0 if step is None else -9), ran.stderr
        return point

    whole = command(None, Path(shutil.copytree(identity, tmp_path / "whole")))
    for step in sampled(range(len(whole.steps)), 6):
        work = Path(shutil.copytree(identity, tmp_path / f"step-{step}"))
        command(step, work)
        check_nobody_can_read(work)
        keys_of(work)
        command(None, work)
        assert keys_of(work)[-1] == first


def test_the_key_is_nobodys_but_its_owners_under_any_umask(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that changes the disk, the file that the key will be in is 0600 already, or not there."""
    disk, calls = Disk(identity), []
    disk.before = lambda call: (calls.append(call), check_nobody_can_read(identity))
    umask = os.umask(0)
    try:
        disk.watch(monkeypatch)
        rekey(identity, NOW)
    finally:
        os.umask(umask)
        disk.close()
    assert len(calls) > 10


def test_an_identity_that_was_issued_anew_gets_a_key_behind_the_old_one(identity: Path, fleet: Fleet, tmp_path: Path) -> None:
    """Issued anew under the same name, its certificate and key in the place of the old ones: the old log key hands over, and the

    new one is stated by the new TLS key.
    """
    before = keys_of(identity)
    issue_receiver(fleet.pki, HostName(RECEIVER_NAME), [], tmp_path / "anew", no_passphrase, NOW)
    for name in ("cert.pem", "key.pem"):
        shutil.copy(tmp_path / "anew" / name, identity / name)
    done = rekey(identity, NOW)
    assert keys_of(identity) == [done.after.public_key, *before]
    assert done.after.receiver.chain[0] == load_identity(tmp_path / "anew").certificates[0] != done.before.receiver.chain[0]


def test_a_disk_that_refuses_leaves_what_was_there(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full at any file: it is said, and the old key stays in its place, or the new one is whole."""
    first = keys_of(identity)[0]
    disk = Disk(identity)

    def refuse(call: str) -> None:
        if call.startswith("write"):
            raise OSError(28, "No space left on device")

    disk.before = refuse
    with monkeypatch.context() as patch:
        disk.watch(patch)
        with pytest.raises(StorageError, match="no space left"):
            rekey(identity, NOW)
    disk.close()
    assert keys_of(identity) == [first]


def test_two_runs_at_once_do_not_meet(identity: Path) -> None:
    """The second waits for the first, and is refused where that takes too long."""
    met: list[str] = []
    disk = Disk(identity)

    def second(call: str) -> None:
        if not met:
            met.append("")
            with pytest.raises(ConfigError, match="another run"):
                rekey(identity, NOW)
            met.append(call)

    disk.before = second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_lock, "WAIT_S", 0.0)
        disk.watch(patch)
        rekey(identity, NOW)
    disk.close()
    assert len(met) == 2
    assert len(keys_of(identity)) == 2


def test_a_lost_key_is_put_on_record(identity: Path) -> None:
    """There is no signature of it; the statement that the directory still has says which one it was."""
    before = keys_of(identity)[0]
    (identity / "log-key.pem").unlink()
    with pytest.raises(NotFoundError) as caught:
        rekey(identity, NOW)
    assert "--lost" in (caught.value.hint or "")
    done = rekey(identity, NOW, identity)
    assert (done.before.public_key, done.is_lost) == (before, True)
    assert keys_of(identity) == [done.after.public_key, before]
    note = parse_history((identity / "log-keys.jsonl").read_bytes())[-1].succession
    assert verify_succession(note or b"").is_lost
    anchors, statement = load_identity(identity).anchors, (identity / "log-key.jws").read_bytes()
    assert verify_log_keys(statement, (identity / "log-keys.jsonl").read_bytes(), anchors, trusted=()).key.earlier == ()


def test_a_key_that_is_there_is_not_lost(identity: Path) -> None:
    """Who says so by mistake would cut the chain for nothing."""
    with pytest.raises(ConfigError, match="the log key is there"):
        rekey(identity, NOW, identity)
    (identity / "log-key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="the log key is there"):
        rekey(identity, NOW, identity)
    assert not (identity / "log-keys.jsonl").exists()


def test_an_identity_that_was_issued_anew_takes_the_place_of_the_lost_one(identity: Path, fleet: Fleet, tmp_path: Path) -> None:
    """The whole directory was lost, and a new one of the same name has a log key already: the store knows the lost one, and those

    before it. To say it twice changes nothing.
    """
    rekey(identity, NOW)
    before = keys_of(identity)
    issue_receiver(fleet.pki, HostName(RECEIVER_NAME), [], tmp_path / "anew", no_passphrase, NOW)
    own = keys_of(tmp_path / "anew")
    store = tmp_path / "store"
    store.mkdir()
    for name in ("log-key.jws", "log-keys.jsonl"):
        shutil.copy(identity / name, store)
    first = rekey(tmp_path / "anew", NOW, store)
    assert keys_of(tmp_path / "anew") == [*own, *before]
    files = {path.name: path.read_bytes() for path in (tmp_path / "anew").iterdir()}
    again = rekey(tmp_path / "anew", NOW, store)
    assert first == again == Rekeying(first.before, first.after, is_lost=True, was_interrupted=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "anew").iterdir()} == files


def test_a_new_identity_put_over_the_old_one_takes_the_place_of_the_lost_key(identity: Path, fleet: Fleet, tmp_path: Path) -> None:
    """The history that was left there is of other keys than the one that is there now: it stands in nobody's way."""
    rekey(identity, NOW)
    before = keys_of(identity)
    store = Path(shutil.copytree(identity, tmp_path / "store"))
    issue_receiver(fleet.pki, HostName(RECEIVER_NAME), [], tmp_path / "anew", no_passphrase, NOW)
    shutil.copytree(tmp_path / "anew", identity, dirs_exist_ok=True)
    own = keys_of(identity)
    assert len(own) == 1
    assert rekey(identity, NOW, store).is_lost
    assert keys_of(identity) == [*own, *before]


def test_a_run_that_was_interrupted_is_finished_with_the_certificate_of_today(
    own_fleet: Fleet, tmp_path: Path
) -> None:
    """A renewal that comes between is signed by a certificate that lasts, and the new key is stated by that."""
    identity = own_fleet.receiver
    shutil.copytree(identity, tmp_path / "killed")
    rekey(tmp_path / "killed", NOW)
    # What a run leaves that was killed before the key is in its place.
    shutil.copy(tmp_path / "killed" / "log-keys.jsonl", identity)
    shutil.copy(tmp_path / "killed" / "log-key.pem", identity / ".log-key.pem.next")
    renew(own_fleet.pki, HostName(RECEIVER_NAME), None, tmp_path / "reply.pem", no_passphrase, NOW, days=300)
    install(identity, (tmp_path / "reply.pem").read_bytes(), NOW)
    assert rekey(identity, NOW).was_interrupted
    assert load_material(identity, NOW + timedelta(days=200)).signer.public_key == keys_of(tmp_path / "killed")[0]


def test_an_identity_out_of_an_older_backup_gets_a_key_behind_the_lost_one(identity: Path, tmp_path: Path) -> None:
    """It has the key before the lost one; that cannot come twice, so a new one follows the lost one."""
    backup = Path(shutil.copytree(identity, tmp_path / "backup"))
    rekey(identity, NOW)
    before = keys_of(identity)
    done = rekey(backup, NOW, identity)
    assert (done.before.public_key, done.is_lost) == (before[0], True)
    assert keys_of(backup) == [done.after.public_key, *before]


def test_another_receivers_key_is_not_what_was_lost(identity: Path, fleet: Fleet, tmp_path: Path) -> None:
    """A chain has one name."""
    issue_receiver(fleet.pki, HostName(f"other.{DOMAIN}"), [], tmp_path / "other", no_passphrase, NOW)
    with pytest.raises(ConfigError, match="cannot be followed by"):
        rekey(identity, NOW, tmp_path / "other")


def test_what_does_not_hold_is_not_built_on(identity: Path) -> None:
    """A key that is not the stated one, a history that is none, a certificate that has expired."""
    good = Path(shutil.copytree(identity, identity.with_name("good")))
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (identity / "log-key.pem").write_bytes(key)
    with pytest.raises(ConfigError, match="not the key of log-key"):
        rekey(identity, NOW)
    (good / "log-keys.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(ConfigError, match="history of log keys"):
        rekey(good, NOW)
    (good / "log-keys.jsonl").unlink()
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    with pytest.raises(SecurecoreError):
        rekey(good, NOW.replace(year=NOW.year + 5))
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before


def test_there_is_a_last_key(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no verifier would read is not made."""
    monkeypatch.setattr(limits, "MAX_LOG_KEYS", 3)
    rekey(identity, NOW)
    rekey(identity, NOW)
    key, _ = load_log_key(identity)
    with pytest.raises(ConfigError, match="has had 3 log keys"):
        rekey(identity, NOW)
    assert load_log_key(identity)[0].private_bytes_raw() == key.private_bytes_raw()
    assert len(keys_of(identity)) == 3

"""Identity directories: modes, and that the parts belong together."""

import os
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity, load_public_parts, load_receiver_parts
from securecore.certs.profiles import HOST
from securecore.errors import ConfigError, NotFoundError
from tests.support.certificates import Fleet, make_key, mint


def test_both_kinds_are_loaded(fleet: Fleet) -> None:
    """A host's directory holds its chain and the root; a receiver's the CAs, CRLs and log key as well."""
    host, receiver = load_identity(fleet.host), load_identity(fleet.receiver)
    assert (len(host.certificates), len(host.anchors.roots), len(host.anchors.intermediates)) == (2, 1, 0)
    assert (len(receiver.certificates), len(receiver.anchors.roots), len(receiver.anchors.intermediates)) == (2, 1, 2)
    parts = load_receiver_parts(fleet.receiver)
    assert (parts.crl_pem.count(b"BEGIN X509 CRL"), parts.log_statement.count(b".")) == (3, 2)


def test_what_is_public_is_shown_without_the_key(own_fleet: Fleet) -> None:
    """Chain and anchors are those of the whole identity, and the private key is not looked at."""
    whole = load_identity(own_fleet.receiver)
    (own_fleet.receiver / "key.pem").unlink()

    assert load_public_parts(own_fleet.receiver) == (whole.anchors, whole.chain_der)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601, 0o644, 0o660])
def test_key_that_others_may_touch_is_refused(mode: int, own_fleet: Fleet) -> None:
    """Any right of group or others on a private key is refused when it is read, with the command that mends it."""
    for name in ("key.pem", "log-key.pem"):
        path = own_fleet.receiver / name
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{name}: its mode is {mode:04o}") as caught:
            load_receiver_parts(own_fleet.receiver) if name == "log-key.pem" else load_identity(own_fleet.receiver)
        assert f"chmod 600 {path}" == caught.value.hint
        path.chmod(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_of_another_user_is_refused(own_fleet: Fleet) -> None:
    """A key that somebody else owns is somebody else's, even if we may read it."""
    os.chown(own_fleet.host / "key.pem", 4711, -1)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        load_identity(own_fleet.host)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_directory_that_others_may_write_is_refused(mode: int, own_fleet: Fleet) -> None:
    """Who may put files there may put their own key there."""
    own_fleet.host.chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner may write"):
        load_identity(own_fleet.host)


def test_key_of_another_identity_is_refused(own_fleet: Fleet) -> None:
    """key.pem and cert.pem must belong together."""
    (own_fleet.host / "key.pem").write_bytes((own_fleet.hosts["db-2"] / "key.pem").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of the first certificate"):
        load_identity(own_fleet.host)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_missing_or_garbled_file_is_named(name: str, own_fleet: Fleet) -> None:
    """The message names the file."""
    (own_fleet.host / name).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=name):
        load_identity(own_fleet.host)
    (own_fleet.host / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        load_identity(own_fleet.host)


@pytest.mark.slow
def test_a_key_cut_at_every_offset_is_refused(own_fleet: Fleet) -> None:
    """No beginning of key.pem or log-key.pem is a key, but for the newline at its end."""
    for name, load in (("key.pem", load_identity), ("log-key.pem", load_receiver_parts)):
        path = own_fleet.receiver / name
        whole = path.read_bytes()
        for cut in range(len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(ConfigError, match=name):
                load(own_fleet.receiver)
        path.write_bytes(whole)
        load(own_fleet.receiver)


def test_other_key_types_are_refused(own_fleet: Fleet) -> None:
    """Only P-256 identifies a machine, only Ed25519 signs checkpoints."""
    other = mint(HOST, key=make_key("p384"))
    (own_fleet.host / "key.pem").write_bytes(other.key_pem)
    with pytest.raises(ConfigError, match="P-256"):
        load_identity(own_fleet.host)
    (own_fleet.receiver / "log-key.pem").write_bytes(other.key_pem)
    with pytest.raises(ConfigError, match="Ed25519"):
        load_receiver_parts(own_fleet.receiver)


def test_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """Nothing there, and a file there, are two different messages."""
    with pytest.raises(NotFoundError, match="no identity directory"):
        load_identity(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a directory"):
        load_identity(tmp_path / "file")


def test_fifo_in_the_keys_place_is_refused_without_waiting(own_fleet: Fleet) -> None:
    """Only regular files are read."""
    (own_fleet.host / "key.pem").unlink()
    os.mkfifo(own_fleet.host / "key.pem", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_identity(own_fleet.host)


def test_key_behind_a_link_is_checked_where_it_lies(own_fleet: Fleet, tmp_path: Path) -> None:
    """Links are how some deployments rotate keys; the file at the end is what must be private."""
    target = tmp_path / "elsewhere.pem"
    (own_fleet.host / "key.pem").rename(target)
    (own_fleet.host / "key.pem").symlink_to(target)
    assert load_identity(own_fleet.host).key_pem == target.read_bytes()
    target.chmod(0o644)
    with pytest.raises(ConfigError, match="its mode is 0644"):
        load_identity(own_fleet.host)

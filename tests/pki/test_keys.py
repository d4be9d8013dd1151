"""Keys: what a passphrase is worth, and that other programs open what we write."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from securecore.errors import ConfigError, PkiError
from securecore.pki import keys
from tests.support.certificates import make_key, no_passphrase

PASSPHRASE = b"correct horse battery staple"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program as an independent reader")


def ask() -> bytes:
    """Answer with the right passphrase."""
    return PASSPHRASE


@pytest.mark.slow
def test_locked_key_opens_with_its_passphrase_only() -> None:
    """The cryptography library opens what we wrote by hand; a wrong passphrase is an error in words."""
    key = keys.make_key()
    pem = keys.private_pem(key, PASSPHRASE)
    assert key.public_key() == keys.load_ca_key(pem, ask, what="key.pem").public_key()
    with pytest.raises(PkiError, match=r"key\.pem: the passphrase does not open this key"):
        keys.load_ca_key(pem, lambda: PASSPHRASE + b"x", what="key.pem")


@needs_openssl
@pytest.mark.slow
def test_openssl_opens_a_locked_key_and_shows_its_rounds(tmp_path: Path) -> None:
    """openssl reads PBES2 with PBKDF2-HMAC-SHA-256, a million rounds or more, and AES-256-CBC, and finds the same key."""
    key = keys.make_key()
    path = tmp_path / "key.pem"
    path.write_bytes(keys.private_pem(key, PASSPHRASE))
    structure = subprocess.run(["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True).stdout
    rounds = [int(line.rpartition(":")[2], 16) for line in structure.splitlines() if "INTEGER" in line]
    assert rounds == [keys.PBKDF2_ROUNDS]
    assert keys.PBKDF2_ROUNDS >= 1_000_000
    assert [word for word in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc") if word not in structure] == []
    command = ["openssl", "pkey", "-in", str(path), "-passin", "stdin", "-pubout"]
    public = subprocess.run(command, input=PASSPHRASE + b"\n", capture_output=True, check=True).stdout
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    assert public == key.public_key().public_bytes(serialization.Encoding.PEM, form)


def test_every_lock_has_its_own_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key and passphrase never give the same text: a table of guesses serves for one file only."""
    monkeypatch.setattr(keys, "PBKDF2_ROUNDS", 1)
    key = keys.make_key()
    assert keys.private_pem(key, PASSPHRASE) != keys.private_pem(key, PASSPHRASE)


def test_der_lengths_and_numbers_follow_x690(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-made DER is opened for contents of every length class, with few rounds for speed."""
    monkeypatch.setattr(keys, "PBKDF2_ROUNDS", 127)
    for key in (keys.make_key(), keys.make_log_key()):
        pem = keys.private_pem(key, PASSPHRASE)
        opened = serialization.load_pem_private_key(pem, PASSPHRASE)
        plain = (serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        assert opened.private_bytes(*plain) == key.private_bytes(*plain)
    assert keys._integer(128) == bytes.fromhex("02020080")
    assert keys._tlv(4, b"x" * 300)[:4] == bytes.fromhex("0482012c")
    assert keys._object_identifier((1, 2, 840, 113549, 1, 5, 13)) == bytes.fromhex("06092a864886f70d01050d")


def test_unlocked_key_is_loaded_without_asking() -> None:
    """Nobody is asked for a passphrase that isn't needed."""
    key = keys.make_key()
    assert key.public_key() == keys.load_ca_key(keys.private_pem(key), no_passphrase, what="key.pem").public_key()


@pytest.mark.parametrize("key_type", ["p384", "rsa2048", "ed25519"])
def test_other_keys_are_refused(key_type: str) -> None:
    """A CA's key is P-256."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(ConfigError, match="not an ECDSA key on P-256"):
        keys.load_ca_key(make_key(key_type).private_bytes(*form), no_passphrase, what="key.pem")


def test_garbled_key_is_refused() -> None:
    """Garbage is an operator's problem, not a traceback."""
    with pytest.raises(ConfigError, match=r"key\.pem: not a readable private key"):
        keys.load_ca_key(b"nonsense", no_passphrase, what="key.pem")


@pytest.mark.slow
def test_a_key_cut_at_every_offset_is_refused() -> None:
    """Locked or not, no beginning of a key is one, but for the newline at its end; a locked one is refused before it costs time."""
    key = keys.make_key()
    for pem, ask in ((keys.private_pem(key), no_passphrase), (keys.private_pem(key, PASSPHRASE), lambda: PASSPHRASE)):
        for cut in range(len(pem) - 1):
            with pytest.raises((ConfigError, PkiError), match=r"^key\.pem: "):
                keys.load_ca_key(pem[:cut], ask, what="key.pem")
        assert keys.load_ca_key(pem, ask, what="key.pem").public_key() == key.public_key()


def test_short_passphrase_is_refused() -> None:
    """Seven bytes are too few, eight are the least."""
    keys.check_passphrase(b"12345678")
    with pytest.raises(PkiError, match="7 bytes long, at least 8"):
        keys.check_passphrase(b"1234567")


def test_no_two_keys_are_alike() -> None:
    """Keys come from the system's randomness each time."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digests = {hashlib.sha256(keys.make_key().public_key().public_bytes(*form)).hexdigest() for _ in range(8)}
    assert len(digests) == 8

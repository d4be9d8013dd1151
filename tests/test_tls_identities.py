"""Identity directories that no TLS context is made of: keys that others may touch, garbage, and what is no file."""

import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from securecore import tls
from securecore.certs.profiles import HOST
from securecore.errors import ConfigError
from tests.support.certificates import Fleet, mint


@pytest.fixture
def identity(fleet: Fleet, tmp_path: Path) -> Path:
    """A host's identity that may be broken."""
    return Path(shutil.copytree(fleet.host, tmp_path / "identity"))


MAKERS = pytest.mark.parametrize("make", [tls.sender_context, tls.receiver_context])


def refused(make: Callable[[str], ssl.SSLContext], identity: Path) -> ConfigError:
    """Return the error that an identity is refused with, of one line."""
    with pytest.raises(ConfigError) as raised:
        make(str(identity))
    assert "\n" not in raised.value.message
    return raised.value


@MAKERS
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o610, 0o602])
def test_a_key_that_others_may_touch_is_refused(make: Callable[[str], ssl.SSLContext], mode: int, identity: Path) -> None:
    """With the command to run; any bit for others counts."""
    (identity / "key.pem").chmod(mode)

    error = refused(make, identity)

    assert error.message == f"{identity}/key.pem: mode is {mode:04o}, others may read the key"
    assert error.hint == f"chmod 600 {identity}/key.pem"


@MAKERS
def test_an_encrypted_key_is_refused_without_a_question(make: Callable[[str], ssl.SSLContext], identity: Path) -> None:
    """OpenSSL would ask at the terminal, which a handler and a daemon do not have."""
    made = mint(HOST)
    locked = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (identity / "key.pem").write_bytes(locked)

    assert refused(make, identity).message == "identity's key.pem is encrypted"


@MAKERS
def test_a_key_of_another_certificate_is_refused(make: Callable[[str], ssl.SSLContext], identity: Path) -> None:
    """Half an identity was put back after a repair."""
    (identity / "key.pem").write_bytes(mint(HOST).key_pem)

    error = refused(make, identity)

    assert error.message == f"identity {identity}: key values mismatch"
    assert error.hint == "issue the identity again, or restore its files"


GARBAGE = {
    "empty": b"",
    "text": b"not a certificate\n" * 9,
    "noise": os.urandom(3000),
    "cut": b"-----BEGIN CERTIFICATE-----\nMIIB\n",
    "hollow": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
}


@MAKERS
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_refused(make: Callable[[str], ssl.SSLContext], name: str, content: str, identity: Path) -> None:
    """Any of the three files, in any state of decay."""
    (identity / name).write_bytes(GARBAGE[content])

    assert refused(make, identity).message.startswith(f"identity {identity}: ")


@MAKERS
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("instead", ["nothing", "a directory"])
def test_what_is_no_file_is_refused(make: Callable[[str], ssl.SSLContext], name: str, instead: str, identity: Path) -> None:
    """Gone, or a mistake of whoever copied it."""
    (identity / name).unlink()
    if instead == "a directory":
        (identity / name).mkdir(mode=0o700)

    assert str(identity) in refused(make, identity).message

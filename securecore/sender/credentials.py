"""The identity as bytes in memory: read as root, used after root was given up."""

import os

from securecore import limits
from securecore.declarations import NamedTuple
from securecore.errors import ConfigError
from securecore.tls import check_private


class Credentials(NamedTuple):
    """An identity directory's files, PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def read_credentials(identity: str) -> Credentials:
    """Return the files of the identity directory; raises ConfigError when one is missing, too large, or the key's mode is loose."""
    check_private(os.path.join(identity, "key.pem"))
    return Credentials(*(_read(os.path.join(identity, name)) for name in ("ca.pem", "cert.pem", "key.pem")))


def _read(path: str) -> bytes:
    bound = 2 * limits.MAX_CHAIN * limits.MAX_CERTIFICATE_BYTES
    try:
        with open(path, "rb") as file:
            data = file.read(bound + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > bound:
        raise ConfigError(f"{path}: longer than {bound} bytes")
    return data

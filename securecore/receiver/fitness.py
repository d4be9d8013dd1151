"""Could a receiver run with these settings? For ``receive --check``; a receiver may be running on the store meanwhile."""

import os
from pathlib import Path

from securecore.errors import ConfigError, SecurecoreError, StorageError
from securecore.names import HostName
from securecore.receiver.material import load_material
from securecore.receiver.server import utc_now
from securecore.receiver.settings import ReceiverSettings
from securecore.store.layout import open_store


def check_settings(settings: ReceiverSettings) -> tuple[HostName | None, list[SecurecoreError]]:
    """Return our own name by the identity, and all that is wrong with identity and store; changes nothing.

    Not checked: that the addresses can be listened on.
    """
    name: HostName | None = None
    wrong: list[SecurecoreError] = []
    try:
        name = load_material(settings.identity, utc_now()).own.name
    except SecurecoreError as error:
        wrong.append(error)
    try:
        _check_store(settings.store)
    except SecurecoreError as error:
        wrong.append(error)
    return name, wrong


def _check_store(path: Path) -> None:
    try:
        is_there = path.is_dir()
        has_anything = is_there and any(path.iterdir())
    except OSError as error:
        raise StorageError(f"cannot open the store {path}: {(error.strerror or '').lower()}") from error
    if has_anything:
        open_store(str(path)).close()
    elif not os.access(path if is_there else path.parent, os.W_OK):
        raise ConfigError(f"{path}: a store cannot be made there by this user")

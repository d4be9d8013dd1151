"""The log keys of a store: those that its receiver has, and no others."""

from typing import Final

from securecore.audit.statement import read_stated_key, read_stated_name
from securecore.audit.succession import LogKeys
from securecore.errors import BrokenError, ConfigError
from securecore.store.layout import Store

HINT: Final = (
    "put the identity back that has signed this store last (of one that was issued anew, cert.pem and key.pem alone go into it);"
    " where its log key is lost, `securecore audit rekey --lost STORE` has the new one take its place, and a receiver of"
    " another name needs a store of its own"
)


def put_log_keys(store: Store, keys: LogKeys, anchors_pem: bytes) -> None:
    """Have a store say which key signs its logs from now on, and which have before; raises as check_store does."""
    check_store(store, keys)
    store.put_log_key(keys.lines[-1].statement, anchors_pem, keys.history)


def check_store(store: Store, keys: LogKeys) -> None:
    """Raise ConfigError when a store says that another key signs its logs than the one of *keys* in use or one before it.

    Or that it is a key of another name: the logs are of that name, and hold under no other.
    """
    token = store.read_log_key()
    if token is None:
        return
    try:
        signer, name = read_stated_key(token), read_stated_name(token)
    except BrokenError:
        return  # It says nothing; a log that another key has signed is refused when it is opened.
    if name != keys.key.name:
        raise ConfigError(f"the store's logs are of another name, {name[:300]!a}, and our log key is {keys.key.name}", hint=HINT)
    if signer not in (keys.key.public_key, *keys.key.earlier):
        raise ConfigError("the store's logs are signed with another log key, which has handed over to none of ours", hint=HINT)

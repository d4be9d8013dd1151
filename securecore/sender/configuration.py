"""sender.toml: what a person says about this sender; ``securecore setup sender`` compiles it into the handler's settings.

The file is versioned, and strict: a key that is not known is an error with file and line, because a misspelt one would otherwise
be a setting that silently does not hold.
"""

import json
import re
import tomllib
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from securecore.errors import ConfigError
from securecore.names import Address, NameRefused

DEFAULT_SPOOL: Final = "/var/lib/securecore/spool"
DEFAULT_USER: Final = "securecore"

_VERSION: Final = 1
_KEYS: Final = ("version", "receivers", "identity", "spool", "user")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}|[0-9]{1,10}:[0-9]{1,10}")
"""A name as useradd(8) takes it, or UID:GID."""


@dataclass(frozen=True)
class SenderConfiguration:
    """What sender.toml says. Paths are absolute; the user is a name or UID:GID."""

    receivers: tuple[Address, ...]
    identity: str
    spool: str = DEFAULT_SPOOL
    user: str = DEFAULT_USER

    def check(self, where: str) -> Self:
        """Return itself; raises ConfigError, which begins with *where*, when a value is none that could work."""
        if not self.receivers:
            raise ConfigError(f"{where}: no receiver", hint="name at least one, as in collector.example.org:4455")
        if zero := [str(address) for address in self.receivers if address.port == 0]:
            raise ConfigError(f"{where}: {zero[0]}: a receiver has a port above 0")
        for name, path in (("identity", self.identity), ("spool", self.spool)):
            if not is_plain_path(path):
                raise ConfigError(f"{where}: {name} must be an absolute path without `..` and control characters, not {path!a}")
        check_user(self.user, where)
        return self

    def encode(self) -> bytes:
        """Return the file: the same text for the same values."""
        return _TEMPLATE.format(
            version=_VERSION,
            receivers="".join(f"  {_quoted(str(address))},\n" for address in self.receivers),
            identity=_quoted(self.identity),
            spool=_quoted(self.spool),
            user=_quoted(self.user),
        ).encode()


_TEMPLATE: Final = """\
# What this machine does with its crashes. After a change: securecore setup sender

version = {version}

# Tried in this order, HOST:PORT, IPv6 addresses in brackets. Each must be a name or address of the receiver's certificate.
receivers = [
{receivers}]

# The identity directory that `securecore pki issue host` made; only root may write there.
identity = {identity}

# Where cores wait that could not be delivered at once.
spool = {spool}

# Whom the crash handler becomes before it says its first word to the network: a name, or "UID:GID".
user = {user}
"""


def parse_configuration(data: bytes, path: str) -> SenderConfiguration:
    """Return what the bytes of the file *path* say; raises ConfigError with file and line on anything that is not understood."""
    try:
        text = data.decode("utf-8")
        fields = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {_first_lower(str(error))}") from error
    for key in fields:
        if key not in _KEYS:
            raise ConfigError(f"{_at(path, text, key)}: unknown key {key!a}", hint=f"known keys are {', '.join(_KEYS)}")
    if type(fields.get("version")) is not int or fields["version"] != _VERSION:
        raise ConfigError(f"{_at(path, text, 'version')}: version must be {_VERSION}", hint=f"write `version = {_VERSION}`")
    receivers = _value(fields, "receivers", list, path, text)
    try:
        addresses = tuple(Address(item if isinstance(item, str) else "") for item in receivers)
    except NameRefused as error:
        raise ConfigError(f"{_at(path, text, 'receivers')}: {error.message}", hint=error.hint) from error
    configuration = SenderConfiguration(addresses, _value(fields, "identity", str, path, text))
    for key in ("spool", "user"):
        if key in fields:
            configuration = replace(configuration, **{key: _value(fields, key, str, path, text)})
    return configuration.check(path)


def is_plain_path(path: str) -> bool:
    """Return whether *path* is absolute and in its simplest form, so that it names one place and reads as one line."""
    parts = path.split("/")
    return path.isprintable() and path.startswith("/") and len(path) > 1 and not {"", ".", ".."} & set(parts[1:])


def check_user(user: str, where: str) -> None:
    """Raise ConfigError, which begins with *where*, when *user* is neither a user name nor UID:GID, or is root."""
    if not _USER.fullmatch(user):
        raise ConfigError(f"{where}: {user!a} is no user", hint="a name, as in securecore, or numbers, as in 990:990")
    if user == "root" or (":" in user and 0 in map(int, user.split(":"))):
        raise ConfigError(f"{where}: the user must not be root")


def _value(fields: dict[str, Any], key: str, kind: type, path: str, text: str) -> Any:
    if key not in fields:
        raise ConfigError(f"{path}: {key} is missing", hint=f"write `{key} = ...`, or give it to `securecore setup sender`")
    if not isinstance(fields[key], kind):
        raise ConfigError(f"{_at(path, text, key)}: {key} must be {'a list' if kind is list else 'a text'}")
    return fields[key]


def _at(path: str, text: str, key: str) -> str:
    """Return ``FILE:LINE`` of a top-level key or table, ``FILE`` alone when it is not found: tomllib gives no positions."""
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[]=.]")
    for number, line in enumerate(text.split("\n"), 1):
        if pattern.match(line):
            return f"{path}:{number}"
    return path


def _quoted(text: str) -> str:
    # A JSON string without escapes for what is not ASCII is a TOML basic string; control characters were refused before.
    return json.dumps(text, ensure_ascii=False)


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]

"""sender.toml: what a person says about this sender; ``securecore setup sender`` compiles it into the handler's settings.

The table ``[deadlines]`` changes for how long the handler and a flush wait. With the table ``[local]`` in the place of
receivers, identity and spool, cores are kept on this machine; core_pattern then says all that the handler must know.

The file is versioned, and strict: a key that is not known is an error with file and line, because a misspelt one would otherwise
be a setting that silently does not hold.
"""

import json
import re
import tomllib
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from securecore import limits
from securecore.errors import ConfigError
from securecore.names import Address, NameRefused
from securecore.sender import installation
from securecore.sender.local_mode import LocalMode, is_plain_path
from securecore.sender.patience import Patience, is_deadline, usual_patience
from securecore.sender.settings import SPOOL_MODES, TAIL

DEFAULT_SPOOL: Final = "/var/lib/securecore/spool"
DEFAULT_USER: Final = "securecore"

_VERSION: Final = 1
_KEYS: Final = ("version", "receivers", "identity", "spool", "spool_mode", "user", "deadlines", "local")
_DEADLINE_KEYS: Final = ("connect", "progress", "hold")
_LOCAL_KEYS: Final = ("directory", "format", "level", "keep")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}|[0-9]{1,10}:[0-9]{1,10}")
"""A name as useradd(8) takes it, or UID:GID."""


@dataclass(frozen=True)
class SenderConfiguration:
    """What sender.toml says. Paths are absolute; the user is a name or UID:GID."""

    receivers: tuple[Address, ...]
    identity: str
    spool: str = DEFAULT_SPOOL
    user: str = DEFAULT_USER
    spool_mode: str = TAIL
    deadlines: Patience | None = None
    """None leaves them to the version that is installed."""

    def check(self, where: str) -> Self:
        """Return itself; raises ConfigError, which begins with *where*, when a value is none that could work."""
        if self.spool_mode not in SPOOL_MODES:
            raise ConfigError(f"{where}: spool_mode must be {' or '.join(SPOOL_MODES)}, not {self.spool_mode[:100]!a}")
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
            spool_mode=_quoted(self.spool_mode),
            user=_quoted(self.user),
            deadlines=self._encode_deadlines(),
        ).encode()

    def _encode_deadlines(self) -> str:
        if self.deadlines is None:
            return _NO_DEADLINES
        lines = (f"{key} = {seconds!r}\n" for key, seconds in zip(_DEADLINE_KEYS, self.deadlines, strict=True))
        return "".join((_DEADLINES, *lines))


@dataclass(frozen=True)
class LocalConfiguration:
    """What sender.toml says where cores stay on this machine; the user is a name or UID:GID."""

    mode: LocalMode
    user: str = DEFAULT_USER

    def check(self, where: str) -> Self:
        """Return itself; raises ConfigError, which begins with *where*, when a value is none that could work."""
        self.mode.check(where)
        try:
            installation.core_pattern(installation.HANDLER, self.mode)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
        check_user(self.user, where)
        return self

    def encode(self) -> bytes:
        """Return the file: the same text for the same values."""
        numbers = {"level": self.mode.level, "keep": self.mode.keep}
        return _LOCAL_TEMPLATE.format(
            version=_VERSION,
            user=_quoted(self.user),
            directory=_quoted(self.mode.directory),
            kind=_quoted(self.mode.kind),
            numbers="".join(f"{key} = {value}\n" for key, value in numbers.items() if value is not None),
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

# What waits there. "tail": only what no receiver has acknowledged. "whole": every core from its first byte on, until its receipt is
# there; then a receiver that loses what it has acknowledged costs nothing, but every crash is written to this disk too.
spool_mode = {spool_mode}

# Whom the crash handler becomes before it says its first word to the network: a name, or "UID:GID".
user = {user}
{deadlines}"""

_DEADLINES: Final = """
# Seconds: connect, to reach a receiver; progress, for which what was sent may stand still; hold, for which a crashed process may
# stand still for the network in all.
[deadlines]
"""

_NO_DEADLINES: Final = """
# A table [deadlines] with connect, progress and hold, in seconds, is for links that need others than the usual ones.
"""


_LOCAL_TEMPLATE: Final = """\
# What this machine does with its crashes. After a change: securecore setup sender

version = {version}

# Whom the crash handler becomes: a name, or "UID:GID".
user = {user}

# Cores stay on this machine, compressed. format: zst, gz or zlib; level: its own when it is left out; keep: the newest so many
# dumps, all when it is left out.
[local]
directory = {directory}
format = {kind}
{numbers}"""


def parse_configuration(data: bytes, path: str) -> SenderConfiguration | LocalConfiguration:
    """Return what the bytes of the file *path* say; raises ConfigError with file and line on anything that is not understood."""
    try:
        text = data.decode("utf-8")
        fields = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_first_lower(str(error))}") from error
    except (ValueError, RecursionError) as error:
        # tomllib lets int() refuse a number beyond sys.get_int_max_str_digits().
        raise ConfigError(f"{path}: a number is too long, or brackets are nested too deeply") from error
    for key in fields:
        if key not in _KEYS:
            raise ConfigError(f"{_at(path, text, key)}: unknown key {key!a}", hint=f"known keys are {', '.join(_KEYS)}")
    if type(fields.get("version")) is not int or fields["version"] != _VERSION:
        raise ConfigError(f"{_at(path, text, 'version')}: version must be {_VERSION}", hint=f"write `version = {_VERSION}`")
    if "local" in fields:
        return _parse_local(fields, path, text)
    receivers = _value(fields, "receivers", list, path, text)
    try:
        addresses = tuple(Address(item if isinstance(item, str) else "") for item in receivers)
    except NameRefused as error:
        raise ConfigError(f"{_at(path, text, 'receivers')}: {error.message}", hint=error.hint) from error
    configuration = SenderConfiguration(addresses, _value(fields, "identity", str, path, text))
    for key in ("spool", "spool_mode", "user"):
        if key in fields:
            configuration = replace(configuration, **{key: _value(fields, key, str, path, text)})
    if "deadlines" in fields:
        configuration = replace(configuration, deadlines=_parse_deadlines(fields, path, text))
    return configuration.check(path)


def _parse_deadlines(fields: dict[str, Any], path: str, text: str) -> Patience:
    table = _table(fields, "deadlines", _DEADLINE_KEYS, path, text)
    for key, value in table.items():
        if not is_deadline(value):
            most = f"{limits.MAX_DEADLINE_S:.0f}"
            raise ConfigError(f"{_at(path, text, key)}: {key} must be seconds: a number above 0, at most {most}")
    return usual_patience()._replace(**{f"{key}_s": value for key, value in table.items()})


def _parse_local(fields: dict[str, Any], path: str, text: str) -> LocalConfiguration:
    for key in ("receivers", "identity", "spool", "spool_mode", "deadlines"):
        if key in fields:
            raise ConfigError(f"{_at(path, text, key)}: {key} and [local] exclude each other: cores are sent, or kept here")
    table = _table(fields, "local", _LOCAL_KEYS, path, text)
    mode = LocalMode(_value(table, "directory", str, path, text))
    if "format" in table:
        mode = mode._replace(kind=_value(table, "format", str, path, text))
    if "level" in table:
        mode = mode._replace(level=_value(table, "level", int, path, text))
    if "keep" in table:
        mode = mode._replace(keep=_value(table, "keep", int, path, text))
    user = _value(fields, "user", str, path, text) if "user" in fields else DEFAULT_USER
    return LocalConfiguration(mode, user).check(path)


def _table(fields: dict[str, Any], name: str, known: tuple[str, ...], path: str, text: str) -> dict[str, Any]:
    table: dict[str, Any] = _value(fields, name, dict, path, text)
    for key in table:
        if key not in known:
            raise ConfigError(f"{_at(path, text, key)}: unknown key {key!a}", hint=f"known keys are {', '.join(known)}")
    return table


def check_user(user: str, where: str) -> None:
    """Raise ConfigError, which begins with *where*, when *user* is neither a user name nor UID:GID, or is root."""
    if not _USER.fullmatch(user):
        raise ConfigError(f"{where}: {user!a} is no user", hint="a name, as in securecore, or numbers, as in 990:990")
    if user == "root" or (":" in user and 0 in map(int, user.split(":"))):
        raise ConfigError(f"{where}: the user must not be root")


def _value(fields: dict[str, Any], key: str, kind: type, path: str, text: str) -> Any:
    if key not in fields:
        raise ConfigError(f"{path}: {key} is missing", hint=f"write `{key} = ...`, or give it to `securecore setup sender`")
    # Not by isinstance: to Python, true is a number.
    if type(fields[key]) is not kind:
        raise ConfigError(f"{_at(path, text, key)}: {key} must be a {_KINDS[kind]}")
    return fields[key]


_KINDS: Final = {list: "list", str: "text", int: "number", dict: "table"}


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

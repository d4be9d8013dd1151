"""receiver.toml: what a person says about this receiver, and what ``securecore receive --config`` goes by.

What the file leaves out is as the version that is installed has it. ``"none"`` lifts a bound that there is without the file.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from securecore import limits
from securecore.errors import ConfigError, NotFoundError
from securecore.names import Address, HostName, NameRefused, is_plain_path
from securecore.receiver.installation import DEFAULT_IDENTITY, DEFAULT_STORE, INCOMPLETE_AFTER
from securecore.receiver.policy import Doors, Floor, Policy, Quota
from securecore.store.retention import Retention
from securecore.toml_table import TomlTable, parse_toml
from securecore.units import exact_size, exact_span

_VERSION: Final = 1
_NONE: Final = "none"
_HOSTS: Final = "hosts"
_LONGEST_SIZE: Final = 10**15
"""What exact_size can write in any case; a number without a unit may have more digits."""
_HOST_EXAMPLE: Final = "web-1.hosts.acme.example"

_Read = TypeVar("_Read")
_Values = TypeVar("_Values", Quota, Floor, Doors, Retention)


class ReceiverConfiguration(NamedTuple):
    """What receiver.toml says. Paths are absolute; *listen* is empty where the file leaves it out."""

    listen: tuple[Address, ...] = ()
    store: str = DEFAULT_STORE
    identity: str = DEFAULT_IDENTITY
    incomplete_after: timedelta = INCOMPLETE_AFTER
    policy: Policy = Policy()

    def encode(self) -> bytes:
        """Return the file, with a comment for every key: the same text for the same values."""
        usual, policy = ReceiverConfiguration(), self.policy
        listen = "".join(f"  {_quoted(str(address))},\n" for address in self.listen)
        return _TEMPLATE.format(
            version=_VERSION,
            listen=f"listen = [\n{listen}]" if self.listen else '# listen = ["0.0.0.0:4455", "[::]:4455"]',
            store=_line("store", self.store, usual.store, _quoted),
            identity=_line("identity", self.identity, usual.identity, _quoted),
            incomplete_after=_line("incomplete_after", self.incomplete_after, usual.incomplete_after, _SPAN.write),
            allow=_line("allow", policy.allow, usual.policy.allow, _list),
            deny=_line("deny", policy.deny, usual.policy.deny, _list),
            quota=_encode(_QUOTA, policy.quota, Quota()),
            hosts=_encode_hosts(policy),
            floor=_encode(_FLOOR, policy.floor, Floor()),
            connections=_encode(_CONNECTIONS, policy.doors, Doors()),
            retention=_encode(_RETENTION, policy.retention, Retention()),
        ).encode()


class ConfigurationRefused(ConfigError):
    """The file is not understood. The first of its *mistakes*, which are one for each table and each key outside of them."""

    def __init__(self, mistakes: Sequence[ConfigError]) -> None:
        super().__init__(mistakes[0].message, hint=mistakes[0].hint)
        self.mistakes = tuple(mistakes)


class _Kind(NamedTuple):
    """How a value stands in the file."""

    read: Callable[[TomlTable, str], Any]
    """Returns None where the key is left out; raises ConfigError."""
    write: Callable[[Any], str]


class _Key(NamedTuple):
    """A key of a table, and the field of the policy that it sets."""

    name: str
    field: str
    kind: _Kind
    words: str
    none: tuple[Any, ...] = (None,)
    """What "none" stands for; nothing where there must be a bound."""


def _read_size(table: TomlTable, key: str) -> int | None:
    return _above_zero(table, key, table.size(key))


def _read_count(table: TomlTable, key: str) -> int | None:
    return _above_zero(table, key, table.count(key))


def _read_connections(table: TomlTable, key: str) -> int | None:
    number: int | None = table.find(key, int)
    if number is not None and not 1 <= number <= limits.MOST_CONNECTIONS:
        raise table.refuse(key, f"must be 1 to {limits.MOST_CONNECTIONS}")
    return number


def _read_session(table: TomlTable, key: str) -> float | None:
    span = table.span(key)
    if span is not None and span.total_seconds() < limits.IDLE_DEADLINE_S:
        raise table.refuse(key, f"must be {limits.IDLE_DEADLINE_S:.0f} s or more", hint="slow hosts must get further with each one")
    return span.total_seconds() if span is not None else None


def _read_share(table: TomlTable, key: str) -> float | None:
    return _above_zero(table, key, table.share(key))


_Number = TypeVar("_Number", int, float)


def _above_zero(table: TomlTable, key: str, number: _Number | None) -> _Number | None:
    if number == 0:
        raise table.refuse(key, "must be above 0", hint='"none" stands for no bound, and `deny` keeps a host out')
    return number


def _write_share(share: float) -> str:
    return _quoted(f"{(Decimal(repr(share)) * 100).normalize():f}%")


def _quoted(text: str) -> str:
    # A JSON string without escapes for what is not ASCII is a TOML basic string; control characters were refused before.
    return json.dumps(text, ensure_ascii=False)


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


_SIZE: Final = _Kind(_read_size, lambda size: _quoted(exact_size(size)) if size < _LONGEST_SIZE else str(size))
_COUNT: Final = _Kind(_read_count, str)
_LIMITED_COUNT: Final = _Kind(_read_connections, str)
_SPAN: Final = _Kind(TomlTable.span, lambda span: _quoted(exact_span(span)))
_SESSION: Final = _Kind(_read_session, lambda seconds: _quoted(exact_span(timedelta(seconds=seconds))))
_SHARE: Final = _Kind(_read_share, _write_share)

_QUOTA: Final = (
    _Key("stored", "stored_bytes", _SIZE, "On the disk, dumps that are coming in included, as in 200GiB."),
    _Key("plain", "plain_bytes", _SIZE, "The same as plaintext: what they would take extracted."),
    _Key("dumps", "dumps", _COUNT, "How many."),
    _Key("dumps_per_hour", "dumps_per_hour", _COUNT, "New ones in any 60 minutes; to go on with one that was begun is free."),
    _Key("at_once", "at_once", _COUNT, "Being received at one time."),
)
_FLOOR: Final = (
    _Key("share", "share", _SHARE, "Of all bytes, and of all inodes.", none=(0.0,)),
    _Key("free", "free_bytes", _SIZE, "At least so much, where the share is less, as in 20GiB.", none=(0,)),
)
_CONNECTIONS: Final = (
    _Key("total", "connections", _LIMITED_COUNT, "At once. For more of them the unit must be written anew: see listen.", none=()),
    _Key("strangers", "strangers", _LIMITED_COUNT, "Of these, whose peer has not shown a certificate yet.", none=()),
    _Key("strangers_per_address", "strangers_per_address", _LIMITED_COUNT, "Of these, of one address.", none=()),
    _Key("per_host", "per_host", _LIMITED_COUNT, "Of one host.", none=()),
    _Key("session", "session_s", _SESSION, "The longest that one may last, as in 12h (60s or more); a dump goes on over another."),
)
_RETENTION: Final = (
    _Key("max_age", "max_age", _SPAN, "Older dumps go, as in 90d."),
    _Key("max_stored", "max_bytes", _SIZE, "Of all hosts together, on the disk: the oldest go until it is no more than that."),
    _Key("max_dumps", "max_dumps", _COUNT, "The same by number."),
    _Key("host_stored", "host_bytes", _SIZE, "Of each host, half for incoming ones; less than its quota, or no room is made."),
    _Key("host_dumps", "host_dumps", _COUNT, "The same by number, without what comes in."),
    _Key("min_age", "min_age", _SPAN, "Younger dumps stay, whatever else is said, as in 7d.", none=(timedelta(),)),
)

_TEMPLATE: Final = """\
# What this receiver takes, from whom, how much, and for how long it keeps it.
#
# To judge this file:  securecore receive --check
# After a change:      systemctl reload securecore-receiver
# The values behind a # hold where nothing else is said. Sizes: 500MiB, 20GiB, 1.5TiB. Times: 90s, 15m, 6h, 1d, 2w.
# "none" stands for no bound.

version = {version}

# Where to listen, IPv6 addresses in brackets. After a change here or of store: securecore setup receiver, and then
# systemctl restart securecore-receiver.
{listen}

# The store's directory; it is made when it is absent or empty.
{store}

# The identity directory that `securecore pki issue receiver` made. After a change: securecore setup receiver, so that the
# receiver's user may read it, and then a reload.
{identity}

# How long after its last frame a dump is given up and listed as incomplete. After a change: systemctl restart securecore-receiver.
{incomplete_after}

# Which hosts may send: their full names, "*." and a domain for all in it, "*" for everybody with a certificate. deny comes first.
{allow}
{deny}

# What each host may have here.
[quota]
{quota}
# A host with a quota of its own; what is left out there is as above.
{hosts}
# What must stay free on the store's file system: below it no host is let begin, or go on with, a dump.
[floor]
{floor}
# Connections.
[connections]
{connections}
# What `securecore vacuum` deletes. Without any of these it deletes nothing.
[retention]
{retention}"""


def load_configuration(path: Path) -> ReceiverConfiguration:
    """Return what the file *path* says.

    Raises NotFoundError when there is none, ConfigError with file and line on anything that is not understood.
    """
    try:
        # Without waiting for somebody to write into a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: not a regular file")
            data = file.read(limits.MAX_CONFIGURATION_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", hint="`securecore setup receiver` writes one, with comments") from error
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from error
    if len(data) > limits.MAX_CONFIGURATION_BYTES:
        raise ConfigError(f"{path}: longer than {limits.MAX_CONFIGURATION_BYTES} bytes")
    return parse_receiver_configuration(data, str(path))


def parse_receiver_configuration(data: bytes, path: str) -> ReceiverConfiguration:
    """Return what the bytes of the file *path* say.

    Raises ConfigError with file and line on anything that is not understood, ConfigurationRefused where that may be several things.
    """
    table = parse_toml(
        data, path, _VERSION,
        "listen", "store", "identity", "incomplete_after", "allow", "deny", "quota", "floor", "connections", "retention",
    )  # fmt: skip
    usual, policy, mistakes = ReceiverConfiguration(), Policy(), _Mistakes()
    listen = mistakes.gather(lambda: _parse_listen(table), usual.listen)
    store = mistakes.gather(lambda: _parse_path(table, "store"), None)
    identity = mistakes.gather(lambda: _parse_path(table, "identity"), None)
    incomplete_after = mistakes.gather(lambda: table.span("incomplete_after"), None)
    allow = mistakes.gather(lambda: _parse_patterns(table, "allow", policy.allow), policy.allow)
    deny = mistakes.gather(lambda: _parse_patterns(table, "deny", policy.deny), policy.deny)
    quota, host_quotas = mistakes.gather(lambda: _parse_quotas(table), (policy.quota, policy.host_quotas))
    floor = mistakes.gather(lambda: _parse(_table(table, "floor", _FLOOR), _FLOOR, policy.floor), policy.floor)
    doors = mistakes.gather(lambda: _parse(_table(table, "connections", _CONNECTIONS), _CONNECTIONS, policy.doors), policy.doors)
    retention = mistakes.gather(
        lambda: _parse(_table(table, "retention", _RETENTION), _RETENTION, policy.retention), policy.retention
    )
    if mistakes.found:
        raise ConfigurationRefused(mistakes.found)
    return ReceiverConfiguration(
        listen, store or usual.store, identity or usual.identity, incomplete_after or usual.incomplete_after,
        Policy(allow, deny, quota, host_quotas, floor, doors, retention),
    )  # fmt: skip


class _Mistakes:
    """What is wrong in a file, gathered so that a person hears all of it at once."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    def gather(self, read: Callable[[], _Read], usual: _Read) -> _Read:
        """Return what *read* returns, or note why it does not, and return *usual*."""
        try:
            return read()
        except ConfigError as error:
            self.found.append(error)
            return usual


def _table(table: TomlTable, name: str, keys: Iterable[_Key]) -> TomlTable:
    return table.table(name, *(key.name for key in keys))


def _parse(table: TomlTable, keys: Iterable[_Key], values: _Values) -> _Values:
    """Return *values* with those in their places that the table gives."""
    found: dict[str, Any] = {}
    for key in keys:
        if table.is_text(key.name, _NONE):
            if not key.none:
                raise table.refuse(key.name, "must have a bound", hint=f"at most {limits.MOST_CONNECTIONS}")
            found[key.field] = key.none[0]
        elif key.name in table:
            found[key.field] = key.kind.read(table, key.name)
    return values._replace(**found)


def _parse_quotas(table: TomlTable) -> tuple[Quota, Mapping[str, Quota]]:
    common = table.table("quota", *(key.name for key in _QUOTA), _HOSTS)
    quota = _parse(common, _QUOTA, Quota())
    return quota, _parse_hosts(common.table(_HOSTS), quota)


def _parse_hosts(table: TomlTable, quota: Quota) -> Mapping[str, Quota]:
    found: dict[str, Quota] = {}
    for name in table:
        try:
            HostName(name)
        except NameRefused as error:
            raise ConfigError(f"{table.where(name)}: {error.message}", hint=error.hint) from error
        found[name] = _parse(_table(table, name, _QUOTA), _QUOTA, quota)
    return MappingProxyType(found)


def _parse_listen(table: TomlTable) -> tuple[Address, ...]:
    try:
        return tuple(map(Address, table.texts("listen") or ()))
    except NameRefused as error:
        raise ConfigError(f"{table.where('listen')}: {error.message}", hint=error.hint) from error


def _parse_path(table: TomlTable, key: str) -> str | None:
    path: str | None = table.find(key, str)
    if path is not None and not is_plain_path(path):
        raise table.refuse(key, f"must be an absolute path without `..` and control characters, not {path[:300]!a}")
    return path


def _parse_patterns(table: TomlTable, key: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    patterns = table.texts(key)
    if patterns is None:
        return usual
    for pattern in patterns:
        if not _is_pattern(pattern):
            hint = f'a full name in lower case, as in "{_HOST_EXAMPLE}", "*.hosts.acme.example", or "*"'
            raise table.refuse(key, f"holds {pattern[:300]!a}, which stands for no host", hint=hint)
    return patterns


def _is_pattern(text: str) -> bool:
    try:
        # A domain may be a single label, and a host in it is a host's name.
        HostName(text.replace("*", "any", 1) if text.startswith("*.") else text)
    except NameRefused:
        return text == "*"
    return True


def _encode(keys: Iterable[_Key], values: NamedTuple, usual: NamedTuple) -> str:
    lines = []
    for key in keys:
        if key.words:
            lines.append(f"# {key.words}")
        value = getattr(values, key.field)
        mark = "# " if value == getattr(usual, key.field) else ""
        lines.append(f"{mark}{key.name} = {_value(key, value)}")
    return "\n".join(lines) + "\n"


def _encode_hosts(policy: Policy) -> str:
    if not policy.host_quotas:
        return f'# [quota.hosts."{_HOST_EXAMPLE}"]\n# stored = "1TiB"\n'
    tables = []
    for name, quota in policy.host_quotas.items():
        own = [key for key in _QUOTA if getattr(quota, key.field) != getattr(policy.quota, key.field)]
        lines = (f"{key.name} = {_value(key, getattr(quota, key.field))}\n" for key in own)
        tables.append("".join((f'[quota.hosts."{name}"]\n', *lines)))
    return "\n".join(tables)


def _line(name: str, value: Any, usual: Any, write: Callable[[Any], str]) -> str:
    """Return a line of the file; what is usual is left to the version that is installed, and only shown."""
    return f"{'# ' if value == usual else ''}{name} = {write(value)}"


def _value(key: _Key, value: Any) -> str:
    return _quoted(_NONE) if value in key.none else key.kind.write(value)

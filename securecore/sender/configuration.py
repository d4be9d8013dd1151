"""sender.toml: what a person says about this sender; ``securecore setup sender`` compiles it into the handler's settings.

The table ``[deadlines]`` changes for how long the handler and a flush wait, ``[admission]`` which crashes are taken,
``[spool_limits]`` how much the spool may take, ``[handler]`` what a handler may take of the machine. With the table ``[local]`` in
the place of receivers, identity and spool, cores are kept on this machine; core_pattern then says where and how, and of the other
tables only ``[admission]`` may be there.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Final, Self

from securecore import limits
from securecore.errors import ConfigError
from securecore.names import Address, NameRefused, is_plain_path
from securecore.sender import installation
from securecore.sender.admission import Admission
from securecore.sender.admission_table import KEYS as ADMISSION_KEYS
from securecore.sender.admission_table import encode_admission_table, parse_admission_table
from securecore.sender.confinement import Confinement
from securecore.sender.confinement_table import KEYS as CONFINEMENT_KEYS
from securecore.sender.confinement_table import encode_confinement_table, parse_confinement_table
from securecore.sender.floor import Floor
from securecore.sender.local_mode import LocalMode
from securecore.sender.patience import Patience, usual_patience
from securecore.sender.settings import SPOOL_MODES, TAIL
from securecore.sender.spool_limits import SpoolLimits
from securecore.sender.spool_limits_table import (
    FLOOR_KEYS,
    encode_floor,
    encode_spool_limits_table,
    parse_floor,
    parse_spool_limits_table,
)
from securecore.sender.spool_limits_table import KEYS as SPOOL_LIMITS_KEYS
from securecore.toml_table import TomlTable, parse_toml

DEFAULT_SPOOL: Final = "/var/lib/securecore/spool"
DEFAULT_USER: Final = "securecore"

_VERSION: Final = 1
PIPE: Final = "pipe"
AGENT: Final = "agent"
KERNEL_WAYS: Final = (PIPE, AGENT)
"""How the kernel hands a core over: it starts the handler at the end of a pipe, or connects to the agent's socket."""

_KEYS: Final = (
    "receivers", "identity", "spool", "spool_mode", "user", "kernel", "deadlines", "admission", "spool_limits", "handler", "local"
)  # fmt: skip
_DEADLINE_KEYS: Final = ("connect", "progress", "hold")
_LOCAL_KEYS: Final = ("directory", "format", "level", "keep", *FLOOR_KEYS)
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
    kernel: str = PIPE
    """One of KERNEL_WAYS."""
    deadlines: Patience | None = None
    """None leaves them to the version that is installed."""
    admission: Admission | None = None
    """The same; the users of its rules may be names."""
    spool_limits: SpoolLimits | None = None
    """The same."""
    confinement: Confinement | None = None
    """The same."""

    def check(self, where: str) -> Self:
        """Return itself; raises ConfigError, which begins with *where*, when a value is none that could work."""
        if self.spool_mode not in SPOOL_MODES:
            raise ConfigError(f"{where}: spool_mode must be {' or '.join(SPOOL_MODES)}, not {self.spool_mode[:100]!a}")
        if self.kernel not in KERNEL_WAYS:
            raise ConfigError(f"{where}: kernel must be {' or '.join(KERNEL_WAYS)}, not {self.kernel[:100]!a}")
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
            kernel=_quoted(self.kernel),
            deadlines=self._encode_deadlines(),
            admission=_encode_admission(self.admission),
            spool_limits=self._encode_spool_limits(),
            handler=_NO_HANDLER if self.confinement is None else _HANDLER + encode_confinement_table(self.confinement),
        ).encode()

    def _encode_spool_limits(self) -> str:
        return _NO_SPOOL_LIMITS if self.spool_limits is None else _SPOOL_LIMITS + encode_spool_limits_table(self.spool_limits)

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
    admission: Admission | None = None
    """None leaves it to the version that is installed; the users of its rules may be names."""
    floor: Floor | None = None
    """The same."""

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
            floor=_NO_FLOOR if self.floor is None else encode_floor(self.floor),
            admission=_encode_admission(self.admission),
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

# How the kernel hands cores over. "pipe": it starts the crash handler for each. "agent": it connects to the socket of
# securecore-agent.service, which is there already, so a crashed process waits for less; Linux 6.17 or newer, and systemd.
kernel = {kernel}
{deadlines}{admission}{spool_limits}{handler}"""

_DEADLINES: Final = """
# Seconds: connect, to reach a receiver; progress, for which what was sent may stand still; hold, for which a crashed process may
# stand still for the network in all.
[deadlines]
"""

_NO_DEADLINES: Final = """
# A table [deadlines] with connect, progress and hold, in seconds, is for links that need others than the usual ones.
"""

_ADMISSION: Final = """
# Which crashes are taken. core_limit: "respect" a soft RLIMIT_CORE below a page as a process's wish for no core, or "ignore" it.
# max_size: of a core, by what its headers announce. program_burst, program_every: so many dumps of one program (one file) at once,
# and one more each time that this has passed; user_burst, user_every: the same of one uid; host_burst, host_every: of all of them
# together; a burst of 0 is no limit. rules: the first one that fits a crash decides; what fits none is taken.
"""

_NO_ADMISSION: Final = """
# Which crashes are taken: all but those of processes with a soft RLIMIT_CORE below a page (`ulimit -c 0`), and what is beyond the
# limits for storms. Take the `#` away to change something; what is left out stays as it is.
#[admission]
#core_limit = "respect"     # or "ignore"
#max_size = "20GiB"         # of a core, by what its headers announce; no bound when it is left out
#program_burst = 10         # dumps of one program (one file) at once, and then
#program_every = "5m"       # one more each time that this has passed; a burst of 0 is no limit
#user_burst = 30            # the same of one uid
#user_every = "2m"
#host_burst = 60            # the same of all together
#host_every = "30s"
#rules = [                  # the first one that fits decides; what fits none is taken
#{ action = "include", executable = "/opt/app/bin/server" },
#{ action = "exclude", executable = "/opt/app/*", user = "ci", signal = "SIGABRT" },
#{ action = "exclude", unit = "batch-*.service" },
#{ action = "exclude", cgroup = "/user.slice/*" },
#]
"""

_SPOOL_LIMITS: Final = """
# How much the spool may take: stored, on its disk; dumps, how many. What it leaves free there for everybody else: floor_share, of
# all bytes and inodes; floor_free, so much at least. "none" stands for no bound.
"""

_NO_SPOOL_LIMITS: Final = """
# How much the spool may take. Take the `#` away to change something; what is left out stays as it is.
#[spool_limits]
#stored = "none"            # on its disk, as in "20GiB"
#dumps = "none"             # how many, as in 200
#floor_share = "5%"         # of its disk's bytes and inodes, to be left free for everybody else; or "none"
#floor_free = "none"        # at least so much, as in "2GiB"
"""

_HANDLER: Final = """
# What the crash handler may take of this machine. nice: 0 to 19; io: "normal", "low" or "idle"; memory: beyond it a core is cut;
# deadline: after it the receiver is given up, and soon after that the handler.
"""

_NO_HANDLER: Final = """
# A table [handler] with nice, io, memory and deadline changes what the crash handler may take of this machine.
"""

_LOCAL_TEMPLATE: Final = """\
# What this machine does with its crashes. After a change: securecore setup sender

version = {version}

# Whom the crash handler becomes: a name, or "UID:GID".
user = {user}

# Cores stay on this machine, compressed. format: zst, gz or zlib; level: its own when it is left out; keep: the newest so many
# dumps, all when it is left out. What is left free on their disk for everybody else: floor_share, of all bytes and inodes;
# floor_free, so much at least; "none" stands for no bound.
[local]
directory = {directory}
format = {kind}
{numbers}{floor}{admission}"""

_NO_FLOOR: Final = """\
#floor_share = "5%"
#floor_free = "none"        # as in "2GiB"
"""


def parse_configuration(data: bytes, path: str) -> SenderConfiguration | LocalConfiguration:
    """Return what the bytes of the file *path* say; raises ConfigError with file and line on anything that is not understood."""
    table = parse_toml(data, path, _VERSION, *_KEYS)
    if "local" in table:
        return _parse_local(table, path)
    receivers = table.value("receivers", list, _hint("receivers"))
    try:
        addresses = tuple(Address(item if isinstance(item, str) else "") for item in receivers)
    except NameRefused as error:
        raise ConfigError(f"{table.where('receivers')}: {error.message}", hint=error.hint) from error
    configuration = SenderConfiguration(addresses, table.value("identity", str, _hint("identity")))
    for key in ("spool", "spool_mode", "user", "kernel"):
        if key in table:
            configuration = replace(configuration, **{key: table.find(key, str)})
    if "deadlines" in table:
        configuration = replace(configuration, deadlines=_parse_deadlines(table.table("deadlines", *_DEADLINE_KEYS)))
    configuration = replace(configuration, admission=_find_admission(table))
    if "spool_limits" in table:
        bounds = parse_spool_limits_table(table.table("spool_limits", *SPOOL_LIMITS_KEYS))
        configuration = replace(configuration, spool_limits=bounds)
    if "handler" in table:
        configuration = replace(configuration, confinement=parse_confinement_table(table.table("handler", *CONFINEMENT_KEYS)))
    return configuration.check(path)


def _find_admission(table: TomlTable) -> Admission | None:
    return parse_admission_table(table.table("admission", *ADMISSION_KEYS)) if "admission" in table else None


def _encode_admission(admission: Admission | None) -> str:
    return _NO_ADMISSION if admission is None else _ADMISSION + encode_admission_table(admission)


def _parse_deadlines(table: TomlTable) -> Patience:
    found = {f"{key}_s": table.seconds(key, limits.MAX_DEADLINE_S) for key in _DEADLINE_KEYS}
    return usual_patience()._replace(**{key: value for key, value in found.items() if value is not None})


def _parse_local(table: TomlTable, path: str) -> LocalConfiguration:
    for key in ("receivers", "identity", "spool", "spool_mode", "deadlines", "spool_limits"):
        if key in table:
            raise table.refuse(key, "and [local] exclude each other: cores are sent, or kept here")
    if "kernel" in table:
        raise table.refuse("kernel", "and [local] exclude each other: cores that stay here come to the handler")
    if "handler" in table:
        raise table.refuse("handler", "and [local] exclude each other: a handler that keeps its cores has the usual bounds")
    local = table.table("local", *_LOCAL_KEYS)
    mode = LocalMode(local.value("directory", str, _hint("directory")))
    if "format" in local:
        mode = mode._replace(kind=local.find("format", str))
    if "level" in local:
        mode = mode._replace(level=local.find("level", int))
    if "keep" in local:
        mode = mode._replace(keep=local.find("keep", int))
    floor = parse_floor(local) if any(key in local for key in FLOOR_KEYS) else None
    return LocalConfiguration(mode, table.find("user", str) or DEFAULT_USER, _find_admission(table), floor).check(path)


def _hint(key: str) -> str:
    return f"write `{key} = ...`, or give it to `securecore setup sender`"


def check_user(user: str, where: str) -> None:
    """Raise ConfigError, which begins with *where*, when *user* is neither a user name nor UID:GID, or is root."""
    if not _USER.fullmatch(user):
        raise ConfigError(f"{where}: {user!a} is no user", hint="a name, as in securecore, or numbers, as in 990:990")
    if user == "root" or (":" in user and 0 in map(int, user.split(":"))):
        raise ConfigError(f"{where}: the user must not be root")


def _quoted(text: str) -> str:
    # A JSON string without escapes for what is not ASCII is a TOML basic string; control characters were refused before.
    return json.dumps(text, ensure_ascii=False)

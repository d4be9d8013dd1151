"""What the handler needs to know, compiled by ``securecore setup sender`` into JSON: fast to load, strict to read.

People edit TOML (sender.toml); the crash handler must not pay for a TOML parser at every crash.
"""

import os
import stat

from securecore import plain_json
from securecore.declarations import Any, Final, NamedTuple
from securecore.errors import ConfigError
from securecore.names import Address, NameRefused
from securecore.sender.admission import Admission, parse_admission
from securecore.sender.confinement import Confinement, is_confinement
from securecore.sender.floor import Floor, parse_floor
from securecore.sender.patience import Patience, is_deadline
from securecore.sender.spool_limits import SpoolLimits, parse_limits

_VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024
_IDS: Final = range((1 << 32) - 1)
"""User and group ids; the one above means "leave it as it is" to setresuid(2)."""

_MAY_BE_LEFT_OUT: Final = ("deadlines", "admission", "spool_limits", "confinement")
_HINT: Final = "run `securecore setup sender` again"
_NOT_OURS: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a file brings about that is JSON at best."""

ADMISSION_NAME: Final = "admission.json"
"""The file of local mode, in the directory where a machine that sends has its settings: all that the handler reads there."""


TAIL: Final = "tail"
WHOLE: Final = "whole"
SPOOL_MODES: Final = (TAIL, WHOLE)


class Settings(NamedTuple):
    """The handler's settings."""

    receivers: tuple[Address, ...]
    """Tried in this order."""
    identity: str
    """Absolute path of the identity directory."""
    spool: str
    """Absolute path of the spool, owned by *uid*."""
    uid: int
    """The user that the handler becomes; never 0."""
    gid: int
    spool_mode: str = TAIL
    """``tail``: the spool has what no receiver has. ``whole``: it has all of a dump until the receipt is there."""
    deadlines: Patience | None = None
    """None leaves them to the version that is installed; as in settings that a version without them has compiled."""
    admission: Admission = Admission()
    """Left out where it says nothing that the version would not say, for the same reason."""
    spool_limits: SpoolLimits = SpoolLimits()
    """The same."""
    confinement: Confinement = Confinement()
    """The same."""

    def encode(self) -> bytes:
        """Return the JSON that load_settings reads."""
        fields = self._asdict() | {"version": _VERSION, "receivers": [str(address) for address in self.receivers]}
        if (deadlines := fields.pop("deadlines")) is not None:
            fields["deadlines"] = deadlines._asdict()
        if (admission := fields.pop("admission")) != Admission():
            fields["admission"] = admission.encode()
        if (spool_limits := fields.pop("spool_limits")) != SpoolLimits():
            fields["spool_limits"] = spool_limits._asdict()
        if (confinement := fields.pop("confinement")) != Confinement():
            fields["confinement"] = confinement._asdict()
        return _document(fields)


def load_settings(path: str) -> Settings:
    """Return the settings in *path*; raises ConfigError when they are missing, writable by others, or not exactly as expected."""
    try:
        return _settings(plain_json.parse(_read(path)))
    except (*_NOT_OURS, NameRefused) as error:
        raise ConfigError(f"{path}: not settings of this version of securecore", hint=_HINT) from error


class LocalSettings(NamedTuple):
    """What the handler reads on a machine that keeps its cores; all else stands in core_pattern."""

    admission: Admission = Admission()
    """What it takes. As in Settings, what the version would say is left out, of both."""
    floor: Floor = Floor()
    """What it leaves free of the disk of the cores."""

    def encode(self) -> bytes:
        """Return the JSON that load_local_settings reads."""
        fields: dict[str, Any] = {"version": _VERSION}
        if self.admission != Admission():
            fields["admission"] = self.admission.encode()
        if self.floor != Floor():
            fields["floor"] = self.floor._asdict()
        return _document(fields)


def load_local_settings(path: str) -> LocalSettings:
    """Return what a machine takes that keeps its cores, and what it leaves free; raises ConfigError as load_settings does."""
    try:
        fields = plain_json.parse(_read(path))
        if fields.pop("version") != _VERSION or not fields.keys() <= {"admission", "floor"}:
            raise ValueError
        return LocalSettings(
            parse_admission(fields["admission"]) if "admission" in fields else Admission(),
            parse_floor(fields["floor"]) if "floor" in fields else Floor(),
        )
    except _NOT_OURS as error:
        raise ConfigError(f"{path}: not an admission of this version of securecore", hint=_HINT) from error


def _document(fields: dict[str, Any]) -> bytes:
    """Return a file's content, for eyes too."""
    import json  # only set-up writes settings; to load it would cost each crash

    return json.dumps(fields, sort_keys=True, indent=1).encode("ascii") + b"\n"


def _read(path: str) -> bytes:
    """Return the file's bytes, MAX_BYTES at most; raises ConfigError when it cannot be read, or others than root can write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            data = os.read(fd, MAX_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=_HINT) from error
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: must be a file that only root can write", hint=f"chown root {path}; chmod go-w {path}")
    return data


def _settings(fields: dict[str, Any]) -> Settings:
    deadlines, admission, bounds, confinement = (fields.pop(key, None) for key in _MAY_BE_LEFT_OUT)
    # What an earlier setup has compiled does not say it.
    fields.setdefault("spool_mode", TAIL)
    if fields.pop("version") != _VERSION or {*fields, *_MAY_BE_LEFT_OUT} != set(Settings._fields):
        raise ValueError
    if type(fields["receivers"]) is not list:
        raise ValueError
    settings = Settings(**fields)._replace(
        receivers=tuple(Address(text) for text in fields["receivers"]),
        deadlines=None if deadlines is None else Patience(**deadlines),
        admission=Admission() if admission is None else parse_admission(admission),
        spool_limits=SpoolLimits() if bounds is None else parse_limits(bounds),
        confinement=Confinement() if confinement is None else Confinement(**confinement),
    )
    if settings.spool_mode not in SPOOL_MODES:
        raise ValueError
    if settings.deadlines is not None and not all(map(is_deadline, settings.deadlines)):
        raise ValueError
    if not is_confinement(settings.confinement):
        raise ValueError
    paths = (settings.identity, settings.spool)
    if not settings.receivers or not all(type(path) is str and path.startswith("/") and path.isprintable() for path in paths):
        raise ValueError
    if not all(type(number) is int and number in _IDS for number in (settings.uid, settings.gid)):
        raise ValueError
    return settings

"""Settings files that people write, in TOML: versioned, and strict.

A key that is not known is an error with file and line: a misspelt one would otherwise be a setting that silently does not hold.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, Self

from securecore.errors import ConfigError
from securecore.units import parse_size, parse_span

_KINDS: Final = {list: "list", str: "text", int: "number", dict: "table", bool: "true or false"}
_COUNT_MAX: Final = (1 << 63) - 1
"""What every reader of such numbers keeps, SQLite included."""
_HEADER: Final = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?")
_KEY: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*[=.]""")
_SHARE: Final = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,3})?%", re.ASCII)
_PART: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:\.|$)""")


class TomlTable:
    """A table of a settings file, which knows where its keys stand."""

    def __init__(self, fields: Mapping[str, Any], path: str, text: str, names: tuple[str, ...] = ()) -> None:
        self._fields, self._path, self._text, self._names = fields, path, text, names

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def where(self, key: str) -> str:
        """Return ``FILE:LINE`` of a key or table in this one; ``FILE`` alone where it is not found: tomllib gives no positions."""
        here: tuple[str, ...] = ()
        for number, line in enumerate(self._text.split("\n"), 1):
            if header := _HEADER.fullmatch(line):
                here = _parts(header[1])
                if here[: len(self._names) + 1] == (*self._names, key):
                    return f"{self._path}:{number}"
            elif here == self._names and (found := _KEY.match(line)) and _text(found) == key:
                return f"{self._path}:{number}"
        return self._path

    def refuse(self, key: str, words: str, hint: str | None = None) -> ConfigError:
        """Return the error about one key, to be raised: its place, the key, then *words*."""
        return ConfigError(f"{self.where(key)}: {key} {words}", hint=hint)

    def check_keys(self, *known: str) -> Self:
        """Return itself; raises ConfigError when there is a key that is none of *known*."""
        for key in self._fields:
            if key not in known:
                raise ConfigError(f"{self.where(key)}: unknown key {key!a}", hint=f"known keys are {', '.join(known)}")
        return self

    def find(self, key: str, kind: type) -> Any:
        """Return a key's value, None when it is left out; raises ConfigError unless it is of *kind*, which has a word here."""
        if key not in self._fields:
            return None
        # Not by isinstance: to Python, true is a number.
        if type(self._fields[key]) is not kind:
            raise self.refuse(key, f"must be a {_KINDS[kind]}")
        return self._fields[key]

    def is_text(self, key: str, text: str) -> bool:
        """Return whether a key is there and says exactly this."""
        return bool(self._fields.get(key) == text)

    def value(self, key: str, kind: type, hint: str) -> Any:
        """Return a key's value, as find does; raises ConfigError, with *hint*, when it is left out."""
        if key not in self._fields:
            raise ConfigError(f"{self._path}: {key} is missing", hint=hint)
        return self.find(key, kind)

    def seconds(self, key: str, most: float) -> float | None:
        """Return a number of seconds above 0 and up to *most*, None when it is left out; raises ConfigError for anything else."""
        found: Any = self._fields.get(key)
        # Infinity and NaN fail the comparison.
        if key in self._fields and not (type(found) in (int, float) and 0 < found <= most):
            raise self.refuse(key, f"must be seconds: a number above 0, at most {most:.0f}")
        return float(found) if found is not None else None

    def count(self, key: str, most: int = _COUNT_MAX) -> int | None:
        """Return a whole number from 0 to *most*, None when it is left out; raises ConfigError for anything else."""
        found: int | None = self.find(key, int)
        if found is not None and not 0 <= found <= most:
            raise self.refuse(key, f"must be 0 to {most}")
        return found

    def size(self, key: str) -> int | None:
        """Return bytes, written as a number or as units.parse_size takes them, None when it is left out."""
        found: Any = self._fields.get(key)
        size: int | None = found if type(found) is int else parse_size(found) if type(found) is str else None
        if key in self._fields and (size is None or not 0 <= size <= _COUNT_MAX):
            raise self.refuse(key, "must be a size, as in 500MiB or 20GiB")
        return size

    def share(self, key: str) -> float | None:
        """Return a share below 1, written as ``"5%"`` or ``"0.5%"``, None when it is left out; raises ConfigError otherwise."""
        text: str | None = self.find(key, str)
        if text is None:
            return None
        if not _SHARE.fullmatch(text):
            raise self.refuse(key, 'must be a share below 100%, as in "5%" or "0.5%"')
        return float(Decimal(text.removesuffix("%")) / 100)

    def span(self, key: str) -> timedelta | None:
        """Return a length of time above 0, written as units.parse_span takes it, None when it is left out."""
        span = parse_span(self.find(key, str) or "")
        if not span and key in self._fields:
            raise self.refuse(key, "must be a length of time, as in 90s, 15m, 6h, 1d or 2w")
        return span

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of texts, None when it is left out; raises ConfigError for anything else."""
        found = self.find(key, list)
        if found is None:
            return None
        if not all(type(item) is str for item in found):
            raise self.refuse(key, "must be a list of texts")
        return tuple(found)

    def table(self, key: str, *known: str) -> "TomlTable":
        """Return a table in this one, empty when it is left out; raises ConfigError when it holds a key that is none of *known*.

        Without *known* its keys are names that the file's writer chooses.
        """
        found = TomlTable(self.find(key, dict) or {}, self._path, self._text, (*self._names, key))
        return found.check_keys(*known) if known else found


def parse_toml(data: bytes, path: str, version: int, *known: str) -> TomlTable:
    """Return what the bytes of the file *path* say; raises ConfigError on what is not TOML, another version, and unknown keys."""
    try:
        text = data.decode("utf-8")
        fields = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        words = str(error)
        raise ConfigError(f"{path}: {words[:1].lower()}{words[1:]}") from error
    except (ValueError, RecursionError) as error:
        # tomllib lets int() refuse a number beyond sys.get_int_max_str_digits().
        raise ConfigError(f"{path}: a number is too long, or brackets are nested too deeply") from error
    table = TomlTable(fields, path, text).check_keys("version", *known)
    if type(fields.get("version")) is not int or fields["version"] != version:
        raise ConfigError(f"{table.where('version')}: version must be {version}", hint=f"write `version = {version}`")
    return table


def _parts(header: str) -> tuple[str, ...]:
    """Return the names in a table's header, none where they are not understood."""
    parts, at = [], 0
    while at < len(header) and (found := _PART.match(header, at)):
        parts.append(_text(found))
        at = found.end()
    return tuple(parts)


def _text(found: re.Match[str]) -> str:
    return next(text for text in found.groups() if text is not None)

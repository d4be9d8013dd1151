"""The table ``[spool_limits]`` of sender.toml, and the floor in ``[local]``: how much cores may take here, as people write it."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TypeVar

from securecore.sender.floor import Floor
from securecore.sender.spool_limits import SpoolLimits
from securecore.toml_table import TomlTable
from securecore.units import exact_size

FLOOR_KEYS: Final = ("floor_share", "floor_free")
KEYS: Final = ("stored", "dumps", *FLOOR_KEYS)
_NONE: Final = "none"
_LONGEST_SIZE: Final = 10**15
"""What exact_size can write in any case; a number without a unit may have more digits."""

_Number = TypeVar("_Number", int, float)


def parse_spool_limits_table(table: TomlTable) -> SpoolLimits:
    """Return what the table says; raises ConfigError with file and line on anything that is not understood."""
    return SpoolLimits(_bound(table, "stored", table.size, None), _bound(table, "dumps", table.count, None), *parse_floor(table))


def parse_floor(table: TomlTable) -> Floor:
    """Return what a table says with FLOOR_KEYS; raises as parse_spool_limits_table."""
    return Floor(
        _bound(table, "floor_share", table.share, Floor().share) or 0.0,
        _bound(table, "floor_free", table.size, None) or 0,
    )


def _bound(table: TomlTable, key: str, read: Callable[[str], _Number | None], usual: _Number | None) -> _Number | None:
    """Return a bound, None where there is none, *usual* where nothing is said of it."""
    if key not in table:
        return usual
    if table.is_text(key, _NONE):
        return None
    number = read(key)
    if number == 0:
        # To somebody it would be no bound, to somebody else no spool.
        raise table.refuse(key, "must be above 0", hint='"none" stands for no bound')
    return number


def encode_spool_limits_table(bounds: SpoolLimits) -> str:
    """Return the table: the same text for the same values."""
    quotas = (_line("stored", _size(bounds.max_bytes)), _line("dumps", bounds.max_dumps))
    return "".join(("[spool_limits]\n", *quotas, encode_floor(bounds.floor)))


def encode_floor(floor: Floor) -> str:
    """Return the lines of FLOOR_KEYS: the same text for the same values."""
    share = f"{(Decimal(repr(floor.share)) * 100).normalize():f}%" if floor.share else None
    return _line("floor_share", share) + _line("floor_free", _size(floor.free_bytes or None))


def _line(key: str, value: str | int | None) -> str:
    return f"{key} = {json.dumps(_NONE if value is None else value)}\n"


def _size(size: int | None) -> str | int | None:
    return exact_size(size) if size is not None and size < _LONGEST_SIZE else size

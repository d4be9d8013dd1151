"""The table ``[admission]`` of sender.toml: what a sender takes, as people write it.

In a configuration a rule's user may be a name; set-up resolves it, for the handler asks no directory of users.
"""

import json
import re
import signal
from collections.abc import Callable
from typing import Any, Final

from securecore import limits
from securecore.errors import ConfigError
from securecore.sender import storm_limits
from securecore.sender.admission import ACTIONS, CORE_LIMITS, PATTERNS, TEXTS, Admission, Rule, StormLimit
from securecore.toml_table import TomlTable

_STORMS: Final = ("program", "user", "host")
"""Whose storm limits there are: keys of the table begin with these, and fields of Admission have these names."""
KEYS: Final = ("core_limit", "max_size", *(f"{name}_{what}" for name in _STORMS for what in ("burst", "every")), "rules")
_EVERY_MAX_S: Final = 24 * 3600
"""Of a bucket that gives one dump a day there is nothing left to limit."""
_SET: Final = re.compile(r"\[!?+]?+[^]]*\]")
"""A set of characters as fnmatch reads it: a ``]`` that comes first belongs to it."""
_SIGNAL_MAX: Final = 64
"""SIGRTMAX of signal(7) on every architecture but MIPS, whose higher ones dump no core."""
_SIGNAL_NAMES: Final = {number.value: number.name for number in signal.Signals}
_UID_END: Final = (1 << 32) - 1


def parse_admission_table(table: TomlTable) -> Admission:
    """Return what the table says; raises ConfigError with file and line on anything that is not understood."""
    admission = Admission()
    if (core_limit := table.find("core_limit", str)) is not None:
        if core_limit not in CORE_LIMITS:
            raise table.refuse("core_limit", f"must be {' or '.join(CORE_LIMITS)}, not {core_limit[:100]!a}")
        admission = admission._replace(core_limit=core_limit)
    rules: list[Any] = table.find("rules", list) or []
    if len(rules) > limits.MAX_RULES:
        raise table.refuse("rules", f"are {len(rules)}, at most {limits.MAX_RULES} are allowed")
    return admission._replace(
        max_size=_parse_max_size(table),
        program=_parse_limit(table, "program", admission.program),
        user=_parse_limit(table, "user", admission.user),
        host=_parse_limit(table, "host", admission.host),
        rules=tuple(_parse_rule(rule, number, table) for number, rule in enumerate(rules, 1)),
    )


def encode_admission_table(admission: Admission) -> str:
    """Return the table: the same text for the same values."""
    lines = ["[admission]", f'core_limit = "{admission.core_limit}"']
    if admission.max_size is not None:
        lines.append(f"max_size = {admission.max_size}")
    for name, limit in zip(_STORMS, (admission.program, admission.user, admission.host), strict=True):
        lines += [f"{name}_burst = {limit.burst}", f'{name}_every = "{limit.every_s}s"']
    lines += ["rules = [", *(f"  {_encode_rule(rule)}," for rule in admission.rules), "]"]
    return "\n".join(lines) + "\n"


def resolve_users(admission: Admission, find_uid: Callable[[str], int | None], where: str) -> Admission:
    """Return the admission with numbers for the names of users; raises ConfigError, which begins with *where*, for a stranger's."""
    rules = []
    for number, rule in enumerate(admission.rules, 1):
        if rule.user is not None and not rule.user.isdigit():
            uid = find_uid(rule.user)
            if uid is None:
                raise ConfigError(f"{where}: rule {number}: user {rule.user!a} is not in /etc/passwd", hint="write the number")
            rule = rule._replace(user=str(uid))
        rules.append(rule)
    return admission._replace(rules=tuple(rules))


def _parse_max_size(table: TomlTable) -> int | None:
    size = table.size("max_size")
    if size == 0:
        # To somebody it would be no bound, to somebody else no core at all.
        raise table.refuse("max_size", "must be above 0", hint="leave it out where there is to be no bound")
    return size


def _parse_limit(table: TomlTable, name: str, usual: StormLimit) -> StormLimit:
    burst, every = table.count(f"{name}_burst", storm_limits.MAX_BURST), table.span(f"{name}_every")
    every_s = usual.every_s if every is None else int(every.total_seconds())
    if every_s > _EVERY_MAX_S:
        raise table.refuse(f"{name}_every", "must be a day at most")
    return StormLimit(usual.burst if burst is None else burst, every_s)


def _parse_rule(fields: Any, number: int, table: TomlTable) -> Rule:
    def refuse(words: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{table.where('rules')}: rule {number}: {words}", hint=hint)

    if type(fields) is not dict:
        raise refuse('must be a table, as in { action = "exclude", executable = "/opt/*" }')
    if strangers := [key for key in fields if key not in Rule._fields]:
        raise refuse(f"unknown key {strangers[0]!a}", f"known keys are {', '.join(Rule._fields)}")
    if fields.get("action") not in ACTIONS:
        raise refuse(f"action must be {' or '.join(ACTIONS)}")
    for key, most in TEXTS.items():
        if key in fields and not (type(fields[key]) is str and fields[key].isprintable() and fields[key]):
            hint = f'a number stands in quotes: user = "{fields[key]}"' if key == "user" and type(fields[key]) is int else None
            raise refuse(f"{key} must be a text of printable characters", hint)
        if len(fields.get(key, "")) > most:
            raise refuse(f"{key} has {len(fields[key])} characters, at most {most} are allowed")
        if key in PATTERNS and _has_open_bracket(fields.get(key, "")):
            raise refuse(f"{key} has a [ without its ]", "[[] stands for the character itself")
    user = fields.get("user")
    if user is not None and user.isdigit() and not (user.isascii() and str(int(user)) == user and int(user) < _UID_END):
        raise refuse(f"user {user[:20]!a} is no number that a user can have")
    return Rule(**fields | {"signal": _parse_signal(fields["signal"], refuse) if "signal" in fields else None})


def _has_open_bracket(pattern: str) -> bool:
    """Return whether a ``[`` begins no set of characters; fnmatch takes it for the character then, which nobody means."""
    return "[" in _SET.sub("", pattern)


def _parse_signal(value: Any, refuse: Callable[[str], ConfigError]) -> int:
    """Return the number of a signal that stands there by its name or its number."""
    number: Any = signal.Signals.__members__.get(value) if type(value) is str else value
    if type(number) not in (int, signal.Signals) or not 1 <= number <= _SIGNAL_MAX:
        raise refuse('signal must be a name or a number, as in "SIGABRT" or 6')
    return int(number)


def _encode_rule(rule: Rule) -> str:
    # A JSON string without escapes for what is not ASCII is a TOML basic string; control characters were refused before.
    fields = {key: json.dumps(value, ensure_ascii=False) for key, value in rule._asdict().items() if value is not None}
    if (name := _SIGNAL_NAMES.get(rule.signal or 0)) is not None:
        fields["signal"] = f'"{name}"'
    return f"{{ {', '.join(f'{key} = {text}' for key, text in fields.items())} }}"

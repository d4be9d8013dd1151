"""What a sender takes of the crashes that it meets, before a byte is stored: values of sender.toml, and what they say of one crash.

Everything is taken by default, but for processes that want no core themselves, and for what a storm has too much of (storms.py).
"""

import os

from securecore import limits
from securecore.declarations import Any, Final, NamedTuple
from securecore.report import CrashReport
from securecore.sender import storm_limits

INCLUDE: Final = "include"
EXCLUDE: Final = "exclude"
ACTIONS: Final = (INCLUDE, EXCLUDE)

RESPECT: Final = "respect"
IGNORE: Final = "ignore"
CORE_LIMITS: Final = (RESPECT, IGNORE)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

TEXTS: Final = {
    "executable": limits.MAX_RULE_PATTERN,
    "user": limits.MAX_RULE_USER,
    "cgroup": limits.MAX_RULE_PATTERN,
    "unit": limits.MAX_RULE_UNIT,
}
"""The fields of a rule that are text, and how many characters each may have."""
PATTERNS: Final = ("executable", "cgroup", "unit")
"""Those of them that are patterns."""


class Rule(NamedTuple):
    """One rule. It fits a crash that is all that it says; what is None says nothing.

    Patterns are those of fnmatch(3) without its special treatment of ``/``: a ``*`` takes any number of any characters.
    """

    action: str
    executable: str | None = None
    """A pattern for the path, as /proc/PID/task/TID/exe has it: that of the process's own mount namespace."""
    user: str | None = None
    """A number, or in a configuration the name that set-up resolves."""
    cgroup: str | None = None
    """A pattern for the path in the cgroup hierarchy, as in ``/user.slice/*``."""
    unit: str | None = None
    """A pattern for the systemd unit, as in ``ci-*.service``."""
    signal: int | None = None

    def fits(self, report: CrashReport) -> bool:
        """Return whether the rule is about this crash; a fact that is not known fits no rule that asks for it."""
        patterns = ((self.executable, report.executable), (self.cgroup, report.cgroup), (self.unit, report.unit))
        return (
            self.signal in (None, report.signal)
            and (self.user is None or self.user == str(report.uid))
            and all(pattern is None or (text is not None and _matches(text, pattern)) for pattern, text in patterns)
        )


def _matches(text: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase  # most machines have no rules, and no use for compiled patterns

    return fnmatchcase(text, pattern)


class StormLimit(NamedTuple):
    """A token bucket: *burst* dumps at once, and one more every *every_s* seconds. A burst of 0 is no limit."""

    burst: int
    every_s: int

    @property
    def whole_ms(self) -> int:
        """How long an empty bucket takes to fill."""
        return self.burst * self.every_s * 1000


class Admission(NamedTuple):
    """All of it."""

    core_limit: str = RESPECT
    """``respect``: a soft RLIMIT_CORE below a page means that nobody wants this core, though the kernel enforces it for no pipe.

    ``ignore``: it means nothing.
    """
    max_size: int | None = None
    """Bytes that the ELF headers may announce; None is no bound. What announces nothing is taken."""
    rules: tuple[Rule, ...] = ()
    """The first one that fits decides; what fits none is taken."""
    program: StormLimit = StormLimit(storm_limits.PROGRAM_BURST, storm_limits.PROGRAM_EVERY_S)
    """Of each file that a user has run: its device and inode, not its name."""
    user: StormLimit = StormLimit(storm_limits.USER_BURST, storm_limits.USER_EVERY_S)
    """Of each uid."""
    host: StormLimit = StormLimit(storm_limits.HOST_BURST, storm_limits.HOST_EVERY_S)
    """Of all of them together."""

    def find_refusal(self, report: CrashReport) -> str | None:
        """Return the words that decline a crash, by its process's own limit or by a rule; None when it is taken."""
        if self.core_limit == RESPECT and report.core_limit is not None and report.core_limit < _PAGE_BYTES:
            return "RLIMIT_CORE"
        for number, rule in enumerate(self.rules, 1):
            if rule.fits(report):
                return f"rule {number}" if rule.action == EXCLUDE else None
        return None

    def find_oversize(self, predicted_size: int | None) -> str | None:
        """Return the words that decline a core of this size, None when it is taken; what announces no size is."""
        if self.max_size is None or predicted_size is None or predicted_size <= self.max_size:
            return None
        return f"{predicted_size} bytes, max_size is {self.max_size}"

    def encode(self) -> dict[str, Any]:
        """Return the JSON object that parse_admission reads."""
        fields: dict[str, Any] = self._asdict()
        storms = {"program": [*self.program], "user": [*self.user], "host": [*self.host]}
        return fields | storms | {"rules": [rule._asdict() for rule in self.rules]}


def parse_admission(fields: dict[str, Any]) -> Admission:
    """Return what Admission.encode wrote; raises ValueError, TypeError or AttributeError on anything else."""
    rules = tuple(Rule(**rule) for rule in fields["rules"])
    # What an earlier setup has compiled knows no limit of the host, and means the usual one.
    host = StormLimit(*fields.get("host", Admission().host))
    found = Admission(**fields)._replace(
        rules=rules, program=StormLimit(*fields["program"]), user=StormLimit(*fields["user"]), host=host
    )
    if found.core_limit not in CORE_LIMITS or not (found.max_size is None or _is_count(found.max_size)):
        raise ValueError
    if not all(map(_is_count, (*found.program, *found.user, *found.host))):
        raise ValueError
    if not all(map(_is_rule, rules)) or len(rules) > limits.MAX_RULES:
        raise ValueError
    return found


def _is_rule(rule: Rule) -> bool:
    texts = ((getattr(rule, name), most) for name, most in TEXTS.items())
    are_texts = all(text is None or (type(text) is str and len(text) <= most) for text, most in texts)
    return rule.action in ACTIONS and are_texts and (rule.signal is None or _is_count(rule.signal))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63

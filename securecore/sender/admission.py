"""What a sender takes of the crashes that it meets, before a byte is stored: values of sender.toml, and what they say of one crash.

Everything is taken by default, but for processes that want no core themselves, and for what a storm has too much of (storms.py).
"""

from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.report import CrashReport

INCLUDE: Final = "include"
EXCLUDE: Final = "exclude"
ACTIONS: Final = (INCLUDE, EXCLUDE)

RESPECT: Final = "respect"
IGNORE: Final = "ignore"
CORE_LIMITS: Final = (RESPECT, IGNORE)


class Rule(NamedTuple):
    """One rule. It fits a crash that is all that it says; what is None says nothing.

    Patterns are those of fnmatch(3) without its special treatment of ``/``: a ``*`` takes any number of any characters.
    """

    action: str
    executable: str | None = None
    """A pattern for the path, as /proc/PID/exe has it: that of the process's own mount namespace."""
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
            and all(pattern is None or (text is not None and fnmatchcase(text, pattern)) for pattern, text in patterns)
        )


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
    """``respect``: a soft RLIMIT_CORE below a page means that nobody wants this core. ``ignore``: it means nothing."""
    max_size: int | None = None
    """Bytes that the ELF headers may announce; None is no bound. What announces nothing is taken."""
    rules: tuple[Rule, ...] = ()
    """The first one that fits decides; what fits none is taken."""
    program: StormLimit = StormLimit(limits.PROGRAM_BURST, limits.PROGRAM_EVERY_S)
    """Of each file that a user has run: its device and inode, not its name."""
    user: StormLimit = StormLimit(limits.USER_BURST, limits.USER_EVERY_S)
    """Of each uid."""

    @property
    def respects_core_limit(self) -> bool:
        """Whether a process is taken at its word that wants no core."""
        return self.core_limit == RESPECT

    def find_refusal(self, report: CrashReport) -> str | None:
        """Return the words of the rule that declines a crash; None when it is taken."""
        for number, rule in enumerate(self.rules, 1):
            if rule.fits(report):
                return f"rule {number}" if rule.action == EXCLUDE else None
        return None

    def encode(self) -> dict[str, Any]:
        """Return the JSON object that parse_admission reads."""
        fields: dict[str, Any] = self._asdict()
        return fields | {"rules": [rule._asdict() for rule in self.rules], "program": [*self.program], "user": [*self.user]}


def parse_admission(fields: dict[str, Any]) -> Admission:
    """Return what Admission.encode wrote; raises ValueError, TypeError or AttributeError on anything else."""
    rules = tuple(Rule(**rule) for rule in fields["rules"])
    found = Admission(**fields)._replace(rules=rules, program=StormLimit(*fields["program"]), user=StormLimit(*fields["user"]))
    if found.core_limit not in CORE_LIMITS or not (found.max_size is None or _is_count(found.max_size)):
        raise ValueError
    if not all(map(_is_count, (*found.program, *found.user))) or not all(map(_is_rule, rules)) or len(rules) > limits.MAX_RULES:
        raise ValueError
    return found


def _is_rule(rule: Rule) -> bool:
    texts = (rule.executable, rule.user, rule.cgroup, rule.unit)
    is_text = all(text is None or type(text) is str for text in texts)
    return rule.action in ACTIONS and is_text and (rule.signal is None or _is_count(rule.signal))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63

"""The table [admission] of sender.toml: rules and bounds are read as they stand, and a mistake is named with its place."""

import pytest

from securecore.errors import ConfigError
from securecore.names import Address
from securecore.sender import storm_limits
from securecore.sender.admission import Admission, Rule, StormLimit
from securecore.sender.admission_table import resolve_users
from securecore.sender.configuration import SenderConfiguration, parse_configuration
from securecore.sender.spool_limits import SpoolLimits

GOOD = 'version = 1\nreceivers = ["collector.example:4455"]\nidentity = "/etc/securecore/identity"\n'


ADMITTING = GOOD + "[admission]\n"


def admission_of(text: str) -> Admission | None:
    """Return what the lines of a table [admission] say."""
    configuration = parse_configuration((ADMITTING + text).encode(), "sender.toml")
    assert isinstance(configuration, SenderConfiguration)
    return configuration.admission


def test_an_admission_that_is_left_out_is_the_versions() -> None:
    """Who changes one thing of it says nothing about the others."""
    nothing = parse_configuration(GOOD.encode(), "sender.toml")
    assert isinstance(nothing, SenderConfiguration)
    assert nothing.admission is None
    assert admission_of("") == Admission()
    assert admission_of("program_burst = 0\n") == Admission(program=StormLimit(0, storm_limits.PROGRAM_EVERY_S))
    assert admission_of('user_every = "1h"\n') == Admission(user=StormLimit(storm_limits.USER_BURST, 3600))
    assert admission_of("host_burst = 7\n") == Admission(host=StormLimit(7, storm_limits.HOST_EVERY_S))
    assert admission_of('max_size = "20GiB"\n') == Admission(max_size=20 << 30)


def test_rules_are_read_in_their_order() -> None:
    """Signals by name or number; what a rule does not say, it does not ask."""
    rules = ('{ action = "include", user = "ci", signal = 6 }', '{ action = "exclude", unit = "a*", signal = "SIGSEGV" }')
    found = admission_of(f"rules = [\n{','.join(rules)},\n]\n")
    assert found is not None
    assert found.rules == (Rule("include", user="ci", signal=6), Rule("exclude", unit="a*", signal=11))


def test_the_example_that_every_new_file_has_is_one() -> None:
    """Without its `#` it reads, and says what holds without it, but for a size and the rules."""
    text = SenderConfiguration((Address("collector.example:4455"),), "/etc/securecore/identity").encode().decode()
    lines = [line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()]
    configuration = parse_configuration("\n".join(lines).encode(), "sender.toml")

    assert isinstance(configuration, SenderConfiguration)
    assert configuration.admission is not None
    assert len(configuration.admission.rules) == 4
    assert configuration.admission._replace(rules=(), max_size=None) == Admission()
    assert configuration.spool_limits == SpoolLimits()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_sise = 1\n", "sender.toml:5: unknown key 'max_sise'"),
        ('core_limit = "perhaps"\n', "sender.toml:5: core_limit must be respect or ignore, not 'perhaps'"),
        ("core_limit = 0\n", "sender.toml:5: core_limit must be a text"),
        ('max_size = "much"\n', "sender.toml:5: max_size must be a size"),
        ("\nmax_size = 0\n", "sender.toml:6: max_size must be above 0"),
        ("program_burst = -1\n", "sender.toml:5: program_burst must be 0 to 100000"),
        ("\nuser_burst = true\n", "sender.toml:6: user_burst must be a number"),
        ('user_every = "0s"\n', "sender.toml:5: user_every must be a length of time"),
        ("user_every = 60\n", "sender.toml:5: user_every must be a text"),
        ("host_burst = 100001\n", "sender.toml:5: host_burst must be 0 to 100000"),
        ('program_every = "2d"\n', "sender.toml:5: program_every must be a day at most"),
        ("rules = 7\n", "sender.toml:5: rules must be a list"),
        ("rules = [7]\n", "sender.toml:5: rule 1: must be a table"),
        ("rules = [{}]\n", "sender.toml:5: rule 1: action must be include or exclude"),
        ('rules = [{ action = "drop" }]\n', "sender.toml:5: rule 1: action must be include or exclude"),
        ('rules = [\n{ action = "exclude" },\n{ action = "exclude", exe = "x" }]\n', "sender.toml:5: rule 2: unknown key 'exe'"),
        ('rules = [{ action = "exclude", executable = 7 }]\n', "sender.toml:5: rule 1: executable must be a text"),
        (f'rules = [{{ action = "exclude", unit = "{"x" * 256}" }}]\n', "sender.toml:5: rule 1: unit has 256 characters"),
        (f'rules = [{{ action = "exclude", user = "{"x" * 256}" }}]\n', "sender.toml:5: rule 1: user has 256 characters"),
        (f'rules = [{{ action = "exclude", cgroup = "{"x" * 4097}" }}]\n', "sender.toml:5: rule 1: cgroup has 4097 characters"),
        ('rules = [{ action = "exclude", unit = "" }]\n', "sender.toml:5: rule 1: unit must be a text"),
        ('rules = [{ action = "exclude", cgroup = "a\\nb" }]\n', "sender.toml:5: rule 1: cgroup must be a text of printable"),
        ('rules = [{ action = "exclude", user = "4294967295" }]\n', "sender.toml:5: rule 1: user '4294967295' is no number"),
        ('rules = [{ action = "exclude", user = "007" }]\n', "sender.toml:5: rule 1: user '007' is no number"),
        ('rules = [{ action = "exclude", user = "\u00b2" }]\n', "sender.toml:5: rule 1: user '\\xb2' is no number"),
        ('rules = [{ action = "exclude", signal = "ABRT" }]\n', "sender.toml:5: rule 1: signal must be a name or a number"),
        ('rules = [{ action = "exclude", signal = 65 }]\n', "sender.toml:5: rule 1: signal must be a name or a number"),
        ('rules = [{ action = "exclude", signal = true }]\n', "sender.toml:5: rule 1: signal must be a name or a number"),
        ('rules = [{ action = "exclude", signal = "__class__" }]\n', "sender.toml:5: rule 1: signal must be a name or a number"),
        ("rules = [" + '{ action = "exclude" },' * 65 + "]\n", "sender.toml:5: rules are 65, at most 64 are allowed"),
    ],
)
def test_mistake_in_an_admission_is_named_with_its_place(text: str, message: str) -> None:
    """The line of the key; of a rule that of `rules`, and which one it is."""
    with pytest.raises(ConfigError) as caught:
        admission_of(text)
    assert caught.value.message.startswith(message)


def test_a_number_of_a_user_without_quotes_is_told_with_them() -> None:
    """People write it so, and a text of characters is no word that helps them."""
    with pytest.raises(ConfigError) as caught:
        admission_of('rules = [{ action = "exclude", user = 1000 }]\n')

    assert caught.value.hint == 'a number stands in quotes: user = "1000"'


@pytest.mark.parametrize("field", ["executable", "cgroup", "unit"])
@pytest.mark.parametrize("pattern", ["[a", "[", "a[b]c[d", "[]", "[!]", "[!"])
def test_a_pattern_with_a_set_that_never_ends_is_refused(field: str, pattern: str) -> None:
    """It would fit nothing but its own characters."""
    with pytest.raises(ConfigError) as caught:
        admission_of(f'rules = [{{ action = "exclude", {field} = "{pattern}" }}]\n')

    assert caught.value.message == f"sender.toml:5: rule 1: {field} has a [ without its ]"
    assert caught.value.hint == "[[] stands for the character itself"


@pytest.mark.parametrize("pattern", ["[a]", "[[]", "[]]", "[!]]", "x[0-9][!a]]", "]"])
def test_a_pattern_with_whole_sets_is_taken(pattern: str) -> None:
    """A `]` that comes first belongs to the set, and one without a `[` is a character."""
    (rule,) = admission_of(f'rules = [{{ action = "exclude", unit = "{pattern}" }}]\n').rules

    assert rule.unit == pattern


def test_names_of_users_are_resolved_once() -> None:
    """Numbers stay; a name that stands for nobody is an error with the rule's number, and not a rule that never fits."""
    admission = Admission(rules=(Rule("exclude", user="ci"), Rule("exclude", user="7"), Rule("exclude", signal=6)))
    resolved = resolve_users(admission, {"ci": 990}.get, "sender.toml")

    assert [rule.user for rule in resolved.rules] == ["990", "7", None]
    with pytest.raises(ConfigError, match=r"sender\.toml: rule 1: user 'ci' is not in /etc/passwd"):
        resolve_users(admission, {}.get, "sender.toml")

"""The sender's admission as values: which rule speaks of a crash, and what comes back from the settings."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.report import CrashReport
from securecore.sender import storm_limits
from securecore.sender.admission import EXCLUDE, INCLUDE, Admission, Rule, StormLimit, parse_admission

NGINX = CrashReport(executable="/usr/sbin/nginx", uid=33, cgroup="/system.slice/nginx.service", unit="nginx.service", signal=11)


def test_everything_is_taken_by_default() -> None:
    """No rule, no refusal; not even where nothing is known."""
    assert Admission().find_refusal(NGINX) is None
    assert Admission().find_refusal(CrashReport()) is None


@pytest.mark.parametrize(
    "rule",
    [
        Rule(EXCLUDE),
        Rule(EXCLUDE, executable="/usr/sbin/nginx"),
        Rule(EXCLUDE, executable="/usr/*"),
        Rule(EXCLUDE, executable="*/ngin?"),
        Rule(EXCLUDE, executable="/usr/sbin/[m-o]ginx"),
        Rule(EXCLUDE, user="33"),
        Rule(EXCLUDE, cgroup="/system.slice/*"),
        Rule(EXCLUDE, unit="nginx*.service"),
        Rule(EXCLUDE, signal=11),
        Rule(EXCLUDE, "/usr/sbin/nginx", "33", "/system.slice/*", "nginx.service", 11),
    ],
    ids=str,
)
def test_a_rule_that_fits_declines(rule: Rule) -> None:
    """By path, user, cgroup, unit or signal; by all of them where it says all of them."""
    assert Admission(rules=(rule,)).find_refusal(NGINX) == "rule 1"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(EXCLUDE, executable="nginx"),
        Rule(EXCLUDE, executable="/usr/sbin/NGINX"),
        Rule(EXCLUDE, executable="/usr/sbin"),
        Rule(EXCLUDE, user="3"),
        Rule(EXCLUDE, user="0"),
        Rule(EXCLUDE, cgroup="/user.slice/*"),
        Rule(EXCLUDE, unit="nginx"),
        Rule(EXCLUDE, signal=6),
        Rule(EXCLUDE, "/usr/sbin/nginx", "33", "/system.slice/*", "nginx.service", 6),
    ],
    ids=str,
)
def test_a_rule_that_fits_in_part_says_nothing(rule: Rule) -> None:
    """The whole path, not the name alone; letters are not folded; one word that does not fit is enough."""
    assert Admission(rules=(rule,)).find_refusal(NGINX) is None


@pytest.mark.parametrize("rule", [Rule(EXCLUDE, executable="*"), Rule(EXCLUDE, user="0"), Rule(EXCLUDE, unit="*")], ids=str)
def test_what_is_not_known_fits_no_rule(rule: Rule) -> None:
    """A process whose /proc was gone is taken, not declined by a pattern for everything."""
    assert Admission(rules=(rule,)).find_refusal(CrashReport(signal=11)) is None


def test_the_first_rule_that_fits_decides() -> None:
    """An include before an exclude is an exception from it; behind it, it says nothing."""
    keep, drop = Rule(INCLUDE, executable="/usr/sbin/nginx"), Rule(EXCLUDE, executable="/usr/*")
    other = NGINX._replace(executable="/usr/bin/curl")

    assert [Admission(rules=(keep, drop)).find_refusal(report) for report in (NGINX, other)] == [None, "rule 2"]
    assert [Admission(rules=(drop, keep)).find_refusal(report) for report in (NGINX, other)] == ["rule 1", "rule 1"]


texts = st.none() | st.text(max_size=20)
counts = st.integers(0, (1 << 63) - 1)
rules = st.builds(Rule, st.sampled_from([INCLUDE, EXCLUDE]), texts, texts, texts, texts, st.none() | st.integers(0, 64))
bounds = st.builds(StormLimit, counts, counts)
admissions = st.builds(
    Admission, st.sampled_from(["respect", "ignore"]), st.none() | counts, st.lists(rules, max_size=3).map(tuple),
    bounds, bounds, bounds,
)  # fmt: skip


def test_a_rule_may_say_so_much_and_no_more() -> None:
    """The longest name of a file, of a unit and of a user: each handler makes a regular expression of it, and a process waits."""
    longest = Admission(rules=(Rule(EXCLUDE, "x" * 255, "u" * 255, "c" * 255, "s" * 255),))
    assert parse_admission(longest.encode()) == longest
    for field in ("executable", "user", "cgroup", "unit"):
        (rule,) = longest.rules
        longer = longest._replace(rules=(rule._replace(**{field: "x" * 256}),))
        with pytest.raises(ValueError):  # whatever the words
            parse_admission(longer.encode())


@given(admissions)
def test_an_admission_survives(admission: Admission) -> None:
    """parse(encode(a)) == a."""
    assert parse_admission(admission.encode()) == admission


def test_what_knows_no_limit_of_the_host_means_the_usual_one() -> None:
    """Settings that an earlier version has compiled are still understood."""
    assert parse_admission(changed(host="absent")).host == StormLimit(storm_limits.HOST_BURST, storm_limits.HOST_EVERY_S)


def changed(**fields: Any) -> dict[str, Any]:
    """Return a good object with fields replaced; None removes one."""
    document = Admission(rules=(Rule(EXCLUDE, signal=6),)).encode() | fields
    return {key: value for key, value in document.items() if value != "absent"}


BAD = {
    "a key is missing": changed(user="absent"),
    "a key too many": changed(surprise=1),
    "another policy": changed(core_limit="perhaps"),
    "a size that is text": changed(max_size="1GiB"),
    "a size below nothing": changed(max_size=-1),
    "rules that are none": changed(rules=[[]]),
    "rules that are a number": changed(rules=7),
    "an action that is none": changed(rules=[{"action": "drop"}]),
    "a rule with a key too many": changed(rules=[{"action": "exclude", "name": "x"}]),
    "a pattern that is a number": changed(rules=[{"action": "exclude", "executable": 7}]),
    "a user that is a number": changed(rules=[{"action": "exclude", "user": 7}]),
    "a signal that is text": changed(rules=[{"action": "exclude", "signal": "SIGABRT"}]),
    "a signal that is true": changed(rules=[{"action": "exclude", "signal": True}]),
    "a pattern that is too long": changed(rules=[{"action": "exclude", "executable": "x" * 4097}]),
    "a cgroup that is too long": changed(rules=[{"action": "exclude", "cgroup": "x" * 4097}]),
    "a unit that is too long": changed(rules=[{"action": "exclude", "unit": "x" * 256}]),
    "a user that is too long": changed(rules=[{"action": "exclude", "user": "x" * 256}]),
    "too many rules": changed(rules=[{"action": "exclude"}] * (limits.MAX_RULES + 1)),
    "a limit of one number": changed(program=[10]),
    "a limit that is text": changed(program="10 every 5m"),
    "a burst that is no whole number": changed(user=[1.5, 60]),
    "a burst below nothing": changed(user=[-1, 60]),
    "a host's limit that is none": changed(host=[60]),
    "a host's burst below nothing": changed(host=[-1, 60]),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    """Half-understood rules would decline the wrong cores."""
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        parse_admission(BAD[name])

"""The one rule from text to a host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.identity import host_from_dns_names, host_from_operator
from securecore.names import HostName, NameRefused


def test_a_certificate_stands_for_its_only_name() -> None:
    """Exactly as written."""
    assert host_from_dns_names(["web-1.example.org"]) == HostName("web-1.example.org")


@pytest.mark.parametrize("names", [[], ["a.example", "b.example"], ["a.example", "a.example"]])
def test_a_certificate_with_no_name_or_several_stands_for_nobody(names: list[str]) -> None:
    """Not even the same name twice."""
    with pytest.raises(NameRefused, match=f"this one names {len(names)}"):
        host_from_dns_names(names)


@pytest.mark.parametrize("name", ["WEB-1.example.org", "web-1.example.org.", " a.example", "*.example.org", "web-1", "a.b\0.c", ""])
def test_a_certificate_s_name_is_refused_and_not_mended(name: str) -> None:
    """Two spellings of one name would be two directories."""
    with pytest.raises(NameRefused):
        host_from_dns_names([name])


@pytest.mark.parametrize(
    ("text", "domain", "expected"),
    [
        ("web-1", "example.org", "web-1.example.org"),
        ("WEB-1", "Example.ORG", "web-1.example.org"),
        (" web-1\n", "example.org", "web-1.example.org"),
        ("web-1.other.example", "example.org", "web-1.other.example"),
        ("web-1.example.org", None, "web-1.example.org"),
    ],
)
def test_an_operator_may_write_a_short_name(text: str, domain: str | None, expected: str) -> None:
    """Folded, and completed with the fleet's domain when it has no dot."""
    assert host_from_operator(text, domain) == HostName(expected)


@pytest.mark.parametrize("domain", [None, ""])
def test_a_short_name_without_a_domain_is_refused(domain: str | None) -> None:
    """The hint says what to write."""
    with pytest.raises(NameRefused, match="not a full host name") as refused:
        host_from_operator("web-1", domain)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["", "-a", "a b", "a/b", "..", "web\u00a01", "web-\u212a", "\uff57eb", "b\u00fccher", "a\u3002b"])
def test_what_folding_would_turn_into_another_name_is_refused(text: str) -> None:
    """The Kelvin sign folds to k: nobody is issued a name that was not typed."""
    with pytest.raises(NameRefused):
        host_from_operator(text, "example.org")


@given(st.text(max_size=30), st.sampled_from(["example.org", None]))
def test_what_an_operator_may_write_a_certificate_may_carry(text: str, domain: str | None) -> None:
    """Issuer and receiver agree: the result is a name that host_from_dns_names gives back."""
    try:
        host = host_from_operator(text, domain)
    except NameRefused:
        return
    assert host_from_dns_names([str(host)]) == host

"""Revocation: which list counts, what it says, and what happens when it is old or missing."""

from base64 import b64decode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.certs.chain import Anchors
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, judge
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER
from securecore.certs.revocation import MAX_LISTS, RevocationLists
from securecore.errors import ConfigError
from tests.support.certificates import Hierarchy, Made, make_crl, make_hierarchy, make_key, mint, tlv
from tests.support.der import elements, paths, pem, replaced, signed

NOW = datetime.now(UTC).replace(microsecond=0)
DATE = datetime(2026, 11, 20, 12, tzinfo=UTC)


def judged(hierarchy: Hierarchy, purpose: Purpose = Purpose.HOST) -> Judgement:
    """Return the judgement of a fresh leaf."""
    leaf = mint(HOST, issuer=hierarchy.hosts) if purpose is Purpose.HOST else mint(RECEIVER, issuer=hierarchy.receivers)
    return judge(leaf.der, [], hierarchy.anchors, purpose, NOW)


def lists(hierarchy: Hierarchy, *pems: bytes) -> RevocationLists:
    """Return the lists of these CRLs beside an empty one of the root."""
    return RevocationLists.parse(make_crl(hierarchy.root, now=NOW, days=365) + b"".join(pems), hierarchy.anchors)


def refusal_of(found: RevocationLists, judgement: Judgement, now: datetime = NOW) -> Refusal:
    """Return the refusal of a judged certificate."""
    with pytest.raises(Refusal) as caught:
        found.check(judgement, now)
    return caught.value


def test_certificate_on_no_list_passes(hierarchy: Hierarchy) -> None:
    """With fresh, empty lists a good host and a good receiver pass, without warnings."""
    found = lists(hierarchy, make_crl(hierarchy.hosts, now=NOW), make_crl(hierarchy.receivers, now=NOW))
    found.check(judged(hierarchy), NOW)
    found.check(judged(hierarchy, Purpose.RECEIVER), NOW)
    assert found.warnings(NOW) == []


def test_revoked_host_is_refused_with_date_and_reason(hierarchy: Hierarchy) -> None:
    """The words are those that the host's operator will see."""
    judgement = judged(hierarchy)
    found = lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, revoked={judgement.serial: (DATE, "keyCompromise")}))
    refusal = refusal_of(found, judgement)
    assert refusal.message == "this host's certificate was revoked on 2026-11-20 (keyCompromise)"
    assert refusal.reason is Reason.REVOKED


def test_revocation_without_reason_says_unspecified(hierarchy: Hierarchy) -> None:
    """An entry without a reason code is as final as one with."""
    judgement = judged(hierarchy)
    found = lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, revoked={judgement.serial: (DATE, "unspecified")}))
    assert "(unspecified)" in refusal_of(found, judgement).message


def test_revoked_issuing_ca_takes_its_hosts_along(hierarchy: Hierarchy) -> None:
    """The issuing CA is looked up in the root's list."""
    revoked = {hierarchy.hosts.certificate.serial_number: (DATE, "cACompromise")}
    root_crl = make_crl(hierarchy.root, now=NOW, number=2, revoked=revoked)
    refusal = refusal_of(lists(hierarchy, root_crl, make_crl(hierarchy.hosts, now=NOW)), judged(hierarchy))
    expected = "the certificate of the hosts CA was revoked on 2026-11-20 (cACompromise)"
    assert (Reason.REVOKED, expected) == (refusal.reason, refusal.message)


def test_same_serial_of_another_ca_is_another_certificate(hierarchy: Hierarchy) -> None:
    """Serial numbers are unique for one issuer only: a receiver's revocation leaves the host with that number alone."""
    judgement = judged(hierarchy)
    receivers = make_crl(hierarchy.receivers, now=NOW, revoked={judgement.serial: (DATE, "superseded")})
    lists(hierarchy, make_crl(hierarchy.hosts, now=NOW), receivers).check(judgement, NOW)


@pytest.mark.parametrize("missing", ["hosts", "root"])
def test_missing_list_refuses(missing: str, hierarchy: Hierarchy) -> None:
    """Without the list that would name it, a certificate is not believed."""
    others = {"hosts": hierarchy.root, "root": hierarchy.hosts}
    found = RevocationLists.parse(make_crl(others[missing], now=NOW), hierarchy.anchors)
    refusal = refusal_of(found, judged(hierarchy))
    assert refusal.reason is Reason.CRL_MISSING
    assert "no revocation list of" in refusal.message
    assert refusal.hint is not None
    assert "pki crl" in refusal.hint


def test_expired_list_counts_during_the_grace_and_no_longer(hierarchy: Hierarchy) -> None:
    """The grace ends at the second; a certificate on the list stays revoked either way."""
    judgement = judged(hierarchy)
    crl = make_crl(hierarchy.hosts, now=NOW - timedelta(days=31), days=30)
    found = lists(hierarchy, crl)
    end = NOW - timedelta(days=1) + timedelta(seconds=limits.CRL_GRACE_S)
    found.check(judgement, end)
    refusal = refusal_of(found, judgement, end + timedelta(seconds=1))
    assert refusal.reason is Reason.CRL_EXPIRED
    with pytest.raises(Refusal):
        found.check(judgement, NOW, grace_s=0)
    revoked = {judgement.serial: (DATE, "superseded")}
    naming = make_crl(hierarchy.hosts, now=NOW - timedelta(days=31), days=30, revoked=revoked)
    assert refusal_of(lists(hierarchy, naming), judgement, end + timedelta(days=99)).reason is Reason.REVOKED


def test_list_that_says_it_never_ends_is_taken(hierarchy: Hierarchy) -> None:
    """nextUpdate may stand at the end of time (RFC 5280 section 4.1.2.5): no later moment is computed."""
    never = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    judgement = judged(hierarchy)
    found = lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, days=(never - NOW) / timedelta(days=1)))
    found.check(judgement, NOW)
    found.check(judgement, NOW + timedelta(days=300))
    assert found.warnings(NOW) == []


YEAR_0 = tlv(0x18, b"00000101000000Z")


def with_dates(crl_pem: bytes, issuer: Made, dates: dict[int, bytes]) -> bytes:
    """Return a list with other dates, by their number within it (thisUpdate is 0), signed again by its CA."""
    body = elements(elements(b64decode(b"".join(crl_pem.split(b"\n")[1:-2])))[0].content)[0]
    ways = [path for path, element in paths(body) if element.tag == 0x17]
    for number, new in dates.items():
        body = elements(replaced(body, ways[number], new))[0]
    return pem("X509 CRL", signed(body.whole, issuer.key))


@pytest.mark.parametrize("number", [0, 1])
def test_list_with_a_date_in_no_calendar_is_refused(number: int, hierarchy: Hierarchy) -> None:
    """ASN.1 has a year 0, and Python's calendar has none."""
    crl = with_dates(make_crl(hierarchy.hosts, now=NOW), hierarchy.hosts, {number: YEAR_0})
    with pytest.raises(ConfigError, match="can't be read"):
        RevocationLists.parse(crl, hierarchy.anchors)


def test_revocation_with_a_date_in_no_calendar_counts(hierarchy: Hierarchy) -> None:
    """A certificate on a list is revoked, whatever the list says of when; the list's own date is told instead."""
    judgement = judged(hierarchy)
    crl = make_crl(hierarchy.hosts, now=NOW, revoked={judgement.serial: (DATE, "keyCompromise")})
    refusal = refusal_of(lists(hierarchy, with_dates(crl, hierarchy.hosts, {2: YEAR_0})), judgement)
    assert refusal.reason is Reason.REVOKED
    assert refusal.message == f"this host's certificate was revoked on {NOW:%Y-%m-%d} (keyCompromise)"


def test_expired_root_list_is_refused_after_the_grace(hierarchy: Hierarchy) -> None:
    """The root's list is as necessary as the issuing CA's."""
    root_crl = make_crl(hierarchy.root, now=NOW - timedelta(days=60), days=30)
    found = RevocationLists.parse(root_crl + make_crl(hierarchy.hosts, now=NOW), hierarchy.anchors)
    assert refusal_of(found, judged(hierarchy)).reason is Reason.CRL_EXPIRED


@pytest.mark.parametrize("swap", [False, True])
def test_highest_number_wins_whatever_the_dates_and_the_order(swap: bool, hierarchy: Hierarchy) -> None:
    """OpenSSL takes the newest thisUpdate, so a re-dated old list would hide a revocation; we take the highest CRLNumber."""
    judgement = judged(hierarchy)
    naming = make_crl(
        hierarchy.hosts, number=3, now=NOW - timedelta(hours=1), revoked={judgement.serial: (DATE, "keyCompromise")}
    )
    silent = make_crl(hierarchy.hosts, number=2, now=NOW)
    found = lists(hierarchy, *((naming, silent) if swap else (silent, naming)))
    assert refusal_of(found, judgement).reason is Reason.REVOKED


def test_rollback_is_refused(hierarchy: Hierarchy) -> None:
    """On reload, lists with lower numbers or fewer CAs than those in use are refused."""
    second = lists(hierarchy, make_crl(hierarchy.hosts, number=2, now=NOW))
    first = lists(hierarchy, make_crl(hierarchy.hosts, number=1, now=NOW))
    anchors = hierarchy.anchors
    second.check_not_older_than(first, anchors)
    second.check_not_older_than(second, anchors)
    with pytest.raises(ConfigError, match="number 1, and number 2 is already in use"):
        first.check_not_older_than(second, anchors)
    with pytest.raises(ConfigError, match="is gone"):
        lists(hierarchy).check_not_older_than(first, anchors)


@pytest.mark.parametrize("later_s", [0, 1, -1])
def test_another_list_of_the_same_number_is_refused(later_s: int, hierarchy: Hierarchy) -> None:
    """A second copy of the PKI has signed it, and it may lack a revocation that is in force; whatever its date."""
    revoked = {judged(hierarchy).serial: (DATE, "keyCompromise")}
    naming = lists(hierarchy, make_crl(hierarchy.hosts, number=2, now=NOW, revoked=revoked))
    silent = lists(hierarchy, make_crl(hierarchy.hosts, number=2, now=NOW + timedelta(seconds=later_s)))
    for new, old in ((silent, naming), (naming, silent)):
        with pytest.raises(ConfigError, match="has number 2, and another list with that number is already in use"):
            new.check_not_older_than(old, hierarchy.anchors)
    higher = lists(hierarchy, make_crl(hierarchy.hosts, number=3, now=NOW - timedelta(days=1)))
    higher.check_not_older_than(naming, hierarchy.anchors)


def test_the_list_of_a_ca_that_nobody_believes_any_more_may_go(hierarchy: Hierarchy) -> None:
    """As at the end of a rotation, when ca.pem has lost that CA."""
    before = lists(hierarchy, make_crl(hierarchy.hosts, number=1, now=NOW))
    without = Anchors((hierarchy.root.certificate,), (hierarchy.receivers.certificate,))
    lists(hierarchy).check_not_older_than(before, without)


def test_warnings_come_with_a_third_of_life_left_and_after_the_end(hierarchy: Hierarchy) -> None:
    """Thirty days: nothing at day 19, a warning at day 21, another word at day 31, and one for a list from the future."""
    found = RevocationLists.parse(make_crl(hierarchy.hosts, now=NOW, days=30), hierarchy.anchors)
    assert found.warnings(NOW + timedelta(days=19)) == []
    assert "expires on" in found.warnings(NOW + timedelta(days=21))[0]
    assert "expired on" in found.warnings(NOW + timedelta(days=31))[0]
    assert "made in the future" in found.warnings(NOW - timedelta(days=1))[0]


def test_list_signed_by_another_key_is_refused(hierarchy: Hierarchy) -> None:
    """A list under our CA's name and another's key is an operator's or an attacker's mistake, and is not used."""
    foreign = make_crl(make_hierarchy(suffix=" of others").hosts, now=NOW)
    for forged in (make_crl(hierarchy.hosts, now=NOW, key=make_key()), foreign):
        with pytest.raises(ConfigError, match=r"is not signed by a CA of ca\.pem"):
            lists(hierarchy, forged)


def test_leaf_cannot_sign_a_list(hierarchy: Hierarchy) -> None:
    """A host whose certificate somebody put into ca.pem still revokes nothing: its key may not sign CRLs."""
    leaf = mint(HOST, issuer=hierarchy.hosts)
    anchors = Anchors(hierarchy.anchors.roots, (*hierarchy.anchors.intermediates, leaf.certificate))
    with pytest.raises(ConfigError, match="is not signed by a CA"):
        RevocationLists.parse(make_crl(leaf, now=NOW), anchors)


EXTRAS: dict[str, list[tuple[x509.ExtensionType, bool]]] = {
    "delta": [(x509.DeltaCRLIndicator(1), True)],
    "partial": [(x509.IssuingDistributionPoint(None, None, True, False, None, False, False), True)],
    "unknown": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.7"), b"\x05\x00"), False)],
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_list_of_another_kind_is_refused(kind: str, hierarchy: Hierarchy) -> None:
    """A delta or partial list names fewer certificates than are revoked, so it never stands for the whole."""
    with pytest.raises(ConfigError, match="not a plain, full one"):
        lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, extra=EXTRAS[kind]))


def test_list_without_number_is_refused(hierarchy: Hierarchy) -> None:
    """Without CRLNumber lists can't be put in order."""
    with pytest.raises(ConfigError, match="CRLNumber"):
        lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, number=None))


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_text_that_is_no_list_is_refused(text: bytes, hierarchy: Hierarchy) -> None:
    """An empty or garbled crl.pem is an operator's error, said so."""
    with pytest.raises(ConfigError, match=r"crl\.pem"):
        RevocationLists.parse(text, hierarchy.anchors)


def test_lists_cut_at_every_offset_are_refused(hierarchy: Hierarchy) -> None:
    """A file of several lists that lost its end is refused as a whole: a list that is gone in silence would be a fleet shut out."""
    pem, judgement = make_crl(hierarchy.root, now=NOW) + make_crl(hierarchy.hosts, now=NOW), judged(hierarchy)
    first = pem.index(b"-----END X509 CRL-----\n") + len(b"-----END X509 CRL-----\n")
    for cut in range(len(pem) - 1):
        if first - 1 <= cut <= first + len(b"-----BEGIN X509 CRL----"):
            continue  # One whole list, and nothing yet that would be a second.
        with pytest.raises(ConfigError):
            RevocationLists.parse(pem[:cut], hierarchy.anchors)
        with pytest.raises(ConfigError):
            RevocationLists.parse_for(pem[:cut], judgement)
        with pytest.raises(ConfigError):
            RevocationLists.parse_known(pem[:cut], hierarchy.anchors)
    assert len(RevocationLists.parse(pem[:-1] + b"more text\n", hierarchy.anchors)._lists) == 2


def test_number_and_size_of_lists_are_bounded(hierarchy: Hierarchy) -> None:
    """A crl.pem can't take our memory or our time."""
    crl = make_crl(hierarchy.hosts, now=NOW)
    with pytest.raises(ConfigError, match="expected 1 to"):
        RevocationLists.parse(crl * (MAX_LISTS + 1), hierarchy.anchors)
    with pytest.raises(ConfigError, match="at most"):
        RevocationLists.parse(b"x" * (limits.MAX_CRL_BYTES + 1), hierarchy.anchors)


def test_a_million_beginnings_are_read_once(hierarchy: Hierarchy) -> None:
    """An enroller in a thief's hands, or a bundle, may hold that: as long as such a file may be, it is refused at once."""
    begin = b"-----BEGIN X509 CRL-----\n"
    with pytest.raises(ConfigError, match="begin, 0 are whole"):
        RevocationLists.parse(begin * (limits.MAX_CRL_BYTES // len(begin)), hierarchy.anchors)


@given(st.data())
def test_changed_list_is_refused_or_means_the_same(data: st.DataObject) -> None:
    """Whatever byte of a CRL's text is changed, the revocation it names is not lost silently."""
    offset = data.draw(st.integers(0, len(CRL) - 1))
    changed = CRL[:offset] + bytes([CRL[offset] ^ data.draw(st.integers(1, 255))]) + CRL[offset + 1 :]
    try:
        found = RevocationLists.parse(changed, FIXED.anchors)
    except ConfigError:
        return
    assert refusal_of(found, JUDGEMENT).reason in (Reason.REVOKED, Reason.CRL_MISSING)


FIXED = make_hierarchy(suffix=" of the mutations")
JUDGEMENT = judged(FIXED)
CRL = make_crl(FIXED.hosts, now=NOW, revoked={JUDGEMENT.serial: (DATE, "keyCompromise")})


def test_renewed_ca_certificate_keeps_its_list(hierarchy: Hierarchy) -> None:
    """A list belongs to a CA's name and key, so it counts for each of the CA's certificates."""
    renewed = mint(HOSTS_CA, issuer=hierarchy.root, subject="hosts CA", key=hierarchy.hosts.key)
    leaf = mint(HOST, issuer=Made(renewed.certificate, renewed.key))
    anchors = Anchors(hierarchy.anchors.roots, (renewed.certificate,))
    judgement = judge(leaf.der, [], anchors, Purpose.HOST, NOW)
    naming = make_crl(hierarchy.hosts, now=NOW, revoked={judgement.serial: (DATE, "superseded")})
    assert refusal_of(lists(hierarchy, naming), judgement).reason is Reason.REVOKED


@pytest.mark.slow
def test_large_list_is_checked_in_constant_time(hierarchy: Hierarchy) -> None:
    """With twenty thousand entries the lookup is still a set's, and the right certificate is found."""
    judgement = judged(hierarchy)
    many = {serial: (DATE, "unspecified") for serial in range(1, 20_001)}
    found = lists(hierarchy, make_crl(hierarchy.hosts, now=NOW, revoked={**many, judgement.serial: (DATE, "superseded")}))
    assert "superseded" in refusal_of(found, judgement).message
    found.check(judged(hierarchy), NOW)


def test_who_has_a_judged_chain_alone_finds_its_lists(hierarchy: Hierarchy) -> None:
    """A verifier with the root and what a manifest holds needs no certificate of another CA; the lists count as they do here."""
    judgement = judged(hierarchy)
    others = make_hierarchy()
    revoked = {judgement.serial: (DATE, "keyCompromise")}
    whole = make_crl(hierarchy.root, now=NOW, days=365) + make_crl(hierarchy.receivers, now=NOW) + make_crl(others.hosts, now=NOW)
    RevocationLists.parse_for(whole + make_crl(hierarchy.hosts, now=NOW), judgement).check(judgement, NOW)
    bad = RevocationLists.parse_for(whole + make_crl(hierarchy.hosts, now=NOW, revoked=revoked), judgement)
    assert refusal_of(bad, judgement).reason is Reason.REVOKED
    without = RevocationLists.parse_for(whole, judgement)
    assert refusal_of(without, judgement).reason is Reason.CRL_MISSING


def test_a_list_that_another_key_has_signed_is_none_of_a_chains(hierarchy: Hierarchy) -> None:
    """Whatever name it bears."""
    judgement = judged(hierarchy)
    forged = make_crl(hierarchy.hosts, now=NOW, key=make_key())
    found = RevocationLists.parse_for(make_crl(hierarchy.root, now=NOW) + forged, judgement)
    assert refusal_of(found, judgement).reason is Reason.CRL_MISSING

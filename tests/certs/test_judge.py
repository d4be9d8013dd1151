"""The judge: good chains are believed, and every certificate of pki/refusals.md is refused for the right reason."""

import warnings
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.certs import chain as chain_module
from securecore.certs import judge as judge_module
from securecore.certs.chain import Anchors, fingerprint, load_anchors
from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, alternative_names, find_host, judge
from securecore.certs.profiles import ENROLLER, HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA, ROOT_CA
from securecore.errors import Bug, UntrustedError
from securecore.names import HostName
from tests.support import hostile
from tests.support.certificates import (
    DOMAIN,
    ENROLLER_NAME,
    HOST_NAME,
    RECEIVER_NAME,
    Fleet,
    Hierarchy,
    Made,
    general_names,
    make_hierarchy,
    make_key,
    mint,
    mint_der_of_version_1,
    mint_der_with_serial,
)
from tests.support.hostile import ANY, NOW, SERVER, UNKNOWN_OID

# serial numbers of zero and below: the library warns before it refuses them in a later release; either way we refuse.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")


def refusal_of(leaf: bytes, anchors: Anchors, purpose: Purpose = Purpose.HOST, *, sent: list[bytes] | None = None) -> Refusal:
    """Return the refusal of a leaf, now."""
    with pytest.raises(Refusal) as caught:
        judge(leaf, sent or [], anchors, purpose, NOW)
    return caught.value


def test_host_is_named_by_its_only_dns_name(hierarchy: Hierarchy) -> None:
    """A good host chain yields the dNSName, the serial number, the fingerprints and the dates."""
    leaf = mint(HOST, issuer=hierarchy.hosts)
    judgement = judge(leaf.der, [], hierarchy.anchors, Purpose.HOST, NOW)
    expected = Judgement(
        name=judgement.name,
        fingerprint=fingerprint(leaf.certificate),
        serial=leaf.certificate.serial_number,
        issuer_fingerprint=fingerprint(hierarchy.hosts.certificate),
        not_before=leaf.certificate.not_valid_before_utc,
        not_after=leaf.certificate.not_valid_after_utc,
        purpose=Purpose.HOST,
        chain=(leaf.certificate, hierarchy.hosts.certificate, hierarchy.root.certificate),
    )
    assert expected == judgement
    assert str(judgement.name) == HOST_NAME


def test_receiver_is_named_by_its_first_dns_name(hierarchy: Hierarchy) -> None:
    """A receiver may have several names and addresses; the first name is the one that it signs with."""
    leaf = mint(RECEIVER, issuer=hierarchy.receivers, dns=[RECEIVER_NAME, "other.example.net"], ips=["127.0.0.1", "2001:db8::7"])
    judgement = judge(leaf.der, [], hierarchy.anchors, Purpose.RECEIVER, NOW)
    assert str(judgement.name) == RECEIVER_NAME
    hosts, addresses = alternative_names(leaf.certificate, Purpose.RECEIVER)
    assert [str(host) for host in hosts] == [RECEIVER_NAME, "other.example.net"]
    assert addresses == ["127.0.0.1", "2001:db8::7"]


def test_chain_comes_from_the_peer_when_only_the_root_is_known(hierarchy: Hierarchy) -> None:
    """A sender knows the root only; the issuing CA that the receiver sends completes the chain, in whatever company."""
    root_only = Anchors((hierarchy.root.certificate,), ())
    leaf = mint(RECEIVER, issuer=hierarchy.receivers)
    sent = [hierarchy.root.der, hierarchy.hosts.der, hierarchy.receivers.der]
    assert str(judge(leaf.der, sent, root_only, Purpose.RECEIVER, NOW).name) == RECEIVER_NAME
    assert refusal_of(leaf.der, root_only, Purpose.RECEIVER).reason is Reason.UNKNOWN_ISSUER


def test_real_identities_are_believed_by_each_other(fleet: Fleet) -> None:
    """What the real issuer makes, the judge believes, from either end's own files."""
    host, receiver = load_identity(fleet.host), load_identity(fleet.receiver)
    assert str(judge(host.chain_der[0], [], receiver.anchors, Purpose.HOST, NOW + timedelta(seconds=1)).name) == HOST_NAME
    judgement = judge(receiver.chain_der[0], receiver.chain_der[1:], host.anchors, Purpose.RECEIVER, NOW + timedelta(seconds=1))
    assert str(judgement.name) == RECEIVER_NAME


@pytest.mark.parametrize("case", hostile.HOSTS)
def test_hostile_host_certificate_is_refused(case: str, hierarchy: Hierarchy) -> None:
    """A host certificate that our own CA signed, with one thing wrong, is refused in words that name it.

    Only where that is its dates is it still a certain host's.
    """
    overrides, reason, words = hostile.HOSTS[case]
    leaf = mint(HOST, issuer=hierarchy.hosts, **overrides).der
    refusal = refusal_of(leaf, hierarchy.anchors)
    host = find_host(leaf, hierarchy.anchors)
    assert host == (HostName(HOST_NAME) if reason in (Reason.EXPIRED, Reason.NOT_YET_VALID) else None)
    assert (reason, True) == (refusal.reason, words in refusal.message), refusal.message
    assert refusal.message.isprintable()
    assert isinstance(refusal, UntrustedError)


@pytest.mark.parametrize("case", hostile.RECEIVERS)
def test_hostile_receiver_certificate_is_refused(case: str, hierarchy: Hierarchy) -> None:
    """A receiver certificate that our own CA signed, with one thing wrong, is refused in words that name it."""
    overrides, reason, words = hostile.RECEIVERS[case]
    refusal = refusal_of(mint(RECEIVER, issuer=hierarchy.receivers, **overrides).der, hierarchy.anchors, Purpose.RECEIVER)
    assert (reason, True) == (refusal.reason, words in refusal.message), refusal.message


@pytest.mark.parametrize("case", hostile.ENROLLERS)
def test_hostile_enroller_certificate_is_refused(case: str, hierarchy: Hierarchy) -> None:
    """The same of an enroller's certificate: a receiver, which the same CA has signed, is none."""
    overrides, reason, words = hostile.ENROLLERS[case]
    refusal = refusal_of(mint(ENROLLER, issuer=hierarchy.receivers, **overrides).der, hierarchy.anchors, Purpose.ENROLLER)
    assert (reason, True) == (refusal.reason, words in refusal.message), refusal.message


def test_enroller_is_no_receiver_and_no_host(hierarchy: Hierarchy) -> None:
    """What the receivers CA signs for an enroller is believed where an enroller is expected, and nowhere else."""
    made = mint(ENROLLER, issuer=hierarchy.receivers)
    assert judge(made.der, [], hierarchy.anchors, Purpose.ENROLLER, NOW).name == HostName(ENROLLER_NAME)
    for purpose in (Purpose.HOST, Purpose.RECEIVER):
        assert refusal_of(made.der, hierarchy.anchors, purpose).reason is Reason.WRONG_PURPOSE


def test_hosts_ca_makes_no_enroller(hierarchy: Hierarchy) -> None:
    """Whoever holds the hosts CA's key, as an enroller does, can't make another enroller."""
    made = mint(ENROLLER, issuer=hierarchy.hosts)
    assert refusal_of(made.der, hierarchy.anchors, Purpose.ENROLLER).reason is Reason.WRONG_PURPOSE


def test_serial_of_twenty_one_octets_is_refused(hierarchy: Hierarchy) -> None:
    """RFC 5280 allows at most 20 octets; the builder takes 159 bits, so the bound is reached with 160."""
    leaf = mint(HOST, issuer=hierarchy.hosts, serial=(1 << 159) - 1)
    assert judge(leaf.der, [], hierarchy.anchors, Purpose.HOST, NOW).serial == (1 << 159) - 1
    two_octets = mint_der_with_serial(HOST, hierarchy.hosts, b"\x80\x00")
    assert refusal_of(two_octets, hierarchy.anchors).reason is Reason.PROFILE


def test_version_1_certificate_is_refused(hierarchy: Hierarchy) -> None:
    """A certificate without extensions, which OpenSSL takes even when strict, says neither what it is for nor whose it is."""
    refusal = refusal_of(mint_der_of_version_1(hierarchy.hosts), hierarchy.anchors)
    assert refusal.reason is Reason.WRONG_PURPOSE


def test_host_cannot_pose_as_receiver(hierarchy: Hierarchy) -> None:
    """A host's certificate is refused where a receiver's is expected, and the other way round."""
    host, receiver = mint(HOST, issuer=hierarchy.hosts), mint(RECEIVER, issuer=hierarchy.receivers)
    assert refusal_of(host.der, hierarchy.anchors, Purpose.RECEIVER).reason is Reason.WRONG_PURPOSE
    assert refusal_of(receiver.der, hierarchy.anchors, Purpose.HOST).reason is Reason.WRONG_PURPOSE


def test_hosts_ca_cannot_make_a_receiver(hierarchy: Hierarchy) -> None:
    """A stolen hosts CA can sign a perfect receiver certificate, which is refused for its issuer's purpose; likewise a host's."""
    receiver = mint(RECEIVER, issuer=hierarchy.hosts)
    refusal = refusal_of(receiver.der, hierarchy.anchors, Purpose.RECEIVER)
    expected = "the CA that signed this receiver's certificate is for clientAuth: exactly serverAuth is expected"
    assert (Reason.WRONG_PURPOSE, expected) == (refusal.reason, refusal.message)
    host = mint(HOST, issuer=hierarchy.receivers)
    assert refusal_of(host.der, hierarchy.anchors, Purpose.HOST).reason is Reason.WRONG_PURPOSE


def test_leaf_signed_by_leaf_is_refused(hierarchy: Hierarchy) -> None:
    """A host's key can't sign for another host, even when the chain is sent in full."""
    host = mint(HOST, issuer=hierarchy.hosts)
    child = mint(HOST, issuer=host, dns=[f"db-2.{DOMAIN}"])
    refusal = refusal_of(child.der, hierarchy.anchors, sent=[host.der, hierarchy.hosts.der])
    assert refusal.reason is Reason.UNKNOWN_ISSUER
    assert "not a CA's" in refusal.message


def test_leaf_signed_by_the_root_is_refused(hierarchy: Hierarchy) -> None:
    """The root signs issuing CAs only."""
    refusal = refusal_of(mint(HOST, issuer=hierarchy.root).der, hierarchy.anchors)
    assert refusal.reason is Reason.UNKNOWN_ISSUER
    assert "signed by the root itself" in refusal.message


def test_foreign_certificate_is_refused(hierarchy: Hierarchy) -> None:
    """A certificate of another fleet's PKI is refused by name, even with its whole chain and root sent along."""
    other = make_hierarchy(suffix=" of others")
    leaf = mint(HOST, issuer=other.hosts)
    assert "unknown here: 'hosts CA of others'" in refusal_of(leaf.der, hierarchy.anchors).message
    refusal = refusal_of(leaf.der, hierarchy.anchors, sent=[other.hosts.der, other.root.der])
    assert refusal.reason is Reason.UNKNOWN_ISSUER
    assert "which none of our roots signed" in refusal.message


def test_same_name_impostor_is_refused(hierarchy: Hierarchy) -> None:
    """Another PKI whose CAs bear the same names is told apart by its keys."""
    impostor = make_hierarchy()
    leaf = mint(HOST, issuer=impostor.hosts)
    refusal = refusal_of(leaf.der, hierarchy.anchors)
    assert refusal.reason is Reason.UNKNOWN_ISSUER
    assert "signed by another CA that calls itself 'hosts CA'" in refusal.message
    assert refusal_of(leaf.der, hierarchy.anchors, sent=[impostor.hosts.der, impostor.root.der]).reason is Reason.UNKNOWN_ISSUER


def test_self_signed_leaf_is_refused(hierarchy: Hierarchy) -> None:
    """A certificate that vouches for itself is nobody's."""
    assert refusal_of(mint(HOST).der, hierarchy.anchors).reason is Reason.UNKNOWN_ISSUER


def test_flipped_signature_is_refused(hierarchy: Hierarchy) -> None:
    """A certificate with one bit of its signature changed is refused."""
    der = bytearray(mint(HOST, issuer=hierarchy.hosts).der)
    der[-1] ^= 1
    assert refusal_of(bytes(der), hierarchy.anchors).reason is Reason.UNKNOWN_ISSUER


@pytest.mark.parametrize("case", hostile.HOSTS_CAS)
def test_hostile_hosts_ca_is_refused(case: str, hierarchy: Hierarchy) -> None:
    """A hosts CA that our own root signed, with one thing wrong, makes its hosts refused."""
    overrides, reason, words = hostile.HOSTS_CAS[case]
    issuing = mint(HOSTS_CA, issuer=hierarchy.root, subject="hosts CA", **overrides)
    refusal = refusal_of(mint(HOST, issuer=issuing).der, hierarchy.anchors, sent=[issuing.der])
    assert (reason, True) == (refusal.reason, words in refusal.message), refusal.message


def test_issuing_ca_below_an_issuing_ca_is_refused(hierarchy: Hierarchy) -> None:
    """The chain is leaf, issuing CA, root: a CA signed by the hosts CA is not one of ours."""
    below = mint(HOSTS_CA, issuer=hierarchy.hosts, subject="below")
    refusal = refusal_of(mint(HOST, issuer=below).der, hierarchy.anchors, sent=[below.der])
    assert refusal.reason is Reason.UNKNOWN_ISSUER


@pytest.mark.parametrize("case", hostile.ROOTS)
def test_hostile_root_is_refused(case: str) -> None:
    """A root in ca.pem that is not as the profile wants it makes everything below it refused."""
    overrides, reason, words = hostile.ROOTS[case]
    root = mint(ROOT_CA, **overrides)
    issuing = mint(HOSTS_CA, issuer=root)
    refusal = refusal_of(mint(HOST, issuer=issuing).der, Anchors((root.certificate,), (issuing.certificate,)))
    assert (reason, True) == (refusal.reason, words in refusal.message), refusal.message


@pytest.mark.parametrize(("offset_s", "reason"), [(-1, Reason.NOT_YET_VALID), (0, None), (1, None)])
def test_clock_at_the_beginning_of_validity(offset_s: int, reason: Reason | None, hierarchy: Hierarchy) -> None:
    """notBefore itself is inside the validity, the second before it is not, and says that a clock is wrong."""
    begin = (NOW + timedelta(hours=1)).replace(microsecond=0)
    leaf = mint(HOST, issuer=hierarchy.hosts, not_before=begin)
    assert reason is _reason_at(leaf, hierarchy, begin + timedelta(seconds=offset_s))


@pytest.mark.parametrize(("offset_s", "reason"), [(-1, None), (0, None), (1, Reason.EXPIRED)])
def test_clock_at_the_end_of_validity(offset_s: int, reason: Reason | None, hierarchy: Hierarchy) -> None:
    """notAfter itself is inside the validity (RFC 5280 section 4.1.2.5), the second after it is not."""
    end = (NOW + timedelta(hours=1)).replace(microsecond=0)
    leaf = mint(HOST, issuer=hierarchy.hosts, not_after=end)
    assert reason is _reason_at(leaf, hierarchy, end + timedelta(seconds=offset_s))


def _reason_at(leaf: Made, hierarchy: Hierarchy, now: datetime) -> Reason | None:
    try:
        judge(leaf.der, [], hierarchy.anchors, Purpose.HOST, now)
    except Refusal as refusal:
        return refusal.reason
    return None


def test_one_good_path_is_enough(hierarchy: Hierarchy) -> None:
    """During a rotation a CA may have two certificates for one key: an expired one beside a good one does no harm, in any order."""
    old = mint(
        HOSTS_CA,
        issuer=hierarchy.root,
        subject="hosts CA",
        key=hierarchy.hosts.key,
        not_before=NOW - timedelta(days=9),
        not_after=NOW - timedelta(days=1),
    )
    leaf = mint(HOST, issuer=hierarchy.hosts)
    for intermediates in ((old, hierarchy.hosts), (hierarchy.hosts, old)):
        anchors = Anchors((hierarchy.root.certificate,), tuple(made.certificate for made in intermediates))
        assert str(judge(leaf.der, [], anchors, Purpose.HOST, NOW).name) == HOST_NAME
    assert refusal_of(leaf.der, Anchors((hierarchy.root.certificate,), (old.certificate,))).reason is Reason.EXPIRED


def test_two_fleets_in_one_ca_file_stay_apart(hierarchy: Hierarchy) -> None:
    """With two roots in ca.pem each leaf is judged over its own."""
    other = make_hierarchy(suffix=" 2", domain="other.example")
    pem = b"".join(made.pem for made in (hierarchy.root, other.root, hierarchy.hosts, other.hosts))
    anchors = load_anchors(pem)
    leaf = mint(HOST, issuer=other.hosts, dns=["web-1.other.example"])
    assert judge(leaf.der, [], anchors, Purpose.HOST, NOW).chain[2] == other.root.certificate


def test_oversized_certificates_and_long_chains_are_refused_unread(hierarchy: Hierarchy) -> None:
    """Bounds hold before anything is parsed."""
    leaf = mint(HOST, issuer=hierarchy.hosts).der
    assert refusal_of(b"\x30" * (limits.MAX_CERTIFICATE_BYTES + 1), hierarchy.anchors).reason is Reason.MALFORMED
    assert refusal_of(leaf, hierarchy.anchors, sent=[hierarchy.hosts.der] * limits.MAX_CHAIN).reason is Reason.MALFORMED


def test_truncated_certificate_is_refused_at_every_length(hierarchy: Hierarchy) -> None:
    """No prefix of a certificate is a certificate."""
    leaf = mint(HOST, issuer=hierarchy.hosts).der
    reasons = {refusal_of(leaf[:length], hierarchy.anchors).reason for length in range(len(leaf))}
    assert {find_host(leaf[:length], hierarchy.anchors) for length in range(len(leaf))} == {None}
    assert reasons == {Reason.MALFORMED}


def test_trailing_byte_is_refused(hierarchy: Hierarchy) -> None:
    """Bytes after a certificate are not ignored."""
    assert refusal_of(mint(HOST, issuer=hierarchy.hosts).der + b"\x00", hierarchy.anchors).reason is Reason.MALFORMED


GOOD = make_hierarchy(suffix=" of the mutations")
GOOD_LEAF = mint(HOST, issuer=GOOD.hosts).der


@given(st.dictionaries(st.integers(0, len(GOOD_LEAF) - 1), st.integers(1, 255), min_size=1, max_size=4))
def test_changed_certificate_is_always_refused_and_nothing_else_is_raised(changes: dict[int, int]) -> None:
    """Whatever bytes of a good certificate are changed, the answer is a Refusal, though the good one was believed just now."""
    judge(GOOD_LEAF, [], GOOD.anchors, Purpose.HOST, NOW)
    der = bytearray(GOOD_LEAF)
    for offset, mask in changes.items():
        der[offset] ^= mask
    assert refusal_of(bytes(der), GOOD.anchors).message


@given(st.binary(max_size=60))
def test_any_dns_name_bytes_are_judged_without_surprise(name: bytes) -> None:
    """Whatever bytes our CA was made to sign as a name, the answer is a HostName inside the domain or a Refusal."""
    leaf = mint(HOST, issuer=GOOD.hosts, san_der=general_names([name]))
    reason = _reason_at(leaf, GOOD, NOW)
    if reason is None:
        found = str(judge(leaf.der, [], GOOD.anchors, Purpose.HOST, NOW).name)
        assert (found.encode(), True) == (name, found.endswith(DOMAIN))
    else:
        assert reason in (Reason.BAD_NAME, Reason.MALFORMED)


def test_what_was_found_of_a_path_is_not_looked_for_again(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit does not pay once more for what the handshake has found, nor does the host's next dump."""
    leaf, asked = mint(HOST, issuer=hierarchy.hosts), []
    with_library = judge_module._check_with_library

    def count(path: judge_module._Path, purpose: Purpose, now: datetime) -> None:
        asked.append(now)
        with_library(path, purpose, now)

    monkeypatch.setattr(judge_module, "_check_with_library", count)
    first = judge(leaf.der, [], hierarchy.anchors, Purpose.HOST, NOW)
    assert asked == [NOW.replace(microsecond=0)]

    for minutes in (1, 2, 1, -1, -2, 0):
        anchors = Anchors(hierarchy.anchors.roots, ())
        assert judge(leaf.der, [hierarchy.hosts.der], anchors, Purpose.HOST, NOW + timedelta(minutes=minutes)) == first
    path = (leaf.certificate, hierarchy.hosts.certificate, hierarchy.root.certificate)
    ends = [min(one.not_valid_after_utc for one in path), max(one.not_valid_before_utc for one in path)]
    assert asked == [NOW.replace(microsecond=0), *ends]


@pytest.mark.parametrize("which", ["leaf", "issuing", "root"])
def test_a_certificate_that_was_believed_is_refused_outside_of_its_time(which: str) -> None:
    """Whichever of the chain ends first, or begins last: what is kept of a judgement says nothing of the clock."""
    day = timedelta(days=1)
    short = {"not_before": NOW - day, "not_after": NOW + day}
    root = mint(ROOT_CA, **(short if which == "root" else {}))
    hosts = mint(HOSTS_CA, issuer=root, **(short if which == "issuing" else {}))
    leaf = mint(HOST, issuer=hosts, **(short if which == "leaf" else {}))
    anchors = Anchors((root.certificate,), (hosts.certificate,))
    for _ in range(2):
        assert judge(leaf.der, [], anchors, Purpose.HOST, NOW).name == HostName(HOST_NAME)
        for now, reason in ((NOW - 2 * day, Reason.NOT_YET_VALID), (NOW + 2 * day, Reason.EXPIRED)):
            with pytest.raises(Refusal) as caught:
                judge(leaf.der, [], anchors, Purpose.HOST, now)
            assert caught.value.reason is reason


@pytest.mark.parametrize("which", ["leaf", "issuing", "root"])
def test_the_second_judge_looks_at_the_clock_of_what_is_kept_too(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should our own look at the clock ever fail, a chain that was believed is still refused before and after its time."""
    monkeypatch.setattr(judge_module, "_check_clock", lambda path, purpose, now: None)
    begin, end, second = NOW - timedelta(minutes=1), NOW + timedelta(days=1), timedelta(seconds=1)
    short = {"not_before": begin, "not_after": end}
    root = mint(ROOT_CA, **(short if which == "root" else {}))
    hosts = mint(HOSTS_CA, issuer=root, **(short if which == "issuing" else {}))
    leaf = mint(HOST, issuer=hosts, **(short if which == "leaf" else {}))
    anchors = Anchors((root.certificate,), (hosts.certificate,))
    for _ in range(2):
        for believed in (NOW, begin, end):
            assert judge(leaf.der, [], anchors, Purpose.HOST, believed).name == HostName(HOST_NAME)
        for now in (end + second, begin - second):
            with pytest.raises(Refusal, match="does not verify") as caught:
                judge(leaf.der, [], anchors, Purpose.HOST, now)
            assert caught.value.reason is Reason.PROFILE


def test_a_certificate_that_was_believed_is_refused_by_other_anchors_and_for_another_purpose(hierarchy: Hierarchy) -> None:
    """A reload may have taken a root away: what is kept of a judgement leads to no root that is not among the anchors."""
    leaf, other = mint(HOST, issuer=hierarchy.hosts), make_hierarchy()
    judge(leaf.der, [], hierarchy.anchors, Purpose.HOST, NOW)

    above = [hierarchy.hosts.der]
    assert refusal_of(leaf.der, other.anchors, sent=above).reason is Reason.UNKNOWN_ISSUER
    assert refusal_of(leaf.der, Anchors(hierarchy.anchors.roots, ())).reason is Reason.UNKNOWN_ISSUER
    assert refusal_of(leaf.der, hierarchy.anchors, Purpose.RECEIVER).reason is Reason.WRONG_PURPOSE


def test_a_refusal_is_not_kept(hierarchy: Hierarchy) -> None:
    """Who is refused is judged anew each time, and takes no place among those who are believed."""
    leaf = mint(HOST, issuer=hierarchy.hosts, eku=[SERVER])
    forget_all()
    for _ in range(2):
        assert refusal_of(leaf.der, hierarchy.anchors).reason is Reason.WRONG_PURPOSE
    assert kept()[0] == 0


@pytest.mark.parametrize("whose", ["nobody's", "another fleet's", "an impostor's", "a host's", "one whose root we call a CA"])
def test_nothing_is_kept_of_a_stranger(whose: str, hierarchy: Hierarchy) -> None:
    """Whatever chains it sends, and however many: only what hangs from one of our roots has a place."""
    host, other = mint(HOST, issuer=hierarchy.hosts), make_hierarchy(suffix="" if whose == "an impostor's" else " of others")
    root_only = Anchors(hierarchy.anchors.roots, ())
    anchors = Anchors(root_only.roots, (other.root.certificate,)) if whose == "one whose root we call a CA" else root_only
    leaf, *sent = {
        "nobody's": [mint(HOST)],
        "a host's": [mint(HOST, issuer=host), host, hierarchy.hosts],
        "one whose root we call a CA": [mint(HOST, issuer=other.root)],
    }.get(whose, [mint(HOST, issuer=other.hosts), other.hosts, other.root])
    forget_all()
    judge(host.der, [hierarchy.hosts.der], root_only, Purpose.HOST, NOW)
    before = kept()
    assert refusal_of(leaf.der, anchors, sent=[one.der for one in sent]).reason is Reason.UNKNOWN_ISSUER
    assert kept() == before


def forget_all() -> None:
    """Begin as a process does that has judged nobody."""
    judge_module._find_good.cache_clear()
    chain_module._check_signed.cache_clear()


def kept() -> tuple[int, int]:
    """Return how many chains, and how many signatures, are kept."""
    return judge_module._find_good.cache_info().currsize, chain_module._check_signed.cache_info().currsize


def test_what_is_kept_is_bounded() -> None:
    """However many hosts a receiver meets."""
    assert judge_module._find_good.cache_info().maxsize == chain_module._check_signed.cache_info().maxsize == chain_module.KEPT


@pytest.mark.parametrize(
    "overrides",
    [
        {"eku": [SERVER]},
        {"eku": [ANY]},
        {"omit": ["extended_key_usage"]},
        {"omit": ["key_usage"]},
        {"dns": ["web-1.evil.example"]},
        {"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=1)},
        {"extra": [(x509.UnrecognizedExtension(UNKNOWN_OID, b"\x05\x00"), True)]},
        {"ca": True},
    ],
    ids=["server", "any purpose", "no purpose", "no key usage", "other domain", "expired", "unknown extension", "CA"],
)
def test_second_judge_refuses_by_itself(overrides: dict[str, Any], hierarchy: Hierarchy) -> None:
    """The library's verifier, as we set it up, refuses without the help of our own steps; it is there for their mistakes."""
    good, bad = (mint(HOST, issuer=hierarchy.hosts, **changes).certificate for changes in ({}, overrides))
    above = (hierarchy.hosts.certificate, hierarchy.root.certificate)
    judge_module._check_with_library(judge_module._Path(good, *above), Purpose.HOST, NOW)
    with pytest.raises(Refusal, match="does not verify"):
        judge_module._check_with_library(judge_module._Path(bad, *above), Purpose.HOST, NOW)


def test_second_judge_refuses_the_wrong_branch(hierarchy: Hierarchy) -> None:
    """The extended key usage of the issuing CA is held against the purpose by the library, too."""
    receiver = mint(RECEIVER, issuer=hierarchy.hosts).certificate
    path = judge_module._Path(receiver, hierarchy.hosts.certificate, hierarchy.root.certificate)
    with pytest.raises(Refusal, match="does not verify"):
        judge_module._check_with_library(path, Purpose.RECEIVER, NOW)


def test_clock_without_a_zone_is_a_bug(hierarchy: Hierarchy) -> None:
    """A naive clock would be hours wrong silently."""
    with pytest.raises(Bug):
        judge(b"", [], hierarchy.anchors, Purpose.HOST, NOW.replace(tzinfo=None))


def test_warnings_of_the_library_are_refusals_where_they_are_errors(hierarchy: Hierarchy, recwarn: pytest.WarningsRecorder) -> None:
    """With warnings as errors, as in this suite, a certificate that the library warns of is still only refused."""
    der = mint_der_with_serial(HOST, hierarchy.hosts, b"\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal_of(der, hierarchy.anchors).reason is Reason.MALFORMED
    assert not recwarn.list


def test_foreign_receivers_ca_key_does_not_help(hierarchy: Hierarchy) -> None:
    """A certificate that claims our CA as its issuer and was signed with another key is refused."""
    liar = Made(hierarchy.hosts.certificate, make_key())
    assert refusal_of(mint(HOST, issuer=liar).der, hierarchy.anchors).reason is Reason.UNKNOWN_ISSUER


def test_constrained_receivers_ca_is_not_in_the_profile(hierarchy: Hierarchy) -> None:
    """A receivers CA holds no name constraint; one that does was not made by this PKI."""
    constraint = x509.NameConstraints([x509.DNSName(DOMAIN)], None)
    issuing = mint(RECEIVERS_CA, issuer=hierarchy.root, subject="odd", extra=[(constraint, True)])
    refusal = refusal_of(mint(RECEIVER, issuer=issuing).der, hierarchy.anchors, Purpose.RECEIVER, sent=[issuing.der])
    assert refusal.reason is Reason.PROFILE

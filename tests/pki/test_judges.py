"""Independent judges accept every certificate and every CRL that we mint, and refuse what must be refused.

The judges are in tests/support/judges.py; the table of what each refuses is REFUSED here and, for people, in pki/README.md.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from securecore.certs.chain import load_pem_certificates
from securecore.certs.judge import Purpose
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER, RECEIVERS_CA
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.install import install
from securecore.pki.issue import issue_enroller, issue_host, rekey
from securecore.pki.revocation import revoke_name
from securecore.pki.rotation import start, switch
from securecore.pki.signing import renew
from tests.support import judges
from tests.support.certificates import (
    DOMAIN,
    ENROLLER_NAME,
    HOST_NAME,
    RECEIVER_NAME,
    STARTED,
    Hierarchy,
    Made,
    make_crl,
    make_fleet,
    make_hierarchy,
    mint,
    no_passphrase,
)
from tests.support.judges import JUDGES, Papers, need_judge
from tests.support.processes import ROOT

DAY: Final = timedelta(days=1)
LONG: Final = HostName(".".join(["a" * 60] * 3) + f".{DOMAIN}")


class Lived(NamedTuple):
    """A fleet that has lived: what it has in use, whom it has revoked, and its first and last CRLs."""

    pki: PkiDirectory
    in_use: dict[str, Papers]
    revoked: Papers
    lists: tuple[bytes, ...]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """Hosts and receivers that were issued, renewed and given new keys, while both issuing CAs are being replaced."""
    now = datetime.now(UTC)
    directory = tmp_path_factory.mktemp("lived")
    fleet = make_fleet(directory, hosts=("web-1", "db-2", "gone"), now=now)
    pki, first = fleet.pki, judges.split_lists(fleet.pki.crl_path.read_bytes())
    issue_host(pki, LONG, directory / "long", no_passphrase, now)
    for name, identity in ((HOST_NAME, fleet.host), (RECEIVER_NAME, fleet.receiver)):
        renew(pki, HostName(name), None, directory / f"{name}.pem", no_passphrase, now)
        install(identity, (directory / f"{name}.pem").read_bytes(), now)
    for profile in (HOSTS_CA, RECEIVERS_CA):
        start(pki, profile, no_passphrase, now)
        switch(pki, profile, now)
    for name in (HOST_NAME, RECEIVER_NAME):
        rekey(pki, HostName(name), None, directory / f"{name}-2", no_passphrase, now)
    issue_enroller(pki, HostName(ENROLLER_NAME), [], directory / "enroller", no_passphrase, now)
    revoke_name(pki, HostName(f"gone.{DOMAIN}"), "keyCompromise", no_passphrase, now)
    identities = {
        "a host": (fleet.hosts["db-2"], Purpose.HOST),
        "a host whose name is too long for a common name": (directory / "long", Purpose.HOST),
        "a renewed host": (fleet.host, Purpose.HOST),
        "a host of the new CA": (directory / f"{HOST_NAME}-2", Purpose.HOST),
        "a renewed receiver": (fleet.receiver, Purpose.RECEIVER),
        "a receiver of the new CA": (directory / f"{RECEIVER_NAME}-2", Purpose.RECEIVER),
        "an enroller": (directory / "enroller", Purpose.ENROLLER),
    }
    in_use = {name: Papers.of(pki, *identity) for name, identity in identities.items()}
    lists = (*first, *judges.split_lists(pki.crl_path.read_bytes()))
    return Lived(pki, in_use, Papers.of(pki, fleet.hosts["gone"], Purpose.HOST), lists)


@pytest.mark.parametrize("name", JUDGES)
def test_what_is_minted_is_accepted(name: str, lived: Lived, tmp_path: Path) -> None:
    """For its purpose, with the CAs above it and the CRLs of all of them; pkilint has not the least to note."""
    ask = need_judge(name)
    assert {who: ask(papers, tmp_path) for who, papers in lived.in_use.items()} == dict.fromkeys(lived.in_use)
    assert len({papers.issuing for papers in lived.in_use.values()}) == 4


@pytest.mark.parametrize("name", sorted(set(JUDGES) - {"pkilint"}))
def test_who_was_revoked_is_refused(name: str, lived: Lived, tmp_path: Path) -> None:
    """By the CRL of the CA that was replaced since; pkilint looks at forms alone."""
    assert "revoked" in (need_judge(name)(lived.revoked, tmp_path) or "").lower()


@pytest.mark.parametrize("name", sorted(set(JUDGES) - {"pkilint"}))
def test_nobody_is_accepted_for_the_other_purpose(name: str, lived: Lived, tmp_path: Path) -> None:
    """A host can't be a receiver, nor a receiver or an enroller a host; that an enroller is no receiver is for our judge to say."""
    ask = need_judge(name)
    other = {Purpose.HOST: Purpose.RECEIVER, Purpose.RECEIVER: Purpose.HOST, Purpose.ENROLLER: Purpose.HOST}
    for who, papers in lived.in_use.items():
        assert ask(papers._replace(purpose=other[papers.purpose]), tmp_path) is not None, who


def test_every_certificate_that_was_ever_made_is_without_a_finding(lived: Lived) -> None:
    """Root, issuing CAs before and after, hosts, receivers: each alone, by pkilint."""
    need_judge("pkilint")
    made = [load_pem_certificates(path.read_bytes())[0] for path in (lived.pki.path / "issued").iterdir()]
    assert len(made) > 10
    assert [judges.lint_certificate(one) for one in made] == [[]] * len(made)


def test_openssl_accepts_each_ca_alone(lived: Lived, tmp_path: Path) -> None:
    """Strictly, below the root, with the root's CRL."""
    need_judge("openssl")
    root = lived.pki.certificate("root-ca")
    for name in lived.pki.authorities():
        assert judges.openssl_on_ca(lived.pki.certificate(name), root, lived.lists[-5:], tmp_path) is None, name


def test_every_list_is_accepted_as_its_cas_and_no_others(lived: Lived, tmp_path: Path) -> None:
    """First and later ones, empty or not: openssl, GnuTLS, the cryptography library and pkilint."""
    for name in JUDGES:
        need_judge(name)
    authorities = [lived.pki.certificate(name) for name in lived.pki.authorities()]
    assert len(lived.lists) == 3 + 5
    for pem in lived.lists:
        crl = x509.load_pem_x509_crl(pem)
        (issuer,) = [one for one in authorities if one.subject == crl.issuer]
        stranger = next(one for one in authorities if one != issuer)
        assert judges.lint_list(pem) == []
        key = issuer.public_key()
        assert crl.is_signature_valid(key)  # type: ignore[arg-type]
        assert [judges.openssl_on_list(pem, issuer, tmp_path), judges.gnutls_on_list(pem, issuer, tmp_path)] == [None, None]
        assert None not in [judges.openssl_on_list(pem, stranger, tmp_path), judges.gnutls_on_list(pem, stranger, tmp_path)]


def _papers(leaf: Made, issuing: Made, root: Made, lists: tuple[bytes, ...] | None = None) -> Papers:
    lists = (make_crl(root), make_crl(issuing)) if lists is None else lists
    return Papers(leaf.certificate, issuing.certificate, root.certificate, lists, Purpose.HOST)


def _host(**wrong: object) -> Callable[[Hierarchy], Papers]:
    """A host's certificate with something wrong."""
    return lambda fleet: _papers(mint(HOST, issuer=fleet.hosts, **wrong), fleet.hosts, fleet.root)  # type: ignore[arg-type]


def _ca(**wrong: object) -> Callable[[Hierarchy], Papers]:
    """A good host's certificate of a hosts CA with something wrong."""

    def make(fleet: Hierarchy) -> Papers:
        issuing = mint(HOSTS_CA, issuer=fleet.root, subject="hosts CA", **wrong)  # type: ignore[arg-type]
        return _papers(mint(HOST, issuer=issuing), issuing, fleet.root)

    return make


def _lists(
    *, root: bool = False, leaf: bool = False, days_ago: float = 0, is_missing: bool = False
) -> Callable[[Hierarchy], Papers]:
    """A good host's certificate with CRLs that speak against it."""

    def make(fleet: Hierarchy) -> Papers:
        made = mint(HOST, issuer=fleet.hosts)
        now = STARTED - timedelta(days=days_ago)
        of_root = {fleet.hosts.certificate.serial_number: (now, "cACompromise")} if root else {}
        of_hosts = {made.certificate.serial_number: (now, "keyCompromise")} if leaf else {}
        lists = (make_crl(fleet.root, revoked=of_root), make_crl(fleet.hosts, now=now, revoked=of_hosts))
        return _papers(made, fleet.hosts, fleet.root, lists[:1] if is_missing else lists)

    return make


def _impostor(fleet: Hierarchy) -> Papers:
    return _papers(mint(HOST, issuer=make_hierarchy().hosts), fleet.hosts, fleet.root)


def _impostors_list(fleet: Hierarchy) -> Papers:
    lists = (make_crl(fleet.root), make_crl(make_hierarchy().hosts))
    return _papers(mint(HOST, issuer=fleet.hosts), fleet.hosts, fleet.root, lists)


def _altered(fleet: Hierarchy) -> Papers:
    der = mint(HOST, issuer=fleet.hosts).certificate.public_bytes(Encoding.DER).replace(b"web-1", b"web-2")
    made = Made(x509.load_der_x509_certificate(der), None)
    return _papers(made, fleet.hosts, fleet.root)


def _hosts_host(fleet: Hierarchy) -> Papers:
    above = mint(HOST, issuer=fleet.hosts)
    return _papers(mint(HOST, issuer=above), above, fleet.root, (make_crl(fleet.root), make_crl(fleet.hosts), make_crl(above)))


def _receiver(fleet: Hierarchy) -> Papers:
    return _papers(mint(RECEIVER, issuer=fleet.receivers), fleet.receivers, fleet.root)


_CRITICAL: Final = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), b"\x05\x00"), True)
_PATHS: Final = {"openssl", "GnuTLS", "cryptography"}
_ALL: Final = {*_PATHS, "pkilint"}

REFUSED: Final[dict[str, tuple[Callable[[Hierarchy], Papers], set[str]]]] = {
    "expired": (_host(not_before=STARTED - 3 * DAY, not_after=STARTED - DAY), _PATHS),
    "not valid yet": (_host(not_before=STARTED + DAY, not_after=STARTED + 3 * DAY), _PATHS),
    "of a CA that has expired": (_ca(not_before=STARTED - 3 * DAY, not_after=STARTED - DAY), _PATHS),
    "of another CA of the same name": (_impostor, _ALL),
    "altered after it was signed": (_altered, _ALL),
    "signed by a host": (_hosts_host, _ALL),
    "a receiver's": (_receiver, _PATHS),
    "of the hosts CA, for serverAuth": (_host(eku=[ExtendedKeyUsageOID.SERVER_AUTH]), _PATHS),
    "outside the fleet's domain": (_host(dns=["web-1.evil.example"]), _PATHS),
    "with an unknown critical extension": (_host(extra=[_CRITICAL]), _PATHS),
    "revoked": (_lists(leaf=True), _PATHS),
    "of a CA that was revoked": (_lists(root=True), _PATHS),
    "of a CA whose CRL has expired": (_lists(days_ago=40), {"openssl"}),
    "of a CA without a CRL": (_lists(is_missing=True), {"openssl", "cryptography"}),
    "with another CA's CRL of the same name": (_impostors_list, {"openssl", "cryptography"}),
    "without its issuer's key identifier": (_host(omit=["authority_key_identifier"]), {"openssl", "cryptography", "pkilint"}),
    "with another key identifier of its issuer": (_host(authority_key_id=bytes(20)), {"openssl", "GnuTLS", "pkilint"}),
    "that may sign certificates": (_host(ku=["keyCertSign"]), {"openssl", "cryptography", "pkilint"}),
    "that calls itself a CA's": (_host(ca=True), {"cryptography", "pkilint"}),
    "with a blank in its name": (_host(dns=[f"web 1.{DOMAIN}"]), {"cryptography", "pkilint"}),
    "of a CA that may not sign certificates": (_ca(ku=["digitalSignature"]), _ALL),
    "of a CA without key usage": (_ca(omit=["key_usage"]), {"openssl", "cryptography", "pkilint"}),
    "of a CA whose name constraint is not critical": (_ca(critical={"name_constraints": False}), {"pkilint"}),
    "without a purpose": (_host(omit=["extended_key_usage"]), set()),
    "for ten years": (_host(not_after=STARTED + 3650 * DAY), set()),
    "for an Ed25519 key": (_host(key_type="ed25519"), set()),
}
"""What is wrong with a host's certificate, and which judges beside our own must refuse it; ours refuses each.

That a judge which is not named accepts is no promise: later versions of it may be stricter.
"""


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_be_refused_is_refused(case: str, hierarchy: Hierarchy, tmp_path: Path) -> None:
    """By ours always, and by each judge that looks at what is wrong."""
    make, refusers = REFUSED[case]
    papers = make(hierarchy)
    assert JUDGES["securecore"](papers, tmp_path) is not None
    for name in sorted(refusers):
        assert need_judge(name)(papers, tmp_path) is not None, name


def test_the_judges_accept_what_the_cases_are_made_from(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """So each case is refused for what is wrong with it."""
    for name in JUDGES:
        assert need_judge(name)(_host()(hierarchy), tmp_path) is None, name


def test_the_table_for_people_is_this_one() -> None:
    """pki/README.md names each case and who refuses it, and no other."""
    section = (ROOT / "pki" / "README.md").read_text().partition("## Who else judges them")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|((?: (?:x|) +\|){5})$", section, re.MULTILINE)
    table = {case.strip(): [cell.strip() == "x" for cell in marks.split("|")[:5]] for case, marks in rows}
    assert table == {case: [*(name in refusers for name in list(JUDGES)[:4]), True] for case, (_, refusers) in REFUSED.items()}

"""A PKI directory against its ledger: each thing that somebody may have changed is found, by the step that names it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory, open_pki
from securecore.pki.issue import issue_host
from securecore.pki.revocation import revoke_name, sign_crls
from securecore.pki.verification import Head, parse_head, verify_log
from tests.support.certificates import HOST_NAME, NOW, Fleet, make_fleet, no_passphrase

CHAIN = "every line follows the one before it"
NOTED = "the ledger goes on from the place that you noted"
ISSUED = "every certificate that was issued is there as it was"
STRANGERS = "there is no certificate that was not issued"
CAS = "the CAs are those of the ledger"
CRLS = "the CRLs are the last ones, and list every revocation"


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    """A fleet with a revoked host."""
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    return fleet


def head(pki: PkiDirectory) -> Head:
    """Return the last place of the ledger."""
    digests = pki.ledger.digests()
    return Head(len(digests), digests[-1])


def failed(fleet: Fleet, noted: Head | None = None) -> list[str]:
    """Return the checks that do not hold."""
    return [one.what for one in verify_log(open_pki(fleet.pki.path), noted) if one.problem is not None]


def test_what_is_whole_passes_every_check(fleet: Fleet, tmp_path: Path) -> None:
    """Also against a place that was noted before more was done, as it was printed."""
    noted = parse_head(str(head(fleet.pki)))
    issue_host(fleet.pki, HostName(HOST_NAME), tmp_path / "again", no_passphrase, NOW)
    checks = list(verify_log(fleet.pki, noted))
    assert [one.what for one in checks] == [CHAIN, NOTED, ISSUED, STRANGERS, CAS, CRLS]
    assert [one.problem for one in checks] == [None] * 6


def _host_file(fleet: Fleet) -> Path:
    serial = load_identity(fleet.host).certificates[0].serial_number
    return fleet.pki.path / "issued" / f"{serial:x}.pem"


def _edit_ledger(fleet: Fleet) -> None:
    path = fleet.pki.ledger.path
    path.write_bytes(path.read_bytes().replace(b"superseded", b"supersedes"))


def _swap_certificates(fleet: Fleet) -> None:
    other = load_identity(fleet.hosts["db-2"]).certificates[0].serial_number
    _host_file(fleet).write_bytes((fleet.pki.path / "issued" / f"{other:x}.pem").read_bytes())


def _swap_cas(fleet: Fleet) -> None:
    (fleet.pki.folder("hosts-ca") / "cert.pem").write_bytes((fleet.pki.folder("receivers-ca") / "cert.pem").read_bytes())


def _roll_back_crl(fleet: Fleet) -> None:
    other = make_fleet(fleet.pki.path.parent / "other", now=NOW)
    (fleet.pki.folder("hosts-ca") / "crl.pem").write_bytes((other.pki.folder("hosts-ca") / "crl.pem").read_bytes())


def _add_root(fleet: Fleet) -> None:
    other = make_fleet(fleet.pki.path.parent / "other", now=NOW)
    with fleet.pki.ca_path.open("ab") as file:
        file.write((other.pki.folder("root-ca") / "cert.pem").read_bytes())


def _put_back_lists(fleet: Fleet) -> None:
    before = fleet.pki.crl_path.read_bytes()
    sign_crls(fleet.pki, no_passphrase, NOW, is_forced=True)
    fleet.pki.crl_path.write_bytes(before)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (_edit_ledger, [CHAIN]),
        (_swap_certificates, [ISSUED]),
        (lambda fleet: _host_file(fleet).unlink(), [ISSUED]),
        (lambda fleet: (fleet.pki.path / "issued" / "ff.pem").write_bytes(_host_file(fleet).read_bytes()), [STRANGERS]),
        (_swap_cas, [CAS, CRLS]),
        (_roll_back_crl, [CRLS]),
        (lambda fleet: fleet.pki.crl_path.unlink(), [CRLS]),
        (_add_root, [CRLS]),
        (_put_back_lists, [CRLS]),
    ],
    ids=["edited", "swapped", "removed", "added", "other CA", "older CRL", "no CRLs", "added root", "older CRLs"],
)
def test_each_change_is_found_and_named(spoil: Callable[[Fleet], object], found: list[str], fleet: Fleet) -> None:
    """By the step that it concerns."""
    assert failed(fleet) == []
    spoil(fleet)
    assert failed(fleet) == found


def test_lines_that_are_missing_at_the_end_show_against_a_noted_place(fleet: Fleet) -> None:
    """Without one they do not, and the docs say so; nor does a history that was rewritten whole."""
    noted = head(fleet.pki)
    path = fleet.pki.ledger.path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert NOTED in failed(fleet, noted)
    assert NOTED not in failed(fleet)
    path.write_bytes(b"".join(lines))
    assert failed(fleet, noted) == []
    assert failed(fleet, Head(noted.lines, "0" * 64)) == [NOTED]


@pytest.mark.parametrize("text", ["", "5", ":", "x:" + "0" * 64, "5:" + "g" * 64, "5:00", "-1:" + "0" * 64])
def test_what_names_no_place_is_refused(text: str) -> None:
    """In the form that is printed, and no other."""
    with pytest.raises(ValueError):
        parse_head(text)

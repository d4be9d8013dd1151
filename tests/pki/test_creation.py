"""Making a PKI: whole, private, constrained, and never over another."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from securecore.certs.chain import load_anchors
from securecore.certs.profiles import BACKDATED_S, PROFILES
from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, NotFoundError, PkiError
from securecore.pki.creation import create_pki
from securecore.pki.directory import FOLDERS, open_pki
from tests.support.certificates import DOMAIN, NOW, no_passphrase


def test_new_pki_holds_three_cas_with_keys_certificates_and_lists(tmp_path: Path) -> None:
    """Every file is there, private keys and directories are the owner's alone."""
    create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    pki = open_pki(tmp_path / "pki")
    modes = {str(path.relative_to(pki.path)): path.stat().st_mode & 0o777 for path in [pki.path, *pki.path.rglob("*")]}
    serials = [f"issued/{pki.certificate(name).serial_number:x}.pem" for name in FOLDERS]
    expected = dict.fromkeys([".", "issued", *FOLDERS.values()], 0o700) | {"ledger.jsonl": 0o600, "lock": 0o600}
    expected |= dict.fromkeys(["FORMAT", "pki.toml", "ca.pem", "crl.pem", *serials], 0o644)
    for folder in FOLDERS.values():
        expected |= {f"{folder}/key.pem": 0o600, f"{folder}/cert.pem": 0o644, f"{folder}/crl.pem": 0o644}
    assert expected == modes
    for name in FOLDERS:
        assert pki.authority(name, no_passphrase).certificate == pki.certificate(name)
    assert (pki.path / "FORMAT").read_text().startswith("securecore-pki 1\n")
    assert (pki.organisation, pki.domain) == ("Test", DOMAIN)


def test_lifetimes_are_the_profiles_and_backdated(tmp_path: Path) -> None:
    """Ten years for the root, five for the CAs (which never outlive it), all valid since five minutes ago."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    for name in FOLDERS:
        certificate = pki.certificate(name)
        assert certificate.not_valid_before_utc == NOW - timedelta(seconds=BACKDATED_S)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=PROFILES[name].default_days)


def test_names_and_serial_numbers_are_unique(tmp_path: Path) -> None:
    """Two PKIs of one organisation share neither CA names nor serial numbers, which have 128 random bits or more."""
    found = [create_pki(tmp_path / str(number), "Test", DOMAIN, None, NOW) for number in range(2)]
    certificates = [pki.certificate(name) for pki in found for name in FOLDERS]
    assert len({certificate.subject for certificate in certificates}) == 6
    serials = {certificate.serial_number for certificate in certificates}
    assert len(serials) == 6
    assert max(serial.bit_length() for serial in serials) > 150


def test_hosts_ca_is_constrained_to_the_domain(tmp_path: Path) -> None:
    """The constraint is critical, so a verifier that does not know it refuses."""
    pki = create_pki(tmp_path / "pki", "Test", "Hosts.Test.Example", None, NOW)
    extension = pki.certificate("hosts-ca").extensions.get_extension_for_class(x509.NameConstraints)
    assert (True, [x509.DNSName(DOMAIN)], None) == (
        extension.critical,
        extension.value.permitted_subtrees,
        extension.value.excluded_subtrees,
    )


def test_first_lists_are_valid_and_empty(tmp_path: Path) -> None:
    """crl.pem serves a receiver from the first day."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    anchors = load_anchors(b"".join((pki.folder(name) / "cert.pem").read_bytes() for name in FOLDERS))
    lists = RevocationLists.parse(pki.crl_path.read_bytes(), anchors)
    assert lists.warnings(NOW) == []


@pytest.mark.slow
def test_passphrase_locks_all_three_keys(tmp_path: Path) -> None:
    """No key is readable without it."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, b"a long passphrase", NOW)
    for name in FOLDERS:
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in (pki.folder(name) / "key.pem").read_bytes()
    assert pki.authority("hosts-ca", lambda: b"a long passphrase").certificate == pki.certificate("hosts-ca")
    with pytest.raises(PkiError, match=r"hosts/key\.pem: the passphrase does not open"):
        pki.authority("hosts-ca", lambda: b"another passphrase")


def test_existing_place_is_refused(tmp_path: Path) -> None:
    """A second init never touches the first PKI."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    before = {path: path.read_bytes() for path in pki.path.rglob("*") if path.is_file()}
    with pytest.raises(PkiError, match="exists already"):
        create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    assert before == {path: path.read_bytes() for path in pki.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("organisation", ["", " x", "x" * 65, "a\nb", "a\x1bb", "a\x00b"])
def test_organisation_that_no_certificate_takes_is_refused(organisation: str, tmp_path: Path) -> None:
    """Nothing is left behind."""
    with pytest.raises(PkiError, match="not an organisation"):
        create_pki(tmp_path / "pki", organisation, DOMAIN, None, NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("organisation", ['Quote " and \\ backslash', "Füße & Söhne", "😀 Ltd", "[x] = 'y' # z"])
def test_any_printable_organisation_comes_back(organisation: str, tmp_path: Path) -> None:
    """The settings file quotes what needs quoting."""
    create_pki(tmp_path / "pki", organisation, DOMAIN, None, NOW)
    assert organisation == open_pki(tmp_path / "pki").organisation


@pytest.mark.parametrize("domain", ["", ".", "a..b", "-x.example", "exa mple", "../x", "*.example", "1.2.3.4", "x" * 64, "a."])
def test_domain_without_possible_hosts_is_refused(domain: str, tmp_path: Path) -> None:
    """A domain is refused before any key is made."""
    with pytest.raises(PkiError, match="not a domain"):
        create_pki(tmp_path / "pki", "Test", domain, None, NOW)
    assert list(tmp_path.iterdir()) == []


def test_short_passphrase_makes_no_pki(tmp_path: Path) -> None:
    """The refusal comes before anything is written."""
    with pytest.raises(PkiError, match="at least 8"):
        create_pki(tmp_path / "pki", "Test", DOMAIN, b"short", NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("FORMAT", "securecore-pki 2\nx\n"),
        ("pki.toml", "version = 2\norganisation = 'a'\ndomain = 'b'\n"),
        ("pki.toml", "version = 1\norganisation = 'a'\ndomain = 'b'\ncolour = 'c'\n"),
        ("pki.toml", "version = 1\norganisation = 7\ndomain = 'b'\n"),
        ("pki.toml", "version ="),
        ("pki.toml", "version = " + "1" * 5000),
        ("pki.toml", "version = " + "[" * 5000),
    ],
)
def test_pki_of_another_form_is_refused(name: str, text: str, tmp_path: Path) -> None:
    """Later versions and unknown keys are errors that name the file."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    (pki.path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        open_pki(pki.path)


@pytest.mark.parametrize("name", ["FORMAT", "pki.toml"])
def test_a_file_of_a_pki_cut_at_every_offset_is_refused(name: str, tmp_path: Path) -> None:
    """But for the newline at the end of pki.toml, no beginning is taken for the whole; half a domain is never one."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    whole = (pki.path / name).read_bytes()
    for other in [*(whole[:cut] for cut in range(len(whole) - (name == "pki.toml"))), whole + b"x"]:
        (pki.path / name).write_bytes(other)
        with pytest.raises(ConfigError, match=name):
            open_pki(pki.path)
    (pki.path / name).write_bytes(whole)
    assert open_pki(pki.path).domain == DOMAIN


def test_place_without_a_pki_is_not_found(tmp_path: Path) -> None:
    """The hint says how to name one."""
    with pytest.raises(NotFoundError, match="no PKI there") as caught:
        open_pki(tmp_path)
    assert "pki init" in (caught.value.hint or "")


def test_key_of_another_ca_is_refused(tmp_path: Path) -> None:
    """A mixed-up restore is noticed before anything is signed."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    (pki.folder("hosts-ca") / "key.pem").write_bytes((pki.folder("root-ca") / "key.pem").read_bytes())
    with pytest.raises(ConfigError, match="not the key of the certificate beside it"):
        pki.authority("hosts-ca", no_passphrase)


def test_loose_ca_key_is_refused(tmp_path: Path) -> None:
    """A CA key that others may read is not used."""
    pki = create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)
    (pki.folder("hosts-ca") / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="its mode is 0640"):
        pki.authority("hosts-ca", no_passphrase)

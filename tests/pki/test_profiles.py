"""The TOML profiles and the code state the same facts, both ways."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from securecore.certs.conformance import find_departure
from securecore.certs.profiles import PROFILES
from securecore.errors import NotFoundError
from securecore.names import HostName
from securecore.pki.issue import issue_enroller
from securecore.pki.profiles import as_table, as_toml, profile_named
from tests.support.certificates import DOMAIN, Fleet, no_passphrase

FOLDER = Path(__file__).parents[2] / "pki" / "profiles"


@pytest.mark.parametrize("name", PROFILES)
def test_file_and_code_agree_field_by_field(name: str) -> None:
    """No field is missing, added or different on either side."""
    assert as_table(PROFILES[name]) == tomllib.loads((FOLDER / f"{name}.toml").read_text())


def test_every_profile_has_a_file_and_every_file_a_profile() -> None:
    """Neither side has one that the other lacks."""
    assert {f"{name}.toml" for name in PROFILES} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_in_the_file_has_a_source(name: str) -> None:
    """Each line that states a value is explained: a comment beside it or in the lines above it in its table."""
    explained = False
    for line in (FOLDER / f"{name}.toml").read_text().splitlines():
        if line.startswith("#") or "#" in line:
            explained = True
        elif not line.strip():
            explained = False
        elif "=" in line:
            assert explained, line


@pytest.mark.parametrize("name", PROFILES)
def test_shown_toml_is_the_table(name: str) -> None:
    """What `pki profile show` prints parses to what the file holds."""
    assert as_table(PROFILES[name]) == tomllib.loads(as_toml(profile_named(name)))


def test_unknown_profile_is_not_found() -> None:
    """The hint lists those that there are."""
    with pytest.raises(NotFoundError) as caught:
        profile_named("\x1b[2J")
    assert caught.value.hint == "the profiles are root-ca, hosts-ca, receivers-ca, host, receiver, enroller"


def test_profiles_are_safe_in_themselves() -> None:
    """Leaves never sign, CAs never serve, and each branch has its own use."""
    for profile in PROFILES.values():
        assert profile.is_ca == ("keyCertSign" in profile.key_usage)
        assert profile.is_ca != ("digitalSignature" in profile.key_usage)
        assert profile.default_days <= profile.max_days <= PROFILES[profile.signed_by].max_days
        assert len(profile.extended_key_usage) == {"root-ca": 0, "enroller": 2}.get(profile.name, 1)
    uses = {name: profile.extended_key_usage for name, profile in PROFILES.items()}
    assert uses["host"] == uses["hosts-ca"] != uses["receiver"] == uses["receivers-ca"] == uses["enroller"][:1]


def test_minted_certificates_hold_exactly_what_their_profiles_say(own_fleet: Fleet, tmp_path: Path) -> None:
    """Everything that the real code minted conforms, and to no other profile."""
    issue_enroller(own_fleet.pki, HostName(f"enrol.{DOMAIN}"), [], tmp_path / "enroller", no_passphrase, datetime.now(UTC))
    cas = {name: own_fleet.pki.certificate(name) for name in ("root-ca", "hosts-ca", "receivers-ca")}
    leaves = {"host": own_fleet.host, "receiver": own_fleet.receiver, "enroller": tmp_path / "enroller"}
    minted = cas | {name: x509.load_pem_x509_certificates((path / "cert.pem").read_bytes())[0] for name, path in leaves.items()}
    for name, certificate in minted.items():
        issuer = cas[PROFILES[name].signed_by]
        conforming = [one for one in PROFILES if find_departure(certificate, PROFILES[one], issuer) is None]
        assert conforming == [name]

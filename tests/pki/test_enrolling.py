"""On the machine itself: what it has after an enrolment or a renewal, and after one that failed."""

from datetime import timedelta
from pathlib import Path

import pytest

from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, judge
from securecore.errors import ConfigError, NotFoundError, PkiError, RefusedError, UnreachableError, UntrustedError
from securecore.names import Address, HostName
from securecore.pki.directory import certificate_pem
from securecore.pki.enrolling import enroll, find_own, is_due, read_enroller, renew
from securecore.pki.issue import issue_host, issue_receiver
from securecore.pki.request import request
from securecore.pki.revocation import revoke_name, revoke_older
from securecore.pki.signing_request import request_der
from securecore.pki.tokens import recall_token
from tests.support.certificates import DOMAIN, HOST_NAME, RECEIVER_NAME, no_passphrase
from tests.support.enrolment import Place, asking, contents, leaf_of

NAME = HostName(HOST_NAME)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


@pytest.fixture
def web(place: Place) -> Path:
    """The identity directory of a host that has enrolled on line."""
    secret, _ = place.token()
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, place.directory / "web-1", place.now)
    return place.directory / "web-1"


def test_an_enrolled_host_has_what_an_issued_one_has(place: Place, web: Path) -> None:
    """The root alone in ca.pem, its key its owner's alone, and where it was enrolled."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in web.iterdir()}
    assert modes == {"ca.pem": 0o644, "cert.pem": 0o644, "enroller": 0o644, "key.pem": 0o600}
    loaded = load_identity(web)
    assert judge(loaded.chain_der[0], loaded.chain_der[1:], loaded.anchors, Purpose.HOST, place.now).name == NAME
    assert (len(loaded.anchors.roots), len(loaded.anchors.intermediates)) == (1, 0)


def test_another_fleets_fingerprint_leaves_nothing_behind(place: Place) -> None:
    """No directory, no key, and the token is open still."""
    secret, made = place.token()
    with place.serving() as address, pytest.raises(UntrustedError, match="does not belong to the fleet"):
        enroll(address, "0" * 64, secret, place.directory / "web-1", place.now)
    assert not (place.directory / "web-1").exists()
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"


def test_an_enrolment_whose_answer_was_lost_is_finished_by_another(place: Place) -> None:
    """The certificate is the one that was issued, whatever became of server and host meanwhile."""
    secret, made = place.token()
    identity = place.directory / "web-1"
    csr = request_der(request(identity).path.read_bytes())
    place.enroller().answer(asking(secret, csr, place.server_der), None, place.server_der)
    with place.serving() as address:
        done = enroll(address, place.root_fingerprint, secret, identity, place.now)
    assert place.pki.ledger.read().tokens[made.id].used_for == done.judgement.serial


def test_a_token_for_another_host_changes_nothing(place: Place, web: Path) -> None:
    """The identity is what it was, without a key that waits for nothing, and the token is open still."""
    secret, made = place.token(f"db-2.{DOMAIN}")
    before = contents(web)
    with place.serving() as address, pytest.raises(RefusedError, match=f"the token is for db-2.{DOMAIN}, and this machine is"):
        enroll(address, place.root_fingerprint, secret, web, place.now)
    assert contents(web) == before
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"


def test_to_enrol_twice_with_one_token_is_to_enrol_once(place: Place) -> None:
    """The second run changes nothing but what was lost of the first, and says whose certificate is there."""
    secret, _ = place.token()
    web = place.directory / "web-1"
    with place.serving() as address:
        first = enroll(address, place.root_fingerprint, secret, web, place.now)
        before = contents(web)
        (web / "enroller").unlink()
        again = enroll(address, place.root_fingerprint, secret, web, place.now)
    assert (first.was_there, again.was_there) == (False, True)
    assert again.judgement == first.judgement
    assert contents(web) == before
    assert place.hosts() == [HOST_NAME]


def test_to_enrol_again_after_renewals_says_what_is_true(place: Place) -> None:
    """Whether key and certificate were renewed, and the first one revoked since: enrolled, until when, and nothing is changed."""
    secret, made = place.token()
    web = place.directory / "web-1"
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, web, place.now)
        for is_rekey in (False, True):
            place.now += timedelta(seconds=2)
            renewed = renew(address, web, place.now, is_rekey=is_rekey)
            before = contents(web)
            again = enroll(address, place.root_fingerprint, secret, web, place.now)
            assert (again.was_there, again.judgement) == (True, renewed.judgement)
            assert contents(web) == before
        revoke_older(place.pki, NAME, "superseded", no_passphrase, place.now)
        again = enroll(address, place.root_fingerprint, secret, web, place.now + timedelta(hours=2))
        assert (again.was_there, again.judgement.serial) == (True, renewed.judgement.serial)
        assert contents(web) == before
    assert place.hosts() == [HOST_NAME] * 3
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "used"


def test_a_renewed_certificate_that_was_revoked_is_nobodys_excuse(place: Place) -> None:
    """The token was used, and what came of it counts no more: the run fails, and says so."""
    secret, _ = place.token()
    web = place.directory / "web-1"
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, web, place.now)
        renew(address, web, place.now)
        revoke_name(place.pki, NAME, "keyCompromise", no_passphrase, place.now)
        before = contents(web)
        with pytest.raises(RefusedError, match=r"the token was used already, for certificate .*, which is revoked"):
            enroll(address, place.root_fingerprint, secret, web, place.now)
    assert contents(web) == before


def test_what_comes_of_another_token_is_not_taken_for_this_ones(place: Place, web: Path) -> None:
    """The host has renewed what it got by its own token; a thief has used the other, and that is not hidden."""
    secret, _ = place.token()
    with place.serving() as address:
        renew(address, web, place.now)
        enroll(address, place.root_fingerprint, secret, place.directory / "thief", place.now)
        renew(address, place.directory / "thief", place.now, is_rekey=True)
        before = contents(web)
        with pytest.raises(RefusedError, match="the token was used already"):
            enroll(address, place.root_fingerprint, secret, web, place.now)
    assert contents(web) == before


def test_a_token_that_others_used_is_not_taken_for_ones_own(place: Place, web: Path) -> None:
    """With another's certificate on record, or this host's own one revoked, the run fails, and only a key that waited stays."""
    secret, _ = place.token()
    before = contents(web)
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, place.directory / "thief", place.now)
        with pytest.raises(RefusedError, match="the token was used already"):
            enroll(address, place.root_fingerprint, secret, web, place.now)
        assert contents(web) == before
        revoke_name(place.pki, NAME, "keyCompromise", no_passphrase, place.now)
        with pytest.raises(RefusedError, match="which is revoked"):
            enroll(address, place.root_fingerprint, secret, place.directory / "thief", place.now)
        waiting = request(web).public_key
        with pytest.raises(RefusedError, match="the token was used already"):
            enroll(address, place.root_fingerprint, secret, web, place.now)
    assert request(web).public_key == waiting


def test_the_answer_to_a_stolen_token_ends_what_the_thief_has_renewed(place: Place) -> None:
    """What the hints prescribe revokes the certificate that the thief got later too, and a new token gives the host its own."""
    secret, _ = place.token()
    thief, web = place.directory / "thief", place.directory / "web-1"
    with place.serving() as address:
        enroll(address, place.root_fingerprint, secret, thief, place.now)
        renew(address, thief, place.now, is_rekey=True)
        with pytest.raises(RefusedError) as late:
            enroll(address, place.root_fingerprint, secret, web, place.now)
        with pytest.raises(PkiError) as recalled:
            recall_token(place.pki, secret.id, place.now)
        for hint in (late.value.hint or "", recalled.value.hint or ""):
            assert f"securecore pki revoke {NAME} --reason keyCompromise" in hint
            assert "securecore pki token" in hint
        revoke_name(place.pki, NAME, "keyCompromise", no_passphrase, place.now)
        with pytest.raises(RefusedError, match="this host's certificate was revoked on"):
            renew(address, thief, place.now)
        made = enroll(address, place.root_fingerprint, place.token()[0], web, place.now)
    state = place.pki.ledger.read()
    valid = [one.serial for one in state.issued.values() if one.profile == "host" and one.state(place.now) == "valid"]
    assert valid == [made.judgement.serial]


def test_a_receivers_directory_is_not_made_a_hosts(place: Place, collector: Path) -> None:
    """It is found out before anybody is asked, and nothing has changed."""
    secret, made = place.token()
    before = contents(collector)
    with pytest.raises(PkiError, match="has a certificate that is not a host's"):
        enroll(Address("127.0.0.1:1"), place.root_fingerprint, secret, collector, place.now)
    assert contents(collector) == before
    assert place.pki.ledger.read().tokens[made.id].state(place.now) == "open"


def test_renewal_is_due_when_a_third_is_left(place: Place, web: Path) -> None:
    """Sixty days of ninety; at the very moment it is."""
    own = find_own(web, place.now)
    moment = own.not_after - (own.not_after - own.not_before) / 3
    assert [is_due(own, moment + timedelta(seconds=offset)) for offset in (-1, 0, 1)] == [False, True, True]


def test_a_renewal_keeps_the_key_or_makes_a_new_one(place: Place, web: Path) -> None:
    """Each time the certificate is another one; nothing is left over."""
    key, files = (web / "key.pem").read_bytes(), set(contents(web))
    place.now += timedelta(days=60)
    with place.serving() as address:
        kept = renew(address, web, place.now)
        assert (kept.is_new_key, (web / "key.pem").read_bytes()) == (False, key)
        place.now += timedelta(days=1)
        changed = renew(address, web, place.now, is_rekey=True)
    assert changed.is_new_key
    assert (web / "key.pem").read_bytes() != key
    assert load_identity(web).certificates[0].serial_number == changed.judgement.serial
    assert set(contents(web)) == files
    state = place.pki.ledger.read()
    assert state.issued[changed.judgement.serial].renews == kept.judgement.serial


def test_an_expired_host_is_told_the_way_out_and_takes_it(tmp_path: Path) -> None:
    """A renewal needs a certificate that counts; a new token gives the same directory another, with a new key."""
    place, web = Place(tmp_path, ago=timedelta(days=91)), tmp_path / "web-1"
    issue_host(place.pki, NAME, web, no_passphrase, place.now)
    key = (web / "key.pem").read_bytes()
    place.now += timedelta(days=91)
    with place.serving(place.another_enroller()) as address:
        with pytest.raises(PkiError, match="expired on") as caught:
            renew(address, web, place.now)
        assert "securecore enroll" in (caught.value.hint or "")
        secret, _ = place.token()
        done = enroll(address, place.root_fingerprint, secret, web, place.now)
    assert done.is_new_key
    assert (web / "key.pem").read_bytes() != key
    assert find_own(web, place.now).name == NAME


def test_a_revoked_host_is_refused_in_words(place: Place, web: Path) -> None:
    """And keeps what it has."""
    before = contents(web)
    revoke_name(place.pki, NAME, "keyCompromise", no_passphrase, place.now)
    with place.serving() as address, pytest.raises(RefusedError, match="this host's certificate was revoked on"):
        renew(address, web, place.now)
    assert contents(web) == before


def test_a_host_renews_only_where_its_own_root_is(place: Place, web: Path, tmp_path: Path) -> None:
    """Another fleet's enroller, at the same address, is not believed."""
    (tmp_path / "others").mkdir()
    with Place(tmp_path / "others").serving() as address, pytest.raises(UntrustedError, match="is not the enroller that we trust"):
        renew(address, web, place.now)


def test_where_it_was_enrolled_is_known(web: Path) -> None:
    """Or said to be unknown, with the option that says it."""
    assert read_enroller(web).host == "127.0.0.1"
    for junk in (b"", b"\xff", b"no address\n"):
        (web / "enroller").write_bytes(junk)
        with pytest.raises(ConfigError, match="holds no address"):
            read_enroller(web)
    (web / "enroller").unlink()
    with pytest.raises(NotFoundError, match="it is not known whom to ask"):
        read_enroller(web)


def test_a_host_renews_where_it_was_renewed_last(place: Place, web: Path) -> None:
    """After a renewal at another enroller it goes there by itself; after one that failed it does not."""
    before = read_enroller(web)
    with place.serving() as other:
        with pytest.raises(UnreachableError):
            renew(Address("127.0.0.1:1"), web, place.now)
        assert read_enroller(web) == before != other
        renew(other, web, place.now)
        assert read_enroller(web) == other
        modified = (web / "enroller").stat().st_mtime_ns
        renew(other, web, place.now)
        assert (web / "enroller").stat().st_mtime_ns == modified


@pytest.fixture
def collector(place: Place) -> Path:
    """The identity directory of a receiver."""
    identity = place.directory / "collector"
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, place.now)
    return identity


def test_a_certificate_of_another_kind_is_not_renewed(place: Place, collector: Path) -> None:
    """A receiver's names and addresses are an operator's business."""
    with pytest.raises(UntrustedError, match="exactly clientAuth"):
        renew(Address("127.0.0.1:1"), collector, place.now)
    assert certificate_pem(leaf_of(collector)) in (collector / "cert.pem").read_bytes()

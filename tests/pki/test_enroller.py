"""What an enroller gives and to whom, without a network: tokens once, renewals by whom they are due to, and what is on record."""

import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.chain import load_pem_certificates
from securecore.certs.profiles import HOST, HOSTS_CA
from securecore.errors import BrokenError, NotFoundError
from securecore.names import HostName
from securecore.pki.directory import open_pki
from securecore.pki.enroller import Enroller
from securecore.pki.enrolment import Denied, Request
from securecore.pki.issue import issue_host
from securecore.pki.keys import make_key
from securecore.pki.limits import RENEWALS_PER_DAY
from securecore.pki.revocation import revoke_name, revoke_older, revoke_serial
from securecore.pki.rotation import finish, start, switch
from securecore.pki.signing_request import make_request, request_der
from securecore.pki.tokens import make_token, recall_token
from securecore.pki.verification import verify_log
from tests.support.certificates import DOMAIN, HOST_NAME, Made, make_hierarchy, mint, no_passphrase
from tests.support.certificates import make_key as make_hostile_key
from tests.support.enrolment import HOUR, Place, asking, csr, leaf_of
from tests.support.power import Loss, ended_at_each_call
from tests.support.processes import PATIENCE_S


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


def denied(place: Place, request: Request, peer: bytes | None = None) -> str:
    """Return the code with which a request is denied; nothing is issued."""
    before = place.hosts()
    with pytest.raises(Denied) as caught:
        place.enroller().answer(request, peer, place.server_der)
    assert place.hosts() == before
    assert caught.value.message.isprintable()
    return caught.value.code


def test_a_token_gets_its_host_a_certificate_and_says_so_in_the_ledger(place: Place) -> None:
    """For the token's name, whatever the request says, signed by the hosts CA, whose key is the only one that is here."""
    place.take_keys_away()
    secret, made = place.token()
    done = place.enroller().answer(asking(secret, csr(), place.server_der), None, place.server_der)
    leaf = load_pem_certificates(done.answer.reply.encode())[0]
    one = place.pki.ledger.read().issued[leaf.serial_number]
    assert (one.names, one.profile, one.token) == ((HOST_NAME,), "host", made.id)
    assert place.pki.ledger.read().tokens[made.id].used_for == leaf.serial_number
    assert done.issued == f"host={HOST_NAME} serial={leaf.serial_number:x} token={made.id}"


def test_no_enroller_without_the_hosts_cas_key(place: Place) -> None:
    """It is said at the start, not to the first host."""
    (place.pki.path / "hosts" / "key.pem").unlink()
    with pytest.raises(NotFoundError, match="the key of the hosts-ca is not here"):
        place.enroller()


def test_a_token_is_used_once(place: Place) -> None:
    """Another key gets nothing; the same key the same certificate again, while the token's time lasts, also after a restart."""
    secret, _ = place.token()
    request = asking(secret, csr(), place.server_der)
    first = place.enroller().answer(request, None, place.server_der).answer
    assert denied(place, asking(secret, csr(), place.server_der)) == "token-used"
    assert place.enroller().answer(request, None, place.server_der).answer == first
    assert len(place.hosts()) == 1
    place.now += HOUR + timedelta(seconds=1)
    assert denied(place, request) == "token-used"


def test_what_was_revoked_is_not_given_out_again(place: Place) -> None:
    """A lost answer is repeated, a revoked certificate is not."""
    secret, _ = place.token()
    request = asking(secret, csr(), place.server_der)
    place.enroller().answer(request, None, place.server_der)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    assert denied(place, request) == "token-used"


def test_a_token_counts_until_its_last_second(place: Place) -> None:
    """And no longer."""
    secret, _ = place.token()
    place.now += HOUR + timedelta(seconds=1)
    assert denied(place, asking(secret, csr(), place.server_der)) == "token-expired"
    place.now -= timedelta(seconds=1)
    place.enroller().answer(asking(secret, csr(), place.server_der), None, place.server_der)


def test_a_recalled_token_is_refused(place: Place) -> None:
    """Whoever has it."""
    secret, made = place.token()
    recall_token(place.pki, made.id, place.now)
    assert denied(place, asking(secret, csr(), place.server_der)) == "token-recalled"


def test_a_token_is_for_no_other_host(place: Place) -> None:
    """A machine that is somebody already is not made somebody else, and the token is not lost by the mistake."""
    secret, _ = place.token()
    assert denied(place, asking(secret, csr(), place.server_der, f"db-2.{DOMAIN}")) == "wrong-name"
    assert denied(place, asking(secret, csr(), place.server_der, "\x1b[2J" * 99)) == "wrong-name"
    place.enroller().answer(asking(secret, csr(), place.server_der, HOST_NAME), None, place.server_der)


def test_what_another_server_was_given_is_of_no_use(place: Place) -> None:
    """The HMAC names the server's certificate and the request: neither can be exchanged, nor the token's id."""
    (secret, _), (other, _) = place.token(), place.token(f"db-2.{DOMAIN}")
    own = csr()
    harvested = asking(secret, own, mint(HOST, issuer=make_hierarchy().hosts).der)
    good = asking(secret, own, place.server_der)
    for request in (
        harvested,
        good._replace(csr=csr()),
        good._replace(token=other.id),
        good._replace(token="0" * 16),
        good._replace(mac=b""),
        good._replace(mac=bytes(32)),
    ):
        assert denied(place, request) == "bad-token"
    place.enroller().answer(good, None, place.server_der)


def test_a_request_that_its_key_has_not_signed_is_refused(place: Place) -> None:
    """Nor is one for another kind of key, nor what is no request; the token remains."""
    secret, _ = place.token()
    good = csr()
    for bad in (b"", b"junk", good[:-1], good[:-4] + bytes(4), bytes(64 * 1024)):
        assert denied(place, asking(secret, bad, place.server_der)) == "bad-csr"
    assert denied(place, asking(secret, request_der(make_request(make_hostile_key("p384"))), place.server_der)) == "bad-csr"
    place.enroller().answer(asking(secret, good, place.server_der), None, place.server_der)


def test_a_key_that_was_revoked_is_not_certified_again(place: Place) -> None:
    """A new token does not make a stolen key good; one that was merely superseded may go on."""
    key = request_der(make_request(make_key()))
    secret, _ = place.token()
    place.enroller().answer(asking(secret, key, place.server_der), None, place.server_der)
    again, _ = place.token()
    place.enroller().answer(asking(again, key, place.server_der), None, place.server_der)
    revoke_older(place.pki, HostName(HOST_NAME), "superseded", no_passphrase, place.now)
    third, _ = place.token()
    place.enroller().answer(asking(third, key, place.server_der), None, place.server_der)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    fourth, _ = place.token()
    assert denied(place, asking(fourth, key, place.server_der)) == "revoked-key"


def test_many_hosts_with_one_token_at_once_get_one_certificate(place: Place) -> None:
    """Whoever comes first has it; the others are told that it was used."""
    secret, _ = place.token()
    together, codes = threading.Barrier(8), []

    def come() -> None:
        enroller, request = place.enroller(), asking(secret, csr(), place.server_der)
        together.wait()
        try:
            codes.append(enroller.answer(request, None, place.server_der).issued.partition("=")[0])
        except Denied as error:
            codes.append(error.code)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["host", *["token-used"] * 7]
    assert place.hosts() == [HOST_NAME]


@pytest.mark.slow
@pytest.mark.parametrize("loss", Loss)
def test_end_at_any_call_and_a_token_has_one_certificate(loss: Loss, place: Place) -> None:
    """The host comes again with the same key, and has the one that was issued, or the only one; the ledger holds."""
    secret, made = place.token()
    request = asking(secret, csr(), place.server_der)

    def answer(path: Path) -> object:
        return Enroller(open_pki(path), no_passphrase, lambda: place.now).answer(request, None, place.server_der)

    ends = 0
    for left, fatal in ended_at_each_call(place.pki.path, answer, loss):
        answer(left)
        checks = list(verify_log(open_pki(left), None))
        wrong = [one.what for one in checks if one.problem is not None]
        assert wrong in ([], ["there is no certificate that was not issued"]), fatal
        issued = open_pki(left).ledger.read().issued.values()
        assert [one.token for one in issued if one.profile == "host"] == [made.id], fatal
        ends += 1
    assert ends > 2


def renewing(place: Place, name: str = HOST_NAME) -> bytes:
    """Issue a host's certificate, and return its DER."""
    out = place.directory / f"host-{len(place.hosts())}"
    issue_host(place.pki, HostName(name), out, no_passphrase, place.now)
    return leaf_of(out).public_bytes(Encoding.DER)


def test_a_renewal_is_for_the_same_name_and_says_of_which_certificate(place: Place) -> None:
    """With any key that has signed the request; the name is that of the certificate that was shown."""
    shown = renewing(place)
    done = place.enroller().answer(Request("renew", csr=csr()), shown, place.server_der)
    leaf = load_pem_certificates(done.answer.reply.encode())[0]
    state = place.pki.ledger.read()
    one = state.issued[leaf.serial_number]
    assert (one.names, one.token, one.renews) == ((HOST_NAME,), None, [*state.issued][-2])


def test_who_may_not_renew(place: Place) -> None:
    """Nobody, a stranger, an enroller, another fleet's host, an expired one, a revoked one, one that the ledger does not have."""
    shown, request = renewing(place), Request("renew", csr=csr())
    assert denied(place, request) == "no-certificate"
    assert denied(place, request, mint(HOST, issuer=make_hierarchy().hosts).der) == "unknown-issuer"
    assert denied(place, request, place.server_der) == "wrong-purpose"
    assert denied(place, request, b"junk") == "malformed"
    place.now += timedelta(days=91)
    assert denied(place, request, shown) == "expired"
    place.now -= timedelta(days=91)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    assert denied(place, request, shown) == "revoked"


def test_who_is_refused_a_renewal_waits_for_nobody(place: Place) -> None:
    """Neither the revoked nor the unknown take the lock: they must not keep others out."""
    shown, request = renewing(place), Request("renew", csr=csr())
    authority = place.pki.authority(HOSTS_CA.name, no_passphrase)
    forged = mint(HOST, issuer=Made(authority.certificate, authority.key), now=place.now)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    codes: list[str] = []
    thread = threading.Thread(target=lambda: codes.extend(denied(place, request, one) for one in (shown, forged.der)))
    with place.pki.lock():
        thread.start()
        thread.join(PATIENCE_S)
        told = [*codes]
    thread.join()
    assert told == ["revoked", "unknown"]


def test_a_certificate_that_the_ledger_does_not_have_is_not_renewed(place: Place) -> None:
    """Somebody has used the CA's key behind the ledger's back."""
    authority = place.pki.authority(HOSTS_CA.name, no_passphrase)
    forged = mint(HOST, issuer=Made(authority.certificate, authority.key), now=place.now)
    assert denied(place, Request("renew", csr=csr()), forged.der) == "unknown"


def test_a_host_of_a_revoked_ca_is_not_renewed(place: Place) -> None:
    """Though its own certificate is on no list."""
    shown = renewing(place)
    revoke_serial(place.pki, place.pki.certificate("hosts-ca").serial_number, "cACompromise", no_passphrase, place.now)
    assert denied(place, Request("renew", csr=csr()), shown) == "revoked"


def test_a_host_is_not_renewed_without_end(place: Place) -> None:
    """A stolen key must not fill the ledger; a day later it goes on."""
    shown = renewing(place)
    enroller = place.enroller()
    for _ in range(RENEWALS_PER_DAY):
        enroller.answer(Request("renew", csr=csr()), shown, place.server_der)
    assert denied(place, Request("renew", csr=csr()), shown) == "busy"
    place.now += timedelta(days=1, minutes=1)
    enroller.answer(Request("renew", csr=csr()), shown, place.server_der)


def test_a_clock_that_was_ahead_keeps_nobody_from_renewing(place: Place) -> None:
    """What was issued in a future that never came is not of this day; from when it does come on it counts."""
    shown, enroller = renewing(place), place.enroller()
    place.now += timedelta(days=40)
    for _ in range(RENEWALS_PER_DAY):
        enroller.answer(Request("renew", csr=csr()), shown, place.server_der)
    place.now -= timedelta(days=40)
    enroller.answer(Request("renew", csr=csr()), shown, place.server_der)
    place.now += timedelta(days=40)
    assert denied(place, Request("renew", csr=csr()), shown) == "busy"


def test_renewals_follow_a_rotation(place: Place) -> None:
    """From the switch on the new CA signs, also for hosts of the old one, without a restart; in the end the old one is unknown."""
    shown, enroller = renewing(place), place.enroller()
    start(place.pki, HOSTS_CA, no_passphrase, place.now)
    switch(place.pki, HOSTS_CA, place.now)
    done = enroller.answer(Request("renew", csr=csr()), shown, place.server_der)
    leaf = load_pem_certificates(done.answer.reply.encode())[0]
    leaf.verify_directly_issued_by(place.pki.certificate("hosts-ca"))
    finish(place.pki, HOSTS_CA, place.now)
    assert denied(place, Request("renew", csr=csr()), shown) == "unknown-issuer"


def test_what_is_public_is_given_to_anybody(place: Place) -> None:
    """CAs and lists, as they stand in the PKI directory; no key is among them."""
    enroller = place.enroller()
    assert enroller.answer(Request("roots"), None, place.server_der).answer.ca == place.pki.ca_path.read_text()
    lists = enroller.answer(Request("lists"), None, place.server_der).answer
    assert (lists.ca, lists.crl) == (place.pki.ca_path.read_text(), place.pki.crl_path.read_text())


def test_crls_are_signed_when_due_with_the_keys_that_are_here(place: Place) -> None:
    """A month without anybody: the hosts CA's list stays fresh."""
    place.take_keys_away()
    enroller = place.enroller()
    assert enroller.sign_crls() == ()
    place.now += timedelta(days=21)
    assert [one.authority for one in enroller.sign_crls()] == ["hosts-ca"]


def test_the_ledger_holds_after_all_of_it(place: Place) -> None:
    """`pki log verify` finds nothing."""
    secret, _ = place.token()
    place.enroller().answer(asking(secret, csr(), place.server_der), None, place.server_der)
    place.enroller().answer(Request("renew", csr=csr()), renewing(place), place.server_der)
    assert [check.problem for check in verify_log(place.pki, None)] == [None] * 5


def used_token(place: Place, enroller: Enroller) -> tuple[bytes, Request]:
    """Have a token used up; return the ledger from before, and the request of somebody else who has the token."""
    secret, _ = place.token()
    before = place.pki.ledger.path.read_bytes()
    enroller.answer(asking(secret, csr(), place.server_der), None, place.server_der)
    return before, asking(secret, csr(), place.server_der)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_token_is_not_used_twice_by_putting_the_ledger_back(goes_on: bool, place: Place) -> None:
    """While the enroller runs: nobody is certified, also when others have gone on with it, until the newer one is back."""
    enroller, shown = place.enroller(), renewing(place)
    before, thief = used_token(place, enroller)
    newer = place.pki.ledger.path.read_bytes()
    place.pki.ledger.path.write_bytes(before)
    if goes_on:
        make_token(open_pki(place.pki.path), HostName(f"db-2.{DOMAIN}"), HOUR, place.now)
    left = place.pki.ledger.path.read_bytes()
    for request, peer in ((thief, None), (Request("renew", csr=csr()), shown)):
        with pytest.raises(BrokenError, match="is an older copy now, or another one"):
            enroller.answer(request, peer, place.server_der)
    assert place.pki.ledger.path.read_bytes() == left
    place.pki.ledger.path.write_bytes(newer)
    with pytest.raises(Denied, match="used already"):
        enroller.answer(thief, None, place.server_der)


def test_an_old_ledger_beside_newer_lists_enrols_nobody(place: Place) -> None:
    """Put back before the start, or found by a look while it runs; CAs and lists are given to receivers all the same."""
    enroller = place.enroller()
    before, thief = used_token(place, enroller)
    revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    place.pki.ledger.path.write_bytes(before)
    with pytest.raises(BrokenError, match="the ledger is an older copy"):
        Enroller(open_pki(place.pki.path), no_passphrase, lambda: place.now)
    assert "is an older copy" in (enroller.find_lost() or "")
    with pytest.raises(BrokenError, match="is an older copy"):
        enroller.answer(thief, None, place.server_der)
    assert enroller.answer(Request("lists"), None, place.server_der).answer.crl == place.pki.crl_path.read_text()


def test_an_old_copy_of_the_whole_pki_enrols_nobody(place: Place) -> None:
    """It was put back while nothing ran, and shows by what was noted elsewhere."""
    def start_up() -> Enroller:
        return Enroller(open_pki(place.pki.path), no_passphrase, lambda: place.now, place.directory / "noted")

    enroller = start_up()
    secret, _ = place.token()
    shutil.copytree(place.pki.path, place.directory / "backup")
    enroller.answer(asking(secret, csr(), place.server_der), None, place.server_der)
    assert start_up().find_lost() is None
    shutil.rmtree(place.pki.path)
    shutil.copytree(place.directory / "backup", place.pki.path)
    with pytest.raises(BrokenError, match="lines are missing at its end"):
        start_up()


@pytest.mark.parametrize("is_noted", [False, True])
def test_an_old_copy_that_is_put_back_while_it_runs_signs_no_list(is_noted: bool, place: Place) -> None:
    """A whole one, beside which no list is newer: receivers would take the next one, and let in who was revoked since."""
    note = place.directory / "noted" if is_noted else None
    shutil.copytree(place.pki.path, place.directory / "backup")
    enroller = Enroller(place.pki, no_passphrase, lambda: place.now, note)
    renewing(place)
    revoke_name(open_pki(place.pki.path), HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
    assert enroller.find_lost() is None
    shutil.rmtree(place.pki.path)
    shutil.copytree(place.directory / "backup", place.pki.path)
    place.now += timedelta(days=25)
    assert "is an older copy now" in (enroller.find_lost() or "")
    with pytest.raises(BrokenError, match="is an older copy now"):
        enroller.sign_crls()
    assert place.pki.ledger.path.read_bytes() == (place.directory / "backup/ledger.jsonl").read_bytes()

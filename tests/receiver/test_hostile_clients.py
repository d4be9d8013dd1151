"""Everybody who must not get in, at the door of a real receiver: refused before READY, told why at both ends, nothing stored.

The certificates are those of pki/refusals.md, each shown by our own sender in a real handshake. Where OpenSSL refuses, the sender
hears an alert, which is one word, and our words for it say no more than it does; where the judge refuses, both ends have the same
sentence.
"""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import tls
from securecore.certs.judge import Reason
from securecore.certs.profiles import HOST, HOSTS_CA, RECEIVER
from securecore.errors import ClockError, ConfigError, RefusedError
from securecore.receiver.session import quoted
from securecore.sender.delivery import connect
from securecore.sender.flush import flush
from securecore.sender.spool import Spool
from tests.support import hostile
from tests.support.certificates import DOMAIN, Made, make_hierarchy, make_key, mint
from tests.support.doors import Door, opened_door
from tests.support.identities import write_identity
from tests.support.receivers import papers_of, send_bytes
from tests.support.stores import stored_cores

# As in tests/certs/test_judge.py: the library warns of serial numbers that a later release will refuse.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One receiver for the whole module: what a case does to it is what the next one finds."""
    with opened_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


PURPOSE: Final = ("this host's certificate is not a host's", r"uns\w+ certificate purpose")
"""OpenSSL 3.0 says "unsuitable", others "unsupported"."""
NO_WAY: Final = "this host's certificate does not lead to a root that it trusts"
RULE: Final = "this host's certificate breaks a rule that the receiver's log names"
UNKNOWN_ISSUER: Final = (NO_WAY, "unable to get local issuer certificate")
DOMAIN_RULE: Final = (RULE, "permitted subtree violation")

BY_TLS: Final = {
    "server-auth-only": PURPOSE,
    "any-extended-key-usage": PURPOSE,
    "path-traversal": DOMAIN_RULE,
    "dot-dot": DOMAIN_RULE,
    "option-like": DOMAIN_RULE,
    "empty-name": DOMAIN_RULE,
    "single-label": DOMAIN_RULE,
    "trailing-dot": DOMAIN_RULE,
    "newline-in-name": DOMAIN_RULE,
    "outside-the-domain": DOMAIN_RULE,
    "suffix-of-the-domain": DOMAIN_RULE,
    "good-common-name-bad-san": DOMAIN_RULE,
    "no-names": (RULE, "Empty Subject Alternative Name extension"),
    "key-cert-sign": (RULE, "Key usage keyCertSign invalid for non-CA cert"),
    "no-authority-key-identifier": (RULE, "Missing Authority Key Identifier"),
    "wrong-authority-key-identifier": UNKNOWN_ISSUER,
    "authority-key-identifier-with-issuer": UNKNOWN_ISSUER,
    "unknown-critical-extension": (RULE, "unhandled critical extension"),
}
"""The hosts' certificates that OpenSSL refuses by itself: what the sender makes of its alert, and what OpenSSL says."""

IN_NO_HANDSHAKE: Final = {"garbled-san"}
"""What OpenSSL does not even load as our own certificate."""


def show(door: Door, made: Made, directory: Path) -> RefusedError | ClockError:
    """Have our own sender knock with a certificate; return what it is told."""
    context = tls.sender_context(str(write_identity(directory / "identity", made, door.hierarchy.root.pem)))
    with pytest.raises((RefusedError, ClockError)) as caught:
        connect([door.address], context)
    assert isinstance(caught.value, (RefusedError, ClockError))
    return caught.value


@pytest.mark.parametrize("case", [name for name in hostile.HOSTS if name not in IN_NO_HANDSHAKE])
def test_a_hostile_certificate_does_not_get_in(case: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate that our own hosts CA signed, with one thing wrong."""
    overrides, reason, words = hostile.HOSTS[case]

    error = show(door, mint(HOST, issuer=door.hierarchy.hosts, **overrides), tmp_path)

    (line,) = door.lines(caplog)
    if case in BY_TLS:
        told, verdict = BY_TLS[case]
        assert error.message == f"refused by {door.address}: {told}"
        assert re.fullmatch(f"failed host=- peer=127.0.0.1 error='client certificate refused by TLS: {verdict}'", line)
    else:
        told = error.message.removeprefix(f"refused by {door.address}: ")
        assert words in told
        # Whose dates alone are wrong has proved which host it is; its operator has to be found.
        name = f"web-1.{DOMAIN}" if reason in (Reason.EXPIRED, Reason.NOT_YET_VALID) else "-"
        assert line == f"failed host={name} dump=- peer=127.0.0.1 error={quoted(told)}"
    assert isinstance(error, ClockError if reason is Reason.NOT_YET_VALID else RefusedError)
    assert error.message.isprintable()
    door.check_untouched()


@pytest.mark.parametrize("case", sorted(IN_NO_HANDSHAKE))
def test_a_certificate_that_openssl_cannot_read_is_the_senders_own_fault(case: str, door: Door, tmp_path: Path) -> None:
    """It never gets as far as a handshake; the sender's operator reads what is the matter."""
    made = mint(HOST, issuer=door.hierarchy.hosts, **hostile.HOSTS[case].overrides)
    with pytest.raises(ConfigError, match="invalid certificate"):
        tls.sender_context(str(write_identity(tmp_path / "identity", made, door.hierarchy.root.pem)))


ANOTHER_HOSTS_CA: Final = "this host's certificate was signed by another CA that calls itself 'hosts CA'"
CAS_BY_TLS: Final = {"any-use": PURPOSE, "cannot-sign-certificates": (NO_WAY, "invalid CA certificate")}


@pytest.mark.parametrize("case", hostile.HOSTS_CAS)
def test_a_host_below_another_hosts_ca_does_not_get_in(
    case: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where our own root has signed that CA and the host shows the whole chain: ca.pem does not hold it."""
    other = mint(HOSTS_CA, issuer=door.hierarchy.root, subject="hosts CA", **hostile.HOSTS_CAS[case].overrides)

    error = show(door, mint(HOST, issuer=other), tmp_path)

    told, verdict = CAS_BY_TLS.get(case, (ANOTHER_HOSTS_CA, None))
    assert error.message == f"refused by {door.address}: {told}"
    expected = f"client certificate refused by TLS: {verdict}" if verdict else re.escape(told)
    (line,) = door.lines(caplog)
    assert re.fullmatch(f"failed host=- (dump=- )?peer=127.0.0.1 error=['\"]{expected}['\"]", line)
    door.check_untouched()


class Stranger(NamedTuple):
    """A certificate that is wrong as a whole: who made it, what its holder is told, what the log says behind `error=`."""

    make: Callable[[Door], Made]
    told: str
    logged: str


def by_tls(told: str, verdict: str) -> tuple[str, str]:
    """Return told and logged of a certificate that OpenSSL refuses."""
    return told, f"client certificate refused by TLS: {verdict}"


def by_judge(words: str) -> tuple[str, str]:
    """Return told and logged of a certificate that the judge refuses."""
    return words, words


def child_of_a_host(door: Door) -> Made:
    """Return a host's certificate that another host has signed, with the whole chain."""
    return mint(HOST, issuer=mint(HOST, issuer=door.hierarchy.hosts), dns=[f"db-2.{DOMAIN}"])


def below_the_hosts_ca(door: Door) -> Made:
    """Return a host's certificate of a CA that the hosts CA has signed."""
    return mint(HOST, issuer=mint(HOSTS_CA, issuer=door.hierarchy.hosts, subject="below"))


def with_its_own_root(door: Door) -> Made:
    """Return a certificate of another fleet that shows its root, too, as if that made it trusted."""
    other = make_hierarchy(suffix=" of others")
    leaf = mint(HOST, issuer=other.hosts)
    return Made(leaf.certificate, leaf.key, (*leaf.above, door.hierarchy.hosts.certificate))


REVOKED: Final = r"this host's certificate was revoked on 20\d\d-\d\d-\d\d \(keyCompromise\)"
STRANGERS: Final = {
    "other-root": Stranger(lambda _: mint(HOST, issuer=make_hierarchy(suffix=" of others").hosts), *by_tls(*UNKNOWN_ISSUER)),
    "other-root-with-our-hosts-ca-beside": Stranger(with_its_own_root, *by_tls(*UNKNOWN_ISSUER)),
    "same-name-impostor": Stranger(lambda _: mint(HOST, issuer=make_hierarchy().hosts), *by_tls(*UNKNOWN_ISSUER)),
    "our-ca-another-key": Stranger(
        lambda door: mint(HOST, issuer=Made(door.hierarchy.hosts.certificate, make_key())), *by_tls(*UNKNOWN_ISSUER)
    ),
    "self-signed": Stranger(lambda _: mint(HOST), *by_tls(NO_WAY, "self-signed certificate")),
    "wrong-branch": Stranger(lambda door: mint(HOST, issuer=door.hierarchy.receivers), *by_tls(*PURPOSE)),
    "a-receiver": Stranger(lambda door: mint(RECEIVER, issuer=door.hierarchy.receivers), *by_tls(*PURPOSE)),
    "a-receiver-of-the-hosts-ca": Stranger(lambda door: mint(RECEIVER, issuer=door.hierarchy.hosts), *by_tls(*PURPOSE)),
    "leaf-signed-by-leaf": Stranger(child_of_a_host, *by_tls(NO_WAY, "invalid CA certificate")),
    "below-the-hosts-ca": Stranger(below_the_hosts_ca, *by_tls(NO_WAY, "path length constraint exceeded")),
    "signed-by-the-root": Stranger(
        lambda door: mint(HOST, issuer=door.hierarchy.root),
        *by_judge("this host's certificate was signed by the root itself, not by its hosts CA"),
    ),
    "the-hosts-ca-itself": Stranger(lambda door: door.hierarchy.hosts, *by_tls(*PURPOSE)),
    "revoked": Stranger(lambda door: door.revoked, *by_judge(REVOKED)),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_does_not_get_in(case: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever our hosts CA has not signed, or has taken back."""
    make, told, logged = STRANGERS[case]

    error = show(door, make(door), tmp_path)

    assert isinstance(error, RefusedError)
    assert re.fullmatch(f"refused by {door.address}: {told}", error.message)
    (line,) = door.lines(caplog)
    host = f"stolen.{DOMAIN}" if case == "revoked" else "-"
    assert re.fullmatch(f"failed host={host} (dump=- )?peer=127.0.0.1 error=['\"]{logged}['\"]", line)
    door.check_untouched()


def test_a_core_waits_for_the_clock(tmp_path: Path, spool: Spool) -> None:
    """A host whose certificate is not yet valid keeps all of its cores, with exit code 15, and they arrive once it is."""
    with opened_door(tmp_path) as door:
        early = mint(HOST, issuer=door.hierarchy.hosts, not_before=hostile.NOW + timedelta(hours=1))
        too_early = papers_of(write_identity(tmp_path / "early", early, door.hierarchy.root.pem))
        sent = [send_bytes(core, too_early, [door.address], spool=spool) for core in (b"first", b"second")]
        tried = list(flush(spool, [door.address], too_early))
        kept = spool.dump_ids()
        delivered = list(flush(spool, [door.address], papers_of(door.host)))

    assert [(type(one.failure), one.spooled) for one in sent] == [(ClockError, True)] * 2
    assert ClockError.exit_code == 15
    # Every dump would be told the same: one handshake is enough.
    assert [type(one.failure) for one in tried] == [ClockError]
    assert len(kept) == 2
    assert [one.failure for one in delivered] == [None, None]
    assert sorted(stored_cores(door.store).values()) == [b"first", b"second"]

"""What a bundle proves to who has the root alone: all of it, or the check that fails is named; and nothing on its own word."""

import io
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from securecore.audit.bundle import Bundle, read_bundle
from securecore.audit.entry import encode, parse_entry
from securecore.certs.profiles import HOST
from securecore.dump.manifest import MANIFEST_TYP
from securecore.errors import BrokenError
from tests.support.bundles import (
    CORE,
    DB,
    DELETED,
    GIVEN_UP,
    GIVEN_UP_DELETED,
    OTHER,
    OTHER_DELETED,
    OTHER_HOSTS,
    RECEIVED,
    Collector,
    failed,
    left_out,
    world,
)
from tests.support.certificates import RECEIVER_NAME, make_crl, make_hierarchy, mint
from tests.support.dumps import NOW, REPORT, WEB, Signer, dump_id
from tests.support.kept_receipts import Notary

KEY: Final = "the log key is a receiver's, under the root"
PROVED: Final = "the receipt proves an entry of a host's audit log"
SAID: Final = "the entry says that a dump of that host was received or given up"
GONE: Final = "the log says that the dump was deleted since"
SIGNED: Final = "the manifest is signed"
SPEAKS: Final = "the manifest speaks of this dump, host and store"
AGREES: Final = "the entry agrees with the manifest"
CERTIFICATE: Final = "the certificate was the host's, under our root"
UNREVOKED: Final = "the certificate was not revoked, by the lists of that time"
REPORT_STEP: Final = "the report is the one that was sent"


def test_a_whole_bundle_proves_who_sent_what() -> None:
    """With the root certificate alone: each check holds, and says which dump, by whose word."""
    own = world().own
    found = own.verify(own.bundle(RECEIVED))
    assert found.ok, found.checks
    assert (failed(found), left_out(found)) == (set(), set())
    assert found.about == (WEB, dump_id(RECEIVED), own.store)
    assert found.manifest is not None
    assert found.held is not None
    assert (found.manifest.root, found.manifest.size) == (found.held.root, found.held.size) == (found.held.root, len(CORE))
    assert found.log_key is not None
    assert str(found.log_key.receiver.name) == RECEIVER_NAME


def test_a_report_need_not_be_there() -> None:
    """It says so; the manifest has its digest all the same."""
    own = world().own
    found = own.verify(own.bundle(RECEIVED)._replace(report=None))
    assert (found.ok, left_out(found)) == (True, {REPORT_STEP})


@pytest.mark.parametrize("has_report", [True, False])
def test_a_dump_that_was_given_up_is_the_receivers_word(has_report: bool) -> None:
    """No host has signed anything, and all that is about a host is left out, with the reason."""
    own = world().own
    bundle = own.bundle(GIVEN_UP, event="incomplete")
    found = own.verify(bundle if has_report else bundle._replace(report=None))
    assert found.ok, found.checks
    unsigned = {SIGNED, SPEAKS, AGREES, CERTIFICATE, UNREVOKED}
    assert left_out(found) == unsigned | (set() if has_report else {REPORT_STEP})
    assert (found.manifest, found.about and found.about.dump_id) == (None, dump_id(GIVEN_UP))


@pytest.mark.parametrize(("number", "event"), [(DELETED, "received"), (GIVEN_UP_DELETED, "incomplete")])
def test_of_a_deleted_dump_is_proved_what_the_log_says(number: int, event: str) -> None:
    """That it was there, when, and when it was deleted; its manifest is gone."""
    own = world().own
    found = own.verify(own.tombstone(number, event=event))
    assert found.ok, found.checks
    assert left_out(found) == {SIGNED, SPEAKS, AGREES, CERTIFICATE, UNREVOKED, REPORT_STEP}
    assert found.deletion is not None
    assert found.deletion.fields["reason"] == "ticket 4711"


def test_a_manifest_that_was_kept_proves_more_of_a_deleted_dump() -> None:
    """Whoever has an older bundle can put both together."""
    own = world().own
    found = own.verify(own.bundle(DELETED)._replace(deletion=own.tombstone(DELETED).deletion))
    assert (found.ok, left_out(found)) == (True, set())
    assert found.deletion is not None


def test_without_lists_it_says_that_it_cannot_check_them() -> None:
    """Of an entry that refers to none."""
    own = Collector.make(make_hierarchy(now=NOW))
    own.receive(1, has_lists=False)
    found = own.verify(own.bundle(1)._replace(lists=None))
    assert (found.ok, left_out(found)) == (True, {UNREVOKED})


def sign_again(bundle: Bundle) -> Bundle:
    """Another manifest of the same dump, signed by the same host."""
    signer = world().own.signers[WEB]
    manifest = signer.manifest(dump_id(RECEIVED), world().own.store, CORE)
    return bundle._replace(manifest=signer.sign(manifest._replace(sender="another sender")))


def sign_as_another_host(bundle: Bundle) -> Bundle:
    """A manifest of the same words, signed by another host of the fleet."""
    own = world().own
    manifest = own.signers[WEB].manifest(dump_id(RECEIVED), own.store, CORE)
    return bundle._replace(manifest=own.signers[DB].sign(manifest))


def state_another_key(bundle: Bundle) -> Bundle:
    """A statement of another log key by the same receiver."""
    return bundle._replace(log_key=Notary.make(world().own.hierarchy).statement)


def lists_of_others(bundle: Bundle) -> Bundle:
    """Other lists of the same CAs, under their own digest."""
    pem = make_crl(world().own.hierarchy.root, now=NOW, number=2) + make_crl(world().own.hierarchy.hosts, now=NOW, number=2)
    return bundle._replace(lists=(sha256(pem).hexdigest(), pem))


def lists_under_another_name(bundle: Bundle) -> Bundle:
    """The same, under the digest to which the entry refers."""
    other = lists_of_others(bundle).lists
    assert other is not None
    assert bundle.lists is not None
    return bundle._replace(lists=(bundle.lists[0], other[1]))


def entry_of_another_event(bundle: Bundle) -> Bundle:
    """A proof of an entry that says that somebody extracted the dump."""
    own = world().own
    log = [*own.log(WEB), encode(parse_entry(own.log(WEB)[0]) | {"event": "extracted"})]
    return bundle._replace(receipt=own.notary.proof(log))


def proof_of_another_origin(bundle: Bundle) -> Bundle:
    """The same entry, under a checkpoint of another host's log."""
    own = world().own
    return bundle._replace(receipt=own.notary.proof(own.log(WEB), 0, host=DB))


TAMPERED: Final[dict[str, tuple[Callable[[Bundle], Bundle], set[str]]]] = {
    "the manifest of another dump": (lambda own: own._replace(manifest=world().own.tokens[OTHER]), {SPEAKS}),
    "the manifest of another host": (lambda own: own._replace(manifest=world().own.tokens[OTHER_HOSTS]), {SPEAKS}),
    "the manifest at another receiver": (lambda own: own._replace(manifest=world().elsewhere.tokens[RECEIVED]), {AGREES}),
    "the manifest of another store": (lambda own: own._replace(manifest=world().other_store.tokens[RECEIVED]), {SPEAKS}),
    "the manifest of another PKI": (
        lambda own: own._replace(manifest=world().stranger.tokens[RECEIVED]),
        {AGREES, CERTIFICATE},
    ),
    "another manifest of the dump": (sign_again, {AGREES}),
    "the manifest signed by another host": (sign_as_another_host, {AGREES, CERTIFICATE}),
    "no manifest": (lambda own: own._replace(manifest=None), {SIGNED}),
    "a statement for a manifest": (lambda own: own._replace(manifest=own.log_key), {SIGNED}),
    "the receipt of another dump": (lambda own: own._replace(receipt=world().own.bundle(OTHER).receipt), {SPEAKS}),
    "the receipt of another host": (
        lambda own: own._replace(receipt=world().own.bundle(OTHER_HOSTS, DB).receipt),
        {SPEAKS},
    ),
    "the receipt of another receiver": (lambda own: own._replace(receipt=world().elsewhere.bundle(RECEIVED).receipt), {PROVED}),
    "the receipt of another store": (lambda own: own._replace(receipt=world().other_store.bundle(RECEIVED).receipt), {SPEAKS}),
    "the receipt of another PKI": (lambda own: own._replace(receipt=world().stranger.bundle(RECEIVED).receipt), {PROVED}),
    "the receipt of a dump that was given up": (
        lambda own: own._replace(receipt=world().own.bundle(GIVEN_UP, event="incomplete").receipt),
        {SPEAKS, UNREVOKED},
    ),
    "the proof of a deletion for a receipt": (
        lambda own: own._replace(receipt=world().own.tombstone(DELETED).deletion or b""),
        {SAID},
    ),
    "the proof of an extraction for a receipt": (entry_of_another_event, {SAID}),
    "the entry under another host's log": (proof_of_another_origin, {PROVED}),
    "the statement of another receiver": (lambda own: own._replace(log_key=world().elsewhere.notary.statement), {PROVED}),
    "the statement of another key": (state_another_key, {PROVED}),
    "the statement of another PKI": (lambda own: own._replace(log_key=world().stranger.notary.statement), {KEY}),
    "a manifest for a statement": (lambda own: own._replace(log_key=own.manifest or b""), {KEY}),
    "another report": (lambda own: own._replace(report=REPORT.replace(b"nginx", b"bgins")), {REPORT_STEP}),
    "no lists": (lambda own: own._replace(lists=None), {UNREVOKED}),
    "other lists": (lists_of_others, {UNREVOKED}),
    "other lists under the name": (lists_under_another_name, {UNREVOKED}),
    "the lists of another PKI": (lambda own: own._replace(lists=world().stranger.bundle(RECEIVED).lists), {UNREVOKED}),
    "the deletion of another dump": (lambda own: own._replace(deletion=world().own.tombstone(DELETED).deletion), {GONE}),
    "a receipt for a deletion": (lambda own: own._replace(deletion=own.receipt), {GONE}),
    "the deletion at another receiver": (
        lambda own: own._replace(deletion=world().elsewhere.tombstone(DELETED).deletion),
        {GONE},
    ),
    "all of another PKI": (lambda own: world().stranger.bundle(RECEIVED), {KEY}),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_member_that_is_another_valid_one_is_named(how: str) -> None:
    """By the checks that look at it; what then cannot be checked says so, and the bundle is not ok."""
    tamper, expected = TAMPERED[how]
    own = world().own
    found = own.verify(tamper(own.bundle(RECEIVED)))
    assert not found.ok
    assert failed(found) == expected
    left_out(found)


GONE_TAMPERED: Final[dict[str, tuple[Callable[[Bundle], Bundle], set[str]]]] = {
    "no deletion": (lambda own: own._replace(deletion=None), {SIGNED}),
    "the deletion of another dump": (
        lambda own: own._replace(deletion=world().own.tombstone(OTHER_DELETED).deletion),
        {GONE},
    ),
    "the deletion under an earlier checkpoint": (
        lambda own: own._replace(deletion=world().own.proof(DELETED, "deleted", size=len(world().own.log(WEB)) - 1)),
        {GONE},
    ),
    "both at another receiver": (
        lambda own: world().elsewhere.tombstone(DELETED)._replace(log_key=own.log_key),
        {PROVED, SIGNED},
    ),
    "lists to which nothing refers": (lambda own: own._replace(lists=world().own.bundle(RECEIVED).lists), {UNREVOKED}),
    "another report": (lambda own: own._replace(report=b"{}"), {REPORT_STEP}),
    "another manifest": (lambda own: own._replace(manifest=world().own.tokens[RECEIVED]), {SPEAKS}),
}


@pytest.mark.parametrize("how", GONE_TAMPERED)
def test_a_member_of_a_deleted_dumps_bundle_that_is_another_is_named(how: str) -> None:
    """That its manifest is gone excuses nothing else."""
    tamper, expected = GONE_TAMPERED[how]
    found = world().own.verify(tamper(world().own.tombstone(DELETED)))
    assert not found.ok
    assert failed(found) == expected


def test_a_deletion_before_the_reception_is_none() -> None:
    """The dump was received once more, and is there."""
    own = Collector.make(make_hierarchy(now=NOW))
    own.delete(1)
    own.receive(1)
    assert failed(own.verify(own.tombstone(1))) == {GONE}


def test_a_manifest_beside_a_dump_that_was_given_up_is_an_error() -> None:
    """Even one that its host did sign."""
    own = world().own
    signer = own.signers[WEB]
    token = signer.sign(signer.manifest(dump_id(GIVEN_UP), own.store, CORE))
    found = own.verify(own.bundle(GIVEN_UP, event="incomplete")._replace(manifest=token))
    assert not found.ok
    assert AGREES in failed(found)


def test_a_host_that_was_revoked_by_then_is_named() -> None:
    """By lists that the entry itself refers to: no honest receiver has let it in."""
    own = Collector.make(make_hierarchy(now=NOW))
    signer = own.signers[WEB] = Signer(mint(HOST, issuer=own.hierarchy.hosts, now=NOW), WEB)
    serial = signer.made.certificate.serial_number
    revoked = {serial: (NOW - timedelta(days=1), "keyCompromise")}
    own.lists = make_crl(own.hierarchy.root, now=NOW) + make_crl(own.hierarchy.hosts, now=NOW, revoked=revoked)
    own.receive(1)
    found = own.verify(own.bundle(1))
    assert (found.ok, failed(found)) == (False, {UNREVOKED})


@cache
def encoded() -> bytes:
    """Return a whole bundle."""
    return world().own.bundle(RECEIVED).encode()


@settings(max_examples=300)
@given(st.integers(0, 20_000), st.integers(1, 255))
@example(0, 1)
def test_any_changed_byte_is_refused(at: int, change: int) -> None:
    """Wherever it is, no bundle differs from the one that was made and still holds."""
    data = bytearray(encoded())
    data[at % len(data)] ^= change
    try:
        bundle = read_bundle(io.BytesIO(bytes(data)))
    except BrokenError:
        return
    assert not world().own.verify(bundle).ok


@pytest.mark.slow
def test_every_hundredth_byte_of_each_member_is_refused() -> None:
    """Each member is met, however small a part of the bundle it is; whoever misses it is named."""
    own = world().own
    whole = own.bundle(RECEIVED)
    for name, member in (("log_key", whole.log_key), ("receipt", whole.receipt), ("manifest", whole.manifest), ("report", REPORT)):
        assert member is not None
        for at in range(0, len(member), 100 if len(member) > 1000 else 1):
            changed = bytearray(member)
            changed[at] ^= 1
            assert not own.verify(whole._replace(**{name: bytes(changed)})).ok, (name, at)


def test_nothing_but_the_projects_own_words_comes_of_rubbish() -> None:
    """Members that are nothing at all fail their checks."""
    for rubbish in (b"", b"\xff" * 100, b"..", b"{}", MANIFEST_TYP.encode()):
        found = world().own.verify(Bundle(rubbish, rubbish, rubbish, rubbish, rubbish, ("00" * 32, rubbish)))
        assert not found.ok
        assert KEY in failed(found)

"""CAs and revocation lists that a receiver fetches from an enroller: taken whole, never older, and from its own root alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from securecore.certs.profiles import HOSTS_CA
from securecore.errors import ConfigError, PkiError, StorageError
from securecore.names import Address, HostName
from securecore.pki.enrolment import Answer, encode_answer
from securecore.pki.fetching import fetch
from securecore.pki.issue import issue_host, issue_receiver
from securecore.pki.revocation import revoke_name, sign_crls
from securecore.pki.rotation import finish, start, switch
from securecore.receiver.material import load_material
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, make_hierarchy, no_passphrase
from tests.support.disk import FailingDisk
from tests.support.enrolment import Place, contents, impostor

NAME = HostName(HOST_NAME)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A PKI with an enroller."""
    return Place(tmp_path)


@pytest.fixture
def collector(place: Place) -> Path:
    """The identity directory of a receiver."""
    identity = place.directory / "collector"
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [], identity, no_passphrase, place.now)
    return identity


def fetched(place: Place, identity: Path, *, drop: bool = False) -> bool:
    """Fetch from a server that runs meanwhile; return whether anything was new."""
    with place.serving() as address:
        return fetch(address, identity, place.now, is_dropping=drop).is_new


@pytest.mark.parametrize("kind", ["host", "enroller"])
def test_nobody_but_a_receiver_fetches(kind: str, place: Place) -> None:
    """A host's or an enroller's directory stays as it is, and nobody is asked."""
    identity = place.identity
    if kind == "host":
        identity = place.directory / "web-1"
        issue_host(place.pki, NAME, identity, no_passphrase, place.now)
    before = contents(identity)
    with pytest.raises(PkiError, match=f"has the certificate of a {kind}, and only a receiver looks at CRLs") as caught:
        fetch(Address("127.0.0.1:1"), identity, place.now)
    assert "name a receiver's directory" in (caught.value.hint or "")
    assert contents(identity) == before


def test_a_revocation_comes_to_a_receiver_by_a_fetch(place: Place, collector: Path) -> None:
    """Nothing new at first; then the list, byte for byte; then nothing new."""
    assert not fetched(place, collector)
    issue_host(place.pki, NAME, place.directory / "web-1", no_passphrase, place.now)
    revoke_name(place.pki, NAME, "keyCompromise", no_passphrase, place.now)
    assert fetched(place, collector)
    assert (collector / "crl.pem").read_bytes() == place.pki.crl_path.read_bytes()
    assert not fetched(place, collector)
    assert load_material(collector, place.now).own.name == HostName(RECEIVER_NAME)


def lists_from(place: Place, ca: bytes, crl: bytes) -> Callable[[bytes], bytes]:
    """Return an impostor with the enroller's own certificate, as a thief of its key is, that gives these lists."""
    roots, lists = encode_answer(Answer(ca=place.pki.ca_path.read_text())), encode_answer(Answer(ca=ca.decode(), crl=crl.decode()))
    return lambda asked: roots if b"roots" in asked else lists


def refused(place: Place, identity: Path, ca: bytes, crl: bytes, words: str) -> None:
    """Check that lists are not taken, and that nothing has changed."""
    before = contents(identity)
    with impostor(place.identity, lists_from(place, ca, crl)) as thief, pytest.raises((PkiError, ConfigError), match=words):
        fetch(thief.address, identity, place.now)
    assert contents(identity) == before


def test_lists_are_taken_whole_and_never_older(place: Place, collector: Path) -> None:
    """Whoever stole the enroller's key can keep news back, and no more."""
    ca, crl = (collector / "ca.pem").read_bytes(), (collector / "crl.pem").read_bytes()
    sign_crls(place.pki, no_passphrase, place.now, is_forced=True)
    assert fetched(place, collector)
    newer = (collector / "crl.pem").read_bytes()
    refused(place, collector, ca, crl, "has number 1, and number 2 is already in use")
    refused(place, collector, ca, newer[:-20], "it is cut off")
    refused(place, collector, ca[:-20], newer, "the file is cut off or damaged")
    refused(place, collector, ca, newer[newer.index(b"-----BEGIN", 1) :], "is gone|lacks the list")
    refused(place, collector, ca, b"", "expected 1 to")
    refused(place, collector, b"", newer, "expected 1 to")


def test_no_other_root_and_no_strange_ca_is_taken(place: Place, collector: Path) -> None:
    """What the receiver's own root has not signed is not believed, though it comes from the enroller."""
    ca, crl = (collector / "ca.pem").read_bytes(), (collector / "crl.pem").read_bytes()
    others = make_hierarchy(suffix=" of others")
    refused(place, collector, ca + others.root.pem, crl, "has a root that this receiver does not believe")
    refused(place, collector, ca + others.hosts.pem, crl, "a CA that no root here has signed")


def test_a_rotation_comes_to_a_receiver_by_fetches(place: Place, collector: Path) -> None:
    """The new CA by itself, the end of the old one when the operator says so; the receiver can start at every moment."""
    start(place.pki, HOSTS_CA, no_passphrase, place.now)
    assert fetched(place, collector)
    assert len(load_material(collector, place.now).identity.anchors.intermediates) == 3
    switch(place.pki, HOSTS_CA, place.now)
    fetched(place, collector)
    finish(place.pki, HOSTS_CA, place.now)
    with pytest.raises(PkiError, match="does not have 1 of the CAs") as caught:
        fetched(place, collector)
    assert "--drop" in (caught.value.hint or "")
    assert fetched(place, collector, drop=True)
    assert (collector / "ca.pem").read_bytes() == place.pki.ca_path.read_bytes()
    assert len(load_material(collector, place.now).identity.anchors.intermediates) == 2


@pytest.mark.parametrize("step", ["add", "drop"])
def test_a_disk_that_fails_leaves_a_receiver_that_can_start(
    step: str, place: Place, collector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write of a fetch that adds a CA and of one that lets go of one; a further fetch finishes it."""
    start(place.pki, HOSTS_CA, no_passphrase, place.now)
    if step == "drop":
        fetched(place, collector)
        switch(place.pki, HOSTS_CA, place.now)
        finish(place.pki, HOSTS_CA, place.now)
    with place.serving() as address:
        fatal, failures = 1, 0
        while failures == fatal - 1:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", FailingDisk(fatal))
                try:
                    fetch(address, collector, place.now, is_dropping=step == "drop")
                except StorageError:
                    failures += 1
            load_material(collector, place.now)
            fatal += 1
        fetch(address, collector, place.now, is_dropping=step == "drop")
    assert failures >= 2
    assert (collector / "ca.pem").read_bytes() == place.pki.ca_path.read_bytes()
    assert (collector / "crl.pem").read_bytes() == place.pki.crl_path.read_bytes()

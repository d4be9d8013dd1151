"""The revocation lists of a reception, long afterwards: what they say of the host's certificate is computed again."""

import json
import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from securecore import limits
from securecore.audit.checks import Check
from securecore.audit.entry import encode, parse_entry, received_entry
from securecore.audit.revocation import KeptLists, find_reference
from securecore.audit.verification import DumpVerification, verify_dump
from securecore.certs.judge import Purpose, judge
from tests.support.certificates import make_crl, make_hierarchy, make_key
from tests.support.dumps import NOW, WEB, dump_id, dump_path, log_of, opened
from tests.support.one_dump import CORE, Stored

WHAT = "the certificate was not revoked, by the lists of that time"
ID = dump_id(2)
GRACE = timedelta(seconds=limits.CRL_GRACE_S)


def receive(stored: Stored, **changes: Any) -> None:
    """Have a dump received with an entry in which some fields are others; Ellipsis leaves one out."""
    path = dump_path(stored.store, ID)
    shutil.copytree(stored.path, path)
    manifest = stored.signer.manifest(ID, stored.store.store_id, CORE)
    token = stored.signer.sign(manifest)
    certificate = sha256(stored.signer.made.der).hexdigest()
    length = stored.core.stat().st_size
    entry = parse_entry(received_entry(NOW, manifest, token, stored_bytes=length, certificate=certificate))
    line = encode({name: value for name, value in (entry | changes).items() if value is not ...})
    (path / "manifest.jws").write_bytes(token)
    (path / "receipt").write_bytes(log_of(stored.logs, WEB).append(line))


def verify(stored: Stored, kept: dict[str, bytes] | None) -> DumpVerification:
    """Verify that dump beside some kept files; None for a store that knows nothing of lists."""
    lists = KeptLists(kept.get) if kept is not None else None
    with opened(dump_path(stored.store, ID)) as fd:
        expected = stored.expected._replace(dump_id=ID)
        return verify_dump(fd, expected, stored.hierarchy.anchors, stored.log_key, lists)


def step(found: DumpVerification) -> Check:
    """The check that is about revocation."""
    (check,) = [check for check in found.checks if check.what == WHAT]
    return check


def sound(stored: Stored) -> bytes:
    """Lists of both CAs on which nobody is."""
    return make_crl(stored.hierarchy.root, now=NOW) + make_crl(stored.hierarchy.hosts, now=NOW)


def revoking(stored: Stored) -> bytes:
    revoked = {stored.signer.made.certificate.serial_number: (NOW, "keyCompromise")}
    return make_crl(stored.hierarchy.root, now=NOW) + make_crl(stored.hierarchy.hosts, now=NOW, revoked=revoked)


def revoking_the_ca(stored: Stored) -> bytes:
    revoked = {stored.hierarchy.hosts.certificate.serial_number: (NOW, "cACompromise")}
    return make_crl(stored.hierarchy.root, now=NOW, revoked=revoked) + make_crl(stored.hierarchy.hosts, now=NOW)


def too_old(stored: Stored) -> bytes:
    then = NOW - timedelta(days=30) - GRACE - timedelta(seconds=2)
    return make_crl(stored.hierarchy.root, now=NOW) + make_crl(stored.hierarchy.hosts, now=then, days=30)


def in_grace(stored: Stored) -> bytes:
    then = NOW - timedelta(days=30) - GRACE + timedelta(seconds=2)
    return make_crl(stored.hierarchy.root, now=NOW) + make_crl(stored.hierarchy.hosts, now=then, days=30)


def forged(stored: Stored) -> bytes:
    return make_crl(stored.hierarchy.root, now=NOW) + make_crl(stored.hierarchy.hosts, now=NOW, key=make_key())


def of_others(stored: Stored) -> bytes:
    others = make_hierarchy(now=NOW, suffix=" of others")
    return make_crl(others.root, now=NOW) + make_crl(others.hosts, now=NOW)


def cut_off(stored: Stored) -> bytes:
    return sound(stored)[:-10]


def no_list(stored: Stored) -> bytes:
    return b"rubbish"


@pytest.mark.parametrize("make", [sound, in_grace])
def test_lists_that_let_the_host_in_then_do_so_now(make: Callable[[Stored], bytes], stored: Stored) -> None:
    """An expired one too, in its grace; which file it was is said."""
    pem = make(stored)
    digest = sha256(pem).hexdigest()
    receive(stored, crl_sha256=digest)
    found = verify(stored, {digest: pem})
    assert found.ok, found.checks
    assert (step(found).ok, step(found).number, step(found).detail) == (True, 6, f"by crls/{digest}.pem")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (revoking, r"was revoked on 2026-11-22 \(keyCompromise\)"),
        (revoking_the_ca, r"the certificate of the hosts CA was revoked"),
        (too_old, "expired on .* longer ago than is tolerated"),
        (forged, "no revocation list of"),
        (of_others, "no revocation list of"),
        (cut_off, "cut off"),
        (no_list, "found 0"),
    ],
)
def test_lists_by_which_nobody_would_have_been_let_in_are_named(
    make: Callable[[Stored], bytes], words: str, stored: Stored
) -> None:
    """That step alone fails, and with it the dump."""
    pem = make(stored)
    digest = sha256(pem).hexdigest()
    receive(stored, crl_sha256=digest)
    found = verify(stored, {digest: pem})
    assert not found.ok
    assert [check.what for check in found.checks if not check.ok] == [WHAT]
    assert re.search(words, step(found).detail)


def test_a_file_that_is_missing_or_changed_is_named(stored: Stored) -> None:
    """Its digest stands in the log, so another one cannot take its place."""
    digest = sha256(sound(stored)).hexdigest()
    receive(stored, crl_sha256=digest)
    assert step(verify(stored, {})).detail == f"crls/{digest}.pem, to which the entry refers, is missing"
    changed = verify(stored, {digest: sound(stored) + b"\n"})
    assert (changed.ok, step(changed).ok) == (False, False)
    assert "other bytes than its name" in step(changed).detail


@pytest.mark.parametrize(
    ("said", "words"), [(..., "written by an earlier version, which kept no"), (None, "refers to no revocation lists")]
)
def test_an_entry_that_refers_to_none_is_no_worse_and_says_so(said: object, words: str, stored: Stored) -> None:
    """The check cannot be made; the dump is not broken by it, and nothing says that all is well."""
    receive(stored, crl_sha256=said)
    found = verify(stored, {})
    assert found.ok
    assert step(found).ok is None
    assert words in step(found).detail


def test_without_any_lists_at_hand_the_check_is_left_out(stored: Stored) -> None:
    """As by who has the dump's files alone."""
    receive(stored, crl_sha256="0" * 64)
    found = verify(stored, None)
    assert (found.ok, step(found).ok) == (True, None)
    assert "at hand" in step(found).detail


@pytest.mark.parametrize("said", ["../../etc/passwd", "AB" * 32, 7])
def test_what_is_no_digest_is_looked_up_nowhere(said: object, stored: Stored) -> None:
    """No name of a file is made of it."""
    receive(stored, crl_sha256=said)
    lists = KeptLists(lambda digest: pytest.fail(digest))
    with opened(dump_path(stored.store, ID)) as fd:
        expected = stored.expected._replace(dump_id=ID)
        found = verify_dump(fd, expected, stored.hierarchy.anchors, stored.log_key, lists)
    assert (step(found).ok, found.ok) == (False, False)


def test_a_file_is_read_once_for_the_dumps_of_its_time(stored: Stored) -> None:
    """And once more after so many others that it was let go: memory is bounded."""
    files = {sha256(pem).hexdigest(): pem for pem in (sound(stored) + b"\n" * number for number in range(6))}
    first, *others = files
    reads: list[str] = []

    def read(digest: str) -> bytes:
        reads.append(digest)
        return files[digest]

    lists, judgement = KeptLists(read), judge(stored.signer.made.der, [], stored.hierarchy.anchors, Purpose.HOST, NOW)
    for digest in (first, first, *others, *others[-2:], first):
        lists.check(digest, judgement, NOW)
    assert reads == [first, *others, first]


def test_a_reference_is_read_from_a_field_alone() -> None:
    """No program's name can look like one."""
    digest = "ab" * 32
    assert find_reference(encode({"crl_sha256": digest})) == digest
    assert find_reference(encode({"crl_sha256": None})) is None
    assert find_reference(encode({"program": json.dumps({"crl_sha256": digest}, separators=(",", ":"))})) is None

"""Verification: what holds is said to hold, and every kind of damage is found, named and, where it can be, located."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256

import pytest

from securecore import limits
from securecore.audit.damage import Damage, survey_core
from securecore.audit.entry import received_entry
from securecore.audit.verification import verify_dump
from securecore.certs import chain, jws
from securecore.certs.profiles import HOST
from securecore.dump.compression import Decompressor
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.manifest import CUT
from securecore.names import HostName
from securecore.store.layout import create_store
from tests.support.certificates import make_hierarchy, mint
from tests.support.dumps import (
    NOW,
    WEB,
    Signer,
    dump_id,
    dump_path,
    frames_of,
    log_of,
    make_log_signer,
    make_signer,
    opened,
    store_dump,
)
from tests.support.one_dump import CORE, ID, Stored, failed

FRAMES = [frame for frame, _ in frames_of(CORE)]

OFFSETS = [sum(map(len, FRAMES[:index])) for index in range(len(FRAMES) + 1)]

MIB = limits.PIECE_BYTES


def test_a_sound_dump_verifies(stored: Stored) -> None:
    """Every check holds, the checks are numbered, and progress counts every frame."""
    seen: list[tuple[int, int]] = []
    found = stored.verify(progress=lambda done, total: seen.append((done, total)))
    assert found.ok, found.checks
    assert [check.number for check in found.checks] == list(range(1, 13))
    assert found.damage == []
    assert seen == [(done, len(FRAMES)) for done in range(1, len(FRAMES) + 1)]
    assert stored.verify(decode=False).ok


def test_a_cut_dump_verifies_as_what_it_is(stored: Stored) -> None:
    """A dump that its manifest calls cut is sound evidence of a cut dump."""
    store_dump(stored.store, stored.logs, stored.signer, dump_id(2), CORE, outcome=CUT)
    with opened(dump_path(stored.store, dump_id(2))) as fd:
        found = verify_dump(fd, stored.expected._replace(dump_id=dump_id(2)), stored.hierarchy.anchors, stored.log_key)
    assert found.ok, found.checks
    assert found.manifest is not None
    assert found.manifest.outcome == CUT


@pytest.mark.slow
@pytest.mark.parametrize("decode", [True, False])
def test_a_flipped_bit_anywhere_in_the_core_is_found(decode: bool, stored: Stored) -> None:
    """A flipped bit in any byte of any frame breaks the root, and the frame that holds it is the one that is named."""
    original = stored.core.read_bytes()
    for at in range(OFFSETS[-1]):
        damaged = bytearray(original)
        damaged[at] ^= 1 << at % 8
        stored.core.write_bytes(damaged)
        found = stored.verify(decode=decode)
        assert "the frames give the signed Merkle root" in failed(found)
        frame = max(index for index, offset in enumerate(OFFSETS) if offset <= at)
        assert [(damage.first_frame, damage.last_frame) for damage in found.damage] in ([(frame, frame)], []), at
        if not found.damage:  # zstd has bits that change nothing, such as the window size of a small frame
            assert b"".join(_decoded(bytes(damaged))) == CORE


def _decoded(container: bytes) -> list[bytes]:
    decompressor = Decompressor()
    return [decompressor.piece(container[OFFSETS[index] : OFFSETS[index + 1]]) for index in range(len(FRAMES))]


def test_damage_names_its_plaintext(stored: Stored) -> None:
    """Damaged frames are reported with the plaintext that they stood for; the sound ones around them are not."""
    with stored.core.open("r+b") as file:
        for index in (1, 5):
            file.seek(OFFSETS[index] + 12)
            file.write(b"\xff" * 3)
    found = stored.verify()
    assert [(damage.first_frame, damage.plain_start, damage.plain_end) for damage in found.damage] == [
        (1, MIB, 2 * MIB),
        (5, 5 * MIB, 5 * MIB + 60),
    ]
    check = next(check for check in found.checks if check.number == 12)
    assert check.detail.startswith(f"frame 1 (plaintext {MIB} to {2 * MIB}): ")
    assert check.detail.endswith(", and 1 more")


@pytest.mark.slow
def test_truncation_at_every_offset_is_found(stored: Stored) -> None:
    """However much of the core is missing, the dump does not verify, and what is named as lost is all that is not there."""
    original = stored.core.read_bytes()
    for length in range(len(original)):
        stored.core.write_bytes(original[:length])
        found = stored.verify()
        assert not found.ok
        whole = max(index for index, offset in enumerate(OFFSETS) if offset <= length)
        lost = [(damage.first_frame, damage.last_frame, damage.plain_start, damage.plain_end) for damage in found.damage]
        assert lost == ([(whole, 5, whole * MIB, len(CORE))] if whole < len(FRAMES) else []), length


@pytest.mark.parametrize("at", range(len(seek_table([FrameEntry(1, 1)] * 6))))
def test_a_flipped_bit_in_the_seek_table(at: int, stored: Stored) -> None:
    """Damage to the seek table costs no frame: the root still agrees, and the table is what is named."""
    damaged = bytearray(stored.core.read_bytes())
    damaged[OFFSETS[-1] + at] ^= 0x10
    stored.core.write_bytes(damaged)
    found = stored.verify()
    assert failed(found) == ["the seek table agrees with the frames"]
    assert found.damage == []


def test_sound_frames_that_nobody_signed(stored: Stored) -> None:
    """A frame replaced by another sound one is found by the root, though no single frame can be blamed."""
    frames = [*FRAMES[:-1], frames_of(b"head" * 15)[0][0]]
    table = seek_table([FrameEntry(len(frame), MIB) for frame in frames[:-1]] + [FrameEntry(len(frames[-1]), 60)])
    stored.core.write_bytes(b"".join(frames) + table)
    found = stored.verify()
    assert failed(found) == ["the frames give the signed Merkle root"]
    assert found.damage == []


@pytest.mark.parametrize("has_table", [True, False], ids=["seek table", "no seek table"])
def test_of_frames_that_nobody_signed_one_is_read(has_table: bool, stored: Stored) -> None:
    """Whoever hands in a core decides how many frames it has: one more than was signed tells that it is another."""
    frames = [*FRAMES[:-1], *[FRAMES[0]] * 50]
    table = seek_table([FrameEntry(len(frame), MIB) for frame in frames])
    stored.core.write_bytes(b"".join(frames) + (table if has_table else b""))
    read: list[int] = []
    with stored.core.open("rb") as file:
        survey = survey_core(file.fileno(), (len(FRAMES), len(CORE)), decode=True, progress=lambda done, of: read.append(done))
    assert (len(read), survey.frames, survey.has_more) == (len(FRAMES) + 1, len(FRAMES) + 1, True)
    found = stored.verify()
    assert {"frames and bytes are as many as the manifest says", "the frames give the signed Merkle root"} <= set(failed(found))
    detail = next(check.detail for check in found.checks if check.what.startswith("frames and bytes"))
    assert detail == f"found more than the {len(FRAMES)} frames of {len(CORE)} bytes that were signed"


def test_frames_left_out(stored: Stored) -> None:
    """A container that is sound in itself but shorter than signed is found by number, root and what is missing."""
    table = seek_table([FrameEntry(len(frame), MIB) for frame in FRAMES[:3]])
    stored.core.write_bytes(b"".join(FRAMES[:3]) + table)
    found = stored.verify()
    assert found.damage == [Damage(3, 5, 3 * MIB, len(CORE), "missing")]
    assert "frames and bytes are as many as the manifest says" in failed(found)


Tamper = Callable[[Stored], None]


def change_report(stored: Stored) -> None:
    (stored.path / "report.json").write_bytes(b'{"program":"other"}')


def drop_report(stored: Stored) -> None:
    (stored.path / "report.json").unlink()


def drop_core(stored: Stored) -> None:
    stored.core.unlink()


def link_core(stored: Stored) -> None:
    stored.core.rename(stored.path / "moved")
    stored.core.symlink_to("moved")


def change_manifest(stored: Stored) -> None:
    token = bytearray((stored.path / "manifest.jws").read_bytes())
    token[-20] ^= 1
    (stored.path / "manifest.jws").write_bytes(token)


def drop_manifest(stored: Stored) -> None:
    (stored.path / "manifest.jws").unlink()


def drop_receipt(stored: Stored) -> None:
    (stored.path / "receipt").unlink()


def sign_again(stored: Stored) -> None:
    manifest = stored.signer.manifest(ID, stored.store.store_id, CORE)
    (stored.path / "manifest.jws").write_bytes(stored.signer.sign(manifest._replace(sender="somebody else")))


def other_receipt(stored: Stored) -> None:
    receipt = store_dump(stored.store, stored.logs, stored.signer, dump_id(2), CORE)
    (stored.path / "receipt").write_bytes(receipt)


def other_host_signs(stored: Stored) -> None:
    signer = Signer(mint(HOST, issuer=stored.hierarchy.hosts, dns=["db-2.hosts.test.example"], now=NOW), WEB)
    (stored.path / "manifest.jws").write_bytes(signer.sign(signer.manifest(ID, stored.store.store_id, CORE)))


def other_root_signs(stored: Stored) -> None:
    signer = make_signer(make_hierarchy(now=NOW, suffix=" of others"))
    (stored.path / "manifest.jws").write_bytes(signer.sign(signer.manifest(ID, stored.store.store_id, CORE)))


def other_dump(stored: Stored) -> None:
    (stored.path / "manifest.jws").write_bytes(stored.signer.sign(stored.signer.manifest(dump_id(9), stored.store.store_id, CORE)))


def not_a_manifest(stored: Stored) -> None:
    token = jws.sign(b"{}", stored.signer.made.key_pem, [stored.signer.made.der], "securecore-manifest+jws")
    (stored.path / "manifest.jws").write_bytes(token)


SIGNED = "the manifest is signed"

SPEAKS = "the manifest speaks of this dump, host and store"

RECEIPT = "the receipt proves an entry of the host's audit log"

AGREES = "the entry agrees with the manifest"

CERTIFICATE = "the certificate was the host's, under our root"

REPORT = "the report is the one that was sent"

READ = "the core can be read"


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (change_report, [REPORT]),
        (drop_report, [REPORT]),
        (drop_core, [READ]),
        (link_core, [READ]),
        (change_manifest, [SIGNED]),
        (drop_manifest, [SIGNED]),
        (drop_receipt, [RECEIPT]),
        (sign_again, [AGREES]),
        (other_receipt, [AGREES]),
        (other_host_signs, [AGREES, CERTIFICATE]),
        (other_root_signs, [AGREES, CERTIFICATE]),
        (other_dump, [SPEAKS]),
        (not_a_manifest, [SPEAKS]),
    ],
)
def test_tampering_is_named(tamper: Tamper, expected: list[str], stored: Stored) -> None:
    """Each change to a dump's files fails exactly the checks that look at it; what then cannot be checked says so."""
    tamper(stored)
    found = stored.verify()
    assert failed(found) == expected
    assert not found.ok
    assert all("not checked" in check.detail for check in found.checks if check.ok is None)
    assert len(found.checks) == 12


def test_another_place_or_store(stored: Stored) -> None:
    """A dump that was moved to another host's directory, under another id or into another store does not verify there."""
    with create_store(f"{stored.store.path}-2") as other:
        for changed in (
            stored.expected._replace(host=HostName("db-2.hosts.test.example")),
            stored.expected._replace(dump_id=dump_id(2)),
            stored.expected._replace(store_id=other.store_id),
        ):
            assert SPEAKS in failed(stored.verify(expected=changed))


def test_without_the_log_key(stored: Stored) -> None:
    """Without a statement that holds, no receipt does."""
    assert failed(stored.verify(log_key=None)) == [RECEIPT]


def test_another_log_key(stored: Stored) -> None:
    """A receipt under another log key is refused."""
    assert failed(stored.verify(log_key=stored.log_key._replace(public_key=make_log_signer().public_key))) == [RECEIPT]


def test_the_certificate_is_judged_when_it_was_used(stored: Stored) -> None:
    """A dump stays verifiable when its host's certificate has long expired; one signed after that does not verify."""
    late = NOW + timedelta(days=3000)
    manifest = stored.signer.manifest(dump_id(3), stored.store.store_id, CORE)._replace(ended_at=int(late.timestamp() * 1000))
    shutil.copytree(stored.path, dump_path(stored.store, dump_id(3)))
    path = dump_path(stored.store, dump_id(3))
    (path / "manifest.jws").write_bytes(stored.signer.sign(manifest))
    expected = stored.expected._replace(dump_id=dump_id(3))
    with opened(path) as fd:
        assert CERTIFICATE not in failed(verify_dump(fd, expected, stored.hierarchy.anchors, stored.log_key)), "the receipt's time"
        (path / "receipt").unlink()
        assert CERTIFICATE in failed(verify_dump(fd, expected, stored.hierarchy.anchors, stored.log_key)), "the manifest's time"
        (path / "manifest.jws").write_bytes(stored.signer.sign(manifest._replace(ended_at=(1 << 63) - 1)))
        found = verify_dump(fd, expected, stored.hierarchy.anchors, stored.log_key)
    assert [check.detail for check in found.checks if check.what == CERTIFICATE] == ["the manifest's time is out of range"]


def test_the_certificate_of_the_entry_is_the_manifests(stored: Stored) -> None:
    """An entry that names another certificate than the one that signed the manifest is found."""
    manifest = stored.signer.manifest(dump_id(4), stored.store.store_id, CORE)
    token = stored.signer.sign(manifest)
    shutil.copytree(stored.path, dump_path(stored.store, dump_id(4)))
    line = received_entry(NOW, manifest, token, stored_bytes=1, certificate=sha256(b"another").hexdigest())
    (dump_path(stored.store, dump_id(4)) / "receipt").write_bytes(log_of(stored.logs, WEB).append(line))
    (dump_path(stored.store, dump_id(4)) / "manifest.jws").write_bytes(token)
    with opened(dump_path(stored.store, dump_id(4))) as fd:
        found = verify_dump(fd, stored.expected._replace(dump_id=dump_id(4)), stored.hierarchy.anchors, stored.log_key)
    assert failed(found) == [CERTIFICATE]
    assert chain.fingerprint(stored.signer.made.certificate) in found.checks[4].detail

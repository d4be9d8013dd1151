"""docs/store.md against the code: every example is read out of the document and checked, every table names what the code writes."""

import io
import json
import os
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore import limits
from securecore.audit import entry, introductions
from securecore.audit.bundle import Bundle
from securecore.audit.checkpoint import LogSigner, origin_of, verifier_key, verify_checkpoint
from securecore.audit.entry import (
    Held,
    WideHead,
    certificate_entry,
    check_received,
    deleted_entry,
    extracted_entry,
    incomplete_entry,
    parse_entry,
    received_entry,
    refused_entry,
    resumed_entry,
    verified_entry,
)
from securecore.audit.proof import verify_receipt
from securecore.audit.statement import encode_payload
from securecore.audit.succession import Line, encode_history, sign_succession, verify_succession
from securecore.audit.wide_log import Tree, parse_said, said_entry
from securecore.dump import frames
from securecore.dump.compression import Decompressor
from securecore.dump.container import seek_table
from securecore.dump.frames import zero_frame
from securecore.dump.manifest import OUTCOMES, parse_manifest
from securecore.dump.reader import open_container, scan_frames
from securecore.merkle import leaf_hash, root_of
from securecore.store import crls, layout, reading
from securecore.wire.messages import Refusal
from tests.support.dumps import NOW

TEXT = (Path(__file__).parents[2] / "docs" / "store.md").read_text("utf-8")
BLOCKS = {name: body for name, body in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)}
KEY = LogSigner("collector.example.org/securecore", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
HEAD = WideHead(1, bytes(32))
CORE = bytes(limits.PIECE_BYTES) + b"core"


def hexed(name: str) -> bytes:
    """The bytes of a hexadecimal example, without its remarks."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in BLOCKS[name].splitlines()))


def line(name: str) -> bytes:
    return BLOCKS[name].rstrip("\n").encode()


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has that heading, without code marks."""
    rows = TEXT.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def container(tmp_path: Path) -> int:
    """A descriptor of the example's core.zst."""
    (tmp_path / "core.zst").write_bytes(hexed("core.zst"))
    return os.open(tmp_path / "core.zst", os.O_RDONLY)


def test_members_of_a_bundle() -> None:
    """The table has those that are written, in their order, with the bounds of their reader."""
    whole = Bundle(b"", b"", b"", b"", b"", ("0" * 64, b""))
    names = [name.replace("0" * 64, "SHA256") for name, _ in whole.members()]
    bounds = [
        len(whole.members()[0][1]), limits.MAX_STATEMENT_BYTES, limits.MAX_RECEIPT_BYTES, limits.MAX_RECEIPT_BYTES,
        limits.MAX_MANIFEST_BYTES, limits.MAX_REPORT_BYTES, limits.MAX_CRL_BYTES,
    ]  # fmt: skip
    assert [(row[0], int(row[1])) for row in table("Member")] == list(zip(names, bounds, strict=True))


def test_zero_frame() -> None:
    """The zero frame of a whole piece has the documented bytes, and is built by the documented rule."""
    assert hexed("zero-frame") == zero_frame(limits.PIECE_BYTES)
    for length in (1, 2, 131072, 131073, 131074, limits.PIECE_BYTES):
        expected = bytes.fromhex("28b52ffda0") + length.to_bytes(4, "little")
        expected += (8 + (length == 1)).to_bytes(3, "little") + b"\0"
        left = length - 1
        while left:
            size = min(left, 131072)
            left -= size
            expected += (size * 8 + 2 + (left == 0)).to_bytes(3, "little") + b"\0"
        assert zero_frame(length) == expected


def test_core(container: int) -> None:
    """The example is read as the documented plaintext, with our reader and with zstd's own stream reader."""
    reader = open_container(container)
    assert b"".join(reader.pieces()) == CORE
    assert [tuple(entry) for entry in reader.entries] == [(45, limits.PIECE_BYTES), (17, 4)]
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(hexed("core.zst")), read_across_frames=True)
    assert stream.read(-1) == CORE
    os.close(container)


def test_leaves_and_root(container: int) -> None:
    """The leaves are the frames' bytes; the root over them is the documented one, and the seek table is no leaf."""
    found = [bytes(scanned.data) for scanned in scan_frames(container)]
    os.close(container)
    leaves = [leaf_hash(frame) for frame in found]
    assert leaves == [sha256(b"\0" + frame).digest() for frame in found] == [hexed("leaf-0"), hexed("leaf-1")]
    assert root_of(leaves) == sha256(b"\1" + leaves[0] + leaves[1]).digest() == hexed("root")
    assert found[0] == zero_frame(limits.PIECE_BYTES)
    assert Decompressor().piece(found[1]) == b"core"


def test_seek_table(container: int) -> None:
    """The table's documented layout is the one that the code writes."""
    entries = open_container(container).entries
    os.close(container)
    body = b"".join(stored.to_bytes(4, "little") + plain.to_bytes(4, "little") for stored, plain in entries)
    body += len(entries).to_bytes(4, "little") + b"\0" + bytes.fromhex("b1ea928f")
    assert len(body) == 8 * len(entries) + 9
    assert seek_table(entries) == bytes.fromhex("5e2a4d18") + len(body).to_bytes(4, "little") + body


def test_manifest() -> None:
    """The example payload is a manifest of the example core and report, with exactly the documented fields."""
    manifest = parse_manifest(line("manifest"))
    assert (manifest.size, manifest.frames, manifest.root) == (len(CORE), 2, hexed("root"))
    assert manifest.report_sha256 == sha256(line("report.json")).digest()
    rows = table("Manifest field")
    assert {row[0] for row in rows} == set(json.loads(line("manifest")))
    outcomes = next(row[1] for row in rows if row[0] == "outcome")
    assert all(f"`{outcome}`" in f"`{outcomes}" for outcome in OUTCOMES)


def test_entries() -> None:
    """The example entries are canonical, agree with the manifest, and have exactly the documented fields."""
    manifest = parse_manifest(line("manifest"))
    received, extracted = parse_entry(line("entry-0")), parse_entry(line("entry-1"))
    assert received["manifest_sha256"] == sha256(b"(the example's manifest.jws)").hexdigest()
    check_received(received, manifest, b"(the example's manifest.jws)")
    assert received["stored_bytes"] == len(hexed("core.zst"))
    assert documented_fields("received") == {*received, "wide_size", "wide_root"}
    assert documented_fields("extracted") == set(extracted)
    assert received["crl_sha256"] == sha256(b"(the example's crl.pem)").hexdigest()
    written = received_entry(NOW, manifest, b"", stored_bytes=1, certificate="", program="x", signal=1)
    assert set(parse_entry(written)) == set(received)
    written = received_entry(NOW, manifest, b"", stored_bytes=1, certificate="", program="x", signal=1, wide_head=HEAD)
    assert set(parse_entry(written)) == documented_fields("received")
    assert set(parse_entry(extracted_entry(NOW, manifest.dump, manifest.host, uid=0, user=None))) == set(extracted)


def documented_fields(event: str) -> set[str]:
    """The fields that the document gives an event."""
    return {row[0] for row in table("Entry field") if row[1] == "all" or event in row[1].split(", ")}


def test_entries_of_dumps_that_are_incomplete_or_deleted() -> None:
    """They have exactly the documented fields; the example of an incomplete one is canonical and fits the example core."""
    manifest = parse_manifest(line("manifest"))
    example = parse_entry(line("entry-incomplete"))
    held = Held(1, 1, bytes(32), bytes(32), 1)
    of = (NOW, manifest.dump, manifest.host, manifest.store, held)
    written = incomplete_entry(*of, last_at=NOW, program="x", signal=1, damaged_bytes=1, wide_head=HEAD)
    assert documented_fields("incomplete") == set(parse_entry(written)) == {*example, "damaged_bytes", "wide_size", "wide_root"}
    assert (example["size"], example["frames"], example["root"]) == (manifest.size, manifest.frames, manifest.root.hex())
    assert (example["stored_bytes"], example["report_sha256"]) == (len(hexed("core.zst")), manifest.report_sha256.hex())
    deleted = deleted_entry(NOW, manifest.dump, manifest.host, uid=0, user=None, reason=None)
    assert documented_fields("deleted") == set(parse_entry(deleted))


def test_entries_of_refusals() -> None:
    """They have exactly the documented fields, and the example is one; no dump where none was offered."""
    manifest = parse_manifest(line("manifest"))
    example = parse_entry(line("entry-refused"))
    written = parse_entry(refused_entry(NOW, None, manifest.host, code=106, reason="not on the list", others=0))
    assert documented_fields("refused") == set(example) == set(written)
    assert (example["code"], written["dump"]) == (Refusal.QUOTA, None)


def test_entries_of_arrivals_and_verifications() -> None:
    """They have exactly the documented fields, and the examples are such entries; a certificate's key is one of three."""
    manifest = parse_manifest(line("manifest"))
    of = (NOW, manifest.dump, manifest.host)
    written = {
        "certificate": certificate_entry(*of, certificate="", serial=1, not_after=NOW, key_sha256="", key=introductions.FIRST),
        "resumed": resumed_entry(*of, frames=1, others=0),
        "verified": verified_entry(*of, uid=0, user=None, problem=None),
    }
    for event, made in written.items():
        example = parse_entry(line(f"entry-{event}"))
        assert documented_fields(event) == set(example) == set(parse_entry(made))
        assert example["event"] == event
    (row,) = [row for row in table("Entry field") if row[0] == "key"]
    assert all(f"`{key}`" in row[2] for key in (introductions.FIRST, introductions.KEPT, introductions.ROTATED))


def test_every_event_is_documented() -> None:
    """The table lists what this version writes, and nothing else."""
    (row,) = [row for row in table("Entry field") if row[0] == "event"]
    ours = {entry.RECEIVED, entry.INCOMPLETE, entry.DELETED, entry.EXTRACTED, entry.REFUSED}
    assert set(re.findall(r"\w+", row[2])) - {"or"} == ours | {entry.CERTIFICATE, entry.RESUMED, entry.VERIFIED}


def test_checkpoint_and_key() -> None:
    """The example checkpoint is the one that the example key signs for the two entries."""
    manifest = parse_manifest(line("manifest"))
    origin = origin_of(KEY.name, manifest.host)
    root = root_of([leaf_hash(line("entry-0")), leaf_hash(line("entry-1"))])
    assert line("verifier-key").decode() == verifier_key(origin, KEY.public_key)
    assert BLOCKS["checkpoint"].encode() == KEY.sign(origin, 2, root)
    assert verify_checkpoint(BLOCKS["checkpoint"].encode(), origin, KEY.public_key).root == root


def test_receiver_wide_log() -> None:
    """Its entries say the roots of the example's log, with exactly the documented fields; its checkpoint is the one over them."""
    leaves = [leaf_hash(line("entry-0")), leaf_hash(line("entry-1"))]
    host = parse_manifest(line("manifest")).host
    said = [parse_said(line("wide-0")), parse_said(line("wide-1"))]
    assert said == [(host, Tree(1, root_of(leaves[:1]))), (host, Tree(2, root_of(leaves)))]
    assert {row[0] for row in table("Wide entry field")} == set(parse_entry(line("wide-0")))
    assert set(parse_entry(said_entry(NOW, host, Tree(1, bytes(32))))) == set(parse_entry(line("wide-0")))
    root = root_of([leaf_hash(line("wide-0")), leaf_hash(line("wide-1"))])
    assert BLOCKS["wide-checkpoint"].encode() == KEY.sign(KEY.name, 2, root)
    assert verify_checkpoint(BLOCKS["wide-checkpoint"].encode(), KEY.name, KEY.public_key).root == root


def test_receipt() -> None:
    """The example receipt proves the first entry."""
    origin = origin_of(KEY.name, parse_manifest(line("manifest")).host)
    found = verify_receipt(BLOCKS["receipt"].encode(), origin, KEY.public_key)
    assert (found.entry, found.leaf_index, found.checkpoint.size) == (line("entry-0"), 0, 1)


def test_statement_fields() -> None:
    """The statement has exactly the documented fields."""
    assert {row[0] for row in table("Statement field")} == set(json.loads(encode_payload("n", bytes(32), "t")))


def test_succession() -> None:
    """The example is what the example's key and the next one sign, a line has the documented fields, and bounds are the code's."""
    old, new = (Ed25519PrivateKey.from_private_bytes(bytes(range(first, first + 32))) for first in (0, 1))
    note = BLOCKS["succession"].encode()
    assert note == sign_succession(KEY.name, old, new, datetime(2027, 11, 22, 9, tzinfo=UTC))
    assert verify_succession(note).before == KEY.public_key
    assert {row[0] for row in table("History field")} == set(json.loads(encode_history([Line(b"s", None)])))
    assert f"at most {limits.MAX_LOG_KEYS} and {limits.MAX_LOG_KEYS_BYTES} bytes" in TEXT
    assert f"note](https://c2sp.org/signed-note) of at most {limits.MAX_CHECKPOINT_BYTES} bytes" in TEXT


def test_names_in_the_tree() -> None:
    """The document names every file and directory that the code does."""
    paths = {row[0].split("/")[0] for row in table("Path")}
    ours = {layout.FORMAT, layout.LOCK, layout.LOG_KEY, layout.LOG_KEYS, layout.ANCHORS, layout.CATALOGUE, layout.AUDIT, crls.CRLS}
    ours |= {"control.sock"}
    assert paths == ours | {place.value for place in layout.Place}
    files = {reading.CORE, reading.REPORT, reading.MANIFEST, reading.RECEIPT, f"{reading.REMAINS}-N"}
    assert {row[0] for row in table("File")} == files


def test_bounds() -> None:
    """The numbers in the document are those of limits.py."""
    for words in (
        f"pieces of {limits.PIECE_BYTES} bytes",
        f"at most {limits.MAX_FRAMES} frames",
        f"1 to {limits.MAX_FRAME_BYTES} bytes long",
        f"window of at most {frames._WINDOW_MAX} bytes",
        f"at most {frames._MAX_BLOCKS} blocks",
        f"of at most {frames._BLOCK_MAX} bytes",
        f"in OPEN: at most {limits.MAX_REPORT_BYTES} bytes",
        f"in END: at most {limits.MAX_MANIFEST_BYTES} bytes",
        f"was given: at most {limits.MAX_RECEIPT_BYTES} bytes",
        f"or null, at most {limits.MAX_ENTRY_BYTES} bytes",
        f"\nat most {limits.MAX_CHECKPOINT_BYTES} bytes",
        f"1 to {limits.MAX_CHAIN} certificates",
        f"at most {limits.MAX_WORDS} characters",
        f"byte for byte: at most {limits.MAX_CRL_BYTES} bytes of PEM",
        f"longer than {limits.CRL_GRACE_S} seconds ago",
        f"of one host {limits.MAX_RESUMED_ENTRIES} times",
    ):
        assert words in TEXT

"""Audit entries: one line each whatever a peer says, one encoding, and agreement with the manifest."""

from datetime import datetime, timedelta, timezone
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.audit.entry import (
    Held,
    Statement,
    check_received,
    deleted_entry,
    encode,
    extracted_entry,
    find_statement,
    incomplete_entry,
    parse_entry,
    parse_incomplete,
    received_entry,
    refused_entry,
    scan_extent,
    timestamp,
)
from securecore.dump.manifest import CUT, Manifest
from securecore.errors import BrokenError, Bug
from securecore.names import StoreId
from tests.support.dumps import NOW, WEB, dump_id

STORE = StoreId.make(bytes(16))
MANIFEST = Manifest(dump_id(1), WEB, STORE, "complete", 10, 10, 1, b"\x01" * 32, b"\x02" * 32, 1, 2, "securecore test")
TOKEN = b"a.b.c"
HELD = Held(1, 10, b"\x01" * 32, b"\x02" * 32, 50)


def make(**more: object) -> bytes:
    return received_entry(NOW, MANIFEST, TOKEN, stored_bytes=50, certificate="3fa2", **more)  # type: ignore[arg-type]


def test_fields_of_a_received_entry() -> None:
    """An entry says what was received, when, from whom, and the digests that tie it to the dump."""
    assert parse_entry(make(program="nginx", signal=11)) == {
        "version": 1,
        "event": "received",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "store": str(STORE),
        "outcome": "complete",
        "state": "complete",
        "size": 10,
        "stored_bytes": 50,
        "frames": 1,
        "root": "01" * 32,
        "report_sha256": "02" * 32,
        "manifest_sha256": sha256(TOKEN).hexdigest(),
        "certificate": "3fa2",
        "crl_sha256": None,
        "program": "nginx",
        "signal": 11,
    }


def test_other_outcomes_are_incomplete() -> None:
    """The state is complete only when the manifest says so."""
    entry = received_entry(NOW, MANIFEST._replace(outcome=CUT), TOKEN, stored_bytes=50, certificate="3fa2")
    assert (parse_entry(entry)["state"], parse_entry(entry)["outcome"]) == ("incomplete", "cut")


def test_fields_of_an_incomplete_entry() -> None:
    """It says what is durable of a dump whose sender did not come back, and when its last frame came."""
    entry = incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW - timedelta(days=7), program="nginx", signal=11)
    assert parse_entry(entry) == {
        "version": 1,
        "event": "incomplete",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "store": str(STORE),
        "frames": 1,
        "size": 10,
        "root": "01" * 32,
        "report_sha256": "02" * 32,
        "stored_bytes": 50,
        "last_at": "2026-11-15T09:14:22.123Z",
        "program": "nginx",
        "signal": 11,
    }


def test_fields_of_a_deleted_entry() -> None:
    """A tombstone names the dump, who deleted it, and the reason in bounded words."""
    assert parse_entry(deleted_entry(NOW, dump_id(1), WEB, uid=1000, user="anna", reason="x" * 1000)) == {
        "version": 1,
        "event": "deleted",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "uid": 1000,
        "user": "anna",
        "reason": "x" * limits.MAX_WORDS,
    }


def test_what_entries_say_of_where_a_dump_stands() -> None:
    """Received with its manifest's digest, incomplete with its root, deleted; an extraction says nothing of that."""
    incomplete = incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW)
    deleted = deleted_entry(NOW, dump_id(1), WEB, uid=0, user=None, reason=None)
    assert find_statement(make()) == Statement(dump_id(1), "received", sha256(TOKEN).digest())
    assert find_statement(incomplete) == Statement(dump_id(1), "incomplete", HELD.root)
    assert find_statement(deleted) == Statement(dump_id(1), "deleted", b"")
    assert find_statement(extracted_entry(NOW, dump_id(1), WEB, uid=0, user=None)) is None


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        ("received a", "received a", False),
        ("received a", "received b", True),
        ("received a", "incomplete a", True),
        ("received a", "deleted", True),
        ("incomplete a", "incomplete a", False),
        ("incomplete a", "incomplete b", True),
        ("incomplete a", "received a", True),
        ("incomplete a", "deleted", True),
        ("deleted", "deleted", True),
        ("deleted", "incomplete a", True),
        ("deleted", "received a", True),
    ],
)
def test_what_may_be_said_after_what(before: str, after: str, may: bool) -> None:
    """One event is not written down twice; everything else may happen to a dump."""
    event, _, digest = before.partition(" ")
    new_event, _, new_digest = after.partition(" ")
    assert Statement(dump_id(1), new_event, new_digest.encode()).follows(event, digest.encode()) is may


@pytest.mark.parametrize(("before", "after"), [(0, 5), (5, 0), (5, 6), (5, 5)])
def test_the_same_frames_may_be_given_up_again_with_other_damage(before: int, after: int) -> None:
    """Frames that came in between were lost by it; with the same it would be one event written down two times."""
    entry = incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW, damaged_bytes=after)
    statement = find_statement(entry)
    assert statement is not None
    assert statement.damaged_bytes == after
    assert statement.follows("incomplete", HELD.root, before) is (before != after)


@pytest.mark.parametrize("damaged", [-1, 1 << 63, None, "5"])
def test_damage_that_is_no_length_is_not_said(damaged: int | str | None) -> None:
    """An entry may say anything."""
    fields = parse_entry(incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW))
    assert find_statement(encode(fields | {"damaged_bytes": damaged})) == Statement(dump_id(1), "incomplete", HELD.root)


def test_damage_belongs_to_what_is_incomplete() -> None:
    """An entry about a dump that was received says nothing by it."""
    fields = parse_entry(make())
    assert find_statement(encode(fields | {"damaged_bytes": 5})) == Statement(dump_id(1), "received", sha256(TOKEN).digest())


def test_an_entry_says_how_many_frames_were_lost() -> None:
    """As its manifest does; of a dump that has lost none it says nothing."""
    manifest = MANIFEST._replace(outcome=CUT, lost_frames=1)
    fields = parse_entry(received_entry(NOW, manifest, TOKEN, stored_bytes=50, certificate="3fa2"))

    assert fields["lost_frames"] == 1
    check_received(fields, manifest, TOKEN)
    with pytest.raises(BrokenError, match="lost_frames"):
        check_received({key: value for key, value in fields.items() if key != "lost_frames"}, manifest, TOKEN)


def test_fields_of_an_extracted_entry() -> None:
    """An extraction names the dump and who took it, by number and name."""
    assert parse_entry(extracted_entry(NOW, dump_id(1), WEB, uid=1000, user="anna")) == {
        "version": 1,
        "event": "extracted",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "uid": 1000,
        "user": "anna",
    }


@given(st.text(max_size=1000))
def test_no_text_forges_a_line(text: str) -> None:
    """Whatever a peer calls its program, the entry is one printable ASCII line within its bound, and says received once."""
    entry = make(program=text)
    assert all(0x20 <= byte < 0x7F for byte in entry)
    assert len(entry) <= limits.MAX_ENTRY_BYTES
    assert parse_entry(entry)["program"] == text[:255]
    assert find_statement(entry) == Statement(dump_id(1), "received", sha256(TOKEN).digest())
    assert find_statement(extracted_entry(NOW, dump_id(1), WEB, uid=0, user=text)) is None
    deleted = deleted_entry(NOW, dump_id(1), WEB, uid=0, user=None, reason=text)
    assert find_statement(deleted) == Statement(dump_id(1), "deleted", b"")


def test_a_newline_in_a_name_stays_a_name() -> None:
    """R14: a name with a newline and an entry in it is one entry."""
    hostile = 'x"}\n{"event":"received","time":"x"}\n'
    assert b"\n" not in make(program=hostile)
    assert parse_entry(make(program=hostile))["program"] == hostile


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"{}",
        b"[]",
        b"1",
        b'{"event":"x","time":1}',
        b'{"event":"x"}',
        b'{"event":"x","time":"y","z":[]}',
        b'{"event":"x","time":"y","z":1.5}',
        b'{"event":"x","time":"y","z":true}',
        b'{"event":"x", "time":"y"}',
        b'{"time":"y","event":"x"}',
        b'{"event":"x","event":"x","time":"y"}',
        '{"event":"ü","time":"y"}'.encode(),
        b'{"event":"x","time":"y"}\n',
        b"\xff",
        b"[" * 10_000,
        b'{"event":"' + b"x" * limits.MAX_ENTRY_BYTES + b'","time":"y"}',
    ],
)
def test_other_forms_are_refused(entry: bytes) -> None:
    """Anything but a flat object with event and time in its canonical encoding is no entry."""
    with pytest.raises(BrokenError, match="audit entry"):
        parse_entry(entry)
    assert find_statement(entry) is None


def test_an_entry_cut_at_every_offset_is_none() -> None:
    """No beginning of an entry is one, and none with a byte behind, whatever its event."""
    incomplete = incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW, program="nginx", signal=11)
    deleted = deleted_entry(NOW, dump_id(1), WEB, uid=0, user="root", reason="x")
    for whole in (make(program="nginx", signal=11), incomplete, deleted):
        for other in [*(whole[:cut] for cut in range(len(whole))), whole + b" ", whole + b"\n", whole + whole]:
            with pytest.raises(BrokenError, match="audit entry"):
                parse_entry(other)
            assert find_statement(other) is None
        found = find_statement(whole)
        assert found is not None
        assert found.dump == dump_id(1)


def test_fields_of_a_refused_entry() -> None:
    """What the host was told, how often, and of which dump; it says nothing of where that stands."""
    entry = refused_entry(NOW, dump_id(1), WEB, code=205, reason="x" * 500, others=7)
    assert parse_entry(entry) == {
        "version": 1,
        "event": "refused",
        "time": "2026-11-22T09:14:22.123Z",
        "dump": str(dump_id(1)),
        "host": str(WEB),
        "code": 205,
        "reason": "x" * limits.MAX_WORDS,
        "others": 7,
    }
    assert find_statement(entry) is None
    assert parse_entry(refused_entry(NOW, None, WEB, code=106, reason="", others=0))["dump"] is None


def test_unknown_events_and_fields_are_let_through() -> None:
    """A later version's entries are read."""
    assert parse_entry(b'{"event":"x","new":null,"time":"y"}') == {"event": "x", "new": None, "time": "y"}


FORGED = st.sampled_from(["event", "dump", "root", "manifest_sha256", "damaged_bytes", "frames", "stored_bytes"]).map(
    lambda name: f'a","{name}'
)
NAMES = st.sampled_from(["dump", "root", "manifest_sha256", "damaged_bytes", "frames", "stored_bytes", "other"]) | FORGED
WORDS = st.sampled_from(["received", "incomplete", "deleted", 'a","event":"deleted', "ab" * 32, str(dump_id(1)), "x" * 36])
VALUES = st.none() | WORDS | st.integers(-(1 << 66), 1 << 66) | st.just(10**63)


@given(st.dictionaries(NAMES, VALUES), WORDS)
def test_what_is_scanned_is_what_is_parsed(fields: dict[str, str | int | None], event: str) -> None:
    """No key and no text passes for a field: of an entry that is one, its bytes say what its fields say."""
    entry = encode({"time": "t", **fields, "event": event})
    parsed = parse_entry(entry)

    statement = find_statement(entry)

    says = event in ("received", "incomplete", "deleted") and parsed.get("dump") == str(dump_id(1))
    if not says:
        assert statement is None
        return
    digest = parsed.get({"received": "manifest_sha256", "incomplete": "root"}.get(event, ""))
    damaged = parsed.get("damaged_bytes") if event == "incomplete" else 0
    is_length = isinstance(damaged, int) and 0 <= damaged < 1 << 63
    assert statement == Statement(
        dump_id(1), event, bytes.fromhex("ab" * 32) if digest == "ab" * 32 else b"", damaged if is_length else 0
    )
    extent = [parsed.get(name) for name in ("frames", "stored_bytes")]
    assert scan_extent(entry) == tuple(
        number if isinstance(number, int) and 0 <= number < 10**19 else -1 for number in extent
    )


def test_a_key_that_reads_like_a_field_is_none() -> None:
    """The event is what the field says, also where another key ends with its name."""
    entry = encode({"event": "other", "time": "t", "dump": str(dump_id(1)), 'a"event': "received"})
    assert find_statement(entry) is None


def test_an_entry_without_a_dump_id_says_nothing_of_one() -> None:
    """An entry that calls itself received but names no dump stands for none; one without a digest says so much less."""
    assert find_statement(b'{"dump":"nonsense","event":"received","time":"y"}') is None
    for digest in (None, 7, "AB" * 32, "ab" * 31, "xy" * 32):
        entry = encode({"event": "received", "time": "y", "dump": str(dump_id(1)), "manifest_sha256": digest})
        assert find_statement(entry) == Statement(dump_id(1), "received", b"")


def test_agreement_with_the_manifest() -> None:
    """An entry agrees with its own manifest, and with no other in any field."""
    fields = parse_entry(make())
    check_received(fields, MANIFEST, TOKEN)
    agreed = "event dump host store outcome state size frames root report_sha256 manifest_sha256"
    for name in agreed.split():
        for changed in ({**fields, name: "other"}, {key: value for key, value in fields.items() if key != name}):
            with pytest.raises(BrokenError, match=f"says {name} is"):
                check_received(changed, MANIFEST, TOKEN)
    with pytest.raises(BrokenError, match="manifest_sha256"):
        check_received(fields, MANIFEST, b"another token")


def test_what_was_held_is_read_back() -> None:
    """From the entry of this dump, host and store; another one, a missing field, or one of another kind says nothing."""
    fields = parse_entry(incomplete_entry(NOW, dump_id(1), WEB, STORE, HELD, last_at=NOW))
    assert parse_incomplete(fields, dump_id(1), WEB, STORE) == HELD
    for name in ("event", "dump", "host", "store", "frames", "size", "root", "report_sha256", "stored_bytes"):
        for changed in ({**fields, name: "other"}, {**fields, name: -1}, {key: fields[key] for key in fields if key != name}):
            with pytest.raises(BrokenError, match="audit entry"):
                parse_incomplete(changed, dump_id(1), WEB, STORE)
    with pytest.raises(BrokenError, match="audit entry says event is"):
        parse_incomplete(parse_entry(make()), dump_id(1), WEB, STORE)


def test_times_are_utc_and_of_one_length() -> None:
    """Any zone becomes UTC; milliseconds are always there; a time without a zone is a bug."""
    assert timestamp(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000Z"
    with pytest.raises(Bug):
        timestamp(datetime(2026, 1, 1))  # noqa: DTZ001


def test_an_entry_of_ours_is_never_too_long() -> None:
    """An entry beyond the bound is a bug, not a line that no reader takes."""
    with pytest.raises(Bug):
        encode({"event": "x", "time": "y", "z": "x" * limits.MAX_ENTRY_BYTES})

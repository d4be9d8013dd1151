"""The ledger: every change shows, a torn end heals, and the state is the replay."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securecore.errors import BrokenError, NotFoundError
from securecore.pki.choices import find_serial
from securecore.pki.ledger import Fields, Ledger, State, format_time, parse_time

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def issue(serial: int) -> Fields:
    """Return the fields of an issue event."""
    return {
        "serial": f"{serial:x}",
        "profile": "host",
        "names": ["web-1.hosts.test.example"],
        "addresses": [],
        "not_before": format_time(NOW),
        "not_after": format_time(NOW + timedelta(days=90)),
        "issuer": "1",
        "fingerprint": "00" * 32,
        "public_key": "11" * 32,
    }


def filled(path: Path) -> Ledger:
    """Return a ledger with five events."""
    ledger = Ledger(path / "ledger.jsonl")
    for serial in (0xA, 0xB, 0xC):
        ledger.append(NOW, "issue", issue(serial))
    ledger.append(NOW, "revoke", {"serial": "a", "reason": "keyCompromise"})
    ledger.append(NOW, "discard", {"serial": "b"})
    return ledger


def test_state_is_the_replay(tmp_path: Path) -> None:
    """Certificates, revocations and discards come back by serial number."""
    ledger = filled(tmp_path)
    update = {"this_update": format_time(NOW), "next_update": format_time(NOW + timedelta(days=30))}
    ledger.append(NOW, "crl", {"issuer": "1", "number": 7, "revoked": 1, **update})
    ledger.append(NOW, "some-later-event", {"colour": "blue"})
    state = ledger.read()
    later = NOW + timedelta(days=91)
    assert [state.issued[serial].state(NOW) for serial in (0xA, 0xB, 0xC)] == ["revoked", "discarded", "valid"]
    assert [state.issued[serial].state(later) for serial in (0xA, 0xB, 0xC)] == ["revoked", "discarded", "expired"]
    assert (state.issued[0xA].revoked_at, state.issued[0xA].reason) == (NOW, "keyCompromise")
    assert (state.crls[1].number, state.crls[1].this_update) == (7, NOW)


def test_every_changed_byte_shows(tmp_path: Path) -> None:
    """Each byte of each line but the last is held by the line after it; one that still parses breaks the chain."""
    ledger = filled(tmp_path)
    data = ledger.path.read_bytes()
    last_line = data.rstrip(b"\n").rfind(b"\n") + 1
    for offset in range(0, last_line, 3):
        changed = bytearray(data)
        changed[offset] ^= 1
        ledger.path.write_bytes(changed)
        with pytest.raises(BrokenError, match=r"line [1-5] is not what was written"):
            ledger.read()


def test_missing_and_swapped_lines_show(tmp_path: Path) -> None:
    """A line can't be taken out, moved or repeated."""
    ledger = filled(tmp_path)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for wrong in ([*lines[1:]], [lines[0], *lines[2:]], [lines[1], lines[0], *lines[2:]], [lines[0], *lines]):
        ledger.path.write_bytes(b"".join(wrong))
        with pytest.raises(BrokenError):
            ledger.read()


def test_torn_last_line_heals_at_every_length(tmp_path: Path) -> None:
    """A line without its newline was never acknowledged: it does not count, and the next append takes its place."""
    ledger = filled(tmp_path)
    data = ledger.path.read_bytes()
    begin = data.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(begin, len(data)):
        ledger.path.write_bytes(data[:length])
        ledger = Ledger(ledger.path)
        assert not ledger.read().issued[0xB].is_discarded
        ledger.append(NOW, "discard", {"serial": "b"})
        assert data == ledger.path.read_bytes()


def test_broken_ledger_is_not_appended_to(tmp_path: Path) -> None:
    """Nothing new is signed on top of something that was tampered with."""
    ledger = filled(tmp_path)
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"keyCompromise", b"superseded___"))
    before = ledger.path.read_bytes()
    with pytest.raises(BrokenError):
        Ledger(ledger.path).append(NOW, "discard", {"serial": "c"})
    assert before == ledger.path.read_bytes()


def applied_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the events that are applied to a state from now on."""
    events: list[str] = []
    apply = State.apply

    def counted(state: State, event: str, time: datetime, fields: dict[str, object]) -> None:
        events.append(event)
        apply(state, event, time, fields)

    monkeypatch.setattr(State, "apply", counted)
    return events


def test_who_follows_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it; neither a second look nor an append costs a replay, and what was returned before does not change."""
    ledger, other = filled(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    before = ledger.follow()
    other.follow()
    events = applied_by(monkeypatch)
    other.append(NOW, "issue", issue(0xD))
    assert events == []
    assert 0xD in ledger.follow().issued
    assert events == ["issue"]
    assert ledger.follow() is ledger.follow()
    ledger.append(NOW, "discard", {"serial": "d"})
    assert events == ["issue"]
    monkeypatch.undo()
    assert 0xD not in before.issued
    assert ledger.follow() == other.follow() == Ledger(ledger.path).read()


def test_who_follows_sees_a_ledger_that_was_put_back(tmp_path: Path) -> None:
    """A shorter one, one that goes on differently from there, and the newer one again."""
    ledger = Ledger(filled(tmp_path).path)
    data = ledger.path.read_bytes()
    older = b"".join(data.splitlines(keepends=True)[:3])
    ledger.follow()
    ledger.path.write_bytes(older)
    assert ledger.follow().issued[0xA].revoked_at is None
    Ledger(ledger.path).append(NOW, "discard", {"serial": "a"})
    Ledger(ledger.path).append(NOW, "revoke", {"serial": "c", "reason": "superseded"})
    assert ledger.follow() == Ledger(ledger.path).read()
    ledger.path.write_bytes(data)
    assert ledger.follow() == Ledger(ledger.path).read()


def test_a_line_that_its_writer_took_back_is_not_missed(tmp_path: Path) -> None:
    """Whoever read it meanwhile goes on without it; what was found under the lock, or appended, has to stay."""
    ledger = filled(tmp_path)
    ledger.acknowledge()
    data = ledger.path.read_bytes()
    Ledger(ledger.path).append(NOW, "discard", {"serial": "a"})
    ledger.follow()
    ledger.path.write_bytes(data)
    ledger.acknowledge()
    ledger.append(NOW, "discard", {"serial": "a"})
    ledger.path.write_bytes(data)
    with pytest.raises(BrokenError, match="and is an older copy now"):
        ledger.acknowledge()


@pytest.mark.parametrize("left", [None, b"", b"{"])
def test_who_follows_takes_no_emptied_ledger_for_a_new_one(left: bytes | None, tmp_path: Path) -> None:
    """Gone, empty or torn in its first line: nothing is appended, for that would begin it anew, with nobody revoked."""
    ledger = filled(tmp_path)
    data = ledger.path.read_bytes()
    assert ledger.follow().issued
    ledger.path.unlink()
    if left is not None:
        ledger.path.write_bytes(left)
    for attempt in (ledger.follow, lambda: ledger.append(NOW, "discard", {"serial": "a"})):
        with pytest.raises(BrokenError, match="lines, and now has none"):
            attempt()
    assert (ledger.path.read_bytes() if left is not None else None) == left
    ledger.path.write_bytes(data)
    assert ledger.follow() == Ledger(ledger.path).read()


def test_who_follows_stops_at_a_line_that_does_not_fit(tmp_path: Path) -> None:
    """Each time, and goes on when it was put right; a torn line does not count yet."""
    ledger = filled(tmp_path)
    before, data = ledger.follow(), ledger.path.read_bytes()
    ledger.path.write_bytes(data + b'{"seq":6')
    assert ledger.follow() is before
    ledger.path.write_bytes(data + b'{"seq":6}\n')
    for _ in range(2):
        with pytest.raises(BrokenError, match="line 6 is not what was written"):
            ledger.follow()
    ledger.path.write_bytes(data)
    assert ledger.follow() is before


@pytest.mark.parametrize("line", [b"[]", b"7", b"{}", b"\xff", b"[" * 5000, b'{"seq":1}'])
def test_lines_of_another_form_are_broken(line: bytes, tmp_path: Path) -> None:
    """Whatever stands there, the message names the line."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(line + b"\n")
    with pytest.raises(BrokenError, match="line 1"):
        ledger.read()


def test_a_line_cannot_move_the_cursor(tmp_path: Path) -> None:
    """What is wrong with a line is told in printable characters, and not at any length."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    line = {"seq": 1, "prev": "0" * 64, "event": "x", "time": "2026-11-22T09:14:22Z\x1b[2J" + "x" * 5000}
    ledger.path.write_text(json.dumps(line) + "\n")
    with pytest.raises(BrokenError, match="line 1") as caught:
        ledger.read()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_lines_are_canonical_json(tmp_path: Path) -> None:
    """One encoding, so that the chain is over something that a person can reproduce; nobody else may read the file."""
    ledger = filled(tmp_path)
    for line in ledger.path.read_bytes().splitlines():
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode()
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_unknown_serial_is_named() -> None:
    """A serial number that nobody issued is not found."""
    with pytest.raises(NotFoundError, match="serial number ff"):
        find_serial(State(), 0xFF)


def test_times_come_back() -> None:
    """Whole seconds in UTC."""
    assert parse_time(format_time(NOW)) == NOW

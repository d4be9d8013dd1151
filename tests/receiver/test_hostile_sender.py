"""A sender with a good certificate says what it should not: refused with the right code, in words, and with nothing left behind.

Every refusal here is held against ``Stage.refused``: code and words at the sender, one line in the receiver's log, the session's
thread gone, nothing published, nothing under incoming that looks whole, and the next honest sender served.
"""

import json
import os
from itertools import product
from typing import Final

import pytest

from securecore import limits
from securecore.cli.main import run
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.names import DumpId
from securecore.sender.patience import Wait
from securecore.store.layout import open_store
from securecore.store.lookup import find_dump
from securecore.wire.messages import Accept, Ack, Data, End, Kind, Message, Open, Receipt, Refusal, Zero, encode, max_body_bytes
from securecore.wire.states import TRANSITIONS, State
from securecore.wire.states import End as WireEnd
from tests.support.hands import REPORT, Hand
from tests.support.receivers import new_dump_id
from tests.support.stages import Stage
from tests.support.wire import SAMPLES

REQUEST: Final = Refusal.BAD_REQUEST
LISTENING: Final = [State.IDLE, State.STREAMING]
"""The states in which a receiver reads."""


def hand_in(state: State, stage: Stage, dump: DumpId | None = None) -> Hand:
    """Return a sender whose receiver stands in *state*."""
    hand = stage.hand()
    if state is State.STREAMING:
        hand.open(dump or new_dump_id())
    return hand


def in_name(value: object) -> str:
    """Return how a parameter is called in a test's id."""
    return str(getattr(value, "name", value)).lower()


WRONG: Final = [(state, kind) for state, kind in product(LISTENING, Kind) if (state, WireEnd.SENDER, kind) not in TRANSITIONS]


@pytest.mark.parametrize(("state", "kind"), WRONG, ids=in_name)
def test_a_message_in_the_wrong_state_is_refused(state: State, kind: Kind, stage: Stage) -> None:
    """The receiver's own messages among them: there is no way to acknowledge, receipt or delete from outside."""
    hand = hand_in(state, stage)
    hand.put(encode(SAMPLES[kind]))

    stage.refused(hand, REQUEST, f"{kind.name} from the sender is not allowed in state {state.value}")


@pytest.mark.parametrize("number", [0, 11, 15, 17, 31, 32, 47, 48, 128, 255])
@pytest.mark.parametrize("state", LISTENING, ids=in_name)
def test_a_number_that_is_no_message_is_refused(state: State, number: int, stage: Stage) -> None:
    """Those that are reserved are refused like all others."""
    hand = hand_in(state, stage)
    hand.put(bytes([0, 0, 0, 0, number]))

    stage.refused(hand, REQUEST, f"message kind {number} is unknown")


def field(tag: int, value: bytes, length: int | None = None) -> bytes:
    """Return one field, with a length that may lie."""
    return bytes([tag]) + (len(value) if length is None else length).to_bytes(4, "big") + value


def message(kind: Kind, *fields: bytes, length: int | None = None) -> bytes:
    """Return a message of *fields*, with a length in its header that may lie."""
    body = b"".join(fields)
    return (len(body) if length is None else length).to_bytes(4, "big") + bytes([kind]) + body


DUMP: Final = bytes(new_dump_id())
MAX_U32: Final = (1 << 32) - 1
REPORT_FIELD: Final = field(2, REPORT)

LENGTHS: Final[dict[str, tuple[State, bytes, str]]] = {
    "OPEN of 0": (State.IDLE, message(Kind.OPEN), "OPEN: dump is missing"),
    "OPEN of its bound, of nothing": (
        State.IDLE, message(Kind.OPEN, bytes(max_body_bytes(Kind.OPEN))), "field 0 is out of order or repeated",
    ),
    "OPEN of its bound and 1": (State.IDLE, message(Kind.OPEN, length=max_body_bytes(Kind.OPEN) + 1), "bytes long, at most"),
    "OPEN of 4 GiB": (State.IDLE, message(Kind.OPEN, length=MAX_U32), "OPEN is 4294967295 bytes long"),
    "DATA of 0": (State.STREAMING, message(Kind.DATA), "DATA is 0 bytes long"),
    "DATA of its bound and 1": (State.STREAMING, message(Kind.DATA, length=limits.MAX_FRAME_BYTES + 1), "at most 1052736"),
    "DATA of 4 GiB": (State.STREAMING, message(Kind.DATA, length=MAX_U32), "DATA is 4294967295 bytes long"),
    "ZERO of 0": (State.STREAMING, message(Kind.ZERO), "ZERO: pieces is missing"),
    "ZERO of its bound and 1": (State.STREAMING, message(Kind.ZERO, length=max_body_bytes(Kind.ZERO) + 1), "bytes long, at most"),
    "ZERO of 4 GiB": (State.STREAMING, message(Kind.ZERO, length=MAX_U32), "ZERO is 4294967295 bytes long"),
    "END of 0": (State.STREAMING, message(Kind.END), "END: manifest is missing"),
    "END of its bound and 1": (State.STREAMING, message(Kind.END, length=max_body_bytes(Kind.END) + 1), "bytes long, at most"),
    "END of 4 GiB": (State.STREAMING, message(Kind.END, length=MAX_U32), "END is 4294967295 bytes long"),
    "a dump id of 0": (State.IDLE, message(Kind.OPEN, field(1, b""), REPORT_FIELD), "OPEN: dump: "),
    "a dump id of 15": (State.IDLE, message(Kind.OPEN, field(1, DUMP[:15]), REPORT_FIELD), "OPEN: dump: "),
    "a dump id of 17": (State.IDLE, message(Kind.OPEN, field(1, DUMP + b"\0"), REPORT_FIELD), "OPEN: dump is too long"),
    "a dump id of 4 GiB": (State.IDLE, message(Kind.OPEN, field(1, DUMP, MAX_U32)), "OPEN: field 1 is cut off"),
    "a dump id of version 4": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP[:6] + b"\x4f" + DUMP[7:]), REPORT_FIELD), "OPEN: dump: ",
    ),
    "a dump id of zeroes": (State.IDLE, message(Kind.OPEN, field(1, bytes(16)), REPORT_FIELD), "OPEN: dump: "),
    "a report of its bound and 1": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), field(2, b" " * (limits.MAX_REPORT_BYTES + 1))), "OPEN: report is too long",
    ),
    "a report of 4 GiB": (State.IDLE, message(Kind.OPEN, field(1, DUMP), field(2, b"{}", MAX_U32)), "OPEN: field 2 is cut off"),
    "no report": (State.IDLE, message(Kind.OPEN, field(1, DUMP)), "OPEN: report is missing"),
    "a predicted size of 0 bytes": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), REPORT_FIELD, field(128, b"")), "number has 0 bytes instead of 8",
    ),
    "a predicted size of 7 bytes": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), REPORT_FIELD, field(128, bytes(7))), "number has 7 bytes instead of 8",
    ),
    "a predicted size of 9 bytes": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), REPORT_FIELD, field(128, bytes(9))), "predicted_size is too long",
    ),
    "a predicted size that says its default": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), REPORT_FIELD, field(128, bytes(8))), "present but empty",
    ),
    "a count of 0 bytes": (State.STREAMING, message(Kind.ZERO, field(1, b"")), "number has 0 bytes instead of 4"),
    "a count of 3 bytes": (State.STREAMING, message(Kind.ZERO, field(1, bytes(3))), "number has 3 bytes instead of 4"),
    "a count of 5 bytes": (State.STREAMING, message(Kind.ZERO, field(1, bytes(5))), "pieces is too long"),
    "a count of 4 GiB": (State.STREAMING, message(Kind.ZERO, field(1, bytes(4), MAX_U32)), "ZERO: field 1 is cut off"),
    "a manifest of its bound and 1": (
        State.STREAMING, message(Kind.END, field(1, bytes(limits.MAX_MANIFEST_BYTES + 1))), "manifest is too long",
    ),
    "a manifest of 4 GiB": (State.STREAMING, message(Kind.END, field(1, b"x", MAX_U32)), "END: field 1 is cut off"),
    "fields in another order": (State.IDLE, message(Kind.OPEN, REPORT_FIELD, field(1, DUMP)), "field 1 is out of order"),
    "a field twice": (State.IDLE, message(Kind.OPEN, field(1, DUMP), field(1, DUMP), REPORT_FIELD), "field 1 is out of order"),
    "an unknown critical field": (
        State.IDLE, message(Kind.OPEN, field(1, DUMP), REPORT_FIELD, field(3, b"")), "field 3 is unknown and critical",
    ),
    "a torn field header": (State.STREAMING, message(Kind.ZERO, field(1, bytes(4)), b"\x80\0"), "field header is cut off"),
}  # fmt: skip
"""In which state, the bytes, and a part of the words."""


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_that_lies_is_refused(name: str, stage: Stage) -> None:
    """Every length field at zero, beside its bound, and at the most that it can say."""
    state, data, words = LENGTHS[name]
    hand = hand_in(state, stage)
    hand.put(data)

    stage.refused(hand, REQUEST, words)


def test_an_end_without_a_manifest_is_a_bad_manifest(stage: Stage) -> None:
    """An empty one is within its bounds, and says nothing that holds."""
    hand = hand_in(State.STREAMING, stage)
    hand.put(encode(End(b"")))

    stage.refused(hand, Refusal.BAD_MANIFEST, "not a signed statement")


def test_unknown_optional_fields_are_passed_over(stage: Stage) -> None:
    """Up to the last byte of room that a body leaves for them, a later sender may say more."""
    room = max_body_bytes(Kind.ZERO) - 9
    hand = hand_in(State.STREAMING, stage)
    hand.put(message(Kind.ZERO, field(1, (1).to_bytes(4, "big")), field(200, bytes(room - 5))))
    hand.put(encode(Ack(1)))

    stage.refused(hand, REQUEST, "ACK from the sender is not allowed in state streaming")


@pytest.mark.parametrize("pieces", [0, limits.MAX_ZERO_PIECES + 1, MAX_U32])
def test_zero_stands_for_a_bounded_number_of_pieces(pieces: int, stage: Stage) -> None:
    """Fourteen bytes must not make a receiver write for minutes."""
    hand = hand_in(State.STREAMING, stage)
    hand.put(message(Kind.ZERO, field(1, pieces.to_bytes(4, "big"))))

    stage.refused(hand, REQUEST, f"ZERO of {pieces} pieces, 1 to 4096 are allowed")


@pytest.mark.parametrize("last", [Zero(1), Data(ZERO_PIECE_FRAME), Zero(limits.MAX_ZERO_PIECES)], ids=["one", "as data", "many"])
def test_zeroes_for_petabytes_end_at_the_bound_of_a_dump(last: Message, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZERO after ZERO: at so many frames it is over, and the disk holds 45 bytes for each and no more.

    The bound is lowered here from 16777216; SECURITY.md says what that many take.
    """
    monkeypatch.setattr(limits, "MAX_FRAMES", 3 * limits.MAX_ZERO_PIECES)
    monkeypatch.setattr(limits, "ACK_EVERY_BYTES", 1)  # Of what was not acknowledged nothing would be left to look at.
    hand = hand_in(State.STREAMING, stage, dump := new_dump_id())
    hand.put(encode(Zero(limits.MAX_ZERO_PIECES)) * 3)
    hand.put(encode(last))

    stage.refused(hand, REQUEST, "dump has more than 12288 frames")
    (core,) = (stage.store / "incoming").rglob("core.zst")
    assert core.parent.name == str(dump)
    assert core.stat().st_size == 12288 * len(ZERO_PIECE_FRAME)


def test_a_dump_of_exactly_the_bound_is_taken(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused above is one frame more."""
    monkeypatch.setattr(limits, "MAX_FRAMES", 8)
    hand = hand_in(State.STREAMING, stage, dump := new_dump_id())
    for _ in range(8):
        hand.send(bytes(limits.PIECE_BYTES))
    hand.delivery.end(hand.manifest(dump))

    assert stage.published() == [dump]


def deep(levels: int) -> bytes:
    """Return arrays within arrays."""
    return b'{"program":' + b"[" * levels + b"]" * levels + b"}"


BAD_REPORTS: Final = {
    "empty": b"",
    "no JSON": b"hello",
    "half of it": REPORT[:-1],
    "two of it": REPORT * 2,
    "an array": b"[]",
    "a text": b'"program"',
    "null": b"null",
    "a number of 60000 digits": b'{"pid":' + b"9" * 60_000 + b"}",
    "nested too deep": deep(30_000),
    "never closed": b'{"a":' * 13_000,
    "not UTF-8": b'{"program":"\xff"}',
    "overlong UTF-8": b'{"program":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"program":"\xed\xa0\x80"}',
    "UTF-16": '{"program":"x"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"program":"x"}'.encode("utf-16-le"),
    "UTF-32": '{"program":"x"}'.encode("utf-32-be"),
    "with a byte order mark": b"\xef\xbb\xbf" + REPORT,
    "a NUL behind it": REPORT + b"\0",
    "a raw NUL in a text": b'{"program":"a\0b"}',
    "a raw newline in a text": b'{"program":"a\nb"}',
}
"""What no reader of JSON takes, or not every one: RFC 8259 section 8.1 says UTF-8, without a mark."""


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_report_that_is_not_one_json_object_is_refused(name: str, stage: Stage) -> None:
    """It is kept byte for byte, so that whoever reads the store later must be able to read it."""
    hand = stage.hand()
    hand.put(message(Kind.OPEN, field(1, DUMP), field(2, BAD_REPORTS[name])))

    stage.refused(hand, REQUEST, "report is not")


HOSTILE_REPORTS: Final = {
    "control characters": b'{"program":"\\u001b[2J\\u0007\\r\\nsecurecore: delivered","comm":"\\u0000"}',
    "paths": b'{"program":"../../../etc/passwd","core_name":"/etc/shadow","node":"..","unit":"../x"}',
    "lone surrogates": b'{"program":"\\ud800","comm":"\\udfff\\ud800"}',
    "turned text": '{"program":"\u202egpj.exe\u2066"}'.encode(),
    "keys twice": b'{"program":"a","program":"\\u001b[31m","host":"other.hosts.test.example"}',
    "numbers beyond all": b'{"pid":1e999,"signal":99999999999999999999999,"uid":-1,"crashed_at":18446744073709551615}',
    "no numbers": b'{"pid":NaN,"signal":-Infinity}',
    "wrong types": b'{"program":{"a":[]},"signal":"11","pid":true,"uid":null,"tid":[1]}',
    "nested": b'{"x":' + deep(200) + b"}",
    "many keys": json.dumps({f"key{number}": number for number in range(3000)}).encode(),
    "a long program": b'{"program":"' + b"x" * 60_000 + b'"}',
    "the longest": b'{"x":"' + b"y" * (limits.MAX_REPORT_BYTES - 8) + b'"}',
}
"""Each is one JSON object, and kept as it is."""


@pytest.mark.parametrize("name", HOSTILE_REPORTS)
def test_a_hostile_report_is_kept_and_harms_nobody(
    name: str, stage: Stage, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte in the store; each line that the receiver's log and the commands show is one printable line."""
    report, dump, hand = HOSTILE_REPORTS[name], new_dump_id(), stage.hand()
    hand.open(dump, report)
    hand.send(b"core")
    hand.delivery.end(hand.manifest(dump, report=report))

    assert stage.published() == [dump]
    with open_store(str(stage.store)) as store, store.open_dump(*find_dump(store, str(dump))) as files:
        assert files.read_report() == report
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert [path.name for path in stage.store.parent.iterdir()] == ["store"]
    for command in (["list"], ["list", "--json"], ["show", str(dump)], ["show", str(dump), "--json"]):
        code = run(
            [*command, "--store", str(stage.store), *(["--root", str(stage.fleet.host / "ca.pem")] * (command[0] == "show"))]
        )
        output = capsys.readouterr()
        assert (code, output.err) == (0, "")
        assert all(line.isprintable() for line in output.out.split("\n"))


def test_frames_after_end_do_not_touch_a_dump_that_is_complete(stage: Stage) -> None:
    """The receipt is given for what END said; what follows is a breach between two dumps."""
    hand = hand_in(State.STREAMING, stage, dump := new_dump_id())
    hand.send(b"core")
    hand.put(encode(End(hand.manifest(dump))) + encode(Data(ZERO_PIECE_FRAME)) + encode(Zero(1)))

    assert isinstance(hand.answer(), Receipt)
    assert "DATA from the sender is not allowed in state idle" in hand.refusal().words
    assert stage.published() == [dump]


def test_a_second_end_is_a_breach(stage: Stage) -> None:
    """And does not add a second entry or receipt."""
    hand = hand_in(State.STREAMING, stage, dump := new_dump_id())
    hand.send(b"core")
    hand.put(encode(End(hand.manifest(dump))) * 2)

    assert isinstance(hand.answer(), Receipt)
    assert "END from the sender is not allowed in state idle" in hand.refusal().words
    entries = (stage.store / "audit" / f"{stage.fleet.host.name}.hosts.test.example" / "entries.jsonl").read_text()
    assert entries.count('"event":"received"') == 1


def test_an_end_before_any_frame_is_an_empty_dump(stage: Stage) -> None:
    """A program that had no core: complete, of no bytes, proved like every other."""
    hand = hand_in(State.STREAMING, stage, dump := new_dump_id())
    hand.delivery.end(hand.manifest(dump))

    assert stage.published() == [dump]


def test_who_does_not_wait_for_answers_gets_them_all_the_same(stage: Stage) -> None:
    """Two whole dumps in one write: messages may cross, and each dump gets its own receipt."""
    hand, first, second = stage.hand(), new_dump_id(), new_dump_id()
    hand.put(b"".join(encode(Open(dump, REPORT)) + encode(End(hand.manifest(dump))) for dump in (first, second)))

    assert [type(hand.answer()) for _ in range(4)] == [Accept, Receipt, Accept, Receipt]
    assert sorted(stage.published(), key=str) == sorted([first, second], key=str)


def resume(stage: Stage, dump: DumpId) -> Hand:
    """Return a hand on a dump of which an earlier one has sent nine frames that are durable."""
    first = stage.hand()
    first.open(dump)
    pieces = [os.urandom(limits.PIECE_BYTES) for _ in range(9)]
    for piece in pieces:
        first.send(piece)
    first.delivery.wait_for_ack(Wait(10))
    first.close()
    second = stage.hand()
    second.tree, second.size = first.tree, first.size
    answer = second.open(dump)
    assert isinstance(answer, Accept)
    assert answer.held == 9
    assert answer.root == first.tree.root()
    return second


def test_a_resumed_dump_cannot_claim_more_than_is_held(stage: Stage) -> None:
    """What ACCEPT says binds: a manifest over frames that were never sent is refused."""
    hand = resume(stage, dump := new_dump_id())
    hand.tree.append(bytes(32))
    hand.size += limits.PIECE_BYTES
    hand.put(encode(End(hand.manifest(dump))))

    refusal = hand.refusal()
    assert (refusal.code, refusal.words) == (Refusal.BAD_MANIFEST, "manifest states another frames than what was received")
    assert stage.published() == []


def test_one_host_cannot_stop_or_see_another_hosts_dump(stage: Stage) -> None:
    """The same id, opened by another host while it streams: neither is interrupted, neither sees the other's frames."""
    dump, ours, theirs = new_dump_id(), stage.hand("web-1"), stage.hand("db-2")
    ours.open(dump)
    ours.send(b"x" * limits.PIECE_BYTES)
    answer = theirs.open(dump)
    assert isinstance(answer, Accept)
    assert answer.held == 0
    for hand in (theirs, ours):
        hand.send(b"the end")
        hand.delivery.end(hand.manifest(dump))

    assert stage.published() == [dump, dump]
    assert stage.log_lines() == []


def test_of_many_sessions_for_one_dump_the_newest_goes_on(stage: Stage) -> None:
    """Each new one fences the one before it, which is told so; the last one finishes the dump."""
    dump, hands = new_dump_id(), [stage.hand() for _ in range(5)]
    for hand in hands:
        hand.open(dump)
    last = hands.pop()
    last.send(b"core")
    last.delivery.end(last.manifest(dump))

    assert [hand.refusal().code for hand in hands] == [Refusal.SUPERSEDED] * 4
    assert stage.published() == [dump]

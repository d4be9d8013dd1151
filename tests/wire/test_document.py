"""docs/wire.md is normative: its tables and its examples are held against the code, both ways."""

import json
import re
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pytest

from securecore import limits, tls
from securecore.dump.frames import ZERO_PIECE_FRAME, check_frame
from securecore.errors import PeerError
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, StoreId
from securecore.wire import messages
from securecore.wire.connection import NEED_DATA, Connection
from securecore.wire.messages import Data, Kind, Message, Refusal, Rest, encode, is_final, kind_of, max_body_bytes
from securecore.wire.states import TRANSITIONS, End
from tests.support.wire import Pair, speaker

DOCUMENT: Final = (Path(__file__).parents[2] / "docs/wire.md").read_text(encoding="utf-8")
FIELD_KINDS: Final = [kind for kind in Kind if kind not in (Kind.DATA, Kind.REST)]


def section(title: str) -> str:
    """Return the text under the heading *title*, up to the next heading of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", DOCUMENT, re.MULTILINE)
    assert found, title
    rest = DOCUMENT[found.end() :]
    after = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: after.start()] if after else rest


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table in *text* whose heading row begins with *heading*."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            return [row.strip("| ").split(" | ") for row in takewhile(lambda row: row.startswith("|"), lines)]
    raise AssertionError(f"no table that begins with {heading}")


def blocks(kind: str) -> list[str]:
    """Return the contents of the fenced blocks of this kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def type_name(codec: Any) -> str:
    """Return what the document calls a field's type."""
    names = {id(messages._TEXT): "text", id(messages._HASH): "hash", id(messages._DUMP): "dump id", id(messages._STORE): "store id"}
    names[id(messages._FLAG)] = "flag"
    if id(codec) in names:
        return names[id(codec)]
    return f"u{8 * codec.max_bytes}" if isinstance(codec.decode(bytes(codec.max_bytes)), int) else "bytes"


def test_the_table_of_messages_is_the_code() -> None:
    """Number, name, end and bound of every message, in the order of their numbers."""
    expected = [[str(int(kind)), kind.name, speaker(kind).value, str(max_body_bytes(kind))] for kind in Kind]
    assert expected == [row[:4] for row in table(section("Messages"), "Number")]


@pytest.mark.parametrize("kind", FIELD_KINDS)
def test_the_table_of_fields_is_the_code(kind: Kind) -> None:
    """Tag, name, type, bound and necessity of every field of a message."""
    expected = [
        [str(field.tag), f"`{field.name}`", type_name(field.codec), str(field.codec.max_bytes), "yes" if field.required else "no"]
        for field in messages._FIELDS[kind][1]
    ]
    assert expected == [row[:5] for row in table(section(kind.name), "Tag")]


def test_the_table_of_refusals_is_the_code() -> None:
    """Code, name, and what a sender does next."""
    expected = [[str(int(code)), code.name, "operator" if is_final(code) else "later"] for code in Refusal]
    assert expected == [row[:3] for row in table(section("Refusal codes"), "Code")]


def test_the_table_of_states_is_the_code() -> None:
    """Every transition, and nothing else."""
    expected = {(state.value, end.value, kind.name, after.value) for (state, end, kind), after in TRANSITIONS.items()}
    rows = table(section("States"), "State")
    assert expected == {tuple(row) for row in rows}
    assert len(expected) == len(rows)


def test_the_picture_of_states_is_the_code() -> None:
    """The diagram has an arrow for each transition; what the ends are is in the table."""
    drawn = set()
    for before, after, labels in re.findall(r"^ +(\w+) --> (\w+): (.+)$", section("States"), re.MULTILINE):
        drawn |= {(before, label, after) for label in re.split(", | or ", labels)}
    assert {(state.value, kind.name, after.value) for (state, _, kind), after in TRANSITIONS.items()} == drawn


def test_the_table_of_limits_is_the_code() -> None:
    """Each limit has its name and its value of securecore/limits.py."""
    for name, value, _ in table(section("Limits"), "Name"):
        assert getattr(limits, name.strip("`")) == float(value), name


def test_the_numbers_in_the_prose_are_the_code() -> None:
    """Bounds that are repeated in sentences, and the name of the protocol."""
    assert f"1 to {limits.MAX_FRAME_BYTES} bytes" in section("DATA")
    assert f"is 1 to {limits.PIECE_BYTES};" in section("Frames")
    assert f"at most {limits.MAX_WORDS} characters" in section("Fields")
    assert f"plus {messages._OPTIONAL_SLACK} bytes" in section("Fields")
    assert f"`{tls.ALPN}`" in section("Transport")
    assert not {int(kind) for kind in Kind} & set(range(17, 48))


def test_the_zero_piece_is_the_code() -> None:
    """The bytes that ZERO stands for."""
    assert bytes.fromhex(blocks("zero-piece")[0]) == ZERO_PIECE_FRAME


def parse_value(text: str, codec: Any) -> Any:
    """Return the value that the document writes for a field."""
    if text.startswith("x"):
        return bytes.fromhex(text[1:])
    if text.startswith('"') or text == "true":
        return json.loads(text)
    if codec is messages._DUMP:
        return DumpId.parse(text)
    if codec is messages._STORE:
        return StoreId.parse(text)
    return int(text)


def parse_example(block: str) -> tuple[End, Message, bytes]:
    """Return who speaks, the message and its bytes."""
    head, *lines = block.splitlines()
    found = re.fullmatch(r"(sender|receiver): ([A-Z]+) (.*)", head)
    assert found, head
    words = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', found[3]))
    if found[2] in ("DATA", "REST"):
        (value,) = words.values()
        message: Message = (Data if found[2] == "DATA" else Rest)(parse_value(value, None))
    else:
        cls, fields = messages._FIELDS[Kind[found[2]]]
        codecs = {field.name: field.codec for field in fields}
        message = cls(**{name: parse_value(value, codecs[name]) for name, value in words.items()})
    return End(found[1]), message, bytes.fromhex("".join(line.partition(";")[0] for line in lines))


EXAMPLES: Final = [parse_example(block) for block in blocks("example")]


@pytest.mark.parametrize(("end", "message", "data"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_example_is_what_we_say_and_understand(end: End, message: Message, data: bytes) -> None:
    """The text encodes to the bytes, the bytes decode to the text, and the end is the one that may say it."""
    assert encode(message) == data
    kind, length = messages.decode_header(data)
    assert len(data) == messages.HEADER_BYTES + length
    assert messages.decode_body(kind, data[messages.HEADER_BYTES :]) == message
    assert speaker(kind) is end


def test_there_is_an_example_of_every_message() -> None:
    """A second implementation can try each of them."""
    assert set(Kind) == {kind_of(message) for _, message, _ in EXAMPLES}


def test_the_first_example_is_a_whole_conversation() -> None:
    """Its messages, in order, take both ends from the greeting to idle; its resumption goes on as it says."""
    first = section("A dump of three zero pieces and twelve bytes").count("```example")
    pair = Pair()
    for end, message, _ in EXAMPLES[:first]:
        assert message == pair.say(end, message)
    resumed = Pair()
    again = section("The same dump, resumed").count("```example")
    for end, message, _ in [EXAMPLES[0], *EXAMPLES[first : first + again]]:
        resumed.say(end, message)
    within = Pair()
    for end, message, _ in EXAMPLES[first + again :][: section("The same dump, resumed within a frame").count("```example")]:
        within.say(end, message)
    assert {("idle", 4), ("streaming", 3), ("streaming", 4)} == {
        (connection.state.value, connection.frames) for each in (pair, resumed, within) for connection in each.ends.values()
    }


def test_the_frames_and_roots_of_the_examples_are_real() -> None:
    """DATA holds twelve bytes of plaintext, and ACCEPT's root is that over three zero pieces."""
    frames = [message.frame for _, message, _ in EXAMPLES if isinstance(message, Data)]
    roots = [message.root for _, message, _ in EXAMPLES if isinstance(message, messages.Accept)]
    assert [check_frame(frame) for frame in frames] == [12]
    assert [root_of([]), *[root_of([leaf_hash(ZERO_PIECE_FRAME)] * 3)] * 2] == roots


def test_the_example_of_rest_is_the_end_of_the_frame_of_the_example_of_data() -> None:
    """ACCEPT's hash is that of the frame's first bytes."""
    accept, rest = ([message for _, message, _ in EXAMPLES if type(message) is cls][-1] for cls in (messages.Accept, Rest))
    (frame,) = [message.frame for _, message, _ in EXAMPLES if isinstance(message, Data)]
    assert isinstance(accept, messages.Accept)
    beginning, end = frame[: accept.torn_bytes], frame[accept.torn_bytes :]
    assert (Rest(end), sha256(beginning).digest()) == (rest, accept.torn_hash)


@pytest.mark.parametrize("block", blocks("refused"), ids=lambda block: block.splitlines()[0])
def test_what_the_document_says_is_refused_is_refused(block: str) -> None:
    """By the decoder alone, in a state in which the message itself may come."""
    data = bytes.fromhex("".join(block.splitlines()[1:]))
    kind_number = data[4]
    with pytest.raises(PeerError) as refused:
        _hear(data, kind_number)
    assert "not allowed" not in refused.value.message


def _hear(data: bytes, kind_number: int) -> None:
    for (state, end, kind), _ in TRANSITIONS.items():
        if kind == kind_number:
            connection = Connection(End.RECEIVER if end is End.SENDER else End.SENDER)
            connection.state = state
            connection.receive(data)
            assert connection.next_message() is NEED_DATA
            return
    messages.decode_header(data)

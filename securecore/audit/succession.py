"""Succession of log keys: the note by which one key hands a receiver's logs over to the next, and the chain of such notes.

    securecore/log-key-succession v1
    receiver.example.org/securecore
    2026-11-27T16:00:00.000Z
    before receiver.example.org/securecore+<key id>+<base64>
    after receiver.example.org/securecore+<key id>+<base64>

    — receiver.example.org/securecore <base64 of key id and Ed25519 signature>
    — receiver.example.org/securecore <the same by the other key>

A signed note whose keys stand in it as other readers of notes take them. No checkpoint has this text: the first line of one is an
origin, and the second a number. Both keys have signed it, in any order; where the one before was lost, the fourth line says
``lost`` in place of ``before``, and the one after signs alone. Source: https://c2sp.org/signed-note.

The TLS key states every log key, and so could state any; that it is the next one only the key before it can say.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securecore import limits
from securecore.audit.checkpoint import (
    decode_base64,
    find_signer,
    is_signed,
    parse_checkpoint,
    parse_note,
    signature_line,
    verifier_key,
)  # fmt: skip
from securecore.audit.entry import timestamp
from securecore.audit.proof import parse_proof
from securecore.audit.statement import LogKey, read_stated_key, verify_statement
from securecore.certs.chain import Anchors
from securecore.errors import BrokenError, SecurecoreError

_FIRST_LINE: Final = "securecore/log-key-succession v1"
_BEFORE: Final = "before "
_LOST: Final = "lost "
_AFTER: Final = "after "
_WHAT: Final = "succession of log keys"
_TYPED_KEY_BYTES: Final = 33
"""Signature type and Ed25519 key, as verifier keys encode them."""


class Succession(NamedTuple):
    """That one log key took the place of another."""

    name: str
    """Of both keys: ``RECEIVER/securecore``."""
    before: bytes
    after: bytes
    """Ed25519, 32 bytes."""
    is_lost: bool
    """Whether the key before was lost, by the word of the one after; else both have signed."""
    at: str
    """When, by the word of who signed."""

    @property
    def words(self) -> str:
        """What a chain that ends here says of it."""
        before, after = verifier_key(self.name, self.before), verifier_key(self.name, self.after)
        return f"log key {after} has taken the place of {before}, which is said to be lost and has signed no succession"


class Line(NamedTuple):
    """One key of a history of log keys: a line of log-keys.jsonl."""

    statement: bytes
    succession: bytes | None
    """The note by which it took the place of the key of the line before; None of the first."""


class LogKeys(NamedTuple):
    """The keys that have signed a receiver's logs, each verified, back to where the chain of their successions begins or is cut."""

    key: LogKey
    """The one in use, with those before it."""
    lines: tuple[Line, ...]
    """The oldest first, and last the one in use."""

    @property
    def history(self) -> bytes:
        """The same as log-keys.jsonl has it; nothing where there was never another key."""
        return encode_history(self.lines) if len(self.lines) > 1 else b""

    @property
    def successions(self) -> bytes:
        """The notes, one behind the other, the oldest first."""
        return b"".join(line.succession or b"" for line in self.lines)

    def find_earlier(self, receipt: bytes) -> bytes | None:
        """Return the public key before the one in use that has signed a receipt; None where none of them has.

        Not checked: the signature.
        """
        try:
            return find_signer(parse_checkpoint(parse_proof(receipt).checkpoint), self.key.earlier)
        except BrokenError:
            return None


def sign_succession(name: str, before: Ed25519PrivateKey | bytes, after: Ed25519PrivateKey, now: datetime) -> bytes:
    """Return the note by which *after* takes the place of *before*: of the key, or where that is lost of its public key."""
    keys = [after] if isinstance(before, bytes) else [before, after]
    old, new = before if isinstance(before, bytes) else public_bytes(before), public_bytes(after)
    word = _LOST if isinstance(before, bytes) else _BEFORE
    lines = [_FIRST_LINE, name, timestamp(now), word + verifier_key(name, old), _AFTER + verifier_key(name, new), ""]
    text = "\n".join(lines).encode()
    return text + b"\n" + b"".join(signature_line(name, key, text) for key in keys)


def verify_succession(note: bytes) -> Succession:
    """Return what a note says, once the keys in it have signed it; raises BrokenError.

    Lines by other keys are passed over. Not checked: whose keys these are.
    """
    lines, signatures = parse_note(note, _WHAT)
    if len(lines) != 5 or lines[0] != _FIRST_LINE or not lines[3].startswith((_BEFORE, _LOST)):
        raise BrokenError(f"{_WHAT} is malformed")
    name, word = lines[1], _LOST if lines[3].startswith(_LOST) else _BEFORE
    before, after = _parse_key(lines[3].removeprefix(word), name), _parse_key(lines[4].removeprefix(_AFTER), name)
    found = Succession(name, before, after, word == _LOST, lines[2])
    if before == after or lines[4] != _AFTER + verifier_key(name, after):
        raise BrokenError(f"{_WHAT} is malformed")
    text = "\n".join([*lines, ""]).encode()
    for which, key in (("before", before), ("after", after)):
        is_wanted = which == "after" or not found.is_lost
        if is_wanted and not is_signed(text, signatures, name, key, _WHAT):
            raise BrokenError(f"{_WHAT} is not signed by the key {which}")
    return found


def split_successions(notes: bytes) -> Iterator[bytes]:
    """Yield the notes that stand one behind the other in *notes*; what stands before the first one is its beginning."""
    first = _FIRST_LINE.encode() + b"\n"
    parts = notes.split(b"\n" + first)
    yield from (part if at == 0 else first + part for at, part in enumerate(_ended(parts)) if part)


def verify_successions(notes: bytes) -> tuple[Succession, ...]:
    """Return what notes say that stand one behind the other; raises BrokenError, also for more than a history has."""
    found = tuple(verify_succession(note) for note in split_successions(notes))
    if len(found) >= limits.MAX_LOG_KEYS:
        raise BrokenError(f"{len(found)} successions of log keys, at most {limits.MAX_LOG_KEYS - 1} are read")
    return found


def encode_history(lines: Sequence[Line]) -> bytes:
    """Return the bytes of log-keys.jsonl."""
    return b"".join(_encode_line(line) + b"\n" for line in lines)


def parse_history(data: bytes) -> tuple[Line, ...]:
    """Return the lines of log-keys.jsonl; raises BrokenError when it is none. Not checked: what they are worth."""
    lines = tuple(_parse_line(line) for line in data.split(b"\n")[:-1])
    if not data.endswith(b"\n") or len(data) > limits.MAX_LOG_KEYS_BYTES or len(lines) > limits.MAX_LOG_KEYS:
        raise BrokenError("the history of log keys is cut off or too long")
    if [line.succession is None for line in lines] != [True, *[False] * (len(lines) - 1)]:
        raise BrokenError("the history of log keys is malformed")
    return lines


def verify_log_keys(
    statement: bytes,
    history: bytes | None,
    anchors: Anchors,
    now: datetime | None = None,
    trusted: Collection[str] | None = None,
) -> LogKeys:
    """Return the log key that *statement* states, with those before it by log-keys.jsonl (None: there is none).

    1. The statement holds, at *now* or at the time that it gives (verify_statement).
    2. The history has a line of that key. Lines behind that are of keys that are not in use yet, and passed over.
    3. From there back: the succession is one from the key of the line before to this one, and holds (verify_succession); and the
       statement of the line before holds, at its time, and is of a key of the same name that has not come yet.
    4. Where a key was lost, the chain goes on if the one that took its place is *trusted* by whoever verifies (verifier keys; None
       trusts all); else it is cut there, and ``key.cut`` says so.

    Raises BrokenError, or the judge's Refusal. Not checked: revocation.
    """
    key = verify_statement(statement, anchors, now)
    lines = _until(parse_history(history), key.public_key) if history is not None else ()
    if not lines:
        return LogKeys(key, (Line(statement, None),))
    found: list[bytes] = []
    cut: str | None = None
    after = key.public_key
    for line, before in zip(reversed(lines), reversed(lines[:-1]), strict=False):
        succession = verify_succession(line.succession or b"")
        if (succession.name, succession.after) != (key.name, after):
            raise BrokenError("the history of log keys has a succession of other keys")
        if succession.is_lost and trusted is not None and verifier_key(key.name, after) not in trusted:
            cut = succession.words
            break
        stated = verify_statement(before.statement, anchors)
        if (stated.name, stated.public_key) != (key.name, succession.before) or stated.public_key in (key.public_key, *found):
            raise BrokenError("the history of log keys has a statement of another key")
        found.append(stated.public_key)
        after = stated.public_key
    return LogKeys(key._replace(earlier=tuple(found), cut=cut), (*lines[:-1], lines[-1]._replace(statement=statement)))


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of a key's public part."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _until(lines: tuple[Line, ...], public_key: bytes) -> tuple[Line, ...]:
    """Return the lines up to the last of a key; none where it has none."""
    end = 0
    for at, line in enumerate(lines, 1):
        try:
            end = at if read_stated_key(line.statement) == public_key else end
        except SecurecoreError as error:
            raise BrokenError(f"the history of log keys, line {at}: {error.message}") from error
    return lines[:end]


def _ended(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the parts of a split at newlines, with the one that each but the last has lost."""
    yield from (part + b"\n" for part in parts[:-1])
    yield parts[-1]


def _parse_key(text: str, name: str) -> bytes:
    typed = decode_base64(text.removeprefix(f"{name}+").partition("+")[2]) or b""
    if len(typed) != _TYPED_KEY_BYTES or text != verifier_key(name, typed[1:]):
        raise BrokenError(f"{_WHAT} names no key of {name[:300]!a}")
    return typed[1:]


def _encode_line(line: Line) -> bytes:
    fields = {
        "statement": line.statement.decode("ascii"),
        "succession": line.succession.decode("utf-8") if line.succession is not None else None,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _parse_line(text: bytes) -> Line:
    try:
        fields = json.loads(text)
        succession = fields["succession"]
        line = Line(fields["statement"].encode("ascii"), succession.encode() if succession is not None else None)
        is_canonical = text == _encode_line(line)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenError("the history of log keys has a line that is none") from error
    if not is_canonical:
        raise BrokenError("the history of log keys is not in its canonical encoding")
    return line

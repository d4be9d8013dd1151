"""What a verifier remembers of a store's logs: of each the newest checkpoint under which it held, and when that was found.

It is a witness of the verifier's own. A log that was shortened or rewritten since contradicts it, whoever signed that. And the
entries that it covers need not be parsed again: who hashes them knows whether they still are those. So nothing is remembered of
what entries say, and who could write the file could hide nothing that is in the store now.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from securecore.audit.checkpoint import find_signer, parse_checkpoint, verify_checkpoint
from securecore.audit.entry import timestamp
from securecore.errors import BrokenError, ConfigError
from securecore.names import HostName, NameRefused, StoreId

_FORMAT: Final = "securecore-verified 1"
_WRONG: Final = "is not what `audit verify --state` writes"
_HINT: Final = "name another file: what it remembers of the logs is lost with this one"


class Verified(NamedTuple):
    """The first entries of a log, as they were when they were verified."""

    origin: str
    size: int
    root: bytes
    at: datetime
    note: bytes
    """The checkpoint that covered them, as the receiver signed it: with another that contradicts it, the proof of two histories."""

    @property
    def whose(self) -> str:
        """Whose word it is, for a person."""
        return f"your verification of {self.at:%Y-%m-%d}"

    def words(self) -> str:
        """Return which entries were verified, and when."""
        which = "entry 0 was" if self.size == 1 else f"entries 0 to {self.size - 1} were"
        return f"{which} verified on {self.at:%Y-%m-%d}"

    def check_key(self, public_key: bytes, earlier: Sequence[bytes] = (), cut: str | None = None) -> str:
        """Check that the log's key, or one *earlier* than that, has signed the checkpoint; return in words which one.

        *cut* is why there are no more of these. Raises BrokenError.
        """
        try:
            checkpoint = verify_checkpoint(self.note, self.origin, public_key, earlier)
        except BrokenError as error:
            why = f": {cut}" if cut is not None else ""
            raise BrokenError(f"under {self.whose}, {error.message}{why}") from error
        return "by the key in use" if find_signer(checkpoint, [public_key]) is not None else "by a key before the one in use"


class VerifiedLogs:
    """What is remembered of the logs that one receiver keeps in one store."""

    def __init__(self, store: StoreId, receiver: str) -> None:
        """*receiver* is the log key's name; origins are this, or begin with this and a slash."""
        self._store = store
        self._receiver = receiver
        self._logs: dict[str, Verified] = {}

    @classmethod
    def parse(cls, text: bytes, store: StoreId, receiver: str) -> "VerifiedLogs":
        """Return what encode has written; raises ConfigError for anything else, and for what is of another store or receiver.

        Not checked: the checkpoints' signatures (Verified.check_key does that).
        """
        try:
            fields = json.loads(text)
            if fields["format"] != _FORMAT:
                raise ConfigError(_WRONG, hint=_HINT)
            of = (str(fields["store"]), str(fields["receiver"]))
            verified = [_parse(log["checkpoint"], log["verified_at"]) for log in fields["logs"]]
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, BrokenError) as error:
            raise ConfigError(_WRONG, hint=_HINT) from error
        if of != (str(store), receiver):
            words = f"is of the logs of {of[1]!a:.300} in store {of[0]!a:.100}; this is store {store}, of {receiver}"
            raise ConfigError(words, hint="keep a file for each store; if this store should be that one, it was replaced")
        made = cls(store, receiver)
        for one in verified:
            if one.origin != receiver and made._host_of(one.origin) is None:
                raise ConfigError(_WRONG, hint=_HINT)
            made._logs[one.origin] = one
        return made

    @property
    def hosts(self) -> list[HostName]:
        """The hosts of whose logs something is remembered, sorted."""
        return sorted(host for origin in self._logs if (host := self._host_of(origin)) is not None)

    def find(self, origin: str) -> Verified | None:
        """Return what is remembered of a log."""
        return self._logs.get(origin)

    def take(self, note: bytes, moment: datetime) -> None:
        """Remember that the log of this checkpoint holds; of a log without entries there is nothing to remember."""
        checkpoint = parse_checkpoint(note)
        if checkpoint.size:
            self._logs[checkpoint.origin] = Verified(checkpoint.origin, checkpoint.size, checkpoint.root, moment, note)

    def encode(self) -> bytes:
        """Return it as a file has it."""
        logs = [{"checkpoint": one.note.decode(), "verified_at": timestamp(one.at)} for _, one in sorted(self._logs.items())]
        fields = {"format": _FORMAT, "store": str(self._store), "receiver": self._receiver, "logs": logs}
        return json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n"

    def _host_of(self, origin: str) -> HostName | None:
        try:
            return HostName(origin.removeprefix(f"{self._receiver}/"))
        except NameRefused:
            return None


def _parse(note: str, moment: str) -> Verified:
    at = datetime.fromisoformat(moment)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    checkpoint = parse_checkpoint(note.encode())
    return Verified(checkpoint.origin, checkpoint.size, checkpoint.root, at.astimezone(UTC), note.encode())

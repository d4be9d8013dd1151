"""Finding the dump that a person means by a part of its id."""

from typing import Final, NamedTuple

from securecore.errors import NotFoundError, StorageError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Place, Store

_SHOWN: Final = 3
_DIGITS: Final = frozenset("0123456789abcdef")
_ID_DIGITS: Final = 32


class Candidates(NamedTuple):
    """The dumps, published or coming in, whose ids begin or end with a text."""

    text: str
    host: HostName | None
    dumps: list[tuple[HostName, DumpId]]
    problem: StorageError | None
    """Why a host's dumps could not be looked at, where that was so of one: that host's dumps are left out."""

    def one(self) -> tuple[HostName, DumpId]:
        """Return the one dump that is meant.

        Raises NotFoundError, with the candidates as its hint, unless it is exactly one; StorageError when it is none, and a host
        could not be looked at: it may be there.
        """
        if not self.dumps:
            if self.problem is not None:
                raise self.problem
            where = f"of {self.host} " if self.host else ""
            words = f"no dump {where}has an id that begins or ends with {self.text[:100]!a}"
            raise NotFoundError(words, hint="see `securecore list`")
        if len(self.dumps) > 1:
            shown = ", ".join(f"{dump_id} ({owner})" for owner, dump_id in self.dumps[:_SHOWN])
            more = f" and {len(self.dumps) - _SHOWN} more" if len(self.dumps) > _SHOWN else ""
            raise NotFoundError(f"{self.text[:100]!a} means {len(self.dumps)} dumps", hint=f"one of {shown}{more}")
        return self.dumps[0]

    def check_decided(self) -> None:
        """Check that a host whose dumps could not be looked at cannot have one more that is meant; raises StorageError.

        Not checked of a whole id: nothing but a host that makes it so gives two dumps the same one.
        """
        if self.problem is not None and len(digits_of(self.text)) < _ID_DIGITS:
            words = f"cannot tell whether {self.text[:100]!a} means one dump alone: {self.problem.message}"
            raise StorageError(words, hint="name the dump by its whole id, as `securecore list --json` has it")


def find_dump(store: Store, text: str, host: HostName | None = None) -> tuple[HostName, DumpId]:
    """Return the one dump, of *host* or of any, whose id begins or ends with *text*; hyphens do not count.

    Published dumps and those still coming in are looked at. Raises as ``Candidates.one`` does.
    """
    return find_candidates(store, text, host).one()


def find_candidates(store: Store, text: str, host: HostName | None = None) -> Candidates:
    """Return the dumps, published or coming in, of *host* or of any, whose ids begin or end with *text*, each once."""
    wanted = digits_of(text)
    found: dict[tuple[HostName, DumpId], None] = {}
    problem: StorageError | None = None
    if wanted and set(wanted) <= _DIGITS:
        for place in (Place.HOSTS, Place.INCOMING):
            for owner in [host] if host else store.hosts_in(place):
                try:
                    names = store.dump_names(place, owner)
                except StorageError as error:
                    problem = problem or error
                    continue
                found |= {(owner, dump_id): None for name in names if (dump_id := _find_match(name, wanted)) is not None}
    return Candidates(text, host, list(found), problem)


def is_match(dump_id: str, wanted: str) -> bool:
    """Return whether an id begins or ends with *wanted*, which has hexadecimal digits and no hyphen."""
    digits = dump_id.replace("-", "")
    return digits.startswith(wanted) or digits.endswith(wanted)


def digits_of(text: str) -> str:
    """Return what a person wrote of an id as ``is_match`` takes it."""
    return text.strip().lower().replace("-", "")


def _find_match(name: str, wanted: str) -> DumpId | None:
    try:
        return DumpId.parse(name) if is_match(name, wanted) else None
    except NameRefused:
        return None

"""What declarations need of ``typing`` and ``collections.abc``, without loading them: a crashed process waits for what is loaded.

Checkers of types see the names there. At run time these stand in their place: words that mean nothing then, and records
that are made without compiling a constructor for each class. Measured as instructions on CPython 3.11 (valgrind), beside the 85
million that the interpreter takes with ``ssl``: ``typing`` takes 12 million, each of its NamedTuples one more, and the handler
loads forty.
"""

from _operator import itemgetter  # what the operator module would give us

TYPE_CHECKING = False


class _Word:
    """Stands for a word of ``typing`` in annotations, alone, in brackets or as one of several: ``Final[int]``, ``Any | None``."""

    def __class_getitem__(cls, _: object) -> "type[_Word]":
        return cls


def _ignore(subject: object) -> object:
    """Return what is declared: an overload, of which the last definition counts, or the name of a variable for types."""
    return subject


class _RecordType(type):
    """Makes a class of records from its annotations."""

    _fields: tuple[str, ...]
    _field_defaults: dict[str, "Any"]

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: "dict[str, Any]") -> "_RecordType":
        fields = tuple(_annotations(namespace))
        defaults = {field: namespace.pop(field) for field in fields if field in namespace}
        if tuple(defaults) != fields[len(fields) - len(defaults) :]:
            raise TypeError(f"{name}: a field without a default stands behind one that has a default")
        readers = {field: property(itemgetter(place)) for place, field in enumerate(fields)}
        own = {"__slots__": (), "__match_args__": fields, "_fields": fields, "_field_defaults": defaults}
        return super().__new__(cls, name, bases, namespace | readers | own)


def _annotations(namespace: "dict[str, Any]") -> "Mapping[str, object]":
    """Return the annotations in a class's body; since Python 3.14 there is a function in their place (PEP 649 and PEP 749)."""
    find = namespace.get("__annotate__", namespace.get("__annotate_func__"))
    found: Mapping[str, object] = namespace.get("__annotations__", {}) if find is None else find(1)
    return found


class _Record(tuple[object, ...], metaclass=_RecordType):
    """A tuple whose items have names, with the methods of ``typing.NamedTuple``; nobody derives from a class of records."""

    def __new__(cls, *values: "Any", **named: "Any") -> "_Record":
        if named or len(values) != len(cls._fields):
            values = cls._complete(values, named)
        return tuple.__new__(cls, values)

    @classmethod
    def _complete(cls, values: "tuple[Any, ...]", named: "dict[str, Any]") -> "tuple[Any, ...]":
        """Return all values, in order; raises TypeError as a function with these parameters does."""
        given = dict(zip(cls._fields, values, strict=False))
        if len(values) > len(cls._fields) or any(name in given or name not in cls._fields for name in named):
            raise TypeError(f"{cls.__name__} takes each of these once, and nothing else: {', '.join(cls._fields)}")
        found = cls._field_defaults | given | named
        if missing := [field for field in cls._fields if field not in found]:
            raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
        return tuple(found[field] for field in cls._fields)

    @classmethod
    def _make(cls, values: "Iterable[Any]") -> "_Record":
        """Return the record of *values*, one for each field; raises TypeError for more or fewer."""
        found = tuple(values)
        if len(found) != len(cls._fields):
            raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, not {len(found)}")
        return tuple.__new__(cls, found)

    def _asdict(self) -> "dict[str, Any]":
        return dict(zip(type(self)._fields, self, strict=True))

    def _replace(self, **changes: "Any") -> "_Record":
        """Return a record with other values for some fields; raises TypeError for a field that there is not."""
        return type(self)(**self._asdict() | changes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

    def __getnewargs__(self) -> "tuple[Any, ...]":
        return tuple(self)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import IO, Any, ClassVar, Final, NamedTuple, NoReturn, Protocol, Self, TypeVar, overload
else:
    IO = Any = ClassVar = Final = NoReturn = Self = _Word
    Callable = Iterable = Iterator = Mapping = Sequence = _Word
    NamedTuple, Protocol, TypeVar, overload = _Record, object, _ignore, _ignore

__all__ = [
    "IO", "TYPE_CHECKING", "Any", "Callable", "ClassVar", "Final", "Iterable", "Iterator", "Mapping", "NamedTuple", "NoReturn",
    "Protocol", "Self", "Sequence", "TypeVar", "overload",
]  # fmt: skip

"""Records beside those of the typing module, whose behaviour is the specification; and what annotations may say."""

import copy
import typing
from collections.abc import Callable
from typing import Any

import pytest

from securecore import declarations


class Theirs(typing.NamedTuple):
    """The specification."""

    name: str
    size: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return f"{self.name} {self.size}"

    @classmethod
    def make(cls) -> "Theirs":
        return cls("made", parts=("a",))


class Record(declarations.NamedTuple):
    """The same."""

    name: str
    size: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return f"{self.name} {self.size}"

    @classmethod
    def make(cls) -> "Record":
        return cls("made", parts=("a",))


Ours: Any = Record
"""Some of the calls are wrong on purpose."""

CALLS: dict[str, Callable[[Any], object]] = {
    "one value": lambda kind: (*kind("x"),),
    "all values": lambda kind: (*kind("x", 1, ("y",)),),
    "all by name": lambda kind: (*kind(parts=("y",), size=1, name="x"),),
    "some by name": lambda kind: (*kind("x", parts=("y",)),),
    "none": lambda kind: kind(),
    "one too many": lambda kind: kind("x", 1, (), 2),
    "an unknown name": lambda kind: kind("x", color="red"),
    "a value twice": lambda kind: kind("x", name="y"),
    "the first one missing": lambda kind: kind(size=1),
    "made of a list": lambda kind: (*kind._make(["x", 1, ()]),),
    "made of too few": lambda kind: kind._make(["x"]),
    "made of too many": lambda kind: kind._make(["x", 1, (), 2]),
    "read": lambda kind: (kind("x", 1).name, kind("x", 1).size, kind("x", 1).parts, kind("x", 1)[1]),
    "an unknown one read": lambda kind: kind("x").color,
    "written": lambda kind: setattr(kind("x"), "name", "y"),
    "a new one written": lambda kind: setattr(kind("x"), "color", "red"),
    "replaced": lambda kind: (*kind("x")._replace(size=3, parts=("z",)),),
    "as a dictionary": lambda kind: [*kind("x", 2)._asdict().items()],
    "a property": lambda kind: kind("x", 2).shown,
    "a class method": lambda kind: (*kind.make(),),
    "equal to its like": lambda kind: kind("x", 2) == kind(name="x", size=2) != kind("x", 3),
    "equal to a tuple": lambda kind: kind("x", 2) == ("x", 2, ()),
    "hashed": lambda kind: hash(kind("x", 2)),
    "in order": lambda kind: [*map(tuple, sorted([kind("y", 1), kind("x", 2)]))],
    "taken apart": lambda kind: (lambda name, *rest: (name, rest))(*kind("x", 2)),
    "its fields": lambda kind: (kind._fields, kind._field_defaults, kind.__match_args__, [*kind.__annotations__]),
    "copied": lambda kind: (*copy.copy(kind("x", 2)), *copy.deepcopy(kind("x", 2))),
    "shown": lambda kind: repr(kind("x", 2)).partition("(")[2],
    "without a dictionary": lambda kind: hasattr(kind("x"), "__dict__"),
}  # fmt: skip


def outcome_of(call: Callable[[Any], object], kind: Any) -> object:
    """Return what comes of a call: a value, or the class of an error."""
    try:
        return call(kind)
    except (TypeError, AttributeError, ValueError) as error:
        return type(error)


@pytest.mark.parametrize("what", CALLS)
def test_a_record_does_what_a_named_tuple_of_typing_does(what: str) -> None:
    """Value for value, and error for error, but for the words."""
    assert outcome_of(CALLS[what], Ours) == outcome_of(CALLS[what], Theirs)


def test_a_record_tells_its_class_by_name() -> None:
    """For people who read a failed test."""
    assert repr(Record("x", 2)) == "Record(name='x', size=2, parts=())"


def test_a_field_that_there_is_not_cannot_be_replaced() -> None:
    """A TypeError, as typing has it since Python 3.13."""
    with pytest.raises(TypeError, match="name, size, parts"):
        Ours("x")._replace(color="red")


def test_a_pattern_takes_a_record_apart_by_place() -> None:
    """As of any tuple with names."""
    match Record("x", 2):
        case Record(name, size):
            assert (name, size) == ("x", 2)
        case _:
            pytest.fail("no match")


def test_a_default_before_a_field_without_one_is_refused() -> None:
    """When the class is made, as in a function's parameters."""
    with pytest.raises(TypeError, match="behind one that has a default"):
        type(Ours)("Wrong", (Ours.__mro__[1],), {"__annotations__": {"a": int, "b": int}, "a": 1})


@pytest.mark.parametrize("name", ["__annotate__", "__annotate_func__"])
def test_annotations_that_are_a_function_are_asked_for(name: str) -> None:
    """Since Python 3.14 a class's body has no dictionary of them (PEP 649)."""
    made: Any = type(Ours)("Later", (Ours.__mro__[1],), {name: lambda format: {"a": int, "b": int}, "b": 7})

    assert made(1) == (1, 7)


def test_words_of_annotations_stand_wherever_those_of_typing_do() -> None:
    """Alone, in brackets, and as one of several."""
    number: declarations.Final[int] = 3

    def maybe(value: "declarations.Any | None", *, more: "dict[str, declarations.Any]") -> object:
        return value or more or number

    word: Any = declarations.Any
    assert (word | None, dict[str, word], word[int]) == (word | None, dict[str, word], word)
    assert maybe(None, more={}) == number

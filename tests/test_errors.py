"""Errors: a class says whose fault it is, and its exit code is the published one."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import securecore
from securecore import errors
from securecore.errors import Bug, SecurecoreError

DOCUMENT = Path(__file__).parents[1] / "docs/exit-codes.md"
OWN = {"0": "ok", "9": "mismatch", "130": "interrupted", "141": "unread"}


def documented() -> dict[str, str]:
    """Return the codes of the document by their names."""
    rows = re.findall(r"^\| (\d+) \| ([a-z-]+) \| .+ \| .+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len({name for _, name in rows})
    return {name: code for code, name in rows}


def all_classes(root: type[SecurecoreError] = SecurecoreError) -> set[type[SecurecoreError]]:
    """Return *root* and everything below it that is loaded."""
    return {root}.union(*(all_classes(cls) for cls in root.__subclasses__()))


def every_class_of_the_package() -> set[type[SecurecoreError]]:
    """Return the error classes of all modules."""
    for module in pkgutil.walk_packages(securecore.__path__, "securecore."):
        import_module(module.name)
    return {cls for cls in all_classes() if cls.__module__.startswith("securecore.")}


def test_the_document_has_every_code_and_no_other() -> None:
    """Both ways; usage is the command line's own and a NameRefused's."""
    ours = {cls.name: str(cls.exit_code) for cls in every_class_of_the_package()}
    assert documented() == ours | {name: code for code, name in OWN.items()}


def test_a_code_has_one_name_but_for_the_catch_all() -> None:
    """Only `bug` shares the code of `error`: both mean that nothing more precise is known."""
    names: dict[str, set[str]] = {}
    for name, code in documented().items():
        names.setdefault(code, set()).add(name)
    assert {code: found for code, found in names.items() if len(found) > 1} == {"1": {"error", "bug"}}


def test_every_class_of_the_hierarchy_has_a_code_of_its_own() -> None:
    """A direct child of SecurecoreError in errors.py is a kind of fault, and no two share code or name."""
    children = [cls for cls in vars(errors).values() if isinstance(cls, type) and cls.__bases__ == (SecurecoreError,)]
    assert len(children) == len({cls.name for cls in children})
    assert len(children) == len({cls.exit_code for cls in children})
    assert {cls for cls in children if cls.exit_code in (0, 1, 2, 130)} == {Bug}


@pytest.mark.parametrize("hint", [None, "do this"])
def test_an_error_carries_a_line_and_a_hint(hint: str | None) -> None:
    """The line is also what str() gives."""
    error = SecurecoreError("what: why", hint=hint)
    assert (str(error), error.message, error.hint) == ("what: why", "what: why", hint)

"""docs/reliability.md says what is tried to break this: its tables are held against the tests, the fuzzers and the parsers."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.table import TARGETS
from tests.fuzz.target import find_parser
from tests.test_documents import functions_in
from tests.torture.plan import Program

ROOT: Final = Path(__file__).parents[1]
TEXT: Final = (ROOT / "docs/reliability.md").read_text("utf-8")


def table_under(heading: str) -> list[list[str]]:
    """Return the cells of the first table behind a heading, without its head."""
    section = TEXT.partition(f"{heading}\n")[2]
    lines = re.search(r"^\|.*\n\|[ -|]*\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1].splitlines()]


HOSTILE: Final = table_under("## Hostile peers, files and processes")
FIGURES: Final = table_under("### Figures")
KILLS: Final = table_under("### Random kills")
MACHINES: Final = table_under("### State machines")
PARSERS: Final = table_under("## Truncation")


@pytest.mark.slow
def test_every_matrix_has_as_many_cases_as_it_says() -> None:
    """As pytest itself counts them."""
    stated = {row[2].strip("`"): int(row[3]) for row in HOSTILE}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *stated]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(stated) > 20
    assert {path: int(count) for path, count in re.findall(r"^(tests/\S+\.py): (\d+)$", collected, re.MULTILINE)} == stated


def test_random_kills_have_lost_nothing() -> None:
    """The figures are of a campaign that took place, in which every program was killed, and nothing was lost."""
    figures = {name: int(count.replace(",", "")) for name, count in KILLS}
    killed = {program for program in Program if any(name.startswith(f"killed: {program.value}") for name in figures)}
    assert killed == set(Program)
    assert figures.pop("losses") == 0
    assert min(figures.values()) > 0


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row[2].strip("`"))
def test_each_machine_finds_as_many_planted_bugs_as_it_says(row: list[str]) -> None:
    """Its module names them in a table PLANTED."""
    tree = ast.parse((ROOT / row[2].strip("`")).read_text("utf-8"))
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PLANTED"]
    assert [len(table.keys) for table in tables if isinstance(table, ast.Dict)] == [int(row[3])]


def test_every_target_has_its_figures() -> None:
    """Each with its property in the words of the target itself, and figures of a run that took place."""
    stated = {name: (words, *map(int, (count.replace(",", "") for count in counts))) for name, words, *counts in FIGURES}
    assert {name: row[0] for name, row in stated.items()} == {
        name: (target.check.__doc__ or "").splitlines()[0] for name, target in TARGETS.items()
    }
    assert all(min(row[1:]) > 0 for row in stated.values())


def test_every_parser_of_a_target_is_in_the_table_with_it() -> None:
    """And no other target is claimed for a parser."""
    driven = {(parser, name) for name, target in TARGETS.items() for parser in target.parsers}
    stated = {(row[0].strip("`"), row[3].strip()) for row in PARSERS if row[3].strip() != "–"}
    assert stated <= driven
    assert {parser for parser, _ in stated} == {parser for parser, _ in driven}


@pytest.mark.parametrize("row", PARSERS, ids=lambda row: row[0].strip("`"))
def test_a_parser_and_its_tests_exist(row: list[str]) -> None:
    """Each row names a function of the package, and at least one test."""
    assert callable(find_parser(row[0].strip("`")))
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
    assert named
    assert [f"{path}::{function}" for path, function in named if function not in functions_in(ROOT / path)] == []


def test_every_parser_of_bytes_has_a_row() -> None:
    """Whatever in the package is called parse or decode, is not private, and takes bytes."""
    named = {row[0].strip("`") for row in PARSERS}
    found = {name for path in sorted((ROOT / "securecore").rglob("*.py")) for name in parsers_in(path)}
    assert len(found) >= 12
    assert found - named == set()


def parsers_in(path: Path) -> set[str]:
    """Return the public functions and methods of a module that are called parse or decode and take bytes first."""
    module = ".".join(path.relative_to(ROOT / "securecore").with_suffix("").parts)
    tree = ast.parse(path.read_text("utf-8"))
    scopes = [(module, tree.body), *((f"{module}.{node.name}", node.body) for node in tree.body if isinstance(node, ast.ClassDef))]
    return {
        f"{scope}.{node.name}"
        for scope, body in scopes
        for node in body
        if isinstance(node, ast.FunctionDef) and re.match(r"(?:parse|decode)(?:_|\Z)", node.name) and takes_bytes(node)
    }


def takes_bytes(function: ast.FunctionDef) -> bool:
    """Return whether a parameter of a function is bytes."""
    return any("bytes" in ast.unparse(argument.annotation) for argument in function.args.args if argument.annotation is not None)

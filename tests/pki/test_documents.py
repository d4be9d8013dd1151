"""The documents under pki/ keep their promises: tests that exist, commands that exist, no code, no keys."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from securecore.cli import pki as pki_module
from tests.support import hostile

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pki"
REFUSALS = (FOLDER / "refusals.md").read_text()
DOCUMENTS = [FOLDER / "README.md", FOLDER / "refusals.md", *sorted((FOLDER / "runbooks").iterdir())]


def test_every_test_named_in_refusals_exists() -> None:
    """Each `file.py::function` is there."""
    named = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", REFUSALS))
    assert len(named) > 30
    for module, function in named:
        tree = ast.parse((ROOT / "tests" / "certs" / f"{module}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{module}.py::{function}"


@pytest.mark.parametrize(
    ("function", "table"),
    [
        ("test_hostile_host_certificate_is_refused", "HOSTS"),
        ("test_hostile_receiver_certificate_is_refused", "RECEIVERS"),
        ("test_hostile_hosts_ca_is_refused", "HOSTS_CAS"),
        ("test_hostile_root_is_refused", "ROOTS"),
    ],
)
def test_every_case_is_in_refusals_with_its_reason(function: str, table: str) -> None:
    """The tables of the document and of the tests have the same rows, both ways."""
    section = REFUSALS.partition(f"::{function}`")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([\w-]+) \|$", section, re.MULTILINE))
    cases = getattr(hostile, table)
    assert documented == {name: reason.value for name, (_overrides, reason, _words) in cases.items()}


def commands(document: Path) -> list[list[str]]:
    """Return the arguments of each securecore command line in a document's code blocks."""
    blocks = re.findall(r"```\n(.*?)```", document.read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("securecore ")]


@pytest.mark.parametrize("document", sorted((FOLDER / "runbooks").iterdir()), ids=lambda path: path.name)
def test_runbooks_use_commands_that_exist(document: Path) -> None:
    """Each command line parses: the command, each option, each argument."""
    found = commands(document)
    assert found
    for group, *arguments in found:
        assert group == "pki"
        command: click.Command = pki_module.command
        while isinstance(command, click.Group):
            name = arguments.pop(0)
            assert name in command.commands
            command = command.commands[name]
        command.make_context(command.name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file or folder."""
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_hints_name_runbooks_that_exist() -> None:
    """Each pki/... path in the code is a file."""
    paths = [*(ROOT / "securecore" / "pki").rglob("*.py"), ROOT / "securecore" / "cli" / "pki.py"]
    named = {path for file in paths for path in re.findall(r"pki/runbooks/[\w-]+\.md", file.read_text())}
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path


def test_folder_holds_neither_code_nor_keys() -> None:
    """Policy is readable without Python, and no private key is ever in the repository."""
    for path in FOLDER.rglob("*"):
        assert path.suffix in ("", ".md", ".toml")
        assert path.is_dir() or "PRIVATE KEY-----" not in path.read_text()

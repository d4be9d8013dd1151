"""The documents under pki/ keep their promises: tests that exist, commands that exist, no code, no keys."""

import ast
import re
import shlex
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import ModuleType

import pytest

from tests.receiver import test_foreign_clients, test_hostile_clients, test_strange_clients
from tests.sender import test_foreign_servers, test_hostile_receivers
from tests.support import hostile
from tests.test_documents import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pki"
REFUSALS = (FOLDER / "refusals.md").read_text()
DOCUMENTS = [FOLDER / "README.md", FOLDER / "refusals.md", *sorted((FOLDER / "runbooks").iterdir())]


def test_every_test_named_in_refusals_exists() -> None:
    """Each `file.py::function` is there, in one place."""
    named = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", REFUSALS))
    assert len(named) > 60
    for module, function in named:
        (path,) = [path for folder in ("certs", "receiver", "sender") for path in (ROOT / "tests" / folder).glob(f"{module}.py")]
        tree = ast.parse(path.read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{module}.py::{function}"


def cases_of(module: ModuleType, function: str) -> int:
    """Return how many cases pytest makes of a test."""
    marks = [mark for mark in getattr(getattr(module, function), "pytestmark", []) if mark.name == "parametrize"]
    return prod(len(mark.args[1]) for mark in marks)


HANDSHAKES = (test_hostile_clients, test_strange_clients, test_foreign_clients, test_hostile_receivers, test_foreign_servers)


@pytest.mark.parametrize("module", HANDSHAKES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_matrices_of_handshakes_are_counted(module: ModuleType) -> None:
    """Each test that refuses somebody in a real handshake stands in the table, with the number of its cases."""
    name = module.__name__.rpartition(".")[2]
    rows = re.findall(rf"^\| `{name}\.py::(test_\w+)` \| .* \| (\d+) \|$", REFUSALS, re.MULTILINE)
    assert rows
    for function, count in rows:
        assert cases_of(module, function) == int(count), function
    others = {function for function in vars(module) if function.startswith("test_")} - {function for function, _ in rows}
    assert others <= LET_IN


LET_IN = {
    "test_who_does_not_trust_the_receiver_says_so_in_its_log",
    "test_our_protocol_among_others_is_enough",
    "test_a_leaf_without_its_issuer_is_enough",
    "test_a_foreign_client_is_greeted",
    "test_a_dump_that_a_foreign_client_sends_is_stored_and_proved",
    "test_keys_may_change_in_the_middle",
    "test_an_honest_receiver_of_this_form_is_greeted",
    "test_a_foreign_receivers_refusal_is_heard",
}
"""Tests beside them that refuse nobody: the controls."""


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("### Strangers at the receiver's door", test_hostile_clients.STRANGERS),
        ("### Strangers in the receiver's place", test_hostile_receivers.STRANGERS),
        ("### What only the judge refuses", test_hostile_receivers.GREETED),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_every_stranger_is_in_refusals(heading: str, table: Mapping[str, object]) -> None:
    """The tables of the document and of the handshakes have the same rows, both ways."""
    section = REFUSALS.partition(f"{heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == list(table)


IN_OTHER_TABLES = {
    "test_a_hostile_certificate_does_not_get_in",
    "test_a_certificate_that_openssl_cannot_read_is_the_senders_own_fault",
    "test_a_host_below_another_hosts_ca_does_not_get_in",
    "test_a_stranger_does_not_get_in",
    "test_a_hostile_receiver_certificate_gets_no_byte",
    "test_a_stranger_gets_no_byte",
    "test_what_only_the_judge_refuses_makes_no_receiver_of_ours",
}
"""Tests in handshakes whose cases are rows of the document."""


def test_the_other_cases_of_handshakes_are_in_refusals() -> None:
    """By name and in order, for every test that has cases, whatever programs it has besides."""
    section = REFUSALS.partition("### Cases without a table of their own\n")[2].partition("\n### ")[0]
    documented = {test: names.split("; ") for test, names in re.findall(r"^\| `(\S+)` \| (.*) \|$", section, re.MULTILINE)}
    found = {}
    for module in HANDSHAKES:
        for name, function in vars(module).items():
            if name.startswith("test_") and name not in LET_IN | IN_OTHER_TABLES:
                for mark in getattr(function, "pytestmark", []):
                    if mark.name == "parametrize" and mark.args[0] != "program":
                        test = f"{module.__name__.rpartition('.')[2]}.py::{name}"
                        found[test] = list(mark.kwargs.get("ids") or mark.args[1])

    assert documented == found


def test_who_refuses_a_stranger_is_said_truly() -> None:
    """TLS in the handshake, or the judge after it."""
    section = REFUSALS.partition("### Strangers at the receiver's door\n")[2].partition("\n### ")[0]
    documented = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (TLS|judge) \|$", section, re.MULTILINE))
    assert documented == {
        name: "TLS" if "refused by TLS" in stranger.logged else "judge" for name, stranger in test_hostile_clients.STRANGERS.items()
    }


@pytest.mark.parametrize(
    ("function", "table"),
    [
        ("test_hostile_host_certificate_is_refused", "HOSTS"),
        ("test_hostile_receiver_certificate_is_refused", "RECEIVERS"),
        ("test_hostile_enroller_certificate_is_refused", "ENROLLERS"),
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
    for arguments in found:
        parse(arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file or folder; tests/test_documents.py looks for the anchors."""
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        assert (document.parent / target.partition("#")[0]).exists(), target


def test_hints_name_runbooks_that_exist() -> None:
    """Each pki/... path in the code is a file."""
    paths = [*(ROOT / "securecore" / "pki").rglob("*.py"), *(ROOT / "securecore" / "cli").rglob("*.py")]
    named = {path for file in paths for path in re.findall(r"pki/runbooks/[\w-]+\.md", file.read_text())}
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path


def test_folder_holds_neither_code_nor_keys() -> None:
    """Policy is readable without Python, and no private key is ever in the repository."""
    for path in FOLDER.rglob("*"):
        assert path.suffix in ("", ".md", ".toml")
        assert path.is_dir() or "PRIVATE KEY-----" not in path.read_text()

"""Who may import whom, and what stands nowhere but in one place: read from the source, at any depth, lazy imports included."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1] / "securecore"

EVERYBODYS: Final = {
    "declarations", "plain_json", "errors", "limits", "names", "networks", "identity", "report", "elfsize", "elfid", "merkle",
    "systemd", "toml_table", "units", "__version__",
}  # fmt: skip
"""Modules at the top that every room may use; they use each other and the standard library."""


class Room(NamedTuple):
    """What a package, or a module at the top, may import beside itself, everybody's modules and the standard library."""

    rooms: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()


def room(rooms: str = "", *libraries: str) -> Room:
    """Return a Room from words."""
    return Room(frozenset(rooms.split()), frozenset(libraries))


ALL: Final = "wire dump certs tls sender receiver store audit pki elf"
MAY_IMPORT: Final = {
    "wire": room(),
    "dump": room("", "zstandard"),
    "tls": room(),
    "certs": room("", "cryptography"),
    "audit": room("dump certs", "cryptography"),
    "store": room("dump"),
    "sender": room("wire dump tls"),
    "receiver": room("wire dump tls store audit certs"),
    "pki": room("certs tls", "cryptography"),
    "elf": room("dump", "elftools"),
    "cli": room(ALL, "click"),
} | {name: room() for name in EVERYBODYS}
EXCEPTIONS: Final = {
    # Loaded by the crash handler only once the source is closed; it signs, and reads certificates for that.
    "sender/evidence.py": room("certs audit", "cryptography"),
    # Draws the page of `audit report`, and nothing else does.
    "cli/overview/page.py": room("", "jinja2", "markupsafe"),
}

MAY_USE: Final = {
    "ssl": {"tls", "sender", "receiver", "pki"},
    "sqlite3": {"store"},
    "tomllib": {"pki", "toml_table"},  # people's settings; tests/sender keeps the handler from loading it
    "logging": {"receiver", "cli"},
}
"""Modules of the standard library that only these rooms may use."""

NOBODY: Final = {"pickle", "marshal", "shelve", "asyncio", "xmlrpc", "urllib", "http", "ftplib", "smtplib", "telnetlib"}
WIRE_MAY_USE: Final = {"struct", "enum", "collections"}
"""wire is a value machine: no socket, ssl, os, time, random, logging, and nothing else that does something."""


class Import(NamedTuple):
    """One name that a module imports."""

    line: int
    name: str
    relative: bool


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the module's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[Import]:
    """Yield what a module imports, in full, at any depth."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(node.lineno, f"{node.module}.{alias.name}", node.level > 0) for alias in node.names)


def is_room(path: Path, *rooms: str) -> bool:
    """Return whether *path* belongs to one of *rooms*."""
    return room_of(path) in rooms


def room_of(path: Path) -> str:
    """Return the room that a module is in."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def where(path: Path, line: int) -> str:
    """Return a place as a person reads it."""
    return f"securecore/{path.relative_to(ROOT)}:{line}"


MODULES: Final = sorted(ROOT.rglob("*.py"))
"""All modules; read once, so that a file that appears while the tests run is not half seen."""


def test_every_room_has_a_rule() -> None:
    """A package or module that is added says here whom it may import."""
    assert {room_of(path) for path in MODULES} - {"__init__"} == set(MAY_IMPORT) - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    """Rooms of this project, libraries, and the standard library."""
    rule, extra = MAY_IMPORT.get(room_of(path), Room()), EXCEPTIONS.get(str(path.relative_to(ROOT)), Room())
    rooms = rule.rooms | extra.rooms | EVERYBODYS | ({room_of(path)} if path.parent != ROOT else set())
    libraries = rule.libraries | extra.libraries
    wrong = []
    for line, name, _ in imports_of(path):
        top, *rest = name.split(".")
        if top == "securecore":
            if not rest or rest[0] not in rooms:
                wrong.append(f"{where(path, line)} imports {name}")
        elif top not in libraries and top not in sys.stdlib_module_names:
            wrong.append(f"{where(path, line)} imports {name}")
    assert wrong == []


def test_parts_of_the_standard_library_stay_in_their_rooms() -> None:
    """TLS, SQL, logging and TOML have their places, and some modules have none."""
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in MODULES
        for line, name, _ in imports_of(path)
        if (top := name.split(".")[0]) in NOBODY or room_of(path) not in MAY_USE.get(top, {room_of(path)})
    ]
    assert wrong == []


def test_the_protocol_touches_nothing() -> None:
    """No input or output, no clock, no chance, no log."""
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in MODULES
        if is_room(path, "wire")
        for line, name, _ in imports_of(path)
        if name.split(".")[0] not in WIRE_MAY_USE | {"securecore"}
    ]
    assert wrong == []


def test_imports_are_in_full() -> None:
    """No relative import, no star."""
    wrong = [where(path, line) for path in MODULES for line, name, relative in imports_of(path) if relative or name.endswith(".*")]
    assert wrong == []


def test_only_the_command_line_imports_the_command_line() -> None:
    """Not even by name: a string that importlib would take counts too."""
    wrong = [
        where(path, node.lineno)
        for path in MODULES
        if not is_room(path, "cli")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("securecore.cli")
    ]
    wrong += [
        where(path, line)
        for path in MODULES
        if not is_room(path, "cli")
        for line, name, _ in imports_of(path)
        if name.startswith("securecore.cli")
    ]
    assert wrong == []


TOPS: Final = {"cli/main.py", "sender/handler.py"}
"""The two ends of the line: where a process ends and where the last net hangs."""
NETS: Final = TOPS | {"sender/agent_children.py"}
"""Where everything is caught: an agent's child is a handler, and has the same net."""


def uses(path: Path, *names: str) -> list[str]:
    """Return where *path* names one of *names*: a bare name, or an attribute with its module (``sys.exit``)."""
    return [
        where(path, node.lineno)
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and f"{node.value.id}.{node.attr}" in names)
    ]


def outside(*allowed: str) -> list[Path]:
    """Return the modules other than *allowed*."""
    return [path for path in MODULES if str(path.relative_to(ROOT)) not in allowed]


FORKS: Final = {"sender/program.py", "sender/agent_children.py"}
"""The only modules that fork without a new program: a child must not go on as a second handler, or agent."""


def test_processes_end_in_two_places() -> None:
    """Leaving from the depths skips the clean-up of everything above; a forked child ends where it was forked."""
    ends = ("sys.exit", "os._exit", "SystemExit", "exit", "quit")
    assert [place for path in outside(*TOPS, *FORKS) for place in uses(path, *ends)] == []
    assert [place for path in outside(*FORKS) for place in uses(path, "os.fork", "os.forkpty", "os._exit")] == []


def test_no_test_forks_a_process_that_may_have_threads() -> None:
    """A copy has one of them and the locks of all, and may wait for ever; a fuzzer's process has one thread."""
    tests = Path(__file__).parent
    alone = tests / "fuzz" / "process.py"
    forks = [
        f"{path}:{node.lineno}"
        for path in tests.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and path != alone
        and (ast.unparse(node.func) in ("os.fork", "os.forkpty") or any(word.arg == "preexec_fn" for word in node.keywords))
    ]
    assert forks == []


def test_only_a_top_level_catches_everything() -> None:
    """Elsewhere an error is caught by its name; BaseException only to clean up, and then it goes on."""
    wrong = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            names = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"everything"}
            raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if ("Exception" in names and path not in {ROOT / top for top in NETS}) or "everything" in names:
                wrong.append(where(path, node.lineno))
            if "BaseException" in names and not raises:
                wrong.append(where(path, node.lineno))
    assert wrong == []


def test_nothing_depends_on_assert() -> None:
    """`python -O` would take it away; a check that matters raises."""
    assert [where(path, node.lineno) for path in MODULES for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)] == []


def test_only_the_command_line_prints() -> None:
    """Everything else returns or raises; the receiver logs."""
    assert [place for path in MODULES if not is_room(path, "cli") for place in uses(path, "print", "input", "sys.stdout")] == []


def test_nothing_is_evaluated_and_no_shell_is_asked() -> None:
    """Hostile bytes meet neither."""
    names = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
    wrong = [place for path in MODULES for place in uses(path, *names)]
    wrong += [
        where(path, node.value.lineno)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert wrong == []


def test_modules_stay_readable() -> None:
    """Below 400 lines; an __init__ is empty, but for the version."""
    assert [str(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) >= 400] == []
    assert [str(path) for path in MODULES if path.name == "__init__.py" and path.parent != ROOT and path.stat().st_size] == []


def test_the_repository_has_no_code_beside_the_package() -> None:
    """Top-level pki/ holds policy that a person reads; the code that obeys it is in the package."""
    assert [str(path) for path in (ROOT.parent / "pki").rglob("*.py")] == []

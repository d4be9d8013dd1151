"""What the agent has in memory before the first crash: what a child loads, each of them loads anew, while a process waits."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from securecore.names import Address
from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments

ELSEWHERE: Final = {
    # Local mode, which has no agent.
    ("securecore.sender.crash", "securecore.sender.cores_directory"),
    ("securecore.sender.crash", "securecore.sender.cores"),
    ("securecore.sender.crash", "securecore.sender.local"),
    # Of a file on a person's machine.
    ("securecore.dump.packing", "securecore.dump.deflate"),
}
"""Imports that no agent's child comes to, by the module that has them."""


def late_imports(module: str) -> Iterator[str]:
    """Yield the modules that functions of *module* import, those for the type checker left out."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module is not None:
                    yield from (_module_of(node.module, alias.name) for alias in node.names)


def _module_of(package: str, name: str) -> str:
    """Return the module that ``from package import name`` loads last."""
    path = f"{package}.{name}"
    return path if package.startswith("securecore") and importlib.util.find_spec(package) and _is_module(path) else package


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


def test_a_child_of_the_agent_has_nothing_left_to_load() -> None:
    """Of all that the modules in its memory import late, for the sake of the pipe's handler, nothing is missing there."""
    program = "import sys\nfrom securecore.sender import agent\nagent.warm_up()\nprint(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True, text=True).stdout.split())
    rooms = ("securecore.sender.", "securecore.dump.", "securecore.wire.", "securecore.tls")
    late = {(name, needed) for name in loaded if name.startswith(rooms) for needed in late_imports(name)}

    assert len(late) > 10
    assert {(name, needed) for name, needed in late if needed not in loaded} - ELSEWHERE == set()


_SKIPPED = """
import re
from securecore.sender import agent, kernel_log
agent.warm_up()
before = set(re._cache)
skips = kernel_log.count_skips([b"4,7,1,-;coredump: 12(app): over core_pipe_limit, skipping core dump"])
print(skips.found, set(re._cache) - before)
"""


def test_a_skipped_crash_in_the_log_has_its_patterns_made_already() -> None:
    """They are compiled once, by the agent, and not by each child while a crashed process waits."""
    told = subprocess.run([sys.executable, "-I", "-c", _SKIPPED], capture_output=True, check=True, text=True).stdout

    assert told == "((7, 1),) set()\n"


_HANDLED = """
import os, sys
from securecore.names import DumpId
from securecore.sender import agent, crash, kernel_log, papers, privileges
from securecore.sender.kernel_arguments import parse_arguments
agent.warm_up()
before = set(sys.modules)
asked = []
privileges.can_others_import = kernel_log.can_others_import = lambda paths: asked.append("imports") or True
papers.start = lambda thread: asked.append("thread") or thread.start()
core, writing = os.pipe()
os.write(writing, b"x" * 4096)
os.close(writing)
crash.send(core, parse_arguments(sys.argv[2:]), DumpId.make(0, os.urandom(10)), sys.argv[1])
print(*set(sys.modules) - before, *asked)
"""
"""A crash as an agent's child handles it, what was loaded for it, and what was done as if anything had to be."""


@pytest.mark.slow
@pytest.mark.parametrize("is_up", [True, False])
def test_a_crash_loads_nothing(fleet: Fleet, receiver: Receiver, tmp_path: Path, is_up: bool) -> None:
    """Delivered or spooled: no module of ours, of a library's or of Python's own, from the settings to the last line in the log.

    So nobody asks whether any could be, and no thread reads the identity while they are.
    """
    installed = Installed(tmp_path, fleet.host, receiver.addresses if is_up else [Address("127.0.0.1:9")])
    command = [sys.executable, "-I", "-c", _HANDLED, str(installed.settings), *kernel_arguments()]
    answer = subprocess.run(command, capture_output=True, check=True, text=True)

    assert (len(installed.receipts()), len(installed.spooled())) == ((1, 0) if is_up else (0, 1))
    assert answer.stdout.split() == []

"""The interpreter that the kernel starts for each crash: which packages it finds, and what of their directories it does not run."""

import os
import py_compile
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

import securecore
from securecore.cli.machine.interpreter import Interpreter, find_interpreter
from securecore.errors import ConfigError
from tests.support.kernel import write_script
from tests.support.launchers import as_by_the_kernel

HERE = Path(securecore.__file__).parents[1]


class Environment:
    """A virtual environment with nothing but the paths in its site-packages."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory / "venv", symlinks=True)
        self.python = directory / "venv/bin/python"
        (self.site_packages,) = directory.glob("venv/lib/python*/site-packages")

    def ask(self, program: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in it."""
        return subprocess.run([str(self.python), "-I", "-c", program], capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment of a test's own."""
    return Environment(tmp_path)


SCRIPT = "from securecore.cli.machine.interpreter import find_interpreter; print(find_interpreter().handler_script().decode())"


@pytest.mark.slow
def test_the_handler_runs_no_code_of_pth_files(environment: Environment, tmp_path: Path) -> None:
    """It finds all that they name, and loads it, but what they would have each start do is left undone."""
    marker, paths = tmp_path / "ran", find_interpreter().packages
    lines = [*paths, f"import pathlib; pathlib.Path({str(marker)!r}).touch()"]
    (environment.site_packages / "all.pth").write_text("\n".join(lines) + "\n")
    script = environment.ask(SCRIPT).stdout
    assert script.splitlines()[0] == f"#!{environment.python} -IS"
    assert all(repr(path) in script for path in paths)
    marker.unlink()

    write_script(tmp_path / "handler", script)
    answer = subprocess.run([*as_by_the_kernel(), str(tmp_path / "handler")], stdin=subprocess.DEVNULL, check=False, timeout=60)

    assert answer.returncode == ConfigError.exit_code
    assert not marker.exists()


HOOK = """
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, {paths!r}) if path is None else None

sys.meta_path.append(Finder())
"""


@pytest.mark.slow
def test_an_installation_that_only_a_hook_finds_is_refused_in_words(environment: Environment) -> None:
    """As some editable ones are: the handler would not find itself."""
    (environment.site_packages / "_hook.py").write_text(HOOK.format(paths=[*find_interpreter().packages]))
    (environment.site_packages / "hook.pth").write_text("import _hook\n")

    answer = environment.ask(
        "from securecore.errors import ConfigError\nfrom securecore.cli.machine.interpreter import find_interpreter\n"
        "try:\n    find_interpreter()\nexcept ConfigError as error:\n    print(error.message)"
    )

    assert f"{environment.python} -IS cannot load the handler: ModuleNotFoundError: No module named 'securecore'" in answer.stdout


def test_packages_are_behind_the_standard_library() -> None:
    """No package can stand in the place of one of its modules."""
    found = find_interpreter()

    assert found.search_path[-len(found.packages) :] == found.packages
    assert str(HERE) in found.packages
    assert sys.base_prefix not in found.packages


OLD, NEW = "size = 1\n", "size = 1000\n"


def package_with_bytecode(directory: Path, mode: PycInvalidationMode) -> tuple[Interpreter, Path, Path]:
    """Return an interpreter of a package with one module, that module, and its bytecode."""
    source = directory / "securecore/module.py"
    source.parent.mkdir()
    source.write_text(OLD)
    os.utime(source, (1_000_000_000, 1_000_000_000))
    cache = Path(py_compile.compile(str(source), doraise=True, invalidation_mode=mode) or "")
    return Interpreter(sys.executable, str(source.parent), ()), source, cache


def replace_keeping_time(source: Path) -> None:
    """Change a module as an installer does that sets every file's time to that of the release."""
    source.write_text(NEW)
    os.utime(source, (1_000_000_000, 1_000_000_000))


HARM: dict[str, Callable[[Path, Path], object]] = {
    "none there": lambda source, cache: cache.unlink(),
    "of a newer source": lambda source, cache: source.write_text(OLD),
    "of another source of that time": lambda source, cache: replace_keeping_time(source),
    "of another Python": lambda source, cache: cache.write_bytes(b"\0\0\r\n" + cache.read_bytes()[4:]),
    "cut off": lambda source, cache: cache.write_bytes(cache.read_bytes()[:10]),
}


@pytest.mark.parametrize("harm", HARM)
def test_bytecode_that_python_would_not_take_is_found_and_made_again(harm: str, tmp_path: Path) -> None:
    """By the same marks: a handler that may not write it would compile the module at each crash (PEP 552)."""
    interpreter, source, cache = package_with_bytecode(tmp_path, PycInvalidationMode.TIMESTAMP)
    assert interpreter.stale_sources() == []
    HARM[harm](source, cache)
    assert interpreter.stale_sources() == [str(source)]

    assert interpreter.compile()

    assert interpreter.stale_sources() == []


def test_bytecode_that_is_told_by_a_hash_is_held_against_it(tmp_path: Path) -> None:
    """As distributions make it whose builds have no times."""
    interpreter, source, _ = package_with_bytecode(tmp_path, PycInvalidationMode.CHECKED_HASH)
    os.utime(source)
    assert interpreter.stale_sources() == []
    replace_keeping_time(source)
    assert interpreter.stale_sources() == [str(source)]


def test_bytecode_that_nobody_is_to_check_is_never_stale(tmp_path: Path) -> None:
    """Python takes it whatever the source is."""
    interpreter, source, _ = package_with_bytecode(tmp_path, PycInvalidationMode.UNCHECKED_HASH)
    replace_keeping_time(source)

    assert interpreter.stale_sources() == []

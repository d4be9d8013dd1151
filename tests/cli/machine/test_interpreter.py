"""The interpreter that the kernel starts for each crash: which packages it finds, and what of their directories it does not run."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

import securecore
from securecore.cli.machine.interpreter import find_interpreter
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

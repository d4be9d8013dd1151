"""The wheel: what is in it, and that it works without what only developers have.

The registry is not asked. The wheel is built with the backend of this environment, and installed into a fresh environment that has
nothing but links to the distributions that the wheel itself requires, found by their metadata, transitively. So a module that
needs pytest, hypothesis or anything else that happens to be here fails to import there.
"""

import json
import re
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

import pytest

from securecore.errors import BusyError, ConfigError

REPOSITORY: Final = Path(__file__).parents[1]
MODULES: Final = sorted(f"securecore.cli.{path.stem}" for path in REPOSITORY.glob("securecore/cli/[a-z]*.py"))

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """A wheel, and an environment that it is installed in."""

    wheel: Path
    bin: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in a directory and with variables that tell it nothing."""
        command = [str(self.bin / arguments[0]), *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"})


def required(names: Iterable[str]) -> dict[str, Distribution]:
    """Return the distributions of *names* and of everything that they require on this machine, extras left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for requirement in found[name].requires or []:
            wanted, _, marker = requirement.partition(";")
            if "extra ==" not in marker and 'platform_python_implementation == "PyPy"' not in marker:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", wanted.strip())[0])
    return found


def link(found: Distribution, target: Path) -> None:
    """Make the files of a distribution importable from *target*."""
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
        place = target / top
        if top != "__pycache__" and not place.exists():
            place.symlink_to(Path(str(found.locate_file(top))))


def runtime_requirements(wheel: Path) -> list[str]:
    """Return the names that the wheel's metadata requires without an extra."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode("utf-8").splitlines()
    requirements = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in requirements if "extra ==" not in line]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this tree in an environment of its own."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(REPOSITORY)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    wheel = next(place.glob("*.whl"))
    venv.create(place / "environment", with_pip=False, symlinks=True)
    python = place / "environment/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    (site_packages,) = (place / "environment").glob("lib/python*/site-packages")
    for found in required(runtime_requirements(wheel)).values():
        link(found, site_packages)
    return Installed(wheel, place / "environment/bin")


def test_the_runtime_dependencies_are_the_five_that_were_chosen(installed: Installed) -> None:
    """Anything more needs a reason in docs/dependencies.md."""
    assert sorted(runtime_requirements(installed.wheel)) == ["click", "cryptography", "jinja2", "pyelftools", "zstandard"]


def test_the_wheel_has_one_top_level_name(installed: Installed) -> None:
    """No tests, scripts or pki: `import pki` would collide with another project on the very hosts that run a CA."""
    with zipfile.ZipFile(installed.wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"securecore"}


def test_the_wheel_has_all_modules_and_nothing_else(installed: Installed) -> None:
    """Every source file of the package (the demo's crasher is C, the page of `audit report` HTML), and no cache, key or core
    that lay about."""
    with zipfile.ZipFile(installed.wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("securecore/")}
    sources = {path for path in REPOSITORY.glob("securecore/**/*.*") if path.suffix in (".py", ".c", ".css", ".j2")}
    assert packed == {str(path.relative_to(REPOSITORY)) for path in sources}


@pytest.mark.parametrize("name", ["pki", "tests", "scripts", "pytest", "hypothesis", "mypy", "hatchling", "build", "pip"])
def test_the_environment_has_no_developer_s_things(installed: Installed, name: str) -> None:
    """What works there works without them; this test watches the fixture."""
    result = installed.run("python", "-I", "-c", f"import {name}")
    assert "ModuleNotFoundError" in result.stderr


def test_the_command_line_starts(installed: Installed) -> None:
    """`securecore --help` and `--version` answer from the installed script."""
    usage, version = installed.run("securecore", "--help"), installed.run("securecore", "--version")
    assert (usage.returncode, usage.stderr) == (0, "")
    assert usage.stdout.startswith("Usage: securecore")
    assert version.stdout == f"securecore {distribution('securecore').version}\n"


@pytest.mark.parametrize("module", MODULES)
def test_every_command_loads(installed: Installed, module: str) -> None:
    """With the five runtime dependencies and what these require."""
    result = installed.run("python", "-I", "-W", "error", "-c", f"import {module}")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("module", ["securecore.sender.handler", "securecore.sender.evidence", "securecore.receiver.server"])
def test_what_runs_without_the_command_line_loads(installed: Installed, module: str) -> None:
    """The handler, what it loads at its end, and the receiver."""
    result = installed.run("python", "-I", "-W", "error", "-c", f"import {module}")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_page_of_a_report_finds_its_template(installed: Installed) -> None:
    """Installed, and not beside the sources."""
    script = "from securecore.cli.overview import page; print(len(page._read('page.html.j2')), len(page._read('page.css')))"
    result = installed.run("python", "-I", "-W", "error", "-c", script)
    assert (result.returncode, result.stderr) == (0, "")
    assert min(map(int, result.stdout.split())) > 1000


@pytest.mark.parametrize("flags", ["-O", "-OO"])
def test_nothing_depends_on_docstrings_or_asserts(installed: Installed, flags: str) -> None:
    """With `-OO` there are none of either, and the command line still knows its commands."""
    result = installed.run("python", "-I", flags, "-c", "from securecore.cli.main import main; main(['--help'])")
    assert (result.returncode, result.stderr) == (0, "")
    assert "receive" in result.stdout


PATIENCE_S: Final = 120
"""For another borrower of the machine's core_pattern, who is most likely another run of these tests."""


def demo(installed: Installed, directory: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the wheel's demo until core_pattern is free; skips the test where the machine has no core to show."""
    deadline = time.monotonic() + PATIENCE_S
    attempt = 0
    while True:
        attempt += 1
        keep = directory / f"demo-{attempt}"
        result = installed.run("python", "-I", *flags, "-m", "securecore.cli.main", "demo", "--keep", str(keep))
        if result.returncode != BusyError.exit_code or time.monotonic() > deadline:
            break
    if result.returncode == ConfigError.exit_code:
        pytest.skip(f"the demo has no core to show here: {result.stderr.strip()}")
    keep.rename(directory / "demo")
    return result


@pytest.mark.real_crash
@pytest.mark.parametrize("flags", [[], ["-OO"]], ids=["", "-OO"])
def test_the_wheel_does_the_whole_job(installed: Installed, tmp_path: Path, flags: list[str]) -> None:
    """Mint, receive, crash, send, verify, audit and extract, with the runtime dependencies alone; then `list` shows the dump."""
    told = demo(installed, tmp_path, flags)

    assert (told.returncode, told.stderr) == (0, "")
    # A step's number stands in the first three columns; further right an id of digits alone, one in forty, would look like one.
    steps = re.findall(r"^ [ \d]\d  (\w+) +(.*)$", told.stdout, re.MULTILINE)
    titles = [title for title, _ in steps]
    assert titles[:3] == ["CA", "identities", "receiver"]
    assert titles[3:4] in (["crash"], ["core"])
    assert titles[4:] == ["stored", "list", "show", "verify", "audit", "extract", "debug"]
    words = dict(steps)
    assert re.match(r"\d+ checks ok, offline, with the root certificate alone: frames, signatures, receipt", words["verify"])
    assert words["audit"].startswith("2 entries, checkpoint signed by collector.demo.example, log verified")
    listing = installed.run("securecore", "list", "--store", str(tmp_path / "demo/store"), "--json")
    assert (listing.returncode, listing.stderr) == (0, "")
    (row,) = json.loads(listing.stdout)
    assert (row["host"], row["state"]) == ("web-1.hosts.demo.example", "complete")

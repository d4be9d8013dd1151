"""The Python that will run us as a service or as a crash handler: found by asking it, not by guessing."""

import compileall
import functools
import importlib.util
import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from securecore.cli.machine import trust
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError
from securecore.sender import installation

_DEADLINE_S: Final = 30.0
"""Longer than any start of an interpreter; the package is looked for on slow disks too."""

_MARKS_BYTES: Final = 16
_IS_HASHED, _IS_CHECKED, _WORD = 1, 2, 0xFFFFFFFF

# Run as the kernel runs the handler: isolated, with an empty environment, in /. The handler does without the site module, so the
# directories that it adds must be enough by themselves: an import hook, as some editable installations have it, is taken away.
_QUESTION: Final = """\
import json, sys
bare, finders, hooks = [*sys.path], [*sys.meta_path], [*sys.path_hooks]
import site
site.main()
sys.meta_path[:], sys.path_hooks[:] = finders, hooks
packages = [path for path in sys.path if path and path not in bare]
import securecore.sender.handler, securecore.sender.evidence
print(json.dumps([securecore.__path__[0], [path for path in sys.path if path], packages]))
"""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter and what it loads. *package* is our package's directory, *search_path* its directories and archives.

    *packages* are those of them that the site module adds, behind the standard library.
    """

    executable: str
    package: str
    search_path: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def handler_script(self, settings: str = installation.SETTINGS) -> bytes:
        """Return the program that the kernel starts; raises ConfigError as installation.handler_script does."""
        return installation.handler_script(self.executable, settings, self.packages)

    @property
    def is_editable(self) -> bool:
        """Whether the package is a checkout instead of an installation."""
        return os.path.basename(os.path.dirname(self.package)) not in ("site-packages", "dist-packages")

    def check(self, root: Root) -> list[str]:
        """Return warnings; raises ConfigError when others than root can change what it runs, or its users cannot read it.

        In another root only what is there can be looked at, and the executable's absence is a warning.
        """
        if not root.is_live and not os.path.lexists(root.outside(self.executable)):
            return [f"{self.executable} is not in {root.path} yet: install securecore there, at the same path, before it boots"]
        warnings = trust.check_trusted(self.executable, root, "interpreter")
        for directory in dict.fromkeys([*self.search_path, self.package]):
            warnings += trust.check_trusted(directory, root, "package")
            trust.check_contents(directory, root, "package")
        if root.is_live:
            self._check_reachable()
        if self.is_editable:
            warnings.append(f"securecore runs from the checkout {self.package}: fit for a trial; install the wheel for good")
        return list(dict.fromkeys(warnings))

    def _check_reachable(self) -> None:
        existing = [path for path in self.search_path if os.path.exists(path)]
        for path in (self.executable, *existing, self.package):
            if not trust.is_reachable(path):
                raise ConfigError(
                    f"{os.path.realpath(path)}: only root can read it, but what runs from it gives root up",
                    hint="install securecore with a Python that everybody may read: `/usr/bin/python3 -m venv /opt/securecore`",
                )

    def stale_sources(self) -> list[str]:
        """Return our modules whose bytecode Python would not take as it is: each would be compiled again at every crash."""
        sources = [
            os.path.join(directory, name) for directory, _, names in os.walk(self.package) for name in names if name.endswith(".py")
        ]
        return [source for source in sources if not _has_bytecode(source)]

    def compile(self) -> bool:
        """Write the bytecode that is stale; return whether all of it could be written."""
        # By force: compileall looks at the time alone, and not at the size.
        return all([compileall.compile_file(source, quiet=2, force=True) for source in self.stale_sources()])


@functools.cache
def find_interpreter() -> Interpreter:
    """Return the interpreter that runs us, asked once; raises ConfigError when it cannot load the handler by itself."""
    if not sys.executable:
        raise ConfigError("python does not know its own path", hint="run securecore by its absolute path")
    try:
        answer = subprocess.run(
            [sys.executable, "-IS", "-c", _QUESTION], env={}, cwd="/", capture_output=True, check=False, timeout=_DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{sys.executable} cannot be run: {error}") from error
    if answer.returncode != 0:
        reason = (answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"{sys.executable} -IS cannot load the handler: {reason}",
            hint="install securecore with its dependencies into a virtual environment, and run setup from there",
        )
    package, search_path, packages = json.loads(answer.stdout)
    return Interpreter(sys.executable, package, tuple(search_path), tuple(packages))


def _has_bytecode(source: str) -> bool:
    """Return whether there is bytecode of this very source, by the marks that Python goes by (PEP 552).

    Sixteen bytes: the version's number, flags, and the source's time and size, or its hash, which may be one that nobody checks.
    """
    try:
        status = os.stat(source)
        with open(importlib.util.cache_from_source(source), "rb") as cache:
            magic, flags, mark = struct.unpack("<4sI8s", cache.read(_MARKS_BYTES))
        if magic != importlib.util.MAGIC_NUMBER:
            return False
        if not flags & _IS_HASHED:
            return bool(mark == struct.pack("<II", int(status.st_mtime) & _WORD, status.st_size & _WORD))
        with open(source, "rb") as file:
            return not flags & _IS_CHECKED or mark == importlib.util.source_hash(file.read())
    except (OSError, struct.error):
        return False

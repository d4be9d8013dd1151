"""Handlers in local mode: a script, a directory for its cores, and ways to start it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from securecore.cli.machine.interpreter import find_interpreter
from securecore.sender.admission import Admission, StormLimit
from securecore.sender.floor import Floor
from securecore.sender.settings import LocalSettings
from tests.support.kernel import OWNER, kernel_arguments, wait_until, write_script
from tests.support.launchers import Limits, as_by_the_kernel, limited
from tests.support.local_files import KINDS, unpack_bytes

NAME: Final = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9_][A-Za-z0-9._-]{0,63}-\d+(-\d+)?(\.truncated)?\.(zst|gz|zlib|json)")
"""What a name may look like; written down here a second time, from the documents."""


FLOORLESS: Final = Floor(share=0.0)


class LocalHost:
    """A machine that keeps its cores: the handler, and the directory, which belongs to the handler's user. It knows no storms."""

    def __init__(self, directory: Path, owner: tuple[int, int] = OWNER, floor: Floor = FLOORLESS) -> None:
        """*floor* is what it leaves free of its disk: nothing, so that a test does not depend on the machine that it runs on."""
        self._floor = floor
        self.handler = directory / "handler"
        self.cores = directory / "cores"
        self.cores.mkdir(mode=0o700)
        os.chown(self.cores, *owner)
        self.admission = directory / "admission.json"
        free = StormLimit(0, 60)
        self.admit(Admission(program=free, user=free, host=free))
        write_script(self.handler, find_interpreter().handler_script(str(directory / "no-settings")).decode())

    def admit(self, admission: Admission) -> None:
        """Change what the handler takes."""
        self.admission.write_bytes(LocalSettings(admission, self._floor).encode())

    def words(self, *options: str) -> list[str]:
        """Return the words of core_pattern between the handler and the kernel's numbers."""
        return ["--local", str(self.cores), *options]

    def start(self, *options: str, changes: dict[int, str] | None = None, limits: Limits = ()) -> "subprocess.Popen[bytes]":
        """Start the handler as the kernel does, with a pipe for its core, and the umask as loose as it gets.

        *changes* are arguments by their place, *limits* the handler's own.
        """
        numbers = kernel_arguments()
        for place, text in (changes or {}).items():
            numbers[place] = text

        return subprocess.Popen(
            [*as_by_the_kernel(), *limited(limits), str(self.handler), *self.words(*options), *numbers],
            stdin=subprocess.PIPE, cwd="/", umask=0,
        )  # fmt: skip

    def run(self, core: bytes, *options: str, changes: dict[int, str] | None = None, limits: Limits = ()) -> int:
        """Run the handler on a core and return its exit code."""
        handler = self.start(*options, changes=changes, limits=limits)
        try:
            handler.communicate(core, timeout=60)
        finally:
            handler.kill()
            handler.wait()
        return handler.returncode

    def names(self) -> list[str]:
        """Return all names but those of the lock and of the storm limits' state."""
        return sorted(path.name for path in self.cores.iterdir() if path.name not in (".lock", ".storms"))

    def cores_kept(self) -> list[str]:
        """Return the names of cores."""
        return [name for name in self.names() if not name.endswith(".json")]

    def kept(self, ending: str = "zst") -> list[Path]:
        """Return the files of that ending, those of others too."""
        return sorted(self.cores.glob(f"*.{ending}"))

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return each report by its stem."""
        return {path.stem: json.loads(path.read_bytes()) for path in sorted(self.cores.glob("[!.]*.json"))}

    def plain(self, name: str) -> bytes:
        """Return what a core was before it was compressed."""
        return unpack_bytes((self.cores / name).read_bytes())

    def wait_until_idle(self) -> None:
        """Wait until no handler of this directory runs any more."""
        wait_until(lambda: None if handlers_of(str(self.cores)) else True, 300)


def handlers_of(directory: str) -> list[int]:
    """Return the processes that have the directory among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if directory.encode() in words:
            found.append(int(entry.name))
    return found


def is_well_named(name: str) -> bool:
    """Return whether a name is one that local mode gives."""
    return NAME.fullmatch(name) is not None and name.rpartition(".")[2] in (*KINDS, "json")

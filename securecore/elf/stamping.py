"""Adding a ``.uuid`` section to a program, by objcopy: for builds without build-ids, and for who names builds in another way."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from securecore.elf.analysis import identify_program
from securecore.elfid import UUID_SECTION, ProgramIds, uuid_text
from securecore.errors import BrokenError, ConfigError, StorageError

MAX_STAMP: Final = 200
"""Characters of a stamp: with its newline well below what a reader takes for a ``.uuid`` section (256 bytes)."""
_DEADLINE_S: Final = 600.0
"""objcopy copies the file once; the largest programs that are shipped, a few GiB with debugging symbols, take it a minute."""


def check_stamp(text: str) -> None:
    """Raise ConfigError when *text* would not come back from a ``.uuid`` section as it is."""
    if len(text) > MAX_STAMP or not text.isascii() or uuid_text(text.encode("ascii")) != text:
        raise ConfigError(f"{text[:MAX_STAMP]!a} cannot be a stamp", hint=f"printable ASCII, at most {MAX_STAMP} characters")


def stamp(program: Path, output: Path, text: str) -> ProgramIds:
    """Write *program* with *text* and a newline as its only ``.uuid`` section to *output*, and return what names it now.

    *output* may be *program*, which is then replaced in one step; anything else is never overwritten. Mode is kept, and owner where
    we may. Raises ConfigError when objcopy is missing or refuses, StorageError when the disk does, BrokenError when the result does
    not say what it should.
    """
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        raise ConfigError("objcopy is not here", hint="install binutils")
    check_stamp(text)
    try:
        status = program.stat()
        with tempfile.TemporaryDirectory(prefix=".securecore-stamp-", dir=output.parent) as directory:
            content, made = Path(directory, "content"), Path(directory, "program")
            content.write_bytes(text.encode("ascii") + b"\n")
            _run([
                objcopy, f"--remove-section={UUID_SECTION}", f"--add-section={UUID_SECTION}={content}",
                str(program.absolute()), str(made),
            ])  # fmt: skip
            ids = _publish(made, output, status, replaces=output == program, text=text)
    except OSError as error:
        raise StorageError(f"{output}: {(error.strerror or str(error)).lower()}") from error
    return ids


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_DEADLINE_S, text=True)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        words = "".join(character if character.isprintable() else "?" for character in (lines[-1] if lines else "")[:400])
        hint = "for programs of other machines: install binutils-multiarch, or call that machine's objcopy"
        raise ConfigError(f"objcopy refuses: {words or error.returncode}", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"objcopy has not finished in {_DEADLINE_S:.0f} s") from error


def _publish(made: Path, output: Path, status: os.stat_result, *, replaces: bool, text: str) -> ProgramIds:
    fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ids = identify_program(fd)
        if ids.uuid != text:
            raise BrokenError(f"what objcopy made has the .uuid {ids.uuid!a}, not {text!a}")
        if os.geteuid() == 0:
            os.fchown(fd, status.st_uid, status.st_gid)
        # After the owner: a change of owner takes set-uid bits away.
        os.fchmod(fd, status.st_mode & 0o7777)
        os.fsync(fd)
    finally:
        os.close(fd)
    if replaces:
        os.replace(made, output)
    else:
        os.link(made, output)
    directory = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return ids

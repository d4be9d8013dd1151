"""Adding a ``.uuid`` section to a program, by objcopy: for builds without build-ids, and for who names builds in another way."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from securecore.elf.analysis import identify_program
from securecore.elfid import UUID_SECTION, ProgramIds, find_image_end, uuid_text
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

    *output* may be *program*, which is then replaced in one step; anything else is never overwritten. Mode and extended attributes
    (file capabilities among them) are kept, and owner where we may. Raises ConfigError when objcopy is missing or refuses, or when
    something of *program* would be lost; StorageError when the disk refuses; BrokenError when the result is not what it should be.
    """
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        raise ConfigError("objcopy is not here", hint="install binutils")
    check_stamp(text)
    try:
        status = program.stat()
        _check_nothing_is_lost(program, status, replaces=output == program)
        with tempfile.TemporaryDirectory(prefix=".securecore-stamp-", dir=output.parent) as directory:
            content, made = Path(directory, "content"), Path(directory, "program")
            content.write_bytes(text.encode("ascii") + b"\n")
            _run([
                objcopy, f"--remove-section={UUID_SECTION}", f"--add-section={UUID_SECTION}={content}",
                str(program.absolute()), str(made),
            ])  # fmt: skip
            ids = _publish(made, output, program, status, replaces=output == program, text=text)
    except OSError as error:
        raise StorageError(f"{output}: {(error.strerror or str(error)).lower()}") from error
    return ids


def _check_nothing_is_lost(program: Path, status: os.stat_result, *, replaces: bool) -> None:
    """Raise ConfigError when *program* has more than objcopy copies, or other names that would stay with the old content.

    An AppImage, a program of PyInstaller, a self-extracting archive, a signed kernel module: each goes on behind its ELF image.
    """
    with program.open("rb", buffering=0) as file:
        rest = status.st_size - find_image_end(lambda offset, length: os.pread(file.fileno(), length, offset), status.st_size)
    if rest > 0:
        raise ConfigError(
            f"{program}: {rest} bytes behind the ELF image, which objcopy would drop",
            hint="stamp the program before anything is appended to it (packing, signing)",
        )
    if replaces and status.st_nlink > 1:
        raise ConfigError(
            f"{program}: has {status.st_nlink} names (hard links), of which only this one would be stamped",
            hint="write to another file with -o, or link after stamping",
        )


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


def _publish(made: Path, output: Path, program: Path, status: os.stat_result, *, replaces: bool, text: str) -> ProgramIds:
    fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ids = identify_program(fd)
        if ids.uuid != text:
            raise BrokenError(f"what objcopy made has the .uuid {ids.uuid!a}, not {text!a}")
        if os.geteuid() == 0:
            os.fchown(fd, status.st_uid, status.st_gid)
        # After the owner: a change of owner takes set-uid bits away.
        os.fchmod(fd, status.st_mode & 0o7777)
        # After the owner too: a change of owner takes file capabilities away.
        _copy_attributes(program, fd)
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


def _copy_attributes(program: Path, fd: int) -> None:
    try:
        names = os.listxattr(program)
    except OSError:
        return  # The file system has none.
    for name in names:
        try:
            os.setxattr(fd, name, os.getxattr(program, name))
        except OSError as error:
            why = (error.strerror or "").lower()
            hint = "stamp it as root, or before it is given any"
            raise ConfigError(f"{program}: cannot keep its attribute {name!a}: {why}", hint=hint) from error

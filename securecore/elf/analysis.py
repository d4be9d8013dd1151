"""Having a core or a program looked at: by a process of its own, whose answer is bounded, awaited for so long, and not trusted."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import Enum
from typing import IO, Any, Final

from securecore import limits
from securecore.elf.summary import MAX_SUMMARY_BYTES, CoreSummary, parse_summary
from securecore.elfid import ProgramIds
from securecore.errors import BrokenError

DEADLINE_S: Final = 30.0
"""The analyser's limit of 20 seconds of CPU ends it first, unless it waits for a disk."""


PROGRAM: Final = "program"
"""The analyser's word for a file that is a program and not a core."""


class CoreKind(Enum):
    """What is behind the descriptor of a core."""

    FILE = "file"
    """A core as the kernel wrote it."""
    STORED = "stored"
    """A dump's core.zst, whole or still coming in."""


def analyse(core: int, kind: CoreKind, command: Sequence[str] | None = None, deadline_s: float = DEADLINE_S) -> CoreSummary:
    """Return what the core behind the descriptor *core* says of its crash.

    *command* is the analyser to start, with descriptor and kind as its last arguments. Raises BrokenError for whatever goes wrong:
    it cannot start, dies, hangs, says too much or no sense, or cannot make anything of the core.
    """
    try:
        return _parse_answer(_ask(core, kind.value, command, deadline_s))
    except BrokenError as error:
        raise BrokenError(f"the core could not be analysed: {error.message}") from error


def identify_program(program: int) -> ProgramIds:
    """Return what names the program behind the descriptor *program*; raises BrokenError as ``analyse`` does."""
    found = _fields(_ask(program, PROGRAM, None, DEADLINE_S))
    texts = {name: found[name] for name in ProgramIds._fields if isinstance(found.get(name), str)}
    return ProgramIds(**{name: text[: limits.MAX_TEXT] for name, text in texts.items()})


def _ask(fd: int, kind: str, command: Sequence[str] | None, deadline_s: float) -> bytes:
    """Return what the analyser answers."""
    program = command or [sys.executable, "-I", "-m", "securecore.elf.analyser"]
    return _run([*program, str(fd), kind], fd, time.monotonic() + deadline_s)


def _run(command: list[str], core: int, deadline: float) -> bytes:
    """Return what *command* wrote; raises BrokenError unless it ended well, in time."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            pass_fds=(core,), env={}, cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise BrokenError(f"the analyser does not start: {(error.strerror or '').lower()}") from error
    try:
        # Read before wait (R17): an analyser that fills the pipe would wait for us, and we for it.
        answer = _read(process.stdout, deadline) if process.stdout else b""
        code = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired as error:
        raise BrokenError("the analyser took too long") from error
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    if code < 0:
        raise BrokenError(f"the analyser was ended by signal {-code}")
    if code > 0:
        raise BrokenError(f"the analyser gave up with exit code {code}")
    return answer


def _read(pipe: IO[bytes], deadline: float) -> bytes:
    """Return all that *pipe* brings until its end; raises BrokenError when that is too much, or too late."""
    answer = bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        left_ms = int(1000 * (deadline - time.monotonic()))
        if left_ms <= 0 or not poll.poll(left_ms):
            raise BrokenError("the analyser took too long")
        part = os.read(pipe.fileno(), limits.PIPE_BYTES)
        if not part:
            return bytes(answer)
        answer += part
        if len(answer) > MAX_SUMMARY_BYTES:
            raise BrokenError(f"the analyser's answer is longer than {MAX_SUMMARY_BYTES} bytes")


def _parse_answer(answer: bytes) -> CoreSummary:
    _fields(answer)
    return parse_summary(answer)


def _fields(answer: bytes) -> dict[str, Any]:
    """Return the fields of an answer; raises BrokenError with the analyser's own words when it has refused, else ours."""
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BrokenError("the analyser's answer is not JSON") from error
    if not isinstance(fields, dict):
        raise BrokenError("the analyser's answer is not a JSON object")
    words = fields.get("error")
    if isinstance(words, str):
        printable = "".join(character if character.isprintable() else "?" for character in words[: limits.MAX_WORDS])
        raise BrokenError(printable or "the analyser gave no reason")
    return fields

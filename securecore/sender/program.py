"""What names the crashed program, and which file it is, read by a child from the file that the kernel holds for the process.

``/proc/PID/exe`` leads to the file that the process runs, whatever stands at its path by now. That file is hostile twice: its bytes
are parsed, and the file system that it lies on may be one that never answers (FUSE, or NFS without its server). So a child does
both: it says first which file it is, in a line of its own, so that a storm limit does not depend on what the file holds, or on how
fast it is read; then it opens the file as root must, becomes nobody, parses, writes a second line and ends. The handler waits for
these lines for so long and no longer, and for the second one while the kernel dumps already. Whoever does not wait ends it as
root; one that nobody ends does that itself by then, also where it hangs. A thread would not do: one that hangs in ``open`` keeps
the whole process from changing its user.
"""

import os
import select
import stat
import time

from securecore import limits, plain_json
from securecore.declarations import TYPE_CHECKING, Any, Final, Iterable, Mapping, NoReturn
from securecore.elfid import identify
from securecore.errors import SecurecoreError
from securecore.sender import privileges

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without the names of enum, which take longer to load than all of this

DEADLINE_S: Final = 0.5
"""From the child's start to its last line: it takes a millisecond (measured), and some tens where a slow flash has to be read. A
crashed process is held for this long at most by its own program."""
_ANSWER_BYTES: Final = 4 * limits.KIB
"""Of both lines: a build-id has 128 digits at most, a ``.uuid`` 512."""
_LINES: Final = 2
"""Which file it is, and what its bytes name: that the child has ended as well is nothing to wait for."""
_KINDS: Final = {"build_id": str, "uuid": str, "executable_device": int, "executable_inode": int}
"""Of the report fields that the child answers with."""


class ProgramReader:
    """A child that reads what names the program of a process."""

    def __init__(self, process: int, held: Iterable[int] = ()) -> None:
        """Start the child. *process* is a descriptor of /proc/PID, or of one of its threads.

        *held* are descriptors that the child must not keep open, the core's first of all: a child that hangs would keep the crashed
        process waiting for somebody who reads.
        """
        self._deadline = time.monotonic() + DEADLINE_S
        self.child = 0
        self._told, self._is_over = b"", False
        self._answer, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self.child = os.fork()
            if self.child == 0:
                _read_program(process, writing, (self._answer, *held))
        except OSError:
            pass  # No process is left for this: the report does without.
        finally:
            os.close(writing)

    def find_file(self) -> dict[str, Any]:
        """Return the report fields that say which file it is, if the child tells them in time."""
        self._wait_for(1)
        return _fields(self._told)

    def finish(self) -> dict[str, Any]:
        """Return report fields, those that the child told in time, and end the child without waiting for its end."""
        self._wait_for(_LINES)
        self.leave()
        return _fields(self._told)

    def leave(self) -> None:
        """End the child, whatever it has told, without waiting for its end; once, and nobody waits for its words any more."""
        if self._is_over:
            return
        self._is_over = True
        os.close(self._answer)
        if self.child > 0:
            try:
                os.kill(self.child, signal.SIGKILL)
            except PermissionError:
                pass  # We are not root, or not any more, and it ends by itself.
            # One that has not ended yet is left to whoever takes our children over: it may hang in a call which no signal ends, and
            # on its way out too, behind its answer.
            os.waitpid(self.child, os.WNOHANG)

    def _wait_for(self, lines: int) -> None:
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        # The bound on its bytes is for a child that is the program's by now: one that writes on and never ends its line.
        while not self._is_over and self._told.count(b"\n") < lines and len(self._told) < _ANSWER_BYTES:
            if not poll.poll(max(0, int(1000 * (self._deadline - time.monotonic())))):
                return
            part = os.read(self._answer, _ANSWER_BYTES - len(self._told))
            if not part:
                return
            self._told += part


def _read_program(process: int, writing: int, unwanted: Iterable[int]) -> NoReturn:
    """Be the child: answer, or not, and end without a word of the interpreter's; within DEADLINE_S in any case."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
        for fd in unwanted:
            os.close(fd)
        _tell_file(process, writing)
        program = os.open("exe", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=process)
        privileges.drop(limits.NOBODY_ID, limits.NOBODY_ID)
        status = os.fstat(program)
        if stat.S_ISREG(status.st_mode):
            _tell(writing, _names(program, status.st_size))
    except (OSError, SecurecoreError, MemoryError):
        pass
    finally:
        # Whatever happened, this copy of the handler must not go on as a second one.
        os._exit(0)


def _tell_file(process: int, writing: int) -> None:
    status = os.stat("exe", dir_fd=process)
    if stat.S_ISREG(status.st_mode):
        _tell(writing, {"executable_device": status.st_dev, "executable_inode": status.st_ino})


def _tell(writing: int, fields: Mapping[str, str | int | None]) -> None:
    os.write(writing, plain_json.encode(fields).encode("ascii") + b"\n")


def _names(program: int, size: int) -> dict[str, str | None]:
    """Return the report fields that the program's bytes give; none for what is no ELF file, or a broken one."""
    try:
        ids = identify(lambda offset, length: os.pread(program, length, offset), size)
    except (OSError, SecurecoreError):
        return {}
    return {"build_id": ids.build_id, "uuid": ids.uuid}


def _fields(answer: bytes) -> dict[str, Any]:
    """Return the report fields of a child's lines; one that was cut off says nothing."""
    fields: dict[str, Any] = {}
    for line in answer.split(b"\n")[:-1]:
        try:
            found = plain_json.parse(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            # What was said as root stays: who was made nobody and has met the program's bytes says no other file.
            fields = {name: found[name] for name, kind in _KINDS.items() if type(found.get(name)) is kind} | fields
    return fields

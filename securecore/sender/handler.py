"""The crash handler: what the kernel starts for each crash, with the core on standard input.

The order of work:

 1  move the core's descriptor above 2 and bind 0, 1 and 2 to /dev/null: the kernel leaves 1 and 2 closed, and the first file
    opened would otherwise be written to by whatever prints
 2  widen the pipe, so that the kernel goes on dumping while we load the rest of our code (crash.py has the next steps); have a
    SIGTERM wait until somebody can make the best of it (lifetime.py)
 3  make ourselves non-dumpable, create nothing that others may read
 4  parse the arguments
 5  read the settings (in local mode: what is taken, no more), take the place in the machine that they give (confinement.py), and
    read /proc of the crashed process, which waits for us; a child finds out which file its program is, for which the storm limits
    wait, and what names it, which is in the report by step 7 (program.py). What the rules decline is let go here (admission.py).
    Then open as root the spool, or the directory that core_pattern names, and the kernel's log, and act as the handler's own
    user, or the directory's owner, for as long as it takes to decide: what is too large, or too much of a storm, is let go here
    (tally.py), before anything of the network or of a compressor is loaded, and the key opened; of a crash that is taken one line
    in the log says so, and the kernel's log is read and closed.
    From here on the network's way (network.py) or the local one (local.py)
 6  open as root what else root must open: the identity
 7  become the handler's own user, or the directory's owner, for good; only now the first network byte: the first receiver is
    dialled (dialling.py) while the rest of our code is loaded
 8  drain the pipe: pieces, frames, and from there to the receiver or the spool (transfer.py), or to a file (packer.py)
 9  close the pipe: the crashed process is let go
10  sign, hear the receipt, or finish the spool's entry or the file; say in one line how it ended
11  with a receipt, go on with what waits in the spool, if it is due, for a bounded time (backlog.py)

Nobody waits for a handler's exit code, but it is one of docs/exit-codes.md all the same.
"""

import fcntl
import gc
import os
import sys

from securecore import limits
from securecore.declarations import TYPE_CHECKING, NoReturn
from securecore.errors import ConfigError, SecurecoreError

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # the signal module would load enum first


def main(settings_path: str) -> NoReturn:
    """Handle one crash with the settings in *settings_path* and leave."""
    core = claim_core()
    widen(core)
    hold_termination()
    # What is loaded now stays. To look for garbage in it again and again takes a twentieth of the start.
    gc.disable()
    # All else is loaded now: with the descriptors in order, and while the kernel fills the wider pipe.
    from securecore.sender.system_log import log

    try:
        from securecore.sender.crash import handle

        code = handle(core, sys.argv[1:], settings_path)
    except SecurecoreError as error:
        log("failed", error=error.message, code=error.exit_code)
        code = error.exit_code
    except ImportError as error:
        # As where Python was upgraded since set-up looked for what is loaded (installation.py).
        code = ConfigError.exit_code
        log("failed", error=f"the handler cannot be loaded: {error}; run `securecore setup sender` again", code=code)
    except MemoryError:
        log("failed", error="out of memory (memory in [handler] of sender.toml)", code=1)
        code = 1
    except Exception as error:  # noqa: BLE001  # a top level: whatever happens, one line says so
        log("failed", error=f"bug: {type(error).__name__}: {error}", code=1)
        code = 1
    sys.exit(code)


def claim_core() -> int:
    """Return the core's descriptor, moved away from 0, with 0, 1 and 2 bound to /dev/null; step 1."""
    # Above 9 it stays clear of the pidfd that %F passes as descriptor 3.
    core = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    return core


def widen(core: int) -> None:
    """Let the pipe hold 1 MiB instead of 64 KiB; a descriptor that is no pipe is left as it is."""
    try:
        fcntl.fcntl(core, fcntl.F_SETPIPE_SZ, limits.PIPE_BYTES)
    except OSError:
        pass


def collect_garbage() -> None:
    """Have garbage collected from here on, but for what is loaded."""
    gc.freeze()
    gc.enable()


def hold_termination() -> None:
    """Have a SIGTERM wait until there is a Lifetime, which makes the best of it; nothing is kept yet that could be made durable."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

"""What a sender's files say: pure text, made from a few facts. ``securecore setup sender`` writes it (cli/setup.py)."""

from collections.abc import Sequence
from typing import Final

from securecore import limits, systemd
from securecore.errors import ConfigError
from securecore.sender.kernel_arguments import SPECIFIERS
from securecore.sender.local_mode import LocalMode
from securecore.sender.settings import ADMISSION_NAME

CONFIGURATION: Final = "/etc/securecore/sender.toml"
SETTINGS: Final = "/etc/securecore/handler.json"
ADMISSION: Final = f"/etc/securecore/{ADMISSION_NAME}"
"""Of local mode: beside SETTINGS, where the handler looks for it."""
HANDLER: Final = "/usr/libexec/securecore/handler"
AGENT_SOCKET: Final = "/run/securecore/coredump.sock"
"""Where the kernel finds the agent, where there is one."""
SYSCTL: Final = "/etc/sysctl.d/99-securecore.conf"
SERVICE: Final = "/etc/systemd/system/securecore-flush.service"
TIMER: Final = "/etc/systemd/system/securecore-flush.timer"
TIMER_LINK: Final = "/etc/systemd/system/timers.target.wants/securecore-flush.timer"
SYSUSERS: Final = "/usr/lib/sysusers.d/securecore-sender.conf"

_SHEBANG_MAX: Final = 255
"""Bytes of a script's first line: BINPRM_BUF_SIZE is 256 (uapi/linux/binfmts.h); what is beyond is cut (execve(2))."""


def core_pattern(handler: str, mode: LocalMode | None = None) -> str:
    """Return the core_pattern that starts *handler*, in local mode when one is given.

    Raises ConfigError when the kernel would cut it or take it apart wrongly.
    """
    words = [handler, *(mode.arguments() if mode is not None else [])]
    pattern = f"|{' '.join(words)} {SPECIFIERS}"
    for word in words:
        if not word.isascii() or not word.isprintable() or set(word) & set(" %"):
            raise ConfigError(f"{word!a}: a path in core_pattern must be of plain characters, without spaces and percent signs")
    if len(pattern) > limits.CORE_PATTERN_MAX:
        raise ConfigError(
            f"core_pattern would have {len(pattern)} characters, the kernel takes {limits.CORE_PATTERN_MAX}: {pattern!a}",
            hint="put the handler into a directory with a shorter path" if mode is None else "keep the cores in a shorter path",
        )
    return pattern


def agent_pattern(socket: str = AGENT_SOCKET) -> str:
    """Return the core_pattern by which the kernel connects to *socket* and asks what to do (Linux 6.17); it has no specifiers."""
    return f"@@{socket}"


def handler_script(interpreter: str, settings: str = SETTINGS, packages: Sequence[str] = ()) -> bytes:
    """Return the program that the kernel starts; raises ConfigError when its first line would not lead to *interpreter*.

    -I: no PYTHON variables, no working directory and no user's packages on the path of what runs as root (R13). *packages* are the
    directories behind the standard library where everything else is found. With them -S: no site module, which would look for them
    at each start, and run what stands in their ``.pth`` files; it takes a quarter of a bare interpreter's start. Without any, the
    interpreter finds them. Where they are no longer what they were, as after an upgrade of Python, the script says so in the
    system's log: nothing else would, for the kernel gives a handler nowhere to write to.
    """
    first = f"#!{interpreter} -I{'S' if packages else ''}"
    if not interpreter.isprintable() or " " in interpreter:
        raise ConfigError(f"{interpreter!a}: a script cannot name an interpreter whose path has spaces", hint=_INSTALL_HINT)
    if len(first.encode()) > _SHEBANG_MAX:
        raise ConfigError(f"{interpreter}: the path is too long for the first line of a script", hint=_INSTALL_HINT)
    path = f"import sys\n\nsys.path += [{', '.join(map(ascii, packages))}]\n" if packages else ""
    return f"{first}\n{path}{_LOADING}\nmain({settings!a})\n".encode()


_LOADING: Final = f"""\
try:
    from securecore.sender.handler import main
except ImportError as error:
    import json, os, socket, sys

    words = json.dumps(f"the handler cannot be loaded: {{error}}; run `securecore setup sender` again")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.setblocking(False)
            log.connect("/dev/log")
            log.send(f"<27>securecore[{{os.getpid()}}]: failed error={{words}} code={ConfigError.exit_code}".encode())
    except OSError:
        pass
    sys.exit({ConfigError.exit_code})
"""
"""As system_log.py has its lines, which may be what cannot be loaded: 27 is an error of a daemon."""

_INSTALL_HINT: Final = "install securecore elsewhere, as in `python3 -m venv /opt/securecore`"


def sysctl_file(pattern: str, pipe_limit: int = limits.CORE_PIPE_LIMIT) -> bytes:
    """Return the sysctl.d(5) file that makes the two kernel settings last."""
    return (
        "# Written by `securecore setup sender`; `securecore setup sender --undo` takes it back.\n"
        f"kernel.core_pattern = {pattern}\n"
        "# How many crashes are handled at once. Above 0 the kernel keeps /proc/PID until the handler has what it needs from it.\n"
        f"kernel.core_pipe_limit = {pipe_limit}\n"
    ).encode()


def flush_service(interpreter: str, settings: str = SETTINGS) -> bytes:
    """Return the systemd unit that delivers what waits in the spool.

    It starts as root, because only root reads the key; ``spool flush`` becomes the handler's user before it dials.

    Its place in the machine is behind a handler's (confinement.py), for nobody waits for it: nice 10, as the receiver's vacuum and
    next to the 9 of systemd-coredump@.service; the same disk priority; and where memory is short it goes as early (500, which that
    unit has too), for what it has not delivered is in the spool still. It may have FLUSH_MEMORY_BYTES of memory.

    It waits for no disk, unlike the others: an empty mount point is no spool, none is made there, and two minutes later it looks
    again. With RequiresMountsFor= it would mount every two minutes what somebody has unmounted. Raises ConfigError when a path
    cannot stand in a unit.
    """
    systemd.check_paths(interpreter, settings)
    return _FLUSH_SERVICE.format(
        interpreter=interpreter,
        settings=settings,
        memory=limits.FLUSH_MEMORY_BYTES,
        sandbox=systemd.NOT_FOR_THE_AGENT + systemd.SANDBOX,
    ).encode()


def flush_timer() -> bytes:
    """Return the timer of that unit; the delay keeps a fleet from coming back to its receiver in the same second."""
    return _FLUSH_TIMER.encode()


_FLUSH_SERVICE: Final = """\
[Unit]
Description=securecore: deliver the cores that wait in the spool
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={interpreter} -I -m securecore.cli.main spool flush --when-due --settings {settings}
TimeoutStartSec=6h
UMask=0077
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
OOMScoreAdjust=500
MemoryMax={memory}
LimitCORE=0
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_DAC_READ_SEARCH
ProtectSystem=full
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{sandbox}"""

_FLUSH_TIMER: Final = """\
[Unit]
Description=securecore: deliver the cores that wait in the spool, every two minutes or when they are due

[Timer]
OnBootSec=2min
OnUnitInactiveSec=2min
RandomizedDelaySec=30s

[Install]
WantedBy=timers.target
"""

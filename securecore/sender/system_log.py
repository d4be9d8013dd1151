"""One line to the system's log, without ever waiting for it."""

import os
from _socket import AF_UNIX, SOCK_DGRAM, socket  # what the socket module would give us, without the nine that it loads first

from securecore import plain_json
from securecore.declarations import Final

_DAEMON: Final = 3 << 3
_ERROR, _WARNING, _NOTICE = 3, 4, 5
"""Facility and severities of RFC 3164 section 4.1.1, as /dev/log takes them."""
_WARNINGS: Final = ("spool", "untidy", "pattern")
"""How events begin that lost nothing, but that somebody should look at."""


def log(event: str, **facts: object) -> None:
    """Write one line ``event key=value …`` to the system's log, or drop it where the log does not take it at once.

    Values are JSON, so that no value can look like another line. Not through syslog(3): that waits while the log's socket is full,
    and the log's own daemon may be the process that crashed and waits for us.
    """
    words = " ".join(f"{key}={plain_json.encode(value)}" for key, value in facts.items() if value is not None)
    level = _ERROR if event == "failed" else _WARNING if event.startswith(_WARNINGS) else _NOTICE
    if os.isatty(2):
        # Somebody tries the handler by hand; the kernel's has /dev/null there.
        os.write(2, f"{event} {words}\n".encode("ascii", "backslashreplace"))
    line = f"<{_DAEMON | level}>securecore[{os.getpid()}]: {event} {words}"
    try:
        system_log = socket(AF_UNIX, SOCK_DGRAM)
    except OSError:
        return
    try:
        system_log.setblocking(False)
        system_log.connect("/dev/log")
        system_log.send(line.encode("ascii", "backslashreplace"))
    except OSError:
        pass
    finally:
        system_log.close()

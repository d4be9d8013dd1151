"""Can a receiver be reached, and does it take us? A handshake up to READY, by a process that is not root any more.

``python -I -m securecore.cli.checkup.reach IDENTITY UID GID HOST:PORT ...`` prints one JSON array with an object for each address.
As for a crash: the key is read as root, and the first network byte comes after the drop.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

from securecore import limits, tls
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import Address
from securecore.sender import privileges
from securecore.sender.delivery import connect

_START_S: Final = 30.0
"""Longer than any start of an interpreter, on a slow disk too."""


def reach(identity: str, user: tuple[int, int], receivers: Sequence[Address]) -> list[dict[str, Any]]:
    """Return for each receiver its ``address``, and its ``store`` or the ``error``, ``hint`` and ``code`` of the attempt.

    Raises ConfigError when the attempt itself cannot be made.
    """
    command = [sys.executable, "-I", "-m", __name__, identity, *map(str, user), *map(str, receivers)]
    try:
        deadline_s = _START_S + 2 * limits.CONNECT_DEADLINE_S * len(receivers)
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={}, check=False, timeout=deadline_s)
        found = json.loads(answer.stdout)
        if not isinstance(found, list):
            raise ConfigError(str(found.get("error")), hint=found.get("hint"))
    except (OSError, subprocess.TimeoutExpired, ValueError, AttributeError) as error:
        raise ConfigError("the receivers could not be tried: no answer from the process that does it") from error
    return found


def main(arguments: list[str]) -> None:
    """Become the handler's user, try each receiver, print the answers."""
    identity, uid, gid, *addresses = arguments
    answer: Any
    try:
        context = tls.sender_context(identity)
        privileges.forbid_own_core()
        privileges.drop(int(uid), int(gid))
        answer = [_try(Address(text), context) for text in addresses]
    except SecurecoreError as error:
        answer = {"error": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(answer))


def _try(address: Address, context: Any) -> dict[str, Any]:
    try:
        delivery = connect([address], context)
    except SecurecoreError as error:
        return {"address": str(address), "error": error.message, "hint": error.hint, "code": error.exit_code}
    delivery.close()
    return {"address": str(address), "store": str(delivery.store)}


if __name__ == "__main__":
    main(sys.argv[1:])

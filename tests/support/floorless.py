"""The command with a receiver that keeps nothing of its disk free: for tests that fill one up to its last block."""

import sys
from collections.abc import Callable
from typing import Final

from securecore.cli.main import main
from securecore.receiver import server
from securecore.receiver.policy import Floor, Policy

FLOORLESS: Final = (sys.executable, "-m", "tests.support.floorless")
"""How it is started, in the place of SECURECORE."""

_run = server.run


def _run_floorless(settings: server.ReceiverSettings, announce: Callable[[server.Receiver], None]) -> None:
    _run(settings._replace(policy=Policy(floor=Floor(share=0.0))), announce)


if __name__ == "__main__":
    server.run = _run_floorless
    main()

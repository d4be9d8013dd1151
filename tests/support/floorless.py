"""The command with a receiver that keeps nothing of its disk free: for tests that fill one up to its last block."""

import sys
from typing import Final

from securecore import limits

FLOORLESS: Final = (sys.executable, "-m", "tests.support.floorless")
"""How it is started, in the place of SECURECORE."""

if __name__ == "__main__":
    limits.FLOOR_SHARE = 0.0  # type: ignore[misc]  # before the policy takes it for its default

    from securecore.cli.main import main

    main()

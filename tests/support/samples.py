"""A store of several hosts that a test may spoil, and the commands that look at it."""

from pathlib import Path
from typing import Final

from securecore.names import DumpId, HostName
from securecore.receiver import standalone
from securecore.receiver.server import utc_now
from securecore.store.layout import open_store
from tests.support.stores import WEB, Commands

GONE: Final = "every dump that was received or given up is in the store"
UNLOGGED: Final = "every dump in the store has its entry"
RECEIPTS: Final = "every dump's receipt proves its entry"
EARLIER: Final = "the log contains every earlier checkpoint"
AS_SAID: Final = "the log has all that the receiver-wide log says of it"
"""Checks of ``audit verify``."""


class Sample(Commands):
    """A store with three dumps of web-1, the second of them incomplete, and one of db-2."""

    dumps: list[DumpId]

    @property
    def first(self) -> Path:
        """The directory of web-1's first dump."""
        return self.dump(self.dumps[0])

    def failed(self, host: str = WEB) -> list[str]:
        """Return the checks of ``audit verify`` that do not hold for a host."""
        (document,) = [found for found in self.audit("--json").document if found["host"] == host]
        return [check["what"] for check in document["checks"] if check["ok"] is False]

    def delete(self, dump: DumpId, host: str = WEB) -> None:
        """Delete a dump, as its operator does where no receiver runs."""
        with open_store(str(self.store)) as store:
            standalone.delete_alone(store, HostName(host), dump, None, self.fleet.receiver, utc_now())

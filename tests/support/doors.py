"""A receiver's door that many knock at: one receiver for a whole module of tests, and what is needed to knock."""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from securecore import tls
from securecore.certs.profiles import HOST
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender.delivery import connect
from tests.support.certificates import DOMAIN, Hierarchy, Made, make_hierarchy, mint
from tests.support.identities import write_identity, write_receiver_identity
from tests.support.receivers import running_receiver, wait_until_idle


class Door(NamedTuple):
    """A running receiver with an empty store, and who may and may not come in."""

    receiver: Receiver
    hierarchy: Hierarchy
    store: Path
    host: Path
    """The identity directory of an honest host."""
    revoked: Made
    """A certificate that the receiver's lists name."""

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.receiver.addresses[0]

    def lines(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Wait until nobody is connected, and return what the receiver has logged in this test, without its peers' ports."""
        wait_until_idle(self.receiver)
        return [re.sub(r"(peer=127\.0\.0\.1):\d+", r"\1", record.getMessage()) for record in caplog.records]

    def context(self) -> ssl.SSLContext:
        """Return the honest host's context."""
        return tls.sender_context(str(self.host))

    def check_untouched(self) -> None:
        """Nothing has been stored, not even a directory for somebody's name; and an honest host is served."""
        for place in ("hosts", "incoming", "audit"):
            assert set(os.listdir(self.store / place)) <= {"receiver"}, "but for the receiver-wide log"
        connect([self.address], self.context()).close()


@contextmanager
def opened_door(directory: Path) -> Iterator[Door]:
    """Run a receiver of a new hierarchy in *directory* while the block runs."""
    hierarchy = make_hierarchy()
    revoked = mint(HOST, issuer=hierarchy.hosts, dns=[f"stolen.{DOMAIN}"])
    host = write_identity(directory / "host", mint(HOST, issuer=hierarchy.hosts), hierarchy.root.pem)
    identity = write_receiver_identity(directory / "receiver", hierarchy, revoked=revoked)
    with running_receiver(identity, directory / "store") as receiver:
        yield Door(receiver, hierarchy, directory / "store", host, revoked)

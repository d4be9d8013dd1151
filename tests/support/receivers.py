"""A real receiver in the test's own process, and real transfers to it."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from securecore import tls
from securecore.names import Address, DumpId
from securecore.receiver.policy import Policy
from securecore.receiver.server import Receiver, open_receiver
from securecore.receiver.settings import ReceiverSettings
from securecore.report import CrashReport
from securecore.sender.credentials import read_credentials
from securecore.sender.lifetime import Lifetime
from securecore.sender.parcel import Outcome, Papers, Parcel
from securecore.sender.spool import Spool
from securecore.sender.transfer import carry

_USUAL: Final = Policy()


@contextmanager
def running_receiver(
    identity: Path, store: Path, *, port: int = 0, level: int = logging.INFO, policy: Policy = _USUAL
) -> Iterator[Receiver]:
    """Run a receiver on loopback while the block runs; at level DEBUG it is one with -v."""
    logging.getLogger("securecore.receiver").setLevel(level)
    receiver = open_receiver(ReceiverSettings((Address(f"127.0.0.1:{port}"),), store, identity, policy=policy))
    thread = threading.Thread(target=receiver.serve)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stop()
        thread.join()


def wait_until_idle(receiver: Receiver) -> None:
    """Wait until no session is left."""
    deadline = time.monotonic() + 10
    while receiver.session_count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert receiver.session_count == 0


def papers_of(identity: Path) -> Papers:
    """Return what a sender with that identity directory shows and signs with."""
    return Papers(tls.sender_context(str(identity)), read_credentials(str(identity)))


def new_dump_id() -> DumpId:
    """Return a fresh id."""
    return DumpId.make(time.time_ns() // 1_000_000, os.urandom(10))


class Hold(NamedTuple):
    """A source that stops in the middle: the crashed process is still dumping."""

    after_bytes: int
    until: threading.Event


def send_bytes(
    core: bytes,
    papers: Papers,
    receivers: list[Address],
    *,
    spool: Spool | None = None,
    report: CrashReport | None = None,
    dump: DumpId | None = None,
    hold: Hold | None = None,
    hold_budget_s: float | None = None,
    keeps_copy: bool = False,
    lifetime: Lifetime | None = None,
) -> Outcome:
    """Send *core* through a pipe, as a handler does, and return how it ended; with *hold* the pipe pauses on its way.

    *hold_budget_s* is for how long the pipe may stand still, as a handler limits it; *keeps_copy* as in spool mode "whole";
    *lifetime* is its deadline.
    """
    reading, writing = os.pipe()
    writer = threading.Thread(target=_write_all, args=(writing, core, hold))
    writer.start()
    now_ms = time.time_ns() // 1_000_000
    encoded = (report or CrashReport(sender="test", program="crasher", signal=11, pid=4711)).encode()
    parcel = Parcel(dump or new_dump_id(), encoded, now_ms)
    outcome = carry(
        reading, parcel, receivers, papers, spool, hold_budget_s=hold_budget_s, keeps_copy=keeps_copy, lifetime=lifetime
    )
    writer.join()
    return outcome


def _write_all(fd: int, data: bytes, hold: Hold | None) -> None:
    pause = hold.after_bytes if hold else len(data)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(data[:pause])
            if hold is not None:
                hold.until.wait(60)
                file.write(data[pause:])
    except BrokenPipeError:
        pass  # The reader has let go early, as a handler may.

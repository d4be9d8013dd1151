"""An admission over a real store, which dumps come to."""

from contextlib import ExitStack
from pathlib import Path

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.names import HostName
from securecore.receiver.admission import Admission
from securecore.receiver.policy import Floor, Policy, Quota
from securecore.receiver.refusals import NotAdmitted
from securecore.store.account import Amount
from securecore.store.layout import create_store
from securecore.store.usage import Usage
from securecore.store.writer import IncomingDump
from tests.support.dumps import (
    REPORT,
    WEB,
    Signer,
    core_bytes,
    dump_id,
    frames_of,
    logs_of,
    store_dump,
)

MIB, GIB = limits.MIB, limits.GIB
CORE = core_bytes(3, 40)


class Gate:
    """An admission over a real store, with a policy that the test changes."""

    def __init__(self, path: Path, signer: Signer, log: LogSigner) -> None:
        self.store = create_store(str(path))
        self.logs = logs_of(self.store, log)
        self.signer = signer
        self.policy = Policy(floor=Floor(share=0.0))
        self.now = 1_000_000.0
        self.restart()
        self._stack = ExitStack()

    def restart(self) -> None:
        """Forget all that is not on the disk."""
        usage = Usage(self.store, ticks=lambda: self.now)
        usage.follow()
        self.usage, self.admission = usage, Admission(self.store, usage, lambda: self.policy)

    def quota(self, **bounds: int | None) -> None:
        """Bound what every host may have."""
        self.policy = self.policy._replace(quota=Quota(**bounds))

    def put(self, number: int, core: bytes = CORE) -> None:
        """Have a dump published."""
        store_dump(self.store, self.logs, self.signer, dump_id(number), core)

    def hold(self, number: int, host: HostName = WEB) -> None:
        """Begin to receive a dump, until the test's end."""
        self._stack.enter_context(self.admission.receiving(host, dump_id(number)))

    def open(self, number: int, predicted_size: int | None = None) -> bool:
        """Offer a dump that is held."""
        return self.admission.check_opening(WEB, dump_id(number), predicted_size)

    def offer(self, number: int, predicted_size: int | None = None) -> bool:
        """Offer a dump and go."""
        with self.admission.receiving(WEB, dump_id(number)):
            return self.open(number, predicted_size)

    def close(self) -> None:
        """Let go of everything."""
        self._stack.close()
        self.logs.close()
        self.store.close()


def grow(gate: Gate, dump: IncomingDump, noise: bytes) -> bool:
    """Have a dump grow by a piece, if it may."""
    frame, plain = frames_of(noise)[0]
    try:
        gate.admission.check_growth(dump, Amount(len(frame), plain))
    except NotAdmitted:
        return False
    dump.append(frame, plain)
    return True


def start(gate: Gate, number: int, predicted_size: int | None) -> IncomingDump:
    """Have a dump begun by a session that lasts to the test's end, later than others."""
    gate.hold(number)
    return begin_one(gate, number, predicted_size)


def begin_one(gate: Gate, number: int, predicted_size: int | None) -> IncomingDump:
    """Have a dump begun that the caller holds, later than others."""
    gate.now += 1
    gate.open(number, predicted_size)
    dump = IncomingDump.begin(gate.store, WEB, dump_id(number), REPORT)
    gate.admission.opened(dump, predicted_size)
    return dump

"""A store whose usage is followed while dumps come and go."""

from securecore import limits
from securecore.audit.checkpoint import LogSigner
from securecore.audit.log import HostLogs
from securecore.dump.reader import scan_frames
from securecore.store import removal
from securecore.store.account import Amount
from securecore.store.layout import Store
from securecore.store.recovery import take_back
from securecore.store.usage import HostUsage, Usage
from securecore.store.writer import IncomingDump
from tests.support.dumps import WEB, Signer, begin, core_bytes, dump_id, dump_path, frames_of, logs_of, store_dump

CORE = core_bytes(3, 40)


class Yard:
    """A store whose usage is followed from its beginning."""

    def __init__(self, store: Store, signer: Signer, log: LogSigner) -> None:
        self.store = store
        self.signer = signer
        self.logs: HostLogs = logs_of(store, log)
        self.now = 1_000_000.0
        self.followed = self.count()
        self.followed.follow()
        self.followed.of(WEB)

    def count(self) -> Usage:
        """A usage that knows nothing yet."""
        return Usage(self.store, lambda: self.now, lambda: self.now)

    def put(self, number: int, core: bytes = CORE) -> None:
        """Have a dump published."""
        store_dump(self.store, self.logs, self.signer, dump_id(number), core)

    def begin(self, number: int) -> None:
        """Begin a dump, of which a frame is durable."""
        self._tell(begin(self.store, dump_id(number), CORE[: limits.PIECE_BYTES]))

    def grow(self, number: int) -> None:
        """Add a frame to a dump that is coming in."""
        dump = IncomingDump.resume(self.store, WEB, dump_id(number))
        dump.append(*frames_of(CORE)[0])
        dump.sync()
        self._tell(dump)

    def give_up(self, number: int) -> None:
        """Publish a dump that is coming in as it is."""
        dump = IncomingDump.resume(self.store, WEB, dump_id(number))
        dump.give_up()
        dump.put_receipt(b"receipt")
        dump.publish()

    def take_back(self, number: int) -> None:
        """Have a dump that was given up come in again."""
        take_back(self.store, WEB, dump_id(number))
        self._tell(IncomingDump.resume(self.store, WEB, dump_id(number)))

    def set_aside(self, number: int) -> None:
        """Begin to delete a dump."""
        removal.set_aside(self.store, WEB, dump_id(number))

    def purge(self, number: int) -> None:
        """Delete a dump that was set aside."""
        removal.purge(self.store, WEB, dump_id(number))

    def discard(self, number: int) -> None:
        """Remove a dump that is coming in."""
        removal.remove_incoming(self.store, WEB, dump_id(number))

    def plain_of(self, where: dict[int, str]) -> int:
        """The plaintext of all dumps that are coming in or published, by their own frames."""
        total = 0
        for number, place in where.items():
            if place in ("incoming", "hosts"):
                with (dump_path(self.store, dump_id(number), place) / "core.zst").open("rb") as core:
                    total += sum(scanned.plain for scanned in scan_frames(core.fileno()))
        return total

    def _tell(self, dump: IncomingDump) -> None:
        self.followed.grew(WEB, dump.dump_id, Amount(dump.stored_bytes, dump.plain_bytes))
        dump.close()

    def both(self) -> tuple[HostUsage, HostUsage]:
        """What was followed, and what a count finds now; without the times of what was begun."""
        return self.followed.of(WEB)._replace(begun_s=()), self.count().of(WEB)._replace(begun_s=())

"""Bundles of dumps that never were on a disk, made from entries and keys without the code that assembles them."""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

from securecore.audit.bundle import Bundle
from securecore.audit.bundle_verification import BundleVerification, verify_bundle
from securecore.audit.entry import Held, deleted_entry, incomplete_entry, received_entry
from securecore.certs.chain import Anchors
from securecore.dump.container import FrameEntry, seek_table
from securecore.merkle import leaf_hash, root_of
from securecore.names import HostName, StoreId
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Hierarchy, make_crl
from tests.support.dumps import NOW, REPORT, WEB, Signer, core_bytes, dump_id, frames_of, make_signer
from tests.support.kept_receipts import Notary

DB: Final = HostName(f"db-2.{DOMAIN}")
CORE: Final = core_bytes(2, 40)


def container_of(core: bytes) -> bytes:
    """Return a core.zst."""
    frames = frames_of(core)
    return b"".join(frame for frame, _ in frames) + seek_table([FrameEntry(len(frame), plain) for frame, plain in frames])


@dataclass
class Collector:
    """A receiver with a store and a log for each host; the fleet's hosts are known by their names."""

    hierarchy: Hierarchy
    notary: Notary
    store: StoreId
    logs: dict[HostName, list[bytes]] = field(default_factory=dict)
    signers: dict[HostName, Signer] = field(default_factory=dict)
    tokens: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def make(cls, hierarchy: Hierarchy, name: str = RECEIVER_NAME, store: bytes = bytes(16)) -> "Collector":
        """Return one whose log has nothing in it."""
        return cls(hierarchy, Notary.make(hierarchy, name), StoreId.make(store))

    @cached_property
    def lists(self) -> bytes:
        """Revocation lists on which nobody is."""
        return make_crl(self.hierarchy.root, now=NOW) + make_crl(self.hierarchy.hosts, now=NOW)

    @property
    def root(self) -> Anchors:
        """What a third party has: the root and nothing else."""
        return Anchors((self.hierarchy.root.certificate,), ())

    def receive(self, number: int, host: HostName = WEB, core: bytes = CORE, *, has_lists: bool = True) -> None:
        """Have a host's dump of that number received."""
        signer = self.signers.setdefault(host, make_signer(self.hierarchy, host))
        manifest = signer.manifest(dump_id(number), self.store, core)
        token = signer.sign(manifest)
        entry = received_entry(
            NOW,
            manifest,
            token,
            stored_bytes=len(container_of(core)),
            certificate=sha256(signer.made.der).hexdigest(),
            crl_sha256=sha256(self.lists).hexdigest() if has_lists else None,
        )
        self.tokens[number] = token
        self.log(host).append(entry)

    def give_up(self, number: int, host: HostName = WEB, core: bytes = CORE) -> None:
        """Have a dump given up."""
        frames = [frame for frame, _ in frames_of(core)]
        held = Held(len(frames), len(core), root_of(map(leaf_hash, frames)), sha256(REPORT).digest(), len(container_of(core)))
        self.log(host).append(incomplete_entry(NOW, dump_id(number), host, self.store, held, last_at=NOW))

    def delete(self, number: int, host: HostName = WEB) -> None:
        """Have a dump deleted."""
        self.log(host).append(deleted_entry(NOW, dump_id(number), host, uid=0, user="root", reason="ticket 4711"))

    def log(self, host: HostName) -> list[bytes]:
        """Return a host's entries."""
        return self.logs.setdefault(host, [])

    def proof(self, number: int, event: str, host: HostName = WEB, size: int | None = None) -> bytes:
        """Return the proof of the first entry of that event on a dump, in the log's first *size* entries."""
        log = self.log(host)[:size]
        words = f'"dump":"{dump_id(number)}","event":"{event}"'.encode()
        return self.notary.proof(log, next(at for at, line in enumerate(log) if words in line), host=host)

    def bundle(self, number: int, host: HostName = WEB, *, event: str = "received") -> Bundle:
        """Return the bundle of a dump that was received, or given up, with its report."""
        received = event == "received"
        lists = (sha256(self.lists).hexdigest(), self.lists) if received else None
        token = self.tokens[number] if received else None
        return Bundle(self.notary.statement, self.proof(number, event, host), None, token, REPORT, lists)

    def tombstone(self, number: int, host: HostName = WEB, *, event: str = "received") -> Bundle:
        """Return the bundle of a dump that was deleted."""
        return Bundle(self.notary.statement, self.proof(number, event, host), self.proof(number, "deleted", host))

    def verify(self, bundle: Bundle, core: Path | None = None) -> BundleVerification:
        """Verify a bundle, and a file beside it, with this collector's root."""
        if core is None:
            return verify_bundle(bundle, self.root)
        with core.open("rb") as file:
            return verify_bundle(bundle, self.root, file.fileno())

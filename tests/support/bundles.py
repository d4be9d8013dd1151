"""Bundles of dumps that never were on a disk, made from entries and keys without the code that assembles them."""

from dataclasses import dataclass, field
from functools import cache, cached_property
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
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Hierarchy, make_crl, make_hierarchy
from tests.support.dumps import NOW, REPORT, WEB, Signer, core_bytes, dump_id, frames_of, make_signer
from tests.support.kept_receipts import Notary

DB: Final = HostName(f"db-2.{DOMAIN}")
CORE: Final = core_bytes(2, 40)

RECEIVED, OTHER, OTHER_HOSTS, GIVEN_UP, DELETED, OTHER_DELETED, GIVEN_UP_DELETED = range(1, 8)
"""The dumps of a collector, by number; one is db-2's, the others are web-1's."""


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


def fill(collector: Collector) -> Collector:
    """Have a collector receive the dumps."""
    collector.receive(RECEIVED)
    collector.receive(OTHER, core=b"another core")
    collector.receive(OTHER_HOSTS, DB)
    collector.give_up(GIVEN_UP)
    for number in (DELETED, OTHER_DELETED):
        collector.receive(number)
        collector.delete(number)
    collector.give_up(GIVEN_UP_DELETED)
    collector.delete(GIVEN_UP_DELETED)
    return collector


@dataclass
class World:
    """A collector, and others from which valid members come that are not its own."""

    own: Collector
    elsewhere: Collector
    """Another receiver of the same PKI."""
    other_store: Collector
    """The same receiver, with the same keys, and another store."""
    stranger: Collector
    """Another PKI, in which everything has the same names."""


@cache
def world() -> World:
    """Return the world of all tests: nobody changes it."""
    hierarchy = make_hierarchy(now=NOW)
    own = Collector.make(hierarchy)
    elsewhere = Collector.make(hierarchy, RECEIVER_NAME.replace("collector", "collector-2"))
    other_store = Collector(hierarchy, own.notary, Collector.make(hierarchy, store=b"1" * 16).store)
    for collector in (elsewhere, other_store):
        collector.signers = own.signers
    fill(own)
    return World(own, fill(elsewhere), fill(other_store), fill(Collector.make(make_hierarchy(now=NOW))))


def failed(found: BundleVerification) -> set[str]:
    """Return the checks that do not hold."""
    assert [check.number for check in found.checks] == list(range(1, len(found.checks) + 1))
    return {check.what for check in found.checks if check.ok is False}


def left_out(found: BundleVerification) -> set[str]:
    """Return the checks that could not be made."""
    assert all("not checked" in check.detail for check in found.checks if check.ok is None)
    return {check.what for check in found.checks if check.ok is None}

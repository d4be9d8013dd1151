"""Receipts at the sender: the honest one is believed, and every other one is refused in words, because custody hangs on it."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securecore.audit import entry
from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.proof import TlogProof, parse_proof
from securecore.errors import UntrustedError
from securecore.merkle import leaf_hash
from securecore.names import Address, DumpId, HostName
from securecore.pki.issue import issue_receiver, parse_address
from securecore.sender.credentials import Credentials, read_credentials
from securecore.sender.evidence import check_receipt
from securecore.store.layout import open_store
from securecore.store.lookup import find_dump
from securecore.wire.messages import Receipt
from tests.support.certificates import DOMAIN, Fleet, make_fleet, no_passphrase
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes

COLLECTOR, BACKUP = Address(f"collector.{DOMAIN}:4455"), Address(f"backup.{DOMAIN}:4455")
"""Two receivers by the names in their certificates; to the check it is only a word what a sender has dialled."""


@dataclass(frozen=True)
class Sent:
    """A dump that was sent, and what came back for it."""

    dump: DumpId
    host: HostName
    manifest: bytes
    message: Receipt


@dataclass(frozen=True)
class World:
    """A fleet of two hosts and two receivers, and dumps that both hosts have sent to both."""

    fleet: Fleet
    identities: dict[Address, Path]
    sent: dict[tuple[str, Address], list[Sent]]

    @property
    def honest(self) -> Sent:
        """The first dump of web-1 at the collector; its receipt is the one that the tests compare."""
        return self.sent["web-1", COLLECTOR][0]

    def credentials(self, host: str = "web-1") -> Credentials:
        """Return what a host checks receipts with."""
        return read_credentials(str(self.fleet.hosts[host]))

    def check(self, message: Receipt, address: Address = COLLECTOR, **changes: Any) -> dict[str, Any]:
        """Check *message* as the receipt of the honest dump, or of what *changes* says."""
        asked = {"host": "web-1", "dump": self.honest.dump, "manifest": self.honest.manifest, "now": now()} | changes
        credentials = self.credentials(asked.pop("host"))
        return check_receipt(credentials, message, address, asked["dump"], asked["manifest"], asked["now"])

    def refused(self, message: Receipt, address: Address = COLLECTOR, **changes: Any) -> str:
        """Return the words that *message* is refused with, less those that all refusals begin with."""
        with pytest.raises(UntrustedError) as raised:
            self.check(message, address, **changes)
        beginning = f"{address} gave a receipt that proves nothing: "
        assert raised.value.message.startswith(beginning)
        assert "\n" not in raised.value.message
        return raised.value.message.removeprefix(beginning)

    def signed(self, line: bytes, *, key: LogSigner | None = None, host: HostName | None = None) -> Receipt:
        """Return the receipt of a log that holds this one entry, signed with the collector's own log key or another."""
        name = f"collector.{DOMAIN}/securecore"
        signer = key or LogSigner.load(name, (self.identities[COLLECTOR] / "log-key.pem").read_bytes())
        checkpoint = signer.sign(origin_of(name, host or self.honest.host), 1, leaf_hash(line))
        return Receipt(TlogProof(0, (), checkpoint, line).encode(), self.honest.message.log_key)


def now() -> float:
    """Return the time in Unix seconds."""
    return datetime.now(UTC).timestamp()


def send(fleet: Fleet, host: str, store: Path, address: Address) -> Sent:
    """Send a dump and keep everything that proves it."""
    dump = new_dump_id()
    outcome = send_bytes(b"core of " + bytes(dump), papers_of(fleet.hosts[host]), [address], dump=dump)
    assert outcome.receipt is not None
    with open_store(str(store)) as opened:
        name, _ = find_dump(opened, str(dump))
        with opened.open_dump(name, dump) as files:
            manifest = files.read_manifest()
    assert manifest is not None
    return Sent(dump, name, manifest, Receipt(outcome.receipt["receipt"].encode(), outcome.receipt["log_key"].encode()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two dumps of each host at each receiver; the tests read, and change nothing."""
    directory = tmp_path_factory.mktemp("evidence")
    fleet = make_fleet(directory / "fleet")
    backup = directory / "backup"
    addresses = [parse_address("127.0.0.1")]
    issue_receiver(fleet.pki, HostName(BACKUP.host), addresses, backup, no_passphrase, datetime.now(UTC))
    identities = {COLLECTOR: fleet.receiver, BACKUP: backup}
    sent: dict[tuple[str, Address], list[Sent]] = {}
    with ExitStack() as stack:
        for receiver, identity in identities.items():
            store = directory / f"store-{receiver.host}"
            running = stack.enter_context(running_receiver(identity, store))
            for host in fleet.hosts:
                sent[host, receiver] = [send(fleet, host, store, running.addresses[0]) for _ in range(2)]
    return World(fleet, identities, sent)


def test_an_honest_receipt_is_believed(world: World) -> None:
    """Of each host at each receiver, the second in its log as well as the first; its facts are fit for the receipt log.

    Before the first stands the entry of the host's certificate.
    """
    for (host, receiver), both in world.sent.items():
        for index, one in enumerate(both, start=1):
            facts = world.check(one.message, receiver, host=host, dump=one.dump, manifest=one.manifest)

            assert facts["received_at"].endswith("Z")
            assert {name: facts[name] for name in ("dump", "host", "receiver", "origin", "index")} == {
                "dump": str(one.dump),
                "host": f"{host}.{DOMAIN}",
                "receiver": str(receiver),
                "origin": f"{receiver.host}/securecore/{host}.{DOMAIN}",
                "index": index,
            }
            assert Receipt(facts["receipt"].encode(), facts["log_key"].encode()) == one.message


def test_a_receipt_is_believed_without_its_manifest(world: World) -> None:
    """A dump that was delivered before the sender was cut off: the manifest is gone, the receiver's entry is not."""
    assert world.check(world.honest.message, manifest=None)["dump"] == str(world.honest.dump)


@pytest.mark.parametrize("dialled", ["127.0.0.1:1", "[::1]:1", "[0:0:0:0:0:0:0:1]:1", f"Collector.{DOMAIN.upper()}:1"])
def test_a_receiver_is_known_by_all_its_names(dialled: str, world: World) -> None:
    """Whichever of the names in its certificate was dialled, in any spelling of it that TLS accepts."""
    assert world.check(world.honest.message, Address(dialled))["receiver"] == dialled


@pytest.mark.parametrize("dialled", [str(BACKUP), "127.0.0.2:1", "[::2]:1", f"web-1.{DOMAIN}:1", f"x.collector.{DOMAIN}:1"])
def test_the_receipt_of_another_receiver_is_refused(dialled: str, world: World) -> None:
    """All is in order with it but this: it was not that receiver that we dialled, and its store is not there."""
    assert world.refused(world.honest.message, Address(dialled)) == "its log key is stated by another receiver"


def test_a_key_that_another_receiver_states_is_refused(world: World) -> None:
    """The collector's receipt under the backup's statement, whichever of the two was dialled."""
    mixed = Receipt(world.honest.message.receipt, world.sent["web-1", BACKUP][0].message.log_key)

    assert world.refused(mixed) == "its log key is stated by another receiver"
    assert world.refused(mixed, BACKUP).startswith(f"checkpoint is of log 'collector.{DOMAIN}/securecore/web-1.{DOMAIN}', expected")


def test_a_receiver_of_another_fleet_is_refused(world: World, fleet: Fleet) -> None:
    """The same names under another root."""
    statement = (fleet.receiver / "log-key.jws").read_bytes()

    assert "which none of our roots signed" in world.refused(Receipt(world.honest.message.receipt, statement))


def test_the_receipt_of_another_manifest_is_refused(world: World) -> None:
    """Some other statement about the same dump was stored and logged, not the one that we have signed."""
    words = world.refused(world.honest.message, manifest=world.sent["web-1", COLLECTOR][1].manifest)

    assert words.startswith("its entry says manifest_sha256 is '")


def test_the_receipt_of_another_host_is_refused(world: World) -> None:
    """Each host's receipts are of its own log."""
    log = f"collector.{DOMAIN}/securecore"

    words = world.refused(world.honest.message, host="db-2")

    assert words == f"checkpoint is of log '{log}/web-1.{DOMAIN}', expected '{log}/db-2.{DOMAIN}'"


@pytest.mark.parametrize("with_manifest", [True, False])
def test_the_receipt_of_another_dump_is_refused(with_manifest: bool, world: World) -> None:
    """A true receipt of the dump before this one proves nothing about this one."""
    other = world.sent["web-1", COLLECTOR][1]

    words = world.refused(other.message, manifest=world.honest.manifest if with_manifest else None)

    assert words == f"its entry says dump is '{other.dump}'"


def test_a_checkpoint_that_another_key_has_signed_is_refused(world: World) -> None:
    """The entry and the path are right, under the right name; only the key is not the one that was stated."""
    proof = parse_proof(world.honest.message.receipt)
    assert proof.extra is not None
    other = LogSigner(f"collector.{DOMAIN}/securecore", Ed25519PrivateKey.generate())

    assert world.refused(world.signed(proof.extra, key=other)).startswith("checkpoint is not signed by the log's key")
    # The control: what is compared here is the key alone.
    assert world.check(world.signed(proof.extra))["index"] == 0


def received(world: World, **changes: entry.Value) -> bytes:
    """Return the honest entry with something else in it."""
    proof = parse_proof(world.honest.message.receipt)
    assert proof.extra is not None
    return entry.encode({**entry.parse_entry(proof.extra), **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [("event", "extracted"), ("event", "deleted"), ("dump", None), ("dump", 7), ("host", f"db-2.{DOMAIN}"), ("host", None)],
)
def test_an_entry_that_says_something_else_is_refused(field: str, value: entry.Value, world: World) -> None:
    """Signed by the right key, in the right log, about the right manifest, and still not that our dump was received."""
    message = world.signed(received(world, **{field: value}))

    assert world.refused(message) == f"its entry says {field} is {value!a}"


def test_an_entry_without_a_manifest_is_refused(world: World) -> None:
    """Who has the manifest wants to see its hash."""
    moment = datetime.now(UTC)
    line = entry.encode(
        {"event": "received", "time": entry.timestamp(moment), "dump": str(world.honest.dump), "host": str(world.honest.host)}
    )

    assert world.refused(world.signed(line)) == "its entry says manifest_sha256 is None"
    assert world.check(world.signed(line), manifest=None)["index"] == 0


def test_a_receipt_cut_anywhere_is_refused(world: World) -> None:
    """Each part loses something at some offset; no beginning of a receipt is one."""
    message = world.sent["web-1", COLLECTOR][1].message
    other = world.sent["web-1", COLLECTOR][1]
    lengths = [*range(0, len(message.receipt), 37), len(message.receipt) - 2, len(message.receipt) - 1]

    for length in lengths:
        assert world.refused(Receipt(message.receipt[:length], message.log_key), dump=other.dump, manifest=other.manifest)


def test_a_statement_cut_anywhere_is_refused(world: World) -> None:
    """The same for the log key's statement."""
    message = world.honest.message
    for length in [*range(0, len(message.log_key), 97), len(message.log_key) - 2, len(message.log_key) - 1]:
        assert world.refused(Receipt(message.receipt, message.log_key[:length]))


def test_a_statement_of_a_receiver_whose_time_is_over_is_refused(world: World) -> None:
    """The certificate is judged at the time of the check."""
    assert "expired" in world.refused(world.honest.message, now=now() + 10 * 365 * 86400)


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"c2sp.org/tlog-proof@v1\n\n", "c2sp.org/tlog-proof@v1\n\n\n—".encode()])
def test_noise_is_refused(noise: bytes, world: World) -> None:
    """Whatever the bytes are, the refusal is in words, in one line."""
    assert world.refused(Receipt(noise, world.honest.message.log_key))
    assert world.refused(Receipt(world.honest.message.receipt, noise))

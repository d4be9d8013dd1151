"""Receipts as somebody keeps them: of dumps that a real receiver took, and of logs that never were on a disk."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.entry import encode
from securecore.audit.kept_receipt import Kept, ReceiptVerifier, Unread, Witness, read_kept
from securecore.audit.proof import TlogProof
from securecore.audit.statement import LogKey, encode_payload, verify_statement
from securecore.certs import jws
from securecore.certs.profiles import RECEIVER
from securecore.merkle import inclusion_proof, leaf_hash, root_of
from securecore.names import DumpId, HostName
from securecore.sender.spool import create_spool, open_spool
from tests.support.certificates import RECEIVER_NAME, Fleet, Hierarchy, mint
from tests.support.dumps import NOW, WEB
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes

STORE_ID: Final = "3b241101-e2bb-4255-8caf-4136c566a962"


def entry(number: int, history: str = "", host: HostName = WEB, **more: Any) -> bytes:
    """Return an entry of some history of a log."""
    return encode({"event": "noted", "history": history, "host": str(host), "number": number, "time": "t", **more})


def entries(size: int, history: str = "", since: int = 0) -> list[bytes]:
    """Return a log's entries; two histories have the same ones before *since*."""
    return [entry(number, history if number >= since else "") for number in range(size)]


@dataclass
class Notary:
    """A receiver that signs whatever a test makes of its log."""

    hierarchy: Hierarchy
    signer: LogSigner
    statement: bytes

    @classmethod
    def make(cls, hierarchy: Hierarchy, name: str = RECEIVER_NAME) -> "Notary":
        """Return one with a new log key."""
        signer = LogSigner(f"{name}/securecore", Ed25519PrivateKey.generate())
        receiver = mint(RECEIVER, issuer=hierarchy.receivers, now=NOW, dns=[name])
        above = [made.public_bytes(Encoding.DER) for made in receiver.above[:1]]
        payload = encode_payload(signer.name, signer.public_key, NOW.isoformat())
        return cls(hierarchy, signer, jws.sign(payload, receiver.key_pem, [receiver.der, *above], jws.LOG_KEY_TYP))

    @property
    def log_key(self) -> LogKey:
        """The log key as a verifier takes it from the statement."""
        return verify_statement(self.statement, self.hierarchy.anchors)

    def proof(self, log: Sequence[bytes], index: int = -1, *, host: HostName = WEB) -> bytes:
        """Return the receipt for an entry of *log*, under a checkpoint of all of it; as a host is given it: of the last one."""
        at, leaves = range(len(log))[index], [leaf_hash(one) for one in log]
        note = self.signer.sign(origin_of(self.signer.name, host), len(log), root_of(leaves))
        return TlogProof(at, tuple(inclusion_proof(leaves, at)), note, log[at]).encode()

    def line(self, log: Sequence[bytes], at: int = -1, *, owner: HostName = WEB, **changes: Any) -> bytes:
        """Return the same as a line of a receipt log, in which *changes* are made."""
        fields = json.loads(log[at])
        said = {
            "dump": fields.get("dump"),
            "host": str(owner),
            "receiver": f"{RECEIVER_NAME}:4455",
            "origin": origin_of(self.signer.name, owner),
            "index": range(len(log))[at],
            "received_at": fields["time"],
            "checked_at": 1,
            "receipt": self.proof(log, at, host=owner).decode(),
            "log_key": self.statement.decode(),
        }
        return json.dumps({name: value for name, value in (said | changes).items() if value is not ...}).encode() + b"\n"

    def witness(self, log: Sequence[bytes], index: int = -1, where: str = "kept:1") -> Witness:
        """Return the same, verified."""
        kept = Kept(where, self.proof(log, index), self.statement, {})
        return ReceiptVerifier(self.hierarchy.anchors).verify(kept)


def read(data: bytes) -> list[Kept | Unread]:
    """Return what stands in a file called ``kept``."""
    return list(read_kept(io.BytesIO(data), "kept"))


def deliver(fleet: Fleet, store: Path, spool_path: Path, cores: Sequence[bytes], host: str = "web-1") -> list[DumpId]:
    """Have the fleet's receiver store *cores* of a host, which keeps the receipts in its spool; return the dumps."""
    if not spool_path.exists():
        create_spool(str(spool_path), bytes(16))
    spool, dumps = open_spool(str(spool_path)), []
    with running_receiver(fleet.receiver, store) as receiver:
        for core in cores:
            outcome = send_bytes(core, papers_of(fleet.hosts[host]), receiver.addresses, spool=spool, dump=new_dump_id())
            assert outcome.receipt is not None
            dumps.append(DumpId.parse(outcome.receipt["dump"]))
    spool.close()
    return dumps

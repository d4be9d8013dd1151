"""Signing what was sent, and checking what came back: the only part of the sender that loads the signing library.

It is imported once the source is closed, because loading it takes longer than everything else that a handler does at its start.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

# cryptography loads this one when a key is first used; by then a handler may have lost the right to read its files.
from cryptography.hazmat.backends.openssl import backend as _backend  # noqa: F401
from cryptography.hazmat.primitives.serialization import Encoding

from securecore import __version__, limits
from securecore.audit import proof, statement
from securecore.audit.checkpoint import origin_of
from securecore.certs import chain, jws
from securecore.certs.judge import Purpose, alternative_names
from securecore.dump.manifest import MANIFEST_TYP, Manifest
from securecore.errors import BrokenError, SecurecoreError, UntrustedError
from securecore.merkle import Frontier
from securecore.names import Address, DumpId, HostName, StoreId
from securecore.sender.credentials import Credentials
from securecore.sender.spool_entry import EntryEnd
from securecore.wire.messages import Receipt


def host_name(credentials: Credentials) -> HostName:
    """Return the host that our certificate names; raises SecurecoreError when it is no host certificate."""
    leaf = chain.load_pem_certificates(credentials.certificate, what="cert.pem")[0]
    return alternative_names(leaf, Purpose.HOST)[0][0]


def sign_manifest(
    credentials: Credentials,
    dump: DumpId,
    store: StoreId,
    end: EntryEnd,
    tree: Frontier,
    report: bytes,
    started_at: int,
    lost_frames: int = 0,
) -> bytes:
    """Return the signed statement that these frames, in *store*, are the dump; see dump/manifest.py for its fields."""
    manifest = Manifest(
        dump=dump,
        host=host_name(credentials),
        store=store,
        outcome=end.outcome,
        predicted_size=end.predicted_size,
        size=end.size,
        frames=tree.size,
        root=tree.root(),
        report_sha256=sha256(report).digest(),
        started_at=started_at,
        ended_at=end.ended_at,
        sender=f"securecore {__version__}",
        lost_frames=lost_frames,
    )
    certificates = chain.load_pem_certificates(credentials.certificate, what="cert.pem")
    return jws.sign(
        manifest.encode(), credentials.key, [certificate.public_bytes(Encoding.DER) for certificate in certificates], MANIFEST_TYP
    )


def check_receipt(
    credentials: Credentials,
    message: Receipt,
    address: Address,
    dump: DumpId,
    manifest: bytes | None,
    now: float,
    content: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return the facts of a receipt, fit for the receipt log, once it proves that our dump is stored and logged.

    1. The log key's statement is signed by a receiver of our CA, for the name or address that we dialled.
    2. The receipt leads to a checkpoint that this key has signed, of the log of our host at that receiver.
    3. The entry says that this dump was received, and (when *manifest* is given) that very manifest, and of its content what
       *content* says: fields of the entry, as far as the caller knows them.

    Raises UntrustedError, also for a proof that is malformed: custody does not pass on the word of a broken receipt. *now* is in
    Unix seconds.
    """
    moment = datetime.fromtimestamp(now, UTC)
    host = host_name(credentials)
    try:
        log_key = statement.verify_statement(message.log_key, chain.load_anchors(credentials.ca), moment)
        if not log_key.is_of(address.host_without_zone):
            raise BrokenError("its log key is stated by another receiver")
        origin = origin_of(log_key.name, host)
        receipt = proof.verify_receipt(message.receipt, origin, log_key.public_key)
        expected: dict[str, object] = {"event": "received", "dump": str(dump), "host": str(host), **(content or {})}
        if manifest is not None:
            expected["manifest_sha256"] = sha256(manifest).hexdigest()
        for field, value in expected.items():
            if receipt.fields.get(field) != value:
                raise BrokenError(f"its entry says {field} is {receipt.fields.get(field)!a:.100}")
    except SecurecoreError as error:
        raise UntrustedError(f"{address} gave a receipt that proves nothing: {error.message}") from error
    # They prove something later, to who has several receipts: custody does not hang on them.
    successions = {"successions": message.successions.decode("utf-8", "replace")} if message.successions else {}
    return {
        "dump": str(dump),
        "host": str(host),
        "receiver": str(address),
        "origin": origin,
        "index": receipt.leaf_index,
        "received_at": receipt.fields["time"],
        "checked_at": int(now),
        "receipt": message.receipt.decode("utf-8")[: limits.MAX_RECEIPT_BYTES],
        "log_key": message.log_key.decode("ascii")[: limits.MAX_STATEMENT_BYTES],
        **successions,
    }


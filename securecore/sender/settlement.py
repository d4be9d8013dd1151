"""The end of custody: the signed statement, the receiver's proof, and the line in the receipt log."""

import math
from collections.abc import Callable, Mapping

from securecore import limits
from securecore.declarations import Any, NamedTuple
from securecore.errors import SecurecoreError
from securecore.merkle import Frontier
from securecore.names import DumpId
from securecore.sender.credentials import Credentials
from securecore.sender.delivery import Delivery
from securecore.sender.patience import Most
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd
from securecore.wire.messages import Gone, Receipt


class Statement(NamedTuple):
    """What a manifest is made of."""

    dump: DumpId
    report: bytes
    started_at: int
    """Unix milliseconds."""
    end: EntryEnd
    tree: Frontier
    """Over all frames of the dump, placeholders included."""
    lost_frames: int = 0


def settle(
    delivery: Delivery, credentials: Credentials, statement: Statement, clock: Callable[[], float], most_s: Most = math.inf
) -> dict[str, Any]:
    """Sign and send the manifest, and return the facts of the receipt once it is checked.

    All frames have been sent or were held. The receipt has RECEIPT_DEADLINE_S to come, and no more than *most_s*. Raises
    UntrustedError when it does not prove what it should. Not done: to keep the facts; keep_receipt does that.
    """
    # Loading the signing library takes longer than all else that a handler does at its start, so it waits until here.
    from securecore.sender import evidence

    dump, report, started_at, end, tree, lost_frames = statement
    token = evidence.sign_manifest(credentials, dump, delivery.store, end, tree, report, started_at, lost_frames)
    return evidence.check_receipt(credentials, delivery.end(token, most_s), delivery.address, dump, token, clock())


def answered_already(
    answer: Receipt | Gone,
    delivery: Delivery,
    credentials: Credentials,
    dump: DumpId,
    content: Mapping[str, object],
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Return the facts of an answer that ends custody before a frame was sent.

    The receiver's word that it has, or had, the dump counts for nothing: raises UntrustedError unless its receipt proves that a
    dump of this id and *content* (fields of the audit entry) was received.
    """
    from securecore.sender import evidence

    receipt = Receipt(answer.receipt, answer.log_key, answer.successions)
    facts = evidence.check_receipt(credentials, receipt, delivery.address, dump, None, clock(), content)
    return facts | {"gone": answer.words[: limits.MAX_WORDS]} if isinstance(answer, Gone) else facts


def keep_receipt(spool: Spool, facts: dict[str, Any]) -> dict[str, Any]:
    """Keep a receipt's facts in the spool's log and return them; a disk that refuses is told in ``not_kept``.

    The dump is stored and proved either way: to send it again would not mend the disk here.
    """
    try:
        spool.keep_receipt(facts)
    except SecurecoreError as error:
        return facts | {"not_kept": error.message}
    return facts

"""What somebody found who verified dumps, on its way into their hosts' audit logs: that person's word, not the receiver's."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from securecore import limits
from securecore.audit.entry import verified_entry
from securecore.audit.log import HostLogs
from securecore.errors import PeerError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Store

_BATCH_BYTES: Final = 6144
"""Of the findings in one request to the control socket, which reads 8 KiB; one takes 4.9 KiB at most, in letters beyond ASCII."""


class Finding(NamedTuple):
    """The outcome of one dump's verification."""

    dump: DumpId
    problem: str | None
    """What does not hold first, in words; None when all of it holds."""


def record(
    store: Store, logs: HostLogs, host: HostName, findings: Sequence[Finding], uid: int, user: str | None, now: datetime
) -> list[DumpId]:
    """Write an entry for each finding, in one batch, and return the dumps of which the log knows nothing: these get none.

    The caller holds the store's lock. Raises NotFoundError when the host has no log, else as HostLog.append_all does.
    """
    os.close(store.audit_directory(host, create=False))
    with logs.using(host) as log:
        unknown = [finding.dump for finding in findings if log.standing(finding.dump) is None]
        said = [
            verified_entry(now, finding.dump, host, uid=uid, user=user, problem=finding.problem)
            for finding in findings
            if finding.dump not in unknown
        ]
        if said:
            log.append_all(said)
    return unknown


def batches(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Yield findings in such numbers that a request to the control socket has room for them."""
    batch: list[Finding] = []
    size = 0
    for finding in findings:
        length = len(json.dumps(written([finding])))
        if batch and (size + length > _BATCH_BYTES or len(batch) >= limits.DELETION_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(finding)
        size += length
    if batch:
        yield batch


def written(findings: Iterable[Finding]) -> list[list[str | None]]:
    """Return findings as a request has them."""
    return [[str(finding.dump), finding.problem] for finding in findings]


def read(value: Any) -> list[Finding]:
    """Return the findings in a request; raises PeerError when they are malformed."""
    if not isinstance(value, list) or not 1 <= len(value) <= limits.DELETION_BATCH or not all(map(_is_pair, value)):
        words = f"of a dump and null or a text of at most {limits.MAX_WORDS} characters"
        raise PeerError(f"the request's findings are no list of 1 to {limits.DELETION_BATCH} pairs {words}")
    try:
        return [Finding(DumpId.parse(dump), problem) for dump, problem in value]
    except NameRefused as error:
        raise PeerError(error.message) from error


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    problem = value[1]
    return problem is None or (isinstance(problem, str) and len(problem) <= limits.MAX_WORDS)

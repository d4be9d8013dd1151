"""How long the certificates and revocation lists of a store's host and receiver live, as far as papers say it that hold."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits
from securecore.audit.statement import LogKey
from securecore.certs import chain, identity_directory
from securecore.certs.chain import Anchors
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.certs.private_file import read_public
from securecore.certs.revocation import RevocationLists
from securecore.cli import evidence
from securecore.cli.overview.events import Event
from securecore.cli.overview.model import Certificate, RevocationList
from securecore.errors import NotFoundError, SecurecoreError
from securecore.names import DumpId, HostName, NameRefused
from securecore.store.layout import Store

OF_HOST: Final = "host"
OF_LOG_KEY: Final = "receiver, vouching for the log key"
OF_RECEIVER: Final = "receiver, at present"
_UNKNOWN: Final = "no dump of this host is in the store whose manifest would show its certificate"


class Papers(NamedTuple):
    """What a receiver's identity directory shows; no private key is read for it."""

    certificates: tuple[Certificate, ...] = ()
    lists: tuple[RevocationList, ...] = ()
    problem: str | None = None


def find_host_certificate(
    store: Store, host: HostName, newest: Iterable[Event], root_path: Path | None, now: datetime
) -> tuple[Certificate | None, str | None]:
    """Return the certificate that signed the newest manifest that is there and holds, else None and why there is none.

    *newest* are entries on dumps that were received, the newest first. Not told: a certificate that was issued since.
    """
    problem = _UNKNOWN
    for event in newest:
        try:
            with store.open_dump(host, DumpId.parse(event.dump or "")) as files:
                found = evidence.check_papers(store, files, root_path)
        except NameRefused:
            continue
        except SecurecoreError as error:
            problem = problem if isinstance(error, NotFoundError) else error.message
            continue
        if found.certificate is not None:
            return _life(OF_HOST, found.certificate, now), None
        problem = f"its newest manifest does not hold: {found.manifest_problem or 'it is missing'}"
    return None, problem


def read_receiver(identity: Path, log_key: LogKey | None, anchors: Anchors, now: datetime) -> Papers:
    """Return what an identity directory shows of a store's receiver: its present certificate, and its revocation lists.

    Everything is held against the roots of *anchors*; what does not hold is said, not raised.
    """
    try:
        shown = identity_directory.load_public_parts(identity)
        believed = _believed(shown.anchors, anchors)
        found = judge(shown.chain_der[0], shown.chain_der[1:], believed, Purpose.RECEIVER, now)
        if log_key is not None and found.name != log_key.receiver.name:
            return Papers(problem=f"{identity} is the identity of {found.name}, this store's receiver is {log_key.receiver.name}")
    except SecurecoreError as error:
        return Papers(problem=error.message)
    certificates = (_life(OF_RECEIVER, found, now),)
    try:
        crl = read_public(identity / identity_directory.CRL, limits.MAX_CRL_BYTES)
        ages = RevocationLists.parse(crl, believed).ages(now)
    except SecurecoreError as error:
        return Papers(certificates, problem=error.message)
    return Papers(certificates, tuple(RevocationList(age.owner, age.next_update, age.days_left, age.problem) for age in ages))


def of_log_key(log_key: LogKey, now: datetime) -> Certificate:
    """Return the receiver's certificate that signed the statement of its log key."""
    return _life(OF_LOG_KEY, log_key.receiver, now)


def _believed(shown: Anchors, anchors: Anchors) -> Anchors:
    """Return our roots, with the CAs of an identity directory that one of them has signed; its own roots are not believed."""
    signed = [one for one in shown.intermediates if any(chain.is_signed_by(one, root) for root in anchors.roots)]
    return Anchors(anchors.roots, (*anchors.intermediates, *signed))


def _life(of: str, found: Judgement, now: datetime) -> Certificate:
    left, life = found.not_after - now, found.not_after - found.not_before
    return Certificate(
        of, str(found.name), found.fingerprint, found.not_before, found.not_after, left.days, ends_soon=left < life / 3
    )  # fmt: skip

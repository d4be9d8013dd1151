"""What somebody should look at soon: papers that run out, and dumps that were found broken."""

from collections.abc import Sequence
from typing import Final

from securecore.cli import terminal
from securecore.cli.overview.model import Certificate, HostOverview, Notice, RevocationList

_MOST: Final = 20
"""Notices of hosts that are told one by one; a fleet whose certificates were issued in one week has hundreds in another."""


def find_notices(
    hosts: Sequence[HostOverview], certificates: Sequence[Certificate], lists: Sequence[RevocationList]
) -> tuple[Notice, ...]:
    """Return what to look at; *certificates* and *lists* are the receiver's, and come first: without them it takes nothing."""
    found = [Notice(None, f"the receiver's certificate {_end_of(one)}") for one in certificates if one.ends_soon]
    found += [Notice(None, one.problem) for one in lists if one.problem is not None]
    broken = [
        Notice(host.host, f"{terminal.count(host.broken.total, 'dump')} found broken when verified last")
        for host in hosts
        if host.broken.total
    ]
    ending = [(host.certificate, host.host) for host in hosts if host.certificate is not None and host.certificate.ends_soon]
    ending.sort(key=lambda one: (one[0].not_after, one[1]))
    of_hosts = broken + [Notice(host, f"the certificate of its newest dump {_end_of(one)}") for one, host in ending]
    if len(of_hosts) > _MOST:
        found.append(Notice(None, f"there is something with {len(of_hosts)} hosts; the first {_MOST} follow"))
    return (*found, *of_hosts[:_MOST])


def _end_of(one: Certificate) -> str:
    day = f"{one.not_after:%Y-%m-%d}"
    return f"expired on {day}" if one.days_left < 0 else f"expires on {day}, in {terminal.count(one.days_left, 'day')}"

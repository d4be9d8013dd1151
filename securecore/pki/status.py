"""What ends soon: every certificate in use, every CA and every CRL, judged like a monitoring plug-in.

A CRL is judged too by whether receivers can have the last one: it may lack a revocation that nobody could sign yet.

In use are, of each name and kind, the newest certificate, whatever came before it, unless it was revoked; each CA that can still
sign; the last CRL of each CA. A machine whose newest certificate ended long ago counts as gone, not as an outage.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from securecore.certs.profiles import ENROLLER, HOST, PROFILES, RECEIVER, RECEIVERS_CA, ROOT_CA
from securecore.pki.ledger import Issued, State

GONE_AFTER: Final = timedelta(days=90)
"""The default life of a certificate: who has not missed it for so long has no use for it."""

_LEAVES: Final = (HOST.name, RECEIVER.name, ENROLLER.name)
_OFTEN_AWAY: Final = (ROOT_CA.name, RECEIVERS_CA.name)
"""The CAs whose keys are kept elsewhere between uses, so that no timer signs their lists."""

_LAST_TENTH: Final = 10
_LAST_THIRD: Final = 3


class Level(IntEnum):
    """How bad it is; the number is the exit code of a monitoring plug-in (Monitoring Plugins guidelines, "Plugin Return Codes")."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


class Item(NamedTuple):
    """One thing that ends."""

    level: Level
    kind: str
    """``host``, ``receiver``, ``enroller``, ``root-ca``, ``hosts-ca``, ``receivers-ca`` or ``crl``."""
    name: str
    """The first name of a leaf; of a CA and its CRL the CA's profile."""
    serial: int
    """Of a CRL the serial number of its CA."""
    ends: datetime
    problem: str | None
    """None where nothing needs to be done."""


class Status(NamedTuple):
    """All that ends, the worst and soonest first, how many names are gone, and what the ledger has lost."""

    items: tuple[Item, ...]
    gone: int
    lost: str | None = None
    """How the ledger is behind what it has been (noting.find_lost); None when it is not, or nobody has looked."""

    @property
    def level(self) -> Level:
        """The worst of all; critical where something was lost, for then nobody knows what else there is."""
        if self.lost is not None:
            return Level.CRITICAL
        return max((item.level for item in self.items), default=Level.OK)


def find_status(state: State, now: datetime, unready: Mapping[int, str] = MappingProxyType({})) -> Status:
    """Return how a PKI stands at *now*; *unready* is what revocation.find_unready has found.

    A leaf: a warning in the last third of its life, when renewal is due; critical in the last tenth, and expired. A CRL: the same
    warning; critical once it has expired, for receivers then go by their grace, and while it is not ready. A CA: a warning once it
    can't outlive the longest certificate that it may be asked for; critical once it can't outlive one of the usual length.
    """
    newest: dict[tuple[str, str], Issued] = {}
    for one in state.issued.values():
        if one.profile in _LEAVES and not one.is_discarded:
            newest[one.profile, one.names[0]] = one
    in_use = [one for one in newest.values() if one.revoked_at is None]
    gone = [one for one in in_use if now - one.not_after > GONE_AFTER]
    items = [_leaf(one, now) for one in in_use if now - one.not_after <= GONE_AFTER]
    for succession in state.successions.values():
        for serial in (succession.current, succession.next, succession.previous):
            if serial is not None and state.issued[serial].revoked_at is None:
                one = state.issued[serial]
                items.append(_crl(state, one, now, unready.get(serial)))
                if serial == succession.current:
                    items.append(_authority(one, now))
    items.sort(key=lambda item: (-item.level, item.ends, item.name))
    return Status(tuple(items), len(gone))


def _leaf(one: Issued, now: datetime) -> Item:
    level, problem = Level.OK, None
    left, life = one.not_after - now, one.not_after - one.not_before
    if now > one.not_after:
        level, problem = Level.CRITICAL, f"expired {_days(-left)} ago: renew it, or revoke it if the machine is gone"
    elif left <= life / _LAST_TENTH:
        level, problem = Level.CRITICAL, f"ends in {_days(left)}: renew it now"
    elif left <= life / _LAST_THIRD:
        level, problem = Level.WARNING, f"ends in {_days(left)}: renewal is due"
    return Item(level, one.profile, one.names[0], one.serial, one.not_after, problem)


def _authority(one: Issued, now: datetime) -> Item:
    level, problem, left = Level.OK, None, one.not_after - now
    if one.profile == ROOT_CA.name:
        # Below the root stand CAs; what they may live bounds its use as leaves bound theirs.
        below = PROFILES[RECEIVERS_CA.name]
        usual, longest = timedelta(days=HOST.max_days), timedelta(days=below.default_days)
    else:
        usual, longest = timedelta(days=HOST.default_days), timedelta(days=HOST.max_days)
    if left <= timedelta(0):
        level, problem = Level.CRITICAL, f"expired {_days(-left)} ago"
    elif left < usual:
        level, problem = Level.CRITICAL, f"ends in {_days(left)}, and cuts what it signs shorter: replace it now"
    elif left < longest:
        level, problem = Level.WARNING, f"ends in {_days(left)}: plan its replacement"
    return Item(level, one.profile, one.profile, one.serial, one.not_after, problem)


def _crl(state: State, issuer: Issued, now: datetime, unready: str | None) -> Item:
    last = state.crls.get(issuer.serial)
    if last is None:
        words = "was never signed: run `securecore pki crl`"
        return Item(Level.CRITICAL, "crl", issuer.profile, issuer.serial, issuer.not_before, words)
    level, problem, left = Level.OK, None, last.next_update - now
    answer = "run `securecore pki crl` and distribute it"
    if issuer.profile in _OFTEN_AWAY:
        answer = f"bring its key, {answer}"
    if left < timedelta(0):
        level, problem = Level.CRITICAL, f"expired {_days(-left)} ago: {answer}"
    elif unready is not None:
        level, problem = Level.CRITICAL, f"{unready}: {answer}"
    elif left <= (last.next_update - last.this_update) / _LAST_THIRD:
        level, problem = Level.WARNING, f"ends in {_days(left)}: {answer}"
    return Item(level, "crl", issuer.profile, issuer.serial, last.next_update, problem)


def _days(span: timedelta) -> str:
    """Return a span for people, in whole days, or hours below two."""
    hours = int(span.total_seconds()) // 3600
    if hours < 48:
        return f"{hours} hour{'' if hours == 1 else 's'}"
    return f"{hours // 24} days"

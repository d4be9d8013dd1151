"""Whom this PKI has certified: a name's newest certificate, and what a further one for it must say."""

import ipaddress

from securecore.certs.profiles import PROFILES, Profile
from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.ledger import Issued, State
from securecore.pki.recording import Subject


def find_newest(state: State, name: HostName, profile: Profile | None = None) -> Issued:
    """Return the certificate that was made last with *name* as its first name, whatever became of it since.

    Discarded ones do not count, for nobody ever had them. Raises NotFoundError when there is none, PkiError when the name is,
    say, a host's and a receiver's and *profile* does not say which.
    """
    found = [one for one in state.issued.values() if one.names[:1] == (str(name),) and not one.is_discarded]
    if profile is not None:
        found = [one for one in found if one.profile == profile.name]
    if not found:
        kind = "certificate" if profile is None else f"{profile.name} certificate"
        raise NotFoundError(f"this PKI never made a {kind} for {str(name)!r}", hint="see `securecore pki list`")
    kinds = list(dict.fromkeys(one.profile for one in found))
    if len(kinds) > 1:
        raise PkiError(f"{str(name)!r} is a {' and a '.join(kinds)}", hint=f"say which with --kind {' or '.join(kinds)}")
    return found[-1]


def subject_of(one: Issued) -> Subject:
    """Return whom a certificate is for."""
    addresses = tuple(ipaddress.ip_address(text) for text in one.addresses)
    return Subject(PROFILES[one.profile], tuple(HostName(name) for name in one.names), addresses)

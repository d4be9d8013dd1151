"""What a peer's address is counted as, where strangers are bounded.

Whoever has a network has every address in it. A single IPv4 address is all that most people have; of IPv6 the least that anybody
has is a /64, and a site has a /56 or a /48, of which it may use every /64 (RFC 6177). So IPv6 is counted twice: by /64, and, with a
higher bound where there is one, by /48.
"""

import ipaddress
from typing import Any, Final

_NETWORK_BITS: Final = 64
_SITE_BITS: Final = 48


def network_of(where: tuple[Any, ...]) -> str:
    """Return the least that the owner of a socket's address has: the IPv4 address itself, of an IPv6 one its /64."""
    return _counted(where, _NETWORK_BITS)


def site_of(where: tuple[Any, ...]) -> str:
    """Return the most that the owner of a socket's address may have: the IPv4 address itself, of an IPv6 one its /48."""
    return _counted(where, _SITE_BITS)


def _counted(where: tuple[Any, ...], bits: int) -> str:
    address = ipaddress.ip_address(where[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    # Without its zone: a network has none.
    return str(ipaddress.IPv6Network((address.packed, bits), strict=False))

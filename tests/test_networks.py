"""What an address is counted as: by what its owner must have, and by what he may."""

import pytest

from securecore.networks import network_of, site_of


@pytest.mark.parametrize(
    ("address", "network", "site"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("2001:db8:1:ffff::", "2001:db8:1:ffff::/64", "2001:db8:1::/48"),
        ("2001:db8:2::", "2001:db8:2::/64", "2001:db8:2::/48"),
        ("fe80::1%2", "fe80::/64", "fe80::/48"),
        ("::1", "::/64", "::/48"),
    ],
)
def test_an_ipv6_address_counts_as_its_network_and_as_its_site(address: str, network: str, site: str) -> None:
    """Who has a network has 2**64 addresses, and a site has up to 2**16 networks; a zone is no part of either."""
    assert network_of((address, 1, 0, 0)) == network
    assert site_of((address, 1, 0, 0)) == site

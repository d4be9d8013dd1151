"""What a person writes for a receiver: receiver.toml."""

from collections.abc import Iterator
from datetime import timedelta

from securecore import limits
from securecore.errors import ConfigError
from securecore.names import Address, is_plain_path
from securecore.receiver.configuration import ReceiverConfiguration, parse_receiver_configuration
from securecore.receiver.policy import Doors, Floor, Policy, Quota
from securecore.store.retention import Retention
from tests.fuzz.target import Target, check_begins, check_words


def check_configuration(data: bytes) -> None:
    """A receiver.toml is refused with its name, or what it says is bounded, and can be written and read again."""
    try:
        found = parse_receiver_configuration(data, "receiver.toml")
    except ConfigError as error:
        check_words(error)
        check_begins(error, "receiver.toml")
        return
    policy = found.policy
    assert parse_receiver_configuration(found.encode(), "receiver.toml") == found
    assert is_plain_path(found.store)
    assert is_plain_path(found.identity)
    assert 0 <= policy.floor.share < 1
    assert all(1 <= number <= limits.MOST_CONNECTIONS for number in policy.doors[:4])
    for quota in (policy.quota, *policy.host_quotas.values()):
        assert all(number is None or 0 < number < 1 << 63 for number in quota)


def configuration_seeds() -> Iterator[bytes]:
    """Files as setup writes them, with nothing and with everything said, and what is nearly a value."""
    quota = Quota(1 << 40, (1 << 63) - 1, 7, 1, None)
    yield ReceiverConfiguration((Address("0.0.0.0:4455"),)).encode()
    yield ReceiverConfiguration(
        (Address("[fe80::1%eth0]:1"),), "/\u00e9", "/a/b", timedelta(seconds=90),
        Policy(
            ("*.example.org", "*"), ("a.b",), quota, {"web-1.example.org": quota._replace(dumps=None)}, Floor(0.00001, 1537),
            Doors(1, 2, 3, 65536, 86400.0), Retention(timedelta(days=9), 1, 2, 3, 4, timedelta(hours=1)),
        ),
    ).encode()  # fmt: skip
    yield b"version = 1\n[floor]\nshare = '00.000%'\nfree = 'none'\n[quota]\nstored = '999999999999999PiB'\nplain = '0.9B'\n"
    yield b"version = 1\nallow = ['*.', 1]\n[quota.hosts.'a.b']\nhosts = {}\n[connections]\nsession = '999999999w'\n"
    yield b"version = 1\nquota.hosts.'a.b'.dumps = 1\nquota = {dumps = 'none'}\n"


CONFIGURATION = Target(check_configuration, configuration_seeds, ("receiver.configuration.parse_receiver_configuration",), 8192)

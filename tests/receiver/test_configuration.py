"""receiver.toml: what is written reads back, what is left out is as usual, and what is wrong is named with file and line."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import ConfigError, NotFoundError, SecurecoreError
from securecore.names import Address, is_plain_path
from securecore.receiver.configuration import (
    ConfigurationRefused,
    ReceiverConfiguration,
    load_configuration,
    parse_receiver_configuration,
)
from securecore.receiver.policy import Doors, Floor, Policy, Quota
from securecore.store.retention import Retention

GOOD = 'version = 1\nlisten = ["0.0.0.0:4455"]\n'

FULL = """\
version = 1
listen = ["0.0.0.0:4455", "[::]:4455"]
store = "/srv/store"
identity = "/srv/identity"
incomplete_after = "2d"
allow = ["*.hosts.acme.example", "db.acme.example"]
deny = ["web-9.hosts.acme.example"]

[quota]
stored = "20GiB"
plain = "1.5 TiB"
dumps = 1000
dumps_per_hour = 20
at_once = 4

[quota.hosts."web-1.hosts.acme.example"]
stored = "none"
dumps = 5

[floor]
share = "12.5%"
free = "50GiB"

[connections]
total = 512
strangers = 100
strangers_per_address = 10
per_host = 8
session = "12h"

[retention]
max_age = "90d"
max_stored = "2TiB"
max_dumps = 100000
host_stored = "100GiB"
host_dumps = 5000
min_age = "1d"
"""

QUOTA = Quota(20 << 30, 3 << 39, 1000, 20, 4)

counts = st.integers(1, 10**9)
sizes = st.none() | st.integers(1, 1 << 49)
spans = st.integers(1, 10**8).map(lambda seconds: timedelta(seconds=seconds))
connections = st.integers(1, limits.MOST_CONNECTIONS)
quotas = st.builds(Quota, sizes, sizes, st.none() | counts, st.none() | counts, st.none() | counts)
hosts = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8})?\.example", fullmatch=True)
patterns = st.lists(st.just("*") | hosts | hosts.map(lambda name: f"*.{name}"), max_size=3).map(tuple)
paths = st.lists(
    st.text(st.characters(exclude_characters="/", exclude_categories=("C", "Z")), min_size=1), min_size=1, max_size=4
).map(lambda parts: "/" + "/".join(parts))
policies = st.builds(
    Policy,
    patterns,
    patterns,
    quotas,
    st.dictionaries(hosts, quotas, max_size=3),
    st.builds(Floor, st.integers(0, 99_999).map(lambda thousandths: thousandths / 100_000), st.integers(0, 1 << 49)),
    st.builds(
        Doors, connections, connections, connections, connections, st.none() | st.integers(60, 10**8).map(float)
    ),
    st.builds(Retention, st.none() | spans, sizes, st.none() | counts, sizes, st.none() | counts, st.just(timedelta()) | spans),
)  # fmt: skip


@given(
    st.lists(st.sampled_from([Address("0.0.0.0:4455"), Address("[fe80::1%eth0]:1"), Address("a.example:0")])).map(tuple),
    paths.filter(is_plain_path),
    paths.filter(is_plain_path),
    spans,
    policies,
)
def test_written_configuration_reads_back(
    listen: tuple[Address, ...], store: str, identity: str, after: timedelta, policy: Policy
) -> None:
    """For every configuration, parse(encode(x)) is x: each bound, each bound that is lifted, and each host's own quota."""
    configuration = ReceiverConfiguration(listen, store, identity, after, policy)
    assert parse_receiver_configuration(configuration.encode(), "receiver.toml") == configuration


def test_a_whole_file_is_read_as_it_is_meant() -> None:
    """Every key there is, with a value that is not the usual one; a host's quota is the common one where it says nothing."""
    assert parse_receiver_configuration(FULL.encode(), "receiver.toml") == ReceiverConfiguration(
        (Address("0.0.0.0:4455"), Address("[::]:4455")),
        "/srv/store",
        "/srv/identity",
        timedelta(days=2),
        Policy(
            ("*.hosts.acme.example", "db.acme.example"),
            ("web-9.hosts.acme.example",),
            QUOTA,
            {"web-1.hosts.acme.example": QUOTA._replace(stored_bytes=None, dumps=5)},
            Floor(0.125, 50 << 30),
            Doors(512, 100, 10, 8, 43200.0),
            Retention(timedelta(days=90), 2 << 40, 100_000, 100 << 30, 5000, timedelta(days=1)),
        ),
    )


def test_what_is_left_out_is_as_usual() -> None:
    """A file with a version alone says nothing, and nothing but what differs from the usual is said in one that we write."""
    assert parse_receiver_configuration(b"version = 1", "receiver.toml") == ReceiverConfiguration()
    lines = ReceiverConfiguration().encode().decode().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "version = 1", "[quota]", "[floor]", "[connections]", "[retention]",
    ]  # fmt: skip


def test_every_key_that_is_shown_may_be_uncommented() -> None:
    """What the comments show are the values that hold, so that a person who takes the marks away has changed nothing."""
    text = ReceiverConfiguration((Address("0.0.0.0:4455"),)).encode().decode()
    keys = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    shown = "\n".join(line.removeprefix("# ") if line.removeprefix("# ") in keys else line for line in text.splitlines())
    # The example of a host's own quota is one.
    shown = shown.replace('stored = "1TiB"', "")
    assert parse_receiver_configuration(shown.encode(), "receiver.toml") == parse_receiver_configuration(
        text.encode(), "receiver.toml"
    )


def test_the_document_shows_the_file_that_set_up_writes() -> None:
    """Every key with its comment, as a person will find it on the machine."""
    document = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    assert f"```toml\n{ReceiverConfiguration((Address('0.0.0.0:4455'),)).encode().decode()}```\n" in document


def test_a_size_of_any_length_reads_back() -> None:
    """Up to the largest that is taken at all, which has more digits than a size in words may have."""
    for size in (10**15 - 1, 10**15, (1 << 63) - 1):
        configuration = ReceiverConfiguration(policy=Policy(quota=Quota(stored_bytes=size)))
        assert parse_receiver_configuration(configuration.encode(), "receiver.toml") == configuration


def test_none_lifts_every_bound_that_may_be_lifted() -> None:
    """Also those that there are without the file."""
    text = GOOD + '[quota]\nat_once = "none"\n[floor]\nshare = "none"\nfree = "none"\n[retention]\nmin_age = "none"\n'
    policy = parse_receiver_configuration(text.encode(), "receiver.toml").policy
    assert (policy.quota.at_once, policy.floor, policy.retention.min_age) == (None, Floor(0.0, 0), timedelta())


def refusal(data: bytes) -> str:
    """Return why a file is refused, nothing when it is understood; any other exception is the test's failure."""
    try:
        parse_receiver_configuration(data, "receiver.toml")
    except SecurecoreError as error:
        return error.message
    return ""


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (GOOD + text).encode("utf-8", "surrogatepass")))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    """Whatever the file holds, the answer is a configuration or a SecurecoreError that names the file."""
    assert refusal(data).partition(":")[0] in ("", "receiver.toml")


def test_configuration_cut_at_every_offset_is_refused_or_lacks_only_what_may_be_left_out() -> None:
    """No value is ever half one, but for a number that a cut makes another."""
    data, whole = FULL.encode(), parse_receiver_configuration(FULL.encode(), "receiver.toml")
    usual = ReceiverConfiguration()
    for cut in range(len(data)):
        if refusal(data[:cut]) == "":
            found = parse_receiver_configuration(data[:cut], "receiver.toml")
            for field in ("store", "identity", "incomplete_after"):
                assert getattr(found, field) in (getattr(usual, field), getattr(whole, field))
            for name in ("allow", "deny"):
                assert getattr(found.policy, name) in (getattr(usual.policy, name), getattr(whole.policy, name))
    assert refusal(data + b"x") != ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nlisen = 1\n" + GOOD, "receiver.toml:3: unknown key 'lisen'"),
        (GOOD + "[qota]\n", "receiver.toml:3: unknown key 'qota'"),
        (GOOD.replace("1", "2", 1), "receiver.toml:1: version must be 1"),
        ('listen = ["0.0.0.0:4455"]\n', "receiver.toml: version must be 1"),
        (GOOD.replace(":4455", ""), "receiver.toml:2: not an address: '0.0.0.0'"),
        (GOOD.replace('["0.0.0.0:4455"]', '"0.0.0.0:4455"'), "receiver.toml:2: listen must be a list"),
        (GOOD + 'store = "store"', "receiver.toml:3: store must be an absolute path"),
        (GOOD + 'identity = "/a/../b"', "receiver.toml:3: identity must be an absolute path"),
        (GOOD + "incomplete_after = 7", "receiver.toml:3: incomplete_after must be a text"),
        (GOOD + 'incomplete_after = "none"', "receiver.toml:3: incomplete_after must be a length of time"),
        (GOOD + 'allow = "*"', "receiver.toml:3: allow must be a list"),
        (GOOD + 'allow = ["*.x.example", "web-*.x.example"]', "receiver.toml:3: allow holds 'web-*.x.example'"),
        (GOOD + 'deny = ["WEB.x.example"]', "receiver.toml:3: deny holds 'WEB.x.example', which stands for no host"),
        (GOOD + 'deny = ["web"]', "receiver.toml:3: deny holds 'web'"),
        (GOOD + 'deny = ["*."]', "receiver.toml:3: deny holds '*.'"),
        (GOOD + 'deny = ["*.*.x.example"]', "receiver.toml:3: deny holds '*.*.x.example'"),
        (GOOD + "[quota]\nstored = 0", "receiver.toml:4: stored must be above 0"),
        (GOOD + "[quota]\nstored = '0B'", "receiver.toml:4: stored must be above 0"),
        (GOOD + "[quota]\nstored = 'much'", "receiver.toml:4: stored must be a size"),
        (GOOD + "[quota]\ndumps = -1", "receiver.toml:4: dumps must be 0 to"),
        (GOOD + "[quota]\nat_once = '4'", "receiver.toml:4: at_once must be a number"),
        (GOOD + "[quota]\n[quota.hosts.'web.x.example']\ndump = 1", "receiver.toml:5: unknown key 'dump'"),
        (GOOD + "[quota.hosts.'web.x.example']\ndumps = 1\n[quota.hosts.web]\n", "receiver.toml:5: not a host name: 'web'"),
        (GOOD + "[quota]\nhosts = 1", "receiver.toml:4: hosts must be a table"),
        (GOOD + "[floor]\nshare = 5", "receiver.toml:4: share must be a text"),
        (GOOD + "[floor]\nshare = '100%'", "receiver.toml:4: share must be a share below 100%"),
        (GOOD + "[floor]\nshare = '5'", "receiver.toml:4: share must be a share"),
        (GOOD + "[floor]\nshare = '%'", "receiver.toml:4: share must be a share"),
        (GOOD + "[floor]\nshare = '-5%'", "receiver.toml:4: share must be a share"),
        (GOOD + "[floor]\nshare = '\u0665%'", "receiver.toml:4: share must be a share"),
        (GOOD + "[floor]\nshare = '0.0%'", "receiver.toml:4: share must be above 0"),
        (GOOD + "[connections]\ntotal = 65537", "receiver.toml:4: total must be 1 to 65536"),
        (GOOD + "[connections]\nper_host = 0", "receiver.toml:4: per_host must be 1 to 65536"),
        (GOOD + "[connections]\ntotal = 'none'", "receiver.toml:4: total must have a bound"),
        (GOOD + "[connections]\nsession = 60", "receiver.toml:4: session must be a text"),
        (GOOD + "[connections]\nsession = '59s'", "receiver.toml:4: session must be 60 s or more"),
        (GOOD + "[retention]\nmax_age = '1y'", "receiver.toml:4: max_age must be a length of time"),
        (GOOD + "[retention]\nmax_dumps = 0", "receiver.toml:4: max_dumps must be above 0"),
    ],
)
def test_mistake_is_named_with_its_place(text: str, message: str) -> None:
    """Each mistake names the file, and the line where it can be found."""
    with pytest.raises(ConfigError) as caught:
        parse_receiver_configuration(text.encode(), "receiver.toml")
    assert caught.value.message.startswith(message)


def test_every_table_has_its_mistake_named() -> None:
    """Who mends a file hears of all tables at once, in the order of the file's keys."""
    text = 'version = 1\nlisten = 1\ndeny = ["web"]\n[floor]\nshar = 1\n[quota]\ndumps = 0\n[connections]\ntotal = 1\n'
    with pytest.raises(ConfigurationRefused) as caught:
        parse_receiver_configuration(text.encode(), "x")
    assert [mistake.message.partition(" ")[0] for mistake in caught.value.mistakes] == ["x:2:", "x:3:", "x:7:", "x:5:"]
    assert (caught.value.message, caught.value.hint) == (caught.value.mistakes[0].message, caught.value.mistakes[0].hint)


def test_a_file_is_read_with_its_path(tmp_path: Path) -> None:
    """What a person wrote is loaded, and a mistake names the file as it was named."""
    path = tmp_path / "receiver.toml"
    path.write_text(FULL)
    assert load_configuration(path) == parse_receiver_configuration(FULL.encode(), "x")
    path.write_text(GOOD + "x = 1")
    with pytest.raises(ConfigError, match=f"^{path}:3: unknown key 'x'$"):
        load_configuration(path)


@pytest.mark.parametrize("kind", ["nothing", "directory", "pipe", "huge"])
def test_what_is_no_file_of_ours_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Nobody waits for a pipe to be written, and no more is read than a bound."""
    path = tmp_path / "receiver.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.write_text("#" * (limits.MAX_CONFIGURATION_BYTES + 1))
    with pytest.raises(NotFoundError if kind == "nothing" else ConfigError, match=f"^{path}: "):
        load_configuration(path)

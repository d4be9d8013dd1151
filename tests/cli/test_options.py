"""What people write for hosts: which one of a store's is meant, and what is said when it is none."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest

from securecore.cli import options
from securecore.errors import NotFoundError
from securecore.names import HostName, NameRefused
from securecore.store.layout import Place, Store, create_store
from tests.support.certificates import Fleet
from tests.support.dumps import begin as begin_dump
from tests.support.dumps import core_bytes, dump_id
from tests.support.stores import Commands, fill_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that knows one host by a published dump's directory, one by its log, and two by dumps that come in."""
    with create_store(str(tmp_path / "store")) as made:
        for path in ("hosts/web-1.example.org", "audit/web-1.example.com"):
            (tmp_path / "store" / path).mkdir(mode=0o700)
        for number, host in enumerate(("db.eu.example.org", "db.us.example.org")):
            begin_dump(made, dump_id(number), core_bytes(0), host=HostName(host)).close()
        yield made


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("web-1.example.org", "web-1.example.org"),
        (" WEB-1.Example.Com ", "web-1.example.com"),
        ("db.eu", "db.eu.example.org"),
        ("db.us.example.org", "db.us.example.org"),
    ],
)
def test_a_host_is_found_by_its_name_or_first_labels(store: Store, text: str, host: str) -> None:
    """Whatever made the store know it: dumps, published or coming in, or a log."""
    assert str(options.find_host(text, store)) == host


@pytest.mark.parametrize(
    ("text", "minutes"), [("90s", 1.5), ("15m", 15), ("6h", 360), ("1d", 1440), ("2w", 20160)]
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, minutes: float) -> None:
    """The units are those of --since and of receiver.toml."""
    assert options.duration(text) == timedelta(minutes=minutes)


@pytest.mark.parametrize("text", ["", "m", "0d", "-1d", "1", "1.5d", "1y", "d1", "9" * 30 + "w", "9" * 5000 + "w", "²d", "1d "])
def test_no_length_of_time_is_refused(text: str) -> None:
    """Nothing, less than nothing and more than any calendar holds: a usage error that shows how it is written."""
    with pytest.raises(click.BadParameter, match="write 90s, 15m, 6h, 1d or 2w"):
        options.duration(text)


def test_no_host_named_is_no_host(store: Store) -> None:
    """Without --host all are meant."""
    assert options.find_host(None, store) is None


@pytest.mark.parametrize("text", ["nope", "nope.example.org", "web", "example.org", "b-1.example.org", "", "no\x1b[2Jpe"])
def test_an_unknown_host_is_not_found(store: Store, text: str) -> None:
    """Short and full names alike, with the hosts that there are as a hint; a part of a label is no name."""
    with pytest.raises(NotFoundError) as raised:
        options.find_host(text, store)

    shown = "'no\\x1b[2jpe'" if "\x1b" in text else text
    assert raised.value.message == f"no host {shown} in this store"
    assert raised.value.hint == "it has db.eu.example.org, db.us.example.org, web-1.example.com, web-1.example.org"


@pytest.mark.parametrize("text", ["web-1", "db"])
def test_a_name_of_several_hosts_is_not_found(store: Store, text: str) -> None:
    """The hint has them all."""
    with pytest.raises(NotFoundError, match=f"^'{text}' means 2 hosts in this store$") as raised:
        options.find_host(text, store)

    assert (raised.value.hint or "").startswith("one of ")


def test_the_hint_is_short(store: Store) -> None:
    """Five hosts are named, the others counted."""
    for number in range(20):
        os_path = Path(store.path) / Place.HOSTS.value / f"app-{number:02}.example.org"
        os_path.mkdir(mode=0o700)

    with pytest.raises(NotFoundError) as raised:
        options.find_host("nope", store)

    assert (raised.value.hint or "").endswith("app-04.example.org and 19 more")


def test_a_store_without_hosts_says_so(tmp_path: Path) -> None:
    """There is nothing to list."""
    with create_store(str(tmp_path / "store")) as store, pytest.raises(NotFoundError) as raised:
        options.find_host("web-1", store)

    assert raised.value.hint == "it has no host yet"


@pytest.mark.parametrize("text", ["../etc", "a..b", "web_1.example.org", "ĸ.example.org", "1.2.3.4"])
def test_what_is_no_host_name_is_refused(store: Store, text: str) -> None:
    """The syntax is that of every other host name."""
    with pytest.raises(NameRefused):
        options.find_host(text, store)


@pytest.mark.parametrize(
    "words",
    [["list"], ["audit", "log"], ["audit", "verify"], ["verify", "--all"], ["show", "x"], ["extract", "x", "-o", "x"]],
    ids=" ".join,
)
@pytest.mark.parametrize("host", ["nope", "nope.hosts.test.example"])
def test_every_command_says_that_a_host_is_unknown(
    words: list[str], host: str, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4 and one line, never an empty answer that looks like a good one."""
    fill_store(fleet, tmp_path / "store", [("web-1", b"core")])

    ran = Commands(tmp_path / "store", fleet, capsys)(*words, "--host", host)

    assert (ran.code, ran.out) == (4, "")
    assert ran.err.splitlines() == [f"securecore: no host {host} in this store", "  hint: it has web-1.hosts.test.example"]

"""How a dump is found by a part of its id."""

from pathlib import Path

import pytest

from securecore.errors import NotFoundError, StorageError
from securecore.names import DumpId, HostName
from securecore.store.layout import Place, Store
from securecore.store.lookup import find_candidates, find_dump
from tests.support.dumps import WEB, dump_id

DB = HostName("db-2.hosts.test.example")


def plant_dump(store: Store, identifier: DumpId, host: HostName = WEB, place: Place = Place.HOSTS) -> Path:
    path = Path(store.path) / place.value / str(host) / str(identifier)
    path.mkdir(parents=True, mode=0o700)
    return path


def test_find_by_beginning_and_end(store: Store) -> None:
    """A dump is found by any beginning or end of its id that only it has, hyphens or not, in either case."""
    plant_dump(store, dump_id(0xABCDEF12))
    plant_dump(store, dump_id(0x12345678), DB, Place.INCOMING)
    wanted = (WEB, dump_id(0xABCDEF12))
    text = str(wanted[1])
    for part in (text, text.upper(), text.replace("-", ""), "abcdef12", "ef12", text[:13], f" {text[-13:]} "):
        assert find_dump(store, part) == wanted
    assert find_dump(store, "5678") == (DB, dump_id(0x12345678))
    assert find_dump(store, "5678", DB) == (DB, dump_id(0x12345678))


def test_find_tells_candidates(store: Store) -> None:
    """A text that several dumps answer to is refused with the candidates; one that none answers to, too."""
    for number in range(12):
        plant_dump(store, dump_id(number))
    plant_dump(store, dump_id(3), DB)
    with pytest.raises(NotFoundError, match="'0' means") as raised:
        find_dump(store, "0")
    assert str(raised.value.hint).count("hosts.test.example") == 3
    with pytest.raises(NotFoundError, match="means 2 dumps"):
        find_dump(store, str(dump_id(3)))
    assert find_dump(store, str(dump_id(3)), DB) == (DB, dump_id(3))
    for text in ("", "-", "zz", "../..", "ffff", "a" * 1000):
        with pytest.raises(NotFoundError, match="has an id that begins or ends"):
            find_dump(store, text)


def test_a_dump_in_both_places_is_one(store: Store) -> None:
    """A dump that is found published and coming in is not ambiguous."""
    plant_dump(store, dump_id(1))
    plant_dump(store, dump_id(1), place=Place.INCOMING)
    assert find_dump(store, str(dump_id(1))) == (WEB, dump_id(1))


@pytest.mark.parametrize("place", [Place.HOSTS, Place.INCOMING])
def test_what_stands_in_one_hosts_place_hides_no_other_hosts_dump(place: Place, store: Store) -> None:
    """Only what is not found is told with it: it may be there."""
    plant_dump(store, dump_id(1))
    (Path(store.path) / place.value).mkdir(exist_ok=True)
    (Path(store.path) / place.value / str(DB)).touch()

    assert find_dump(store, str(dump_id(1))) == (WEB, dump_id(1))
    with pytest.raises(StorageError, match="not a directory"):
        find_dump(store, "ffff")
    with pytest.raises(StorageError, match="not a directory"):
        find_dump(store, str(dump_id(1)), DB)


def test_a_short_beginning_is_looked_up_once_for_each_dump(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are compared as keys, not each with all those before it."""
    names = [str(dump_id(number)) for number in range(500)]
    compared = []
    real = DumpId.__eq__

    def equal(ours: DumpId, other: object) -> bool:
        compared.append(other)
        return real(ours, other)

    monkeypatch.setattr(store, "hosts_in", lambda place: [WEB])
    monkeypatch.setattr(store, "dump_names", lambda place, host: names)
    monkeypatch.setattr(DumpId, "__eq__", equal)

    assert len(find_candidates(store, "0").dumps) == len(names)
    assert len(compared) <= 2 * len(names)

"""Files and words of the machine itself: settings, spool, ledger, the control socket, names."""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from securecore import limits, plain_json
from securecore.dump.manifest import OUTCOMES
from securecore.errors import BrokenError, ConfigError, PeerError, StorageError
from securecore.identity import host_from_operator
from securecore.merkle import Frontier
from securecore.names import Address, DumpId, HostName, NameRefused, StoreId
from securecore.pki.directory import open_pki
from securecore.pki.ledger import Ledger, _digest
from securecore.receiver.control import _read_request
from securecore.sender import storm_limits
from securecore.sender.admission import EXCLUDE, Admission, Rule
from securecore.sender.buckets import Bounds, Bucket, State
from securecore.sender.configuration import SenderConfiguration, parse_configuration
from securecore.sender.confinement import IDLE, Confinement
from securecore.sender.floor import Floor
from securecore.sender.schedule import Hope, Missed, Schedule, parse_schedule
from securecore.sender.settings import LocalSettings, Settings, load_local_settings, load_settings
from securecore.sender.spool import Spool, create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from securecore.sender.spool_limits import SpoolLimits
from tests.fuzz.files import file_of, scratch
from tests.fuzz.target import Target, check_begins, check_words
from tests.support.dumps import dump_id
from tests.support.wire import STORE

_RECEIVERS: Final = (Address("collector.example.org:4455"), Address("[fe80::1%eth0]:1"))


def check_settings(data: bytes) -> None:
    """The handler's settings are refused, or every field is of its type and they come back as they were compiled."""
    _check_json(data)
    _check_local_settings(data)
    try:
        settings = load_settings(f"/proc/self/fd/{file_of(data)}")
    except ConfigError:
        return
    assert settings.receivers
    assert all(type(address) is Address for address in settings.receivers)
    assert type(json.loads(data)["receivers"]) is list
    assert settings.identity[0] == settings.spool[0] == "/"
    # setresuid(2) takes 32 bits and means "unchanged" by the largest; root is refused where privileges are dropped.
    assert all(type(number) is int and 0 <= number < (1 << 32) - 1 for number in (settings.uid, settings.gid))
    for path in (settings.identity, settings.spool):
        assert b"\0" not in os.fsencode(path)
    assert load_settings(f"/proc/self/fd/{file_of(settings.encode())}") == settings


def _check_json(data: bytes) -> None:
    """It is JSON by ours where it is by the standard library's in UTF-8, and then the same."""
    found = [_read_json(plain_json.parse, data), _read_json(lambda data: json.loads(data.decode("utf-8")), data)]
    assert found[0] == found[1]


def _read_json(read: Callable[[bytes], object], data: bytes) -> str | None:
    try:
        return repr(read(data))
    except (ValueError, RecursionError):
        return None


def _check_local_settings(data: bytes) -> None:
    try:
        settings = load_local_settings(f"/proc/self/fd/{file_of(data)}")
    except ConfigError:
        return
    assert load_local_settings(f"/proc/self/fd/{file_of(settings.encode())}") == settings


def settings_seeds() -> Iterator[bytes]:
    """Settings as setup compiles them, and with other types."""
    good = Settings(_RECEIVERS, "/etc/securecore/identity", "/var/lib/securecore/spool", 990, 991, "whole")
    yield good.encode()
    yield good._replace(confinement=Confinement(0, IDLE, 1 << 30, 90)).encode()
    yield good._replace(spool_limits=SpoolLimits(20 << 30, 200, 0.125, 1 << 30)).encode()
    yield LocalSettings(floor=Floor(0.0, 1 << 30)).encode()
    yield LocalSettings(Admission("ignore", 1 << 30, (Rule(EXCLUDE, "/opt/*", "33", signal=6),))).encode()
    fields = json.loads(good.encode())
    yield from (json.dumps(fields | other).encode() for other in _OTHER_SETTINGS)


_OTHER_SETTINGS: Final[tuple[dict[str, object], ...]] = (
    {"uid": -1}, {"uid": 1 << 32}, {"gid": True}, {"receivers": {"a:1": 0}}, {"receivers": "a:1"}, {"spool": "/\ud800"},
    {"confinement": {"nice": 1e9}}, {"confinement": {"io_priority": []}}, {"confinement": {"deadline_s": float("nan")}},
)  # fmt: skip


def check_configuration(data: bytes) -> None:
    """A sender.toml is refused with its name, or what it says can be written and read again."""
    try:
        configuration = parse_configuration(data, "sender.toml")
    except ConfigError as error:
        check_words(error)
        check_begins(error, "sender.toml")
        return
    assert parse_configuration(configuration.encode(), "sender.toml") == configuration
    for path in (configuration.identity, configuration.spool):
        assert os.path.normpath(path) == path
        assert path.startswith("/")
    assert not configuration.user.startswith(("0:", "root"))


def configuration_seeds() -> Iterator[bytes]:
    """Files as setup writes them, and every type of TOML."""
    yield SenderConfiguration(_RECEIVERS, "/etc/securecore/identity").encode()
    yield SenderConfiguration(_RECEIVERS, "/é", "/a/b", "990:990", "whole").encode()
    yield SenderConfiguration(_RECEIVERS, "/i", confinement=Confinement(0, IDLE, 1 << 30, 90)).encode()
    yield SenderConfiguration(_RECEIVERS, "/i", spool_limits=SpoolLimits(20 << 30, 200, 0.005, 1 << 30)).encode()
    yield b"version = 1\nreceivers = [\"a:1\"]\nidentity = '/i'\n[later]\nx.y = {a = 1, b = [inf, 0x1f, 1979-05-27T07:32:00Z]}\n"
    yield b"version = " + b"1" * 5000
    yield b"version = " + b"[" * 4000
    yield b"version = 0b1\nreceivers = ['''[::1]:1''']\nidentity = \"/\\u00e9\"\nspool = '/s'\nuser = 'core_1'\n"


_DUMP: Final = dump_id(1)


@cache
def _spool() -> tuple[Spool, Path]:
    """Return a spool with one entry, and the entry's directory."""
    path = scratch("spool") / "spool"
    create_spool(str(path), bytes(16))
    spool = open_spool(str(path))
    spool.begin(EntryStart(_DUMP, 1, None, Frontier()), b"{}").close()
    return spool, path / "dumps" / str(_DUMP)


def check_spool(data: bytes) -> None:
    """A spool's files are refused, or say what its writer could have said of this dump.

    The first byte says which file the rest is: entry.json, end.json, receipts.jsonl, FORMAT, schedule.json or storms.json.
    """
    if not data:
        return
    spool, directory = _spool()
    kind, content = data[0] % 6, data[1:]
    if kind == 0:
        _check_start(spool, directory, content)
    elif kind == 1:
        _check_end(spool, directory, content)
    elif kind == 2:
        (directory.parents[1] / "receipts.jsonl").write_bytes(content)
        with suppress(BrokenError):
            assert all(type(line) is dict for line in spool.receipts())
    elif kind == 3:
        _check_format(directory.parents[1], content)
    elif kind == 4:
        _check_schedule(content)
    else:
        _check_storms(content)


def _check_start(spool: Spool, directory: Path, content: bytes) -> None:
    kept = (directory / "entry.json").read_bytes()
    (directory / "entry.json").write_bytes(content)
    try:
        entry = spool.entry(_DUMP)
    except BrokenError:
        return
    finally:
        (directory / "entry.json").write_bytes(kept)
    assert entry is not None
    start = entry.start
    entry.close()
    assert start.dump == _DUMP
    assert type(start.started_at) is int
    assert 0 <= start.started_at < 1 << 63
    assert start.store is None or type(start.store) is StoreId
    assert type(start.frontier.size) is int
    assert len(start.frontier.peaks) == start.frontier.size.bit_count()
    start.frontier.root()


def _check_end(spool: Spool, directory: Path, content: bytes) -> None:
    (directory / "end.json").write_bytes(content)
    entry = spool.entry(_DUMP)
    assert entry is not None
    try:
        end = entry.end()
    except BrokenError:
        return
    finally:
        entry.close()
    assert end is not None
    numbers = [end.size, end.ended_at] + ([end.predicted_size] if end.predicted_size is not None else [])
    assert all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
    assert end.outcome in OUTCOMES


def _check_format(path: Path, content: bytes) -> None:
    kept = (path / "FORMAT").read_bytes()
    (path / "FORMAT").write_bytes(content)
    try:
        open_spool(str(path)).close()
        assert content.split(b"\n")[0] == b"securecore-spool 1"
    except (ConfigError, StorageError):
        pass
    finally:
        (path / "FORMAT").write_bytes(kept)


def _check_schedule(content: bytes) -> None:
    try:
        schedule = parse_schedule(content)
    except BrokenError:
        return
    assert schedule.encode() == content
    now = max(schedule.not_before, schedule.asked_until)
    assert schedule.is_due(now)
    assert parse_schedule(schedule.after_failure(now, 5, 0.5).encode()).not_before <= now + limits.MAX_RETRY_AFTER_S
    for store, missed in schedule.missed:
        assert 0 <= schedule.missing_s(store, missed.looked_at + 7) - missed.seconds <= 7
    assert schedule.knowing([]).hope is None
    if schedule.hope is not None:
        # The same once more is no progress, however often it is hoped for.
        hoping, has_grown = schedule.hoping(schedule.hope)
        assert not has_grown
        assert hoping == parse_schedule(hoping.encode()) == schedule._replace(hope=schedule.hope._replace(is_vain=True))


def _check_storms(content: bytes) -> None:
    try:
        state = State.parse(content)
    except ValueError:
        return
    assert State.parse(state.encode()).encode() == state.encode()
    counted, admission = _suppressed(state), Admission()
    bounds, waiting = Bounds(admission.program, admission.user, admission.host), sum(state.waiting()[:-1])
    verdict = state.admit("8:1", "33", bounds, 1_795_338_900_000)
    told = verdict.untaken._replace(declined=0, lost=0, skipped_by_kernel=0, untaken_since=0)
    assert counted + 1 == _suppressed(state) + (1 + sum(told) if verdict.limit is None else 0)
    if verdict.limit is None:
        state.lose("8:1", "33", bounds, verdict.untaken, 1_795_338_900)
    assert sum(state.waiting()[:-1]) == waiting + 1
    state.used_up(bounds, 1_795_338_900_000)
    assert len(state.programs.keys() - {"*"}) <= storm_limits.MAX_STORM_PROGRAMS


def _suppressed(state: State) -> int:
    buckets = (*state.programs.values(), *state.users.values(), state.host)
    return state.others + sum(bucket.suppressed for bucket in buckets)


def spool_seeds() -> Iterator[bytes]:
    """The files of a spool, of a whole dump and of a tail."""
    _, directory = _spool()
    yield b"\0" + (directory / "entry.json").read_bytes()
    peaks = {"first_frame": 3, "peaks": ["00" * 32, "ff" * 32]}
    tail = {"version": 1, "dump": str(_DUMP), "started_at": 5, "store": str(STORE), **peaks}
    yield b"\0" + json.dumps(tail, separators=(",", ":")).encode()
    yield b"\1" + json.dumps(EntryEnd(1, None, "complete", 2)._asdict()).encode()
    yield b"\1" + EntryEnd(1, None, "complete", 2, 1, bytes(32)).encode()
    yield b"\1" + json.dumps(EntryEnd(1 << 40, 1 << 41, "source-truncated", 2)._asdict()).encode()
    yield b'\2{"dump": "a"}\n{"gone": true}\n{"torn'
    yield b"\3" + (directory.parents[1] / "FORMAT").read_bytes()
    schedule = Schedule(3, 1_795_338_900, ((STORE, Missed(5, 7)),), 1_795_338_800, _DUMP)
    yield b"\4" + schedule.encode()
    yield b"\4" + schedule._replace(hope=Hope(_DUMP, STORE, 3, 4096, True)).encode()
    state = State()
    state.programs, state.users = {"8:1": Bucket(1_795_338_900_000, 3_000_000, 7, 1_795_338_900)}, {"33": Bucket(1, 2, 0, 0)}
    state.host = Bucket(1_795_338_900_000, 30_000, 2, 1_795_338_900)
    state.boot, state.record, state.declined, state.lost, state.since = "0f8d", 852, 3, 2, 5
    yield b"\5" + state.encode()


def check_ledger(data: bytes) -> None:
    """A ledger is refused with the number of a line, or replayed the same way twice.

    Each line of the input that is a JSON object gets the number and digest that make it follow the one before.
    """
    path = scratch("ledger") / "ledger.jsonl"
    lines: list[bytes] = []
    for line in data.split(b"\n"):
        with suppress(ValueError, RecursionError):
            fields = json.loads(line)
            if isinstance(fields, dict):
                previous = _digest(lines[-1]) if lines else "0" * 64
                line = json.dumps(fields | {"seq": len(lines) + 1, "prev": previous}).encode()
        lines.append(line)
    path.write_bytes(b"\n".join(lines))
    try:
        state = Ledger(path).read()
    except BrokenError as error:
        check_words(error)
        check_begins(error, f"{path}: line ")
        return
    assert Ledger(path).read() == state
    # What follows the last newline was never acknowledged.
    assert len(state.issued) + len(state.crls) < len(lines)


def ledger_seeds() -> Iterator[bytes]:
    """Every event."""
    head = '{"time": "2026-11-22T09:14:22Z", "event": "%s", %s}'
    issue = '"serial": "%s", "profile": "host", "names": ["a.b"], "addresses": [], "not_before": "2026-11-22T09:14:22Z", '
    issue += '"not_after": "2027-11-22T09:14:22Z", "issuer": "1", "fingerprint": "ff"'
    crl = '"issuer": "1", "number": 7, "this_update": "2026-11-22T09:14:22Z", "next_update": "2027-11-22T09:14:22Z"'
    revoke = '"serial": "a1", "reason": "superseded"'
    events = [("create", '"id": "x"'), ("issue", issue % "a1"), ("issue", issue % "a2"), ("revoke", revoke), ("crl", crl)]
    lines = [head % pair for pair in [*events, ("discard", '"serial": "a2"'), ("later", '"x": 1')]]
    yield "\n".join([*lines, ""]).encode()
    yield from ("\n".join([lines[1], line, ""]).encode() for line in lines[2:])


def check_pki_settings(data: bytes) -> None:
    """A PKI's pki.toml and FORMAT are refused, or name an organisation and a domain.

    The first byte says which file the rest is.
    """
    if not data:
        return
    path = scratch("pki")
    (path / "FORMAT").write_bytes(data[1:] if data[0] % 2 else _PKI_FORMAT)
    (path / "pki.toml").write_bytes(_PKI_SETTINGS if data[0] % 2 else data[1:])
    try:
        pki = open_pki(path)
    except ConfigError as error:
        check_words(error)
        check_begins(error, str(path))
        return
    assert type(pki.organisation) is type(pki.domain) is str


_PKI_FORMAT: Final = f"securecore-pki 1\n{STORE}\n".encode()
_PKI_SETTINGS: Final = b'version = 1\norganisation = "Test"\ndomain = "hosts.test.example"\n'


def pki_settings_seeds() -> Iterator[bytes]:
    """Both files."""
    yield b"\0" + _PKI_SETTINGS
    yield b"\0version = " + b"1" * 5000
    yield b"\0version = " + b"[" * 4000
    yield b"\0version = 1\norganisation = [1, {a = 2024-01-01}]\ndomain = 1e9\n"
    yield b"\1" + _PKI_FORMAT


def check_control_request(data: bytes) -> None:
    """A request on the control socket is refused, or is the JSON object that stands in the first bytes that are read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        try:
            request = _read_request(theirs)
        except PeerError as error:
            check_words(error)
            return
    assert type(request) is dict
    assert json.loads(data[:4096]) == request or data[:1] != b"{" or b"NaN" in data


def control_request_seeds() -> Iterator[bytes]:
    """Requests as commands send them, and longer ones."""
    yield json.dumps({"verb": "extract", "host": "a.b", "dump": str(_DUMP)}).encode() + b"\n"
    yield b'{"verb": ["a"], "host": {"x": 1.5}}'
    yield b"[" * 3000
    yield b'{"a": "' + b"x" * 4090


_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{3,253}}\Z)(?:{_LABEL}\.)+(?![0-9]+\Z){_LABEL}")


def check_names(data: bytes) -> None:
    """A text is refused by every name's constructor, or is that name in its one spelling: no path leads out of a directory."""
    text = data.decode("utf-8", "surrogateescape")
    assert (_spelling_of(HostName, text) == text) == (_HOST.fullmatch(text) is not None)
    for parse in (DumpId.parse, StoreId.parse):
        assert _spelling_of(parse, text) in (None, text)
    address = _spelling_of(Address, text)
    if address is not None:
        assert _spelling_of(Address, address) == address
        assert not set(address) & set("/\\ \0\n\x1b")
    folded = _spelling_of(lambda words: host_from_operator(words, "example.org"), text)
    if folded is not None:
        assert text.isascii()
        assert folded in (text.strip().lower(), text.strip().lower() + ".example.org")


def _spelling_of(make: "object", text: str) -> str | None:
    try:
        return str(make(text))  # type: ignore[operator]
    except NameRefused as error:
        check_words(error)
        return None


def name_seeds() -> Iterator[bytes]:
    """Names of every kind."""
    hosts = ("web-1.example.org", "web-1", "a.b", "WEB.example.org", "x" * 63 + ".org", "1.2.3.4", "xn--e9j.example")
    yield from (text.encode() for text in (*hosts, str(_DUMP), str(STORE)))
    yield from (str(address).encode() for address in _RECEIVERS)
    yield b"192.0.2.1:65535"


SETTINGS = Target(
    check_settings, settings_seeds,
    ("sender.settings.load_settings", "sender.settings.load_local_settings", "plain_json.parse"), is_json=True,
)  # fmt: skip
CONFIGURATION = Target(
    check_configuration, configuration_seeds, ("sender.configuration.parse_configuration", "toml_table.parse_toml"), 8192
)  # fmt: skip
SPOOL = Target(
    check_spool, spool_seeds,
    ("sender.spool.Spool.entry", "sender.spool_entry.SpoolEntry.end", "sender.spool_entry.parse_end",
     "sender.spool_entry.parse_start", "sender.spool_entry.decode", "sender.spool.Spool.receipts", "sender.spool.open_spool",
     "sender.schedule.parse_schedule", "sender.buckets.State.parse"),
    is_json=True,
)  # fmt: skip
LEDGER = Target(check_ledger, ledger_seeds, ("pki.ledger.Ledger.read",), is_json=True)
PKI_SETTINGS = Target(check_pki_settings, pki_settings_seeds, ("pki.directory.open_pki",), 8192)
CONTROL_REQUEST = Target(check_control_request, control_request_seeds, ("receiver.control._read_request",), 6000, is_json=True)
NAMES = Target(
    check_names, name_seeds,
    ("names.HostName", "names.Address", "names.DumpId.parse", "names.StoreId.parse", "identity.host_from_operator"), 512,
)  # fmt: skip

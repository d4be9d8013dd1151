"""R9 and R10: whatever somebody plants where we read or write, it is not followed, not written, not waited for.

Each world does its work once in a place of its own, and so tells which paths it uses. Then it does the same work again for each of
these paths and each thing that can be planted there beforehand.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import extracted_entry
from securecore.audit.log import HostLogs
from securecore.cli import core_pattern
from securecore.dump.compression import Compressor
from securecore.errors import SecurecoreError
from securecore.merkle import Frontier
from securecore.names import DumpId, HostName
from securecore.pki.creation import create_pki
from securecore.pki.directory import open_pki
from securecore.pki.issue import issue_host
from securecore.pki.keys import make_log_key
from securecore.pki.revocation import revoke_name
from securecore.receiver.control import ControlServer
from securecore.receiver.presence import Presence
from securecore.sender.schedule import read_schedule, write_schedule
from securecore.sender.spool import create_spool, open_spool
from securecore.sender.spool_entry import EntryEnd, EntryStart
from securecore.store.catalogue import open_catalogue
from securecore.store.crls import CrlArchive, CrlFile
from securecore.store.layout import create_store, open_store
from securecore.store.writer import IncomingDump
from tests.support.certificates import DOMAIN, no_passphrase

DUMP: Final = DumpId.make(1, bytes(10))
HOST: Final = HostName(f"web-1.{DOMAIN}")
FRAME: Final = Compressor().frame(b"core")
CRL: Final = CrlFile.of(b"revocation lists")
NOW: Final = datetime(2026, 11, 24, 7, tzinfo=UTC)
PRECIOUS: Final = b"precious"


class World(NamedTuple):
    """Work in a directory: what is there before it, the work, and paths that it uses and does not leave behind."""

    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    passing: Sequence[str] = ()


def use_spool(place: Path) -> None:
    """Keep a dump and a receipt."""
    spool = open_spool(str(place / "spool"))
    entry = spool.begin(EntryStart(DUMP, 1, None, Frontier()), b"{}")
    entry.append(FRAME)
    entry.finish(EntryEnd(4, None, "complete", 1))
    entry.close()
    spool.keep_receipt({"dump": str(DUMP)})
    spool.sweep(NOW.timestamp())


def make_used_spool(place: Path) -> None:
    """Make a spool with a dump in it that was not finished."""
    create_spool(str(place / "spool"), bytes(16))
    open_spool(str(place / "spool")).begin(EntryStart(DUMP, 1, None, Frontier()), b"{}").close()


def deliver_from_spool(place: Path) -> None:
    """Take a dump from the spool as a flush does, and end it."""
    spool = open_spool(str(place / "spool"))
    entry = next(map(spool.entry, spool.dump_ids()), None)
    if entry is not None:
        entry.append(FRAME)
        entry.finish(EntryEnd(4, None, "complete", 1))
        entry.reader()
        entry.end()
        entry.close()
    list(spool.receipts())
    write_schedule(spool.fd, read_schedule(spool.fd).after_failure(NOW.timestamp(), 0, 1.0))


def use_store(place: Path) -> None:
    """Receive, log, publish, list, and answer on the control socket."""
    with open_store(str(place / "store")) as store:
        lock = store.lock()
        logs = HostLogs(LogSigner("collector/securecore", make_log_key()), lambda host: store.audit_directory(host, create=True))
        try:
            store.put_log_key(b"statement", b"anchors")
            CrlArchive(store).keep(CRL)
            control = ControlServer(store, logs, Presence(), lambda: NOW)
            control.start()
            control.close(10)
            incoming = IncomingDump.begin(store, HOST, DUMP, b"{}")
            try:
                incoming.append(FRAME, 4)
                incoming.sync()
                incoming.finish(b"manifest")
                with logs.using(HOST) as log:
                    incoming.put_receipt(log.append(extracted_entry(NOW, DUMP, HOST, uid=0, user=None)))
                incoming.publish()
            finally:
                incoming.close()
            with open_catalogue(store) as catalogue:
                catalogue.reconcile()
        finally:
            logs.close()
            lock.close()


def make_pki(place: Path) -> None:
    """Make a PKI."""
    create_pki(place / "pki", "Test", DOMAIN, None, NOW)


def use_pki(place: Path) -> None:
    """Issue a certificate and take it back."""
    pki = open_pki(place / "pki")
    issue_host(pki, HOST, place / "identity", no_passphrase, NOW)
    revoke_name(pki, HOST, "keyCompromise", no_passphrase, NOW)


def borrow_pattern(place: Path) -> None:
    """Borrow a core_pattern; not the machine's, a file beside the place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_pattern, "_LOCK", str(place / "lock"))
        for name in ("CORE_PATTERN", "CORE_PIPE_LIMIT"):
            file = place.with_name(f"{place.name}.{name}")
            file.write_text("0\n")
            patch.setattr(core_pattern, name, file)
        with core_pattern.borrowed("|/nowhere"):
            pass


WORLDS: Final = {
    "making a spool": World(
        lambda place: None, lambda place: create_spool(str(place / "spool"), bytes(16)), ("spool/.FORMAT.new",)
    ),
    "keeping in a spool": World(
        lambda place: create_spool(str(place / "spool"), bytes(16)), use_spool, (f"spool/dumps/.{DUMP}.new",)
    ),
    "delivering from a spool": World(
        make_used_spool, deliver_from_spool, (f"spool/dumps/{DUMP}/.end.json.new", "spool/.schedule.json.new")
    ),
    "making a store": World(
        lambda place: None, lambda place: create_store(str(place / "store"), bytes(16)).close(), ("store/.FORMAT.new",)
    ),
    "receiving": World(
        lambda place: create_store(str(place / "store"), bytes(16)).close(),
        use_store,
        (
            "store/control.sock", f"store/incoming/{HOST}", f"store/incoming/{HOST}/{DUMP}", "store/.log-key.jws.new",
            "store/catalogue.sqlite-wal", "store/catalogue.sqlite-shm", "store/catalogue.sqlite-journal",
            f"store/audit/{HOST}/.checkpoint.new", f"store/crls/.{CRL.sha256}.pem.new",
        ),
    ),
    "making a PKI": World(lambda place: None, make_pki, (".pki.securecore-partial",)),
    "issuing and revoking": World(
        make_pki, use_pki, (".identity.securecore-partial", "pki/.crl.pem.new", "pki/hosts/.crl.pem.new")
    ),
    "borrowing core_pattern": World(lambda place: None, borrow_pattern),
}  # fmt: skip


def paths_in(place: Path) -> set[str]:
    """Return what is below *place*."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}


@pytest.fixture(scope="module")
def predictable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The paths that each world uses whenever it works: those that are the same in two places."""
    found = {}
    for name, world in WORLDS.items():
        seen = []
        for _ in range(2):
            place = tmp_path_factory.mktemp("once")
            world.prepare(place)
            world.work(place)
            seen.append(paths_in(place))
        found[name] = sorted((seen[0] & seen[1]) | set(world.passing))
    return found


def plant_link(path: Path, target: Path) -> None:
    """A symbolic link to a file with content."""
    path.symlink_to(target / "file")


def plant_directory_link(path: Path, target: Path) -> None:
    """A symbolic link to somebody's directory."""
    path.symlink_to(target)


def plant_dangling_link(path: Path, target: Path) -> None:
    """A symbolic link to a file that is not there yet."""
    path.symlink_to(target / "new")


def plant_hard_link(path: Path, target: Path) -> None:
    """Another name of a file with content."""
    os.link(target / "file", path)


def plant_empty_hard_link(path: Path, target: Path) -> None:
    """Another name of an empty file."""
    os.link(target / "empty", path)


def plant_fifo(path: Path, target: Path) -> None:
    """A FIFO that nobody writes to or reads from."""
    os.mkfifo(path)


def plant_directory(path: Path, target: Path) -> None:
    """A directory that holds something."""
    path.mkdir()
    (path / "kept").write_bytes(PRECIOUS)


PLANTS: Final = (
    plant_link, plant_directory_link, plant_dangling_link, plant_hard_link, plant_empty_hard_link, plant_fifo, plant_directory,
)  # fmt: skip


def fingerprint(target: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return what there is to know of what a plant leads to: kinds, modes, owners and contents."""
    return {
        str(path): (
            path.stat().st_mode,
            path.stat().st_uid,
            path.stat().st_gid,
            sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [target, *target.rglob("*")]
    }


@pytest.fixture
def impatient() -> Iterator[None]:
    """Ends a test that waits for a FIFO's other end."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError("it waits for whoever planted the FIFO")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", WORLDS)
def test_what_is_planted_is_refused_and_what_it_leads_to_is_untouched(
    name: str, plant: Callable[[Path, Path], None], predictable: dict[str, list[str]], tmp_path: Path
) -> None:
    """At every path the work ends in words or as if nothing were planted; nothing behind a link changes; nobody waits."""
    world, wrong = WORLDS[name], []
    for number, path in enumerate(predictable[name]):
        place, target = tmp_path / str(number), tmp_path / f"target-{number}"
        for directory in (place, target):
            directory.mkdir(mode=0o755)
        (target / "file").write_bytes(PRECIOUS)
        (target / "empty").write_bytes(b"")
        world.prepare(place)
        planted = place / path
        planted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(planted) if planted.is_dir() else planted.unlink(missing_ok=True)
        plant(planted, target)
        before = fingerprint(target)
        try:
            world.work(place)
        except SecurecoreError:
            pass  # Most are refused; what the work does not come to, or replaces, is not in its way.
        if fingerprint(target) != before:
            wrong.append(path)

    assert wrong == []
    assert len(predictable[name]) > 0

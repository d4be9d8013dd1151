"""What can be wrong with a receiver: configuration, unit, identity, revocation lists, store, logs, and whether one runs."""

import os
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from securecore.audit.statement import read_stated_key, read_stated_name
from securecore.audit.succession import parse_history
from securecore.audit.wide_log import check_log
from securecore.certs.revocation import RevocationLists
from securecore.cli import evidence, terminal
from securecore.cli.checkup.findings import Finding, attempt, ok, warning, wrong
from securecore.cli.checkup.shared import certificate_finding, room_finding
from securecore.cli.checkup.timers import Timer, check_timer
from securecore.cli.checkup.vacuum import check_vacuum
from securecore.cli.machine import plan, receiver, trust, users
from securecore.cli.machine.enrolment import is_enrolled
from securecore.cli.machine.interpreter import find_interpreter
from securecore.cli.machine.root import Root
from securecore.errors import BrokenError, NotFoundError, SecurecoreError, StorageError
from securecore.receiver import fetch_timer, installation
from securecore.receiver.configuration import ConfigurationRefused, ReceiverConfiguration, parse_receiver_configuration
from securecore.sender.floor import Floor
from securecore.store.layout import LOCK, Store, open_store

SETUP: Final = "securecore setup receiver --listen ADDR:PORT"
START: Final = f"systemctl enable --now {os.path.basename(installation.SERVICE).removesuffix('.service')}"


class Places(NamedTuple):
    """Where a receiver has its things."""

    store: str
    identity: str
    unit: bytes | None = None
    user: str | None = None
    """Of a unit only."""


def is_set_up(root: Root) -> bool:
    """Return whether anything of a receiver's set-up is here."""
    places = (installation.CONFIGURATION, installation.SERVICE, plan.state_path("receiver"))
    return any(root.status(path) is not None for path in places)


def check_receiver(root: Root, now: datetime, store: str | None, identity: str | None) -> Iterator[Finding]:
    """Yield what is found; changes nothing. *store* and *identity* are looked at in the place of those that the file names."""
    said = ReceiverConfiguration()
    if is_set_up(root):
        try:
            said = _read_configuration(root)
        except ConfigurationRefused as error:
            yield from (wrong("configuration", mistake.message, mistake.hint) for mistake in error.mistakes)
            return
        except SecurecoreError as error:
            yield wrong("configuration", error.message, error.hint)
            return
        yield from attempt("configuration", lambda: _configuration(said, root))
    unit = root.find(installation.SERVICE)
    places = Places(
        store or said.store, identity or said.identity,
        unit.content if unit is not None else None, receiver.find_service_user(root),
    )  # fmt: skip
    if places.unit is not None:
        yield from attempt("unit", lambda: _unit(places, said, root))
    if is_set_up(root):
        yield from attempt("vacuum timer", lambda: check_vacuum(said, places.user, root))
    yield from attempt("identity", lambda: _identity(places, root, now))
    yield from attempt("fetch timer", lambda: _fetch_timer(places, root))
    floor = Floor(said.policy.floor.share, said.policy.floor.free_bytes)
    yield from attempt("store", lambda: _store(places, floor, root))


def _read_configuration(root: Root) -> ReceiverConfiguration:
    place, found = root.outside(installation.CONFIGURATION), root.find(installation.CONFIGURATION)
    if found is None:
        raise NotFoundError(f"{place} is missing", hint=SETUP)
    return parse_receiver_configuration(found.content, place)


def _configuration(said: ReceiverConfiguration, root: Root) -> Iterator[Finding]:
    place = root.outside(installation.CONFIGURATION)
    warnings = trust.check_trusted(installation.CONFIGURATION, root, "configuration")
    if said.listen:
        yield ok("configuration", f"{place}, listens on {' '.join(map(str, said.listen))}")
    else:
        yield wrong("configuration", f"{place} names no address to listen on", SETUP)
    for words in warnings:
        yield warning("configuration", words)


def _unit(places: Places, said: ReceiverConfiguration, root: Root) -> Iterator[Finding]:
    place = root.outside(installation.SERVICE)
    if places.user is None:
        yield wrong("unit", f"{place}: not a unit that set-up has written", SETUP)
    elif places.unit != receiver.unit_of(said, places.user, find_interpreter()):
        words = f"{place} is not what this installation writes for {root.outside(installation.CONFIGURATION)}"
        yield warning("unit", words, "securecore setup receiver, and then systemctl restart securecore-receiver")
    else:
        yield ok("unit", f"{place}, as {places.user}")


def _identity(places: Places, root: Root, now: datetime) -> Iterator[Finding]:
    material, warnings = receiver.load_own(places.identity, root, now)
    yield certificate_finding("identity", material.own, now, f"securecore pki issue receiver {material.own.name} --out IDENTITY")
    for words in warnings:
        yield warning("identity", words)
    yield from _revocation(material.revocation, root.outside(f"{places.identity}/crl.pem"), now)


def _fetch_timer(places: Places, root: Root) -> Iterator[Finding]:
    """What fetches the lists of a receiver that knows of an enroller."""
    if places.user is None or not is_enrolled(places.identity, root):
        return
    service, timer = receiver.fetch_units(places.identity, places.user, find_interpreter())
    units = {fetch_timer.SERVICE: service, fetch_timer.TIMER: timer}
    cost, by_hand = "revoked hosts go on being taken", f"have `securecore pki fetch --identity {places.identity}` run each hour"
    found = Timer("fetch timer", units, fetch_timer.TIMER_LINK, fetch_timer.TIMER, cost, by_hand, "securecore setup receiver")
    yield check_timer(found, root)


def _revocation(lists: RevocationLists, place: str, now: datetime) -> Iterator[Finding]:
    remedy = f"securecore pki crl, where the CA is; copy its crl.pem to {place} and `systemctl reload securecore-receiver`"
    for found in lists.ages(now):
        days = terminal.count(abs(found.days_left), "day")
        words = f"of {found.owner}, {terminal.count(found.age_days, 'day')} old, "
        words += f"{days} left" if found.days_left >= 0 else f"expired {days} ago"
        if found.problem is None:
            yield ok("revocation list", words)
        else:
            yield (wrong if found.days_left < 0 else warning)("revocation list", f"{words}: {found.problem}", remedy)


def _store(places: Places, floor: Floor, root: Root) -> Iterator[Finding]:
    place = root.outside(places.store)
    try:
        store = open_store(place)
    except NotFoundError:
        yield warning("store", f"no store in {place} yet: the receiver makes it when it starts", _start(places))
        return
    with store:
        status, user = os.fstat(store.fd), users.find_user(places.user, root) if places.user and ":" not in places.user else None
        if user is not None and status.st_uid != user.uid:
            yield wrong(
                "store", f"{place} belongs to uid {status.st_uid}, not to {user.name}", f"chown -R {user.uid}:{user.gid} {place}"
            )
        else:
            yield ok("store", f"{place}, id {store.store_id}")
        yield room_finding("store's room", place, floor, "hosts are refused")
        yield _runs(store, root, places)
        yield _log_key(store, root, places)
        yield from attempt("receiver-wide log", lambda: _wide_log(store))


def _start(places: Places) -> str:
    """Return what starts a receiver: the service, or the command where it is none."""
    if places.unit is not None:
        return START
    return f"securecore receive --listen ADDR:PORT --store {shlex.quote(places.store)} --identity {shlex.quote(places.identity)}"


def _runs(store: Store, root: Root, places: Places) -> Finding:
    """Whether a receiver holds the store's lock; to try the lock could keep one from starting, so the kernel's list is read."""
    try:
        status = os.stat(LOCK, dir_fd=store.fd, follow_symlinks=False)
        with open("/proc/locks", encoding="ascii") as locks:
            held = _holder(locks.read(), _lock_device(store.fd), status.st_ino)
    except OSError as error:
        return warning("receiver", f"cannot tell whether one runs: {(error.strerror or '').lower()}")
    if held is not None:
        return ok("receiver", f"runs (pid {held})")
    words = "none runs on this store"
    return wrong("receiver", words, _start(places)) if root.is_live else ok("receiver", words)


def _lock_device(directory: int) -> tuple[int, int]:
    """Return major and minor of a directory's file system, as /proc/locks has them for the files in it.

    Not those of stat(2): btrfs gives each subvolume a number of its own there. /proc/self/mountinfo, like /proc/locks, has the
    superblock's (proc_pid_mountinfo(5)).
    """
    with open(f"/proc/self/fdinfo/{directory}", encoding="ascii") as facts:
        mount = re.search(r"^mnt_id:\s*(\d+)$", facts.read(), re.MULTILINE)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        found = re.search(rf"^{mount.group(1) if mount else '-'} \d+ (\d+):(\d+) ", mounts.read(), re.MULTILINE)
    if found is not None:
        return int(found.group(1)), int(found.group(2))
    device = os.fstat(directory).st_dev
    return os.major(device), os.minor(device)


def _holder(locks: str, device: tuple[int, int], inode: int) -> int | None:
    """Return the pid that holds a flock on a file, by the text of /proc/locks (proc_locks(5)), which has *device* in hex."""
    place = f"{device[0]:02x}:{device[1]:02x}:{inode}"
    found = re.search(rf"^\d+: FLOCK +\w+ +WRITE +(\d+) +{place} ", locks, re.MULTILINE)
    return int(found.group(1)) if found else None


def _log_key(store: Store, root: Root, places: Places) -> Finding:
    ours, kept = root.find(f"{places.identity}/log-key.jws"), store.read_log_key()
    if kept is None:
        return ok("log key", "not in the store yet: the receiver puts it there when it starts")
    if ours is not None and ours.content == kept:
        return ok("log key", "the store's statement is the identity's")
    if ours is not None and (name := read_stated_name(kept)) != read_stated_name(ours.content):
        words = f"the store's logs are of another name, {terminal.printable(name)}, and no receiver starts on it with this identity"
        return wrong("log key", words, "give the receiver the identity of that name, or another store")
    history = root.find(f"{places.identity}/log-keys.jsonl")
    lines = parse_history(history.content) if history is not None else ()
    stated = {read_stated_key(line.statement) for line in lines} | ({read_stated_key(ours.content)} if ours is not None else set())
    if read_stated_key(kept) not in stated:
        words = "the store's logs are signed with another log key than the identity's, and no receiver starts on it with that"
        return wrong("log key", words, f"securecore audit rekey --identity {places.identity} --lost {places.store}")
    words = "the store's log-key.jws is not the identity's any more: that counts from the next reload on"
    return warning("log key", words, "systemctl reload securecore-receiver" if places.unit is not None else "start it anew")


def _wide_log(store: Store) -> Iterator[Finding]:
    """Whether the receiver can go on with the log that tells of a host that was removed whole."""
    if store.read_log_key() is None:
        return  # No receiver has started on it yet.
    remedy = f"securecore audit verify --store {shlex.quote(store.path)}"
    key = evidence.load_log_key(store, evidence.load_anchors(store, None)[0])
    try:
        fd = store.wide_log_directory(create=False)
        try:
            size = check_log(fd, key.name, key.public_key)
        finally:
            os.close(fd)
    except NotFoundError:
        if store.audited_hosts():
            words = "there is none, though there are hosts' logs: it was removed, or the store is from before it"
            yield warning("receiver-wide log", words, remedy)
        else:
            yield ok("receiver-wide log", "none yet: the receiver makes it when it starts")
    except (BrokenError, StorageError) as error:
        words = f"{error.message}; hosts deliver without it, and that a new one was removed would not show"
        yield wrong("receiver-wide log", words, remedy)
    else:
        yield ok("receiver-wide log", f"{terminal.count(size, 'entry')}, as signed")

"""Making a machine a receiver: what must hold before, and the steps."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from securecore.certs import identity_directory
from securecore.certs.judge import Judgement
from securecore.cli.machine import plan, trust, users
from securecore.cli.machine.enrolment import is_enrolled
from securecore.cli.machine.interpreter import Interpreter
from securecore.cli.machine.root import Root
from securecore.cli.machine.steps import GiveFiles, MakeDirectory, MakeLink, RemoveFile, RemoveLink, Step, WriteFile
from securecore.cli.machine.users import User
from securecore.errors import ConfigError, NotFoundError, SecurecoreError
from securecore.names import Address, is_plain_path
from securecore.pki.enrolling import ENROLLER
from securecore.receiver import fetch_timer, installation, vacuum_timer
from securecore.receiver.configuration import ReceiverConfiguration, parse_receiver_configuration
from securecore.receiver.material import Material, load_material

# ProtectHome= and PrivateTmp= of the unit put an empty directory over these.
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108  # named in order to be refused

_IDENTITY_FILES: Final = (
    identity_directory.CA, identity_directory.CERTIFICATE, identity_directory.KEY, identity_directory.CRL,
    identity_directory.LOG_KEY, identity_directory.LOG_STATEMENT, identity_directory.LOG_KEYS, ENROLLER,
)  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """What the command line says; None and empty where it says nothing."""

    listen: tuple[Address, ...]
    store: str | None
    identity: str | None
    incomplete_after: timedelta | None


def read_configuration(wishes: Wishes, root: Root) -> tuple[ReceiverConfiguration, bytes]:
    """Return the configuration, and the bytes of its file: those that a person wrote, unless *wishes* say something else.

    Raises ConfigError when the file is not understood, when there is no address, and when a path is none for a service.
    """
    place, found = root.outside(installation.CONFIGURATION), root.find(installation.CONFIGURATION)
    before = parse_receiver_configuration(found.content, place) if found is not None else None
    current = before or ReceiverConfiguration()
    wanted = current._replace(
        listen=wishes.listen or current.listen,
        store=wishes.store or current.store,
        identity=wishes.identity or current.identity,
        incomplete_after=wishes.incomplete_after or current.incomplete_after,
    )
    if not wanted.listen:
        raise ConfigError(
            f"{place} names no address to listen on yet, and --listen is missing",
            hint="securecore setup receiver --listen 0.0.0.0:4455",
        )
    _check_paths(wanted.store, wanted.identity)
    content = found.content if found is not None and wanted == before else wanted.encode()
    return wanted, content


def find_service_user(root: Root) -> str | None:
    """Return whom the unit that is here runs as, a name or UID:GID; None when there is no unit of ours."""
    found = root.find(installation.SERVICE)
    lines = dict(re.findall(rb"^(User|Group)=([!-~]+)$", found.content, re.MULTILINE)) if found is not None else {}
    if b"User" not in lines:
        return None
    return b":".join(lines[key] for key in (b"User", b"Group") if key in lines).decode("ascii")


def _check_paths(store: str, identity: str) -> None:
    for what, path in (("store", store), ("identity", identity)):
        if not is_plain_path(path):
            raise ConfigError(f"{what} {path!a}: must be an absolute path without `..` and control characters")
        if path.startswith(_HIDDEN):
            raise ConfigError(
                f"{what} {path}: the service sees no home directories and has a /tmp of its own",
                hint="use /var/lib/securecore/store and /etc/securecore/receiver",
            )


def check_identity(identity: str, root: Root, now: datetime) -> tuple[Judgement, list[str]]:
    """Return whom the receiver's identity stands for, and warnings; raises SecurecoreError when it is not fit to receive."""
    material, warnings = load_own(identity, root, now)
    return material.own, warnings + material.revocation.warnings(now)


def load_own(identity: str, root: Root, now: datetime) -> tuple[Material, list[str]]:
    """Return the receiver's material, and warnings about its place; raises SecurecoreError when it is not fit to receive.

    Not checked: the age of the revocation lists.
    """
    place = root.outside(identity)
    warnings = trust.check_trusted(os.path.dirname(identity), root, "identity")
    if root.is_live and not trust.is_reachable(os.path.dirname(identity)):
        raise ConfigError(f"identity {place}: only root can reach it", hint="move it to /etc/securecore/receiver")
    try:
        with _as_owner(place) as path:
            material = load_material(path, now)
    except NotFoundError as error:
        hint = _ISSUE_HINT if root.is_live else f"--identity is a path on the machine that boots from {root.path}"
        raise NotFoundError(error.message, hint=error.hint or hint) from error
    return material, warnings


_ISSUE_HINT: Final = "make one with `securecore pki issue receiver NAME --address ADDRESS --out IDENTITY`, and carry it here"


@contextmanager
def _as_owner(identity: str) -> Iterator[Path]:
    """Be the owner of the identity directory while it is read, and yield a path to it.

    An earlier set-up has given it to the service's user, and private files are believed only from oneself or root. The path leads
    through a descriptor, because that user need not be able to walk to an image's root.
    """
    try:
        fd = os.open(identity, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"{identity}: no identity directory there: {(error.strerror or '').lower()}") from error
    before, owner = (os.geteuid(), os.getegid()), os.fstat(fd)
    path = f"/proc/self/fd/{fd}"
    try:
        if before[0] != 0 or owner.st_uid == 0:
            yield Path(identity)
            return
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield Path(path)
    except SecurecoreError as error:
        error.message = error.message.replace(path, identity)
        raise
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.close(fd)


def receiver_steps(
    configuration: ReceiverConfiguration, content: bytes, user: User, interpreter: Interpreter, root: Root
) -> Sequence[Step]:
    """Return the steps; *content* is the configuration's file.

    Raises ConfigError when the store is another user's, or a path cannot stand in a unit.
    """
    users.check_owner(configuration.store, user, root)
    owner = (user.uid, user.gid)
    steps: list[Step] = [
        MakeDirectory(configuration.store, 0o700, owner, is_ours=True),
        GiveFiles(configuration.identity, _IDENTITY_FILES, owner),
        WriteFile(installation.CONFIGURATION, content),
        WriteFile(installation.SERVICE, unit_of(configuration, _service_user(user, root), interpreter)),
        *_vacuum_steps(configuration, _service_user(user, root), interpreter),
        *_fetch_steps(configuration.identity, _service_user(user, root), interpreter, root),
    ]
    if not (root.is_live or user.is_listed):
        steps.append(WriteFile(installation.SYSUSERS, users.sysusers_file(user)))
    return steps


def _vacuum_steps(configuration: ReceiverConfiguration, user: str, interpreter: Interpreter) -> list[Step]:
    service, timer = vacuum_units(configuration, user, interpreter)
    return [
        WriteFile(vacuum_timer.SERVICE, service),
        WriteFile(vacuum_timer.TIMER, timer),
        MakeLink(vacuum_timer.TIMER_LINK, vacuum_timer.TIMER),
    ]


def _fetch_steps(identity: str, user: str, interpreter: Interpreter, root: Root) -> list[Step]:
    """Return the steps for a timer that fetches where the identity has been fetched to, and takes away ours where it has not."""
    if is_enrolled(identity, root):
        service, timer = fetch_units(identity, user, interpreter)
        return [
            WriteFile(fetch_timer.SERVICE, service),
            WriteFile(fetch_timer.TIMER, timer),
            MakeLink(fetch_timer.TIMER_LINK, fetch_timer.TIMER),
        ]
    if root.status(fetch_timer.TIMER) is None or not plan.has_written(fetch_timer.TIMER, "receiver", root):
        return []
    gone: list[Step] = [RemoveLink(fetch_timer.TIMER_LINK), RemoveFile(fetch_timer.TIMER), RemoveFile(fetch_timer.SERVICE)]
    return [step for step in gone if not step.is_done(root)]


def fetch_units(identity: str, user: str, interpreter: Interpreter) -> tuple[bytes, bytes]:
    """Return service and timer that fetch CAs and lists, for a user as unit_of has it; raises ConfigError as fetch_service."""
    name, _, group = user.partition(":")
    return fetch_timer.fetch_service(interpreter.executable, identity, name, group or None), fetch_timer.fetch_timer()


def vacuum_units(configuration: ReceiverConfiguration, user: str, interpreter: Interpreter) -> tuple[bytes, bytes]:
    """Return service and timer that have the store vacuumed, for a user as unit_of has it; raises ConfigError as vacuum_service."""
    name, _, group = user.partition(":")
    service = vacuum_timer.vacuum_service(interpreter.executable, configuration.store, name, group or None)
    return service, vacuum_timer.vacuum_timer()


def unit_of(configuration: ReceiverConfiguration, user: str, interpreter: Interpreter) -> bytes:
    """Return the unit for a configuration and a user, who is a name or UID:GID; raises ConfigError as receiver_service does."""
    name, _, group = user.partition(":")
    connections = configuration.policy.doors.connections
    return installation.receiver_service(
        interpreter.executable, configuration.listen, configuration.store, connections, name, group or None
    )


def _service_user(user: User, root: Root) -> str:
    return user.name if root.is_live or user.is_listed else f"{user.uid}:{user.gid}"

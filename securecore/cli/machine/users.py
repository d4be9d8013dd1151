"""The user that a handler or a receiver runs as: looked up, or made."""

import subprocess
from typing import Final, NamedTuple

from securecore.cli.machine.root import Root
from securecore.errors import ConfigError

UNKNOWN: Final = -1
"""Stands for the numbers of a user that is not made yet, in what --dry-run prints."""


class User(NamedTuple):
    """A user as the configuration names it, with its numbers; *is_listed* says whether the root's passwd file has it."""

    name: str
    uid: int
    gid: int
    is_listed: bool


def find_user(text: str, root: Root) -> User | None:
    """Return the user that *text*, a name or UID:GID, means in *root*; None when that name is not there.

    Raises ConfigError for root.
    """
    if ":" in text:
        uid, gid = map(int, text.split(":"))
        listed = next((name for name, numbers in _passwd(root).items() if numbers == (uid, gid)), None)
        user = User(listed or "securecore", uid, gid, listed is not None)
    else:
        numbers = _passwd(root).get(text)
        if numbers is None:
            return None
        user = User(text, *numbers, True)
    if 0 in (user.uid, user.gid):
        raise ConfigError(f"user {text}: must not be root, or of root's group")
    return user


def find_uid(name: str, root: Root) -> int | None:
    """Return the number of the user *name* in *root*, any user's; None when that name is not there."""
    numbers = _passwd(root).get(name)
    return numbers[0] if numbers is not None else None


def make_user(name: str) -> None:
    """Make a system user that nobody can log in as, on the live machine; raises ConfigError when useradd(8) refuses."""
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/var/lib/securecore"]
    try:
        answer = subprocess.run([*command, "--shell", "/usr/sbin/nologin", name], capture_output=True, check=False)
    except OSError as error:
        raise ConfigError(f"cannot make user {name}: useradd: {error.strerror}", hint="make it, and run setup again") from error
    if answer.returncode != 0:
        reason = (answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"cannot make user {name}: {reason}", hint="make it, and run setup again")


def check_owner(directory: str, user: User, root: Root) -> None:
    """Raise ConfigError when *directory* is another user's and holds something: giving it away alone would leave its contents.

    The same where nobody but that user and root may see what it holds.
    """
    status = root.status(directory)
    if status is None or status.st_uid == user.uid or user.uid == UNKNOWN:
        return
    place = root.outside(directory)
    if not root.can_look_into(directory):
        raise ConfigError(
            f"{place} belongs to uid {status.st_uid}, not to {user.name}, and we may not see whether it is empty",
            hint="try as root",
        )
    if not root.names(directory):
        return
    # Only what is a store or a spool may be given away as a whole: a hint to do so with anything else would be followed.
    is_ours = root.status(f"{directory}/FORMAT") is not None
    hint = f"chown -R {user.uid}:{user.gid} {place}" if is_ours else "name an empty directory"
    raise ConfigError(
        f"{place} is not empty and belongs to uid {status.st_uid}, not to {user.name}",
        hint=hint,
    )


def sysusers_file(user: User) -> bytes:
    """Return the sysusers.d(5) file that makes the user, with these numbers, when another root boots."""
    name, uid, gid = user.name, user.uid, user.gid
    return f'g {name} {gid}\nu {name} {uid}:{gid} "securecore" /var/lib/securecore /usr/sbin/nologin\n'.encode()


def _passwd(root: Root) -> dict[str, tuple[int, int]]:
    found = root.find("/etc/passwd")
    lines = found.content.decode("utf-8", "replace").splitlines() if found is not None else []
    fields = [line.split(":") for line in lines if line.count(":") == 6]
    return {name: (int(uid), int(gid)) for name, _, uid, gid, *_ in fields if uid.isdigit() and gid.isdigit()}

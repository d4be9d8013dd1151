"""Kernel settings below /proc/sys: read, set so that the kernel's answer counts, and put back."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from securecore.cli.machine.root import Root
from securecore.errors import ConfigError, StorageError

CORE_PATTERN: Final = "/proc/sys/kernel/core_pattern"
CORE_PIPE_LIMIT: Final = "/proc/sys/kernel/core_pipe_limit"


@dataclass(frozen=True)
class SetSysctl:
    """A kernel setting, at once. In an image without /proc there is nothing to set: its sysctl.d file acts when it boots."""

    name: str
    value: str
    ours: tuple[str, ...]
    """How a value begins that only securecore can have written."""
    default: str
    """The kernel's own value: what --undo puts back where, before, there was one of ours."""
    also: tuple[str, ...] = ()
    """Other values that are as good: one that a unit of ours puts in its place while it runs."""
    done_word: str = "set"

    @property
    def path(self) -> str:
        return f"/proc/sys/{self.name.replace('.', '/')}"

    def is_done(self, root: Root) -> bool:
        return read_setting(self.path, root) in (None, self.value, *self.also)

    def difference(self, root: Root) -> list[str]:
        return [f"- {read_setting(self.path, root)}", f"+ {self.value}"]

    def record(self, root: Root) -> dict[str, Any]:
        before = read_setting(self.path, root) or ""
        if before.startswith(self.ours):
            before = self.default
        written = {"written": self.value, "also": list(self.also), "ours": list(self.ours)}
        return {"kind": "sysctl", "path": self.path, "before": before, **written}

    def do(self, root: Root) -> None:
        set_sysctl(root, self.path, self.value)


def read_setting(path: str, root: Root) -> str | None:
    """Return a kernel setting; None where there is no /proc, as in an image. Raises StorageError."""
    found = root.find(path)
    return None if found is None else found.content.decode("utf-8", "backslashreplace").removesuffix("\n")


def set_sysctl(root: Root, path: str, value: str) -> None:
    """Write a kernel setting and read it back; raises ConfigError when the kernel did not take it.

    Since Linux 6.16 a core_pattern that leads to a socket is looked at when it is written, and refused with EINVAL (fs/coredump.c).
    """
    try:
        root.write_in_place(path, value.encode() + b"\n")
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
            words = f"{root.outside(path)}: the kernel takes no {value!a} (EINVAL): it knows no such pattern, or not from here"
            hint = "sockets need Linux 6.17, and a writer outside of containers and private mount namespaces"
            raise ConfigError(words, hint=hint) from error
        raise ConfigError(error.message, hint="in a container it is the host that sets it") from error
    if (found := read_setting(path, root)) != value:
        raise ConfigError(f"{root.outside(path)}: the kernel made {found!a} of {value!a}")


def undo_setting(record: Mapping[str, Any], root: Root) -> tuple[str, str] | None:
    """Put back what a record of ours says was there before; a value that is not ours by now stays."""
    found = read_setting(record["path"], root)
    if found is None or found == record["before"]:
        return None
    # A record of an earlier version has what was written, and no more.
    if found not in (record["written"], *record.get("also", ())) and not found.startswith(tuple(record.get("ours", ()))):
        return "kept", f"{root.outside(record['path'])}  (somebody else has set it since: {found!a})"
    set_sysctl(root, record["path"], record["before"])
    return "restored", f"{root.outside(record['path'])}  {record['before']}"

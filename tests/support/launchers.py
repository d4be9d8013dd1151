"""Commands before a command: a program that is started with limits, with descriptors closed, or among other files.

What runs between fork and exec in a copy of this process (``preexec_fn``) could wait for ever: the copy has one of our threads, and
the locks of all of them, as those were at that moment. A receiver in this process, or a runner of tests, has some. So each of these
is a program that does its part and becomes the next one, in the same process.
"""

import resource
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

Limits = Sequence[tuple[int, int]]
"""Resource limits (setrlimit(2)) of a program, soft and hard alike."""
Places = Sequence[tuple[Path, Path]]
"""Pairs of a path and the one in whose place it stands."""

_NAMES: Final = {
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_DATA: "data",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_NPROC: "nproc",
}
"""What prlimit(1) calls them."""


def limited(limits: Limits) -> list[str]:
    """Return what comes before a command that has these limits: prlimit(1) becomes it; nothing, without limits."""
    return ["prlimit", *(f"--{_NAMES[which]}={most}" for which, most in limits), "--"] if limits else []


def as_by_the_kernel(closed: Sequence[int] = (1, 2), variables: Mapping[str, str] | None = None) -> list[str]:
    """Return what comes before a program, so that it starts as by the kernel: these descriptors closed, no variables but these."""
    # The shell has a variable of its own, PWD, so env takes all away behind it.
    script = " ".join(['exec env -i "$@"', *(f"{fd}>&-" for fd in closed)])
    return ["/bin/sh", "-c", script, "sh", *(f"{name}={value}" for name, value in (variables or {}).items())]


def seeing(places: Places) -> list[str]:
    """Return what comes before a command that sees, and nobody else does, each first path in the second's place; needs root."""
    binds = [f"mount --rbind {shlex.quote(str(new))} {shlex.quote(str(old))}" for new, old in places]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join([*binds, 'exec "$@"']), "sh"]

"""What the kernel tells a core_pattern handler in its arguments.

The pattern is ``|HANDLER %P %I %u %g %s %t %c %d %F`` (core(5)). New fields go at the end. A kernel drops specifiers that it does
not know, so the last ones may be missing (%F came with Linux 6.16). No %e, %E or %h: these are texts that the crashing process
chooses (R27).
"""


from securecore.declarations import Final, NamedTuple, Sequence
from securecore.errors import ConfigError

SPECIFIERS: Final = "%P %I %u %g %s %t %c %d %F"


class KernelArguments(NamedTuple):
    """The arguments, all numbers; process ids and user ids are those of the initial namespaces."""

    pid: int
    tid: int
    uid: int
    gid: int
    signal: int
    time: int
    """Unix seconds."""
    core_limit: int
    """Soft RLIMIT_CORE in bytes, 2**64-1 for unlimited; the kernel does not enforce it for pipes."""
    dump_mode: int
    pidfd: int | None
    """The descriptor number that refers to the crashed process, inherited from the kernel."""


def parse_arguments(arguments: Sequence[str]) -> KernelArguments:
    """Return the kernel's arguments; raises ConfigError when they are not what our pattern asks for."""
    numbers: list[int] = []
    for text in arguments:
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            break
        numbers.append(int(text))
    if len(numbers) < 8 or len(numbers) != len(arguments) or len(numbers) > 9:
        raise ConfigError(
            "arguments are not those of our core_pattern",
            hint=f"core_pattern must end with: {SPECIFIERS}",
        )
    pid, tid, uid, gid, signal, time, core_limit, dump_mode = numbers[:8]
    pidfd = numbers[8] if len(numbers) == 9 else None
    return KernelArguments(pid, tid, uid, gid, signal, time, core_limit, dump_mode, pidfd)

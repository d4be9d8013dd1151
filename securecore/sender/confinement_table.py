"""The table ``[handler]`` of sender.toml: what a handler may take of the machine, as people write it."""

from datetime import timedelta
from typing import Final

from securecore import limits
from securecore.sender.confinement import IO_PRIORITIES, Confinement
from securecore.toml_table import TomlTable
from securecore.units import exact_size, exact_span, size

KEYS: Final = ("nice", "io", "memory", "deadline", "source_deadline")


def parse_confinement_table(table: TomlTable) -> Confinement:
    """Return what the table says; raises ConfigError with file and line on anything that is not understood."""
    found = Confinement()
    if (nice := table.count("nice", limits.MAX_NICE)) is not None:
        found = found._replace(nice=nice)
    if (io := table.find("io", str)) is not None:
        if io not in IO_PRIORITIES:
            raise table.refuse("io", f"must be {', '.join(IO_PRIORITIES[:-1])} or {IO_PRIORITIES[-1]}, not {io[:100]!a}")
        found = found._replace(io_priority=io)
    if (memory := table.size("memory")) is not None:
        if not limits.MIN_HANDLER_MEMORY_BYTES <= memory <= limits.MAX_HANDLER_MEMORY_BYTES:
            least, most = size(limits.MIN_HANDLER_MEMORY_BYTES), size(limits.MAX_HANDLER_MEMORY_BYTES)
            raise table.refuse("memory", f"must be {least} to {most}", hint="with less, ordinary cores are cut")
        found = found._replace(memory_bytes=memory)
    if (deadline_s := _find_deadline(table, "deadline")) is not None:
        found = found._replace(deadline_s=deadline_s)
    if (deadline_s := _find_deadline(table, "source_deadline")) is not None:
        found = found._replace(source_deadline_s=deadline_s)
    return found


def _find_deadline(table: TomlTable, key: str) -> float | None:
    deadline = table.span(key)
    if deadline is None:
        return None
    if deadline.total_seconds() > limits.MAX_HANDLER_DEADLINE_S:
        raise table.refuse(key, "must be a day at most")
    return deadline.total_seconds()


def encode_confinement_table(confinement: Confinement) -> str:
    """Return the table: the same text for the same values; the deadlines in whole seconds."""
    return (
        "[handler]\n"
        f"nice = {confinement.nice}\n"
        f'io = "{confinement.io_priority}"\n'
        f'memory = "{exact_size(confinement.memory_bytes)}"\n'
        f'deadline = "{exact_span(timedelta(seconds=confinement.deadline_s))}"\n'
        f'source_deadline = "{exact_span(timedelta(seconds=confinement.source_deadline_s))}"\n'
    )

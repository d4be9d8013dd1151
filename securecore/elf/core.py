"""Reading a core: what it says of its crash. Only the analyser does this."""

from typing import Final

from securecore import limits
from securecore.elf import signals
from securecore.elf.image import Image, open_image
from securecore.elf.memory import Memory, find_build_id
from securecore.elf.notes import AT_EXECFN, AT_PHDR, Process, find_mapping, read_process
from securecore.elf.summary import CoreSummary
from securecore.elfid import ReadAt
from securecore.errors import BrokenError

_MACHINES: Final = {"EM_X86_64": "x86_64", "EM_386": "i386", "EM_AARCH64": "aarch64", "EM_ARM": "arm"}


def summarise(read_at: ReadAt, size: int) -> CoreSummary:
    """Return what the core of *size* bytes behind *read_at* says of its crash.

    Memory is bounded (some 100 MiB at the worst), and so is time: each table is walked once, up to a million entries. Raises
    BrokenError when it is no ELF core. Not checked: that any of it is true, or that the core is whole.
    """
    core = open_image(read_at, size)
    if core.kind != "ET_CORE":
        raise BrokenError("an ELF file, but not a core")
    process = read_process(core)
    executable, build_id = _find_executable(core, process)
    reason = None
    if process.signal is not None and process.signal_code is not None:
        reason = signals.describe_code(process.signal, process.signal_code)
    return CoreSummary(
        machine=_machine(core),
        signal=process.signal,
        reason=reason,
        fault_address=process.fault_address,
        tid=process.tid,
        pid=process.pid,
        uid=process.uid,
        program=_text(process.program),
        command_line=_text(process.command_line),
        threads=process.threads,
        executable=executable,
        build_id=build_id,
    )


def _find_executable(core: Image, process: Process) -> tuple[str | None, str | None]:
    """Return the executable's path and build-id.

    It is the mapped file that holds the program headers whose address the kernel gave the process (AT_PHDR of getauxval(3)): the
    first mapped file may be any other. The name that it was started by (AT_EXECFN) stands in for a path that is missing.
    """
    auxiliary = process.auxiliary or {}
    memory = Memory(core)
    path, build_id = None, None
    if process.files is not None and AT_PHDR in auxiliary:
        found = find_mapping(core, process.files, auxiliary[AT_PHDR])
        if found is not None:
            path, build_id = found[0].path.removesuffix(b" (deleted)"), find_build_id(memory, found[1])
    if not path and AT_EXECFN in auxiliary:
        path = memory.read_text(auxiliary[AT_EXECFN], limits.MAX_TEXT)
    return _text(path), build_id


def _machine(core: Image) -> str:
    if isinstance(core.machine, int):
        return f"machine {core.machine}"
    return _MACHINES.get(core.machine, core.machine.removeprefix("EM_").lower())


def _text(data: bytes | None) -> str | None:
    """Return bytes of the process's choosing as text, cut to MAX_TEXT; control characters are left for whoever prints it."""
    return data[: limits.MAX_TEXT].decode("utf-8", "backslashreplace")[: limits.MAX_TEXT] if data else None

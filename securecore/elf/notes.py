"""The notes of a core: which thread crashed, of what, in which process.

The layouts are those of Linux's include/linux/elfcore.h (elf_prstatus, elf_prpsinfo), include/uapi/asm-generic/siginfo.h, and
fs/binfmt_elf.c (fill_siginfo_note, fill_auxv_note, fill_files_note); between machines they differ in the width of a word, and in
that of a user id on some 32-bit ones. MIPS orders siginfo otherwise; there only the signal's number is taken.
"""

from typing import Final, NamedTuple

from securecore import limits
from securecore.elf import signals
from securecore.elf.image import PT_NOTE, Image, Note, iter_notes, iter_segments
from securecore.errors import BrokenError

_NT_PRSTATUS: Final = 1
_NT_PRPSINFO: Final = 3
_NT_AUXV: Final = 6
_NT_SIGINFO: Final = 0x53494749
_NT_FILE: Final = 0x46494C45

AT_PHDR: Final = 3
AT_EXECFN: Final = 31

_SMALL_NOTE: Final = 4096
"""Bytes of a fixed structure that are read: elf_prstatus, the largest, stays below 1 KiB, and an auxiliary vector too."""
_FILE_NOTE_MAX: Final = 16 * limits.MIB
"""The largest NT_FILE note: CORE_FILE_NOTE_SIZE_MAX of fs/coredump.c; the default of its sysctl is 4 MiB."""


class Process(NamedTuple):
    """What the notes say of the process; numbers as it saw them itself, in its own namespaces."""

    signal: int | None = None
    signal_code: int | None = None
    fault_address: int | None = None
    tid: int | None = None
    pid: int | None = None
    uid: int | None = None
    program: bytes | None = None
    """The name of the first thread, at most 15 bytes."""
    command_line: bytes | None = None
    """The first 79 bytes of it."""
    threads: int | None = None
    auxiliary: dict[int, int] | None = None
    """The auxiliary vector."""
    files: "Files | None" = None


class Mapping(NamedTuple):
    """A file's mapping."""

    start: int
    end: int
    offset: int
    """In the file, in bytes."""
    path: bytes


class Files(NamedTuple):
    """The content of NT_FILE, as yet unparsed but for its head."""

    data: bytes
    mappings: int
    """How many."""
    page_bytes: int


def read_process(core: Image) -> Process:
    """Return what the notes of a core say; what is missing, cut off or malformed is None."""
    segment = next((segment for segment in iter_segments(core) if segment.kind == PT_NOTE), None)
    if segment is None:
        return Process()
    firsts: dict[int, Note] = {}
    threads = 0
    is_whole = True
    for note in iter_notes(core, segment):
        if note is None:
            is_whole = False
        elif note.owner == b"CORE":
            threads += note.kind == _NT_PRSTATUS
            # The crashed thread's come first.
            firsts.setdefault(note.kind, note)
    process = Process(threads=threads if is_whole and threads else None)
    for kind, reader in _READERS.items():
        if kind in firsts:
            process = reader(core, firsts[kind], process)
    return process


def find_mapping(core: Image, files: Files, address: int) -> tuple[Mapping, int] | None:
    """Return the mapped file that holds *address*, and where its beginning (offset 0) is mapped; None when there is none.

    The kernel lists mappings by address, so a file begins at the last mapping of offset 0 up to there, if its path is the same.
    """
    width = core.word_bytes
    names = files.data[2 * width + 3 * width * files.mappings :].split(b"\0", files.mappings)
    beginning: tuple[bytes, int] | None = None
    for index, path in zip(range(files.mappings), names, strict=False):
        start, end, page = core.unpack(3 * core.word, files.data, 2 * width + 3 * width * index)
        if page == 0:
            beginning = path, start
        if start <= address < end:
            if beginning is None or beginning[0] != path:
                return None
            return Mapping(start, end, page * files.page_bytes, path), beginning[1]
    return None


def _read_status(core: Image, note: Note, process: Process) -> Process:
    """elf_prstatus: elf_siginfo (signo, code, errno), short cursig, two masks of a word, then the thread's id."""
    data = _content(core, note)
    try:
        (signal,) = core.unpack("H", data, 12)
        (tid,) = core.unpack("I", data, 16 + 2 * core.word_bytes)
    except BrokenError:
        return process
    return process._replace(signal=signal or None, tid=tid)


def _read_siginfo(core: Image, note: Note, process: Process) -> Process:
    """siginfo_t: signo, errno, code; then, aligned to a word, the address of a fault."""
    try:
        signal, _errno, code = core.unpack("iii", _content(core, note))
        (address,) = core.unpack(core.word, _content(core, note), 16 if core.is_wide else 12)
    except BrokenError:
        return process
    if signal <= 0:
        return process
    if core.machine == "EM_MIPS":
        return process._replace(signal=signal)
    fault = address if signals.has_address(signal, code) else None
    return process._replace(signal=signal, signal_code=code, fault_address=fault)


def _read_psinfo(core: Image, note: Note, process: Process) -> Process:
    if note.size < core.structs.Elf_Prpsinfo.sizeof():
        return process
    try:
        info = core.parse(core.structs.Elf_Prpsinfo, note.offset)
    except BrokenError:
        return process
    return process._replace(
        pid=info["pr_pid"],
        uid=info["pr_uid"],
        program=info["pr_fname"].partition(b"\0")[0] or None,
        command_line=info["pr_psargs"].partition(b"\0")[0].rstrip(b" ") or None,
    )


def _read_auxv(core: Image, note: Note, process: Process) -> Process:
    data, entry = _content(core, note), 2 * core.word_bytes
    found: dict[int, int] = {}
    for at in range(0, len(data) - entry + 1, entry):
        key, value = core.unpack(2 * core.word, data, at)
        if key == 0:
            break
        found.setdefault(key, value)
    return process._replace(auxiliary=found)


def _read_files(core: Image, note: Note, process: Process) -> Process:
    """NT_FILE: count and page size, then start, end and page offset of each mapping, then the paths, each ended by a NUL."""
    if note.size > _FILE_NOTE_MAX:
        return process
    data = core.stream.at(note.offset, note.size, _FILE_NOTE_MAX)
    try:
        count, page_bytes = core.unpack(2 * core.word, data)
    except BrokenError:
        return process
    if count > len(data) // (3 * core.word_bytes):
        return process
    return process._replace(files=Files(data, count, page_bytes))


_READERS: Final = {
    _NT_PRSTATUS: _read_status,
    _NT_SIGINFO: _read_siginfo,
    _NT_PRPSINFO: _read_psinfo,
    _NT_AUXV: _read_auxv,
    _NT_FILE: _read_files,
}


def _content(core: Image, note: Note) -> bytes:
    return core.stream.at(note.offset, note.size, _SMALL_NOTE)

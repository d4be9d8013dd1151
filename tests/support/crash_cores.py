"""Cores of made-up crashes: the kernel's notes and two segments of memory, in either class and byte order."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.support.elf import PT_NOTE, Segment, write_core

NT_PRSTATUS: Final = 1
NT_PRPSINFO: Final = 3
NT_AUXV: Final = 6
NT_SIGINFO: Final = 0x53494749
NT_FILE: Final = 0x46494C45
EM_386: Final = 3
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
EM_PPC64: Final = 21

IMAGE_AT: Final = 0x400000
STACK_AT: Final = 0x7FFF0000
BUILD_ID: Final = bytes(range(20))
_ET_DYN: Final = 3


def write_note(kind: int, content: bytes, owner: bytes = b"CORE", *, order: str = "<", size: int | None = None) -> bytes:
    """Return one note; *size* is what it says of its content, None for the truth."""
    named = owner + b"\0"
    head = struct.pack(f"{order}III", len(named), len(content) if size is None else size, kind)
    return head + named + bytes(-len(named) % 4) + content + bytes(-len(content) % 4)


@dataclass
class Crash:
    """A crash to write a core of; every part can be replaced by a lie."""

    bits: int = 64
    order: str = "<"
    machine: int = EM_X86_64
    user_id_bits: int = 32
    signal: int = 11
    code: int = 1
    address: int = 0x10
    tid: int = 4713
    pid: int = 4711
    uid: int = 33
    program: bytes = b"nginx"
    command_line: bytes = b"nginx: worker process"
    executable: bytes = b"/usr/sbin/nginx"
    threads: int = 3
    mappings: Sequence[tuple[int, int, int, bytes]] | None = None
    """Start, end, offset in pages and path; None for the executable's three and a library's."""
    mapping_count: int | None = None
    """How many NT_FILE says there are; None for the truth."""
    extra_notes: bytes = b""
    image: bytes | None = None
    """What is mapped at IMAGE_AT; None for an ELF file with a build-id."""
    note_sizes: dict[int, int] = field(default_factory=dict)
    """What notes of these kinds say of their size."""

    def write(self) -> bytes:
        """Return the core."""
        core = write_core(
            [
                Segment(self.notes(), PT_NOTE, 0),
                Segment(self._image() if self.image is None else self.image, address=IMAGE_AT),
                Segment(b"stack" + self.executable + b"\0", address=STACK_AT),
            ],
            bits=self.bits,
            order=self.order,
        )
        return core[:18] + self._pack("H", self.machine) + core[20:]

    def notes(self) -> bytes:
        """Return the notes, in the kernel's order: the crashed thread's, the process's, then the other threads'."""
        others = b"".join(self._note(NT_PRSTATUS, self._status(self.tid + 1 + number)) for number in range(self.threads - 1))
        return b"".join(
            [
                self._note(NT_PRSTATUS, self._status(self.tid)),
                self._note(NT_PRPSINFO, self._psinfo()),
                self._note(NT_SIGINFO, self._siginfo()),
                self._note(NT_AUXV, self._words(3, IMAGE_AT + 64, 31, STACK_AT + 5, 0, 0)),
                self._note(NT_FILE, self._files()),
                write_note(0x202, bytes(64), b"LINUX", order=self.order),
                others,
                self.extra_notes,
            ]
        )

    def _note(self, kind: int, content: bytes) -> bytes:
        return write_note(kind, content, order=self.order, size=self.note_sizes.get(kind))

    def _pack(self, letters: str, *values: int) -> bytes:
        return struct.pack(self.order + letters, *values)

    def _words(self, *values: int) -> bytes:
        return self._pack(("Q" if self.bits == 64 else "I") * len(values), *values)

    def _status(self, tid: int) -> bytes:
        head = self._pack("iiihh", self.signal, self.code, 0, self.signal, 0) + self._words(0, 0)
        return head + self._pack("IIII", tid, 1, self.pid, self.pid) + bytes(200)

    def _psinfo(self) -> bytes:
        users = self._pack("II" if self.user_id_bits == 32 else "HH", self.uid, 0)
        processes = self._pack("IIII", self.pid, 1, self.pid, self.pid)
        padding = bytes(4) if self.bits == 64 else b""
        names = self.program.ljust(16, b"\0") + self.command_line.ljust(80, b"\0")
        return b"\0R\0\0" + padding + self._words(0) + users + processes + names

    def _siginfo(self) -> bytes:
        padding = bytes(4) if self.bits == 64 else b""
        return (self._pack("iii", self.signal, 0, self.code) + padding + self._words(self.address)).ljust(128, b"\0")

    def _files(self) -> bytes:
        library = b"/lib/libc.so.6"
        mappings = self.mappings
        if mappings is None:
            mappings = [
                (0x300000, 0x301000, 0, library),
                (IMAGE_AT, IMAGE_AT + 0x1000, 0, self.executable),
                (IMAGE_AT + 0x1000, IMAGE_AT + 0x3000, 1, self.executable),
            ]
        count = len(mappings) if self.mapping_count is None else self.mapping_count
        places = b"".join(self._words(start, end, page) for start, end, page, _ in mappings)
        return self._words(count, 4096) + places + b"".join(path + b"\0" for *_, path in mappings)

    def _image(self) -> bytes:
        notes = write_note(1, bytes(16), b"GNU", order=self.order) + write_note(3, BUILD_ID, b"GNU", order=self.order)
        return write_core([Segment(notes, PT_NOTE, 0)], bits=self.bits, order=self.order, kind=_ET_DYN)

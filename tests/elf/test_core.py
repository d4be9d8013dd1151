"""Reading cores: the kernel's own in every field, and hostile ones without harm."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securecore import limits
from securecore.elf import image
from securecore.elf.core import summarise
from securecore.elf.summary import MAX_SUMMARY_BYTES, CoreSummary, parse_summary
from securecore.errors import BrokenError
from tests.support import crash_cores
from tests.support.crash_cores import BUILD_ID, IMAGE_AT, NT_FILE, NT_PRPSINFO, Crash, write_note
from tests.support.elf import PT_NOTE, Segment, write_core

MakeCore = Callable[..., tuple[Path, int]]

TRUTH = CoreSummary(
    machine="x86_64",
    signal=11,
    reason="address not mapped",
    fault_address=0x10,
    tid=4713,
    pid=4711,
    uid=33,
    program="nginx",
    command_line="nginx: worker process",
    threads=3,
    executable="/usr/sbin/nginx",
    build_id=BUILD_ID.hex(),
)


def summarise_bytes(core: bytes) -> CoreSummary:
    """Summarise a core in memory."""
    return summarise(lambda offset, length: core[offset : offset + length], len(core))


def summarise_file(path: Path) -> CoreSummary:
    """Summarise a core in a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return summarise(lambda offset, length: os.pread(fd, length, offset), os.fstat(fd).st_size)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("crasher", "signal", "reason", "address"),
    [
        ("null-deref", 11, {"address not mapped"}, 0x10),
        ("abort", 6, {"sent by tgkill, as abort and raise do"}, None),
        ("bus-error", 7, {"nonexistent physical address"}, ...),
        pytest.param(
            "fpe", 8, {"integer divide by zero"}, ...,
            marks=pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86 traps a division by zero"),
        ),
        ("illegal", 4, {"illegal operand", "illegal opcode"}, ...),
    ],
)  # fmt: skip
def test_a_real_core_tells_its_crash(crash: MakeCore, crasher: str, signal: int, reason: set[str], address: Any) -> None:
    """Every field of a core that the kernel wrote is what really happened."""
    core, pid = crash(crasher, "one", "two  words")

    summary = summarise_file(core)

    program = core.parent / crasher
    assert (signal, True) == (summary.signal, summary.reason in reason)
    assert (pid, pid, os.getuid()) == (summary.pid, summary.tid, summary.uid)
    assert (crasher, str(program)) == (summary.program, summary.executable)
    assert f"{program} one two  words"[:79] == summary.command_line
    assert (1, os.uname().machine) == (summary.threads, summary.machine)
    if address is ...:
        assert summary.fault_address is not None
    else:
        assert address == summary.fault_address


def test_the_build_id_is_the_one_that_the_linker_wrote(crash: MakeCore) -> None:
    """The build-id found in the core's memory stands in the executable's file, behind its note's owner."""
    core, _ = crash("null-deref", "one", "two  words")
    program = (core.parent / "null-deref").read_bytes()
    if b".note.gnu.build-id" not in program:
        pytest.skip("the linker writes no build-ids")

    build_id = summarise_file(core).build_id

    assert build_id is not None
    assert b"GNU\0" + bytes.fromhex(build_id) in program


def test_of_eight_threads_the_crashed_one_is_named(crash: MakeCore) -> None:
    """The thread that crashed is told apart from the process, and all threads are counted."""
    core, pid = crash("threads")

    summary = summarise_file(core)

    assert (8, pid, 0x10) == (summary.threads, summary.pid, summary.fault_address)
    assert summary.tid is not None
    assert summary.tid > pid


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({}, "x86_64"),
        ({"machine": crash_cores.EM_AARCH64}, "aarch64"),
        ({"machine": crash_cores.EM_AARCH64, "order": ">"}, "aarch64"),
        ({"machine": crash_cores.EM_386, "bits": 32, "user_id_bits": 16}, "i386"),
        ({"machine": 8, "bits": 32, "order": ">"}, "mips"),
        ({"machine": crash_cores.EM_PPC64, "order": ">"}, "ppc64"),
        ({"machine": 64999}, "machine 64999"),
    ],
)
def test_a_core_of_any_class_order_and_machine_is_read(changes: dict[str, Any], machine: str) -> None:
    """The same crash on another machine makes the same summary."""
    expected = TRUTH._replace(machine=machine)
    if machine == "mips":
        expected = expected._replace(reason=None, fault_address=None)
    assert expected == summarise_bytes(Crash(**changes).write())


@pytest.mark.slow
def test_a_core_cut_anywhere_tells_the_truth_or_nothing() -> None:
    """Truncated at every offset of headers and notes, and many behind, a core is refused or tells fields that are all true."""
    crash = Crash()
    core = crash.write()
    dense = 64 + 3 * 56 + len(crash.notes())
    for length in [*range(dense), *range(dense, len(core), 37)]:
        try:
            summary = summarise_bytes(core[:length])
        except BrokenError:
            continue
        lies = [(name, told) for name, told, true in zip(TRUTH._fields, summary, TRUTH, strict=True) if told not in (true, None)]
        assert (length, []) == (length, lies)
    assert summarise_bytes(core) == TRUTH


@pytest.mark.slow
def test_an_executable_cut_anywhere_has_its_build_id_or_none() -> None:
    """Where the kernel dumped only a part of the executable's first page, the build-id is the true one or missing."""
    image = Crash()._image()
    found = [summarise_bytes(Crash(image=image[:cut]).write()).build_id for cut in range(len(image) + 1)]
    assert set(found) == {None, BUILD_ID.hex()}
    assert (found[0], found[-1]) == (None, BUILD_ID.hex())


def test_a_damaged_stretch_costs_only_what_stands_in_it() -> None:
    """Where reading fails in the memory behind the notes, the notes still tell; where the header fails, the core is refused."""
    core = Crash().write()

    def read_at(offset: int, length: int) -> bytes:
        if offset + length > 4096:
            raise BrokenError("frame 1: damaged")
        return core[offset : offset + length]

    assert TRUTH._replace(build_id=None) == summarise(read_at, len(core))
    with pytest.raises(BrokenError):
        summarise(lambda _offset, _length: read_at(4096, 1), len(core))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"text that is no core at all" * 10, b"\x7fELF\x03\x01" + bytes(100), b"\x7fELF\x02\x03" + bytes(100),
     write_core(kind=2), write_core(phentsize=1)],
)  # fmt: skip
def test_what_is_no_core_is_refused(data: bytes) -> None:
    """Anything but an ELF core is refused by the project's own error."""
    with pytest.raises(BrokenError):
        summarise_bytes(data)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([Crash(), Crash(bits=32, order=">", user_id_bits=16, machine=crash_cores.EM_386)]))
def test_flipped_bytes_do_no_harm(data: st.DataObject, crash: Crash) -> None:
    """With bytes flipped anywhere, a core is refused or summarised within bounds; nothing else is ever raised."""
    core = bytearray(crash.write())
    for _ in range(data.draw(st.integers(1, 6))):
        core[data.draw(st.integers(0, len(core) - 1))] = data.draw(st.integers(0, 255))
    try:
        summary = summarise_bytes(bytes(core))
    except BrokenError:
        return
    assert len(summary.encode()) <= MAX_SUMMARY_BYTES
    assert summary == parse_summary(summary.encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([32, 64]), st.sampled_from("<>"))
def test_arbitrary_notes_do_no_harm(notes: bytes, bits: int, order: str) -> None:
    """Whatever stands where notes should, the answer is a summary."""
    summary = summarise_bytes(write_core([Segment(notes, PT_NOTE, 0)], bits=bits, order=order))
    assert len(summary.encode()) <= MAX_SUMMARY_BYTES


def with_extended_count(count: int) -> bytes:
    """Return a core that says it has *count* program headers, in the section header that stands in for too small a field."""
    core = write_core(extended_numbering=True)
    return core[:-20] + count.to_bytes(4, "little") + core[-16:]


HOSTILE: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a note longer than the core": (Crash(note_sizes={NT_PRPSINFO: 0xFFFFFFFF}).write(), {"tid": 4713, "program": None}),
    "a note that leaps to the segment's end": (Crash(note_sizes={NT_PRPSINFO: 0x100}).write(), {"tid": 4713}),
    "more mappings than fit": (Crash(mapping_count=(1 << 64) - 1).write(), {"executable": "/usr/sbin/nginx", "build_id": None}),
    "fewer mappings than there are": (Crash(mapping_count=1).write(), {"build_id": None}),
    "no mapping": (Crash(mappings=[]).write(), {"executable": "/usr/sbin/nginx", "build_id": None}),
    "a mapping over everything": (
        Crash(mappings=[(0, (1 << 64) - 1, (1 << 64) - 1, b"/bin/lie")]).write(), {"executable": "/usr/sbin/nginx"}
    ),
    "a beginning that is another file's": (
        Crash(mappings=[(0x1000, 0x2000, 0, b"/bin/a"), (IMAGE_AT, IMAGE_AT + 4096, 1, b"/bin/b")]).write(), {"build_id": None}
    ),
    "mappings without names": (
        Crash(mappings=[(IMAGE_AT, IMAGE_AT + 4096, 0, b"")]).write(), {"executable": "/usr/sbin/nginx", "pid": 4711}
    ),
    "a deleted executable": (
        Crash(mappings=[(IMAGE_AT, IMAGE_AT + 4096, 0, b"/bin/a (deleted)")]).write(), {"executable": "/bin/a"}
    ),
    "an image that is no ELF file": (Crash(image=b"\x7fELF" * 2000).write(), {"build_id": None, "pid": 4711}),
    "an image that is a core with a million segments": (Crash(image=with_extended_count(0xFFFFFFFF)).write(), {"build_id": None}),
    "a build-id of 64 KiB": (
        Crash(image=write_core([Segment(write_note(3, bytes(65536), b"GNU"), PT_NOTE, 0)])).write(), {"build_id": None}
    ),
    "four billion program headers": (with_extended_count(0xFFFFFFFF), {"pid": None, "threads": None}),
    "notes that lie behind the end": (
        write_core([Segment(b"note", PT_NOTE, 0, offset=1 << 63, filesz=(1 << 64) - 1)]), {"pid": None}
    ),
    "a negative signal": (Crash(signal=-11).write(), {"pid": 4711}),
    "an unknown code": (Crash(code=77).write(), {"reason": "code 77", "fault_address": 0x10}),
    "a signal that was sent": (Crash(code=0, address=0x1234).write(), {"reason": "sent by kill", "fault_address": None}),
    "an address that the kernel does not tell": (Crash(code=0x80, address=0).write(), {"fault_address": None}),
    "names without an end": (
        Crash(program=b"p" * 16, command_line=b"c" * 80).write(), {"program": "p" * 16, "command_line": "c" * 80}
    ),
    "names that are no text": (Crash(program=b"\xff\x1b[2J\n").write(), {"program": "\\xff\x1b[2J\n"}),
    "a path of 1 MiB": (
        Crash(mappings=[(IMAGE_AT, IMAGE_AT + 4096, 0, b"/" + b"\xff" * limits.MIB)]).write(),
        {"executable": ("/" + "\\xff" * limits.MAX_TEXT)[: limits.MAX_TEXT]},
    ),
    "mappings in a note of 17 MiB": (
        Crash(note_sizes={NT_FILE: 17 * limits.MIB}, extra_notes=bytes(17 * limits.MIB)).write(), {"build_id": None}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_core_that_lies_is_believed_only_within_reason(name: str) -> None:
    """Each lie costs the fields that hang on it, and no others; no read is longer than the largest note."""
    core, expected = HOSTILE[name]
    lengths = []

    def read_at(offset: int, length: int) -> bytes:
        lengths.append(length)
        return core[offset : offset + length]

    told = summarise(read_at, len(core))._asdict()

    assert expected == {key: told[key] for key in expected}
    assert max(lengths) <= 16 * limits.MIB


@pytest.mark.slow
def test_endless_notes_end() -> None:
    """A core of an exabyte of empty notes is left after MAX_NOTES of them, its threads uncounted."""
    core = write_core([Segment(b"", PT_NOTE, 0, filesz=1 << 60)])
    reads = 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return core[offset : offset + length].ljust(length, b"\0")

    assert summarise(read_at, 1 << 61).threads is None
    assert image.MAX_NOTES <= reads < image.MAX_NOTES + 100

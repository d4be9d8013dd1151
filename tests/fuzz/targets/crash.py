"""What is said of a crash: by the kernel's arguments, /proc, the core itself, the analyser, and the report of all that."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from securecore import limits
from securecore.elf.analysis import _parse_answer
from securecore.elf.core import summarise
from securecore.elf.summary import MAX_SUMMARY_BYTES, CoreSummary, parse_summary
from securecore.elfsize import CoreSize, expected_size
from securecore.errors import BrokenError, ConfigError, PeerError
from securecore.report import CrashReport, parse_report
from securecore.sender import procfs
from securecore.sender.kernel_arguments import KernelArguments, parse_arguments
from tests.fuzz.files import scratch
from tests.fuzz.target import Target, check_words
from tests.support import crash_cores
from tests.support.crash_cores import Crash
from tests.support.elf import PN_XNUM, Segment, write_core

_UINT64: Final = range(1 << 64)


def _check_fields(fields: "CrashReport | CoreSummary") -> None:
    """Numbers of 64 bits, texts of bounded length that can be printed as UTF-8."""
    for value in fields:
        if isinstance(value, str):
            assert len(value) <= limits.MAX_TEXT
            value.encode("utf-8")
        else:
            assert value is None or (type(value) is int and value in _UINT64)


def check_report(data: bytes) -> None:
    """A report is refused or bounded, and what is made of it is a report that says the same."""
    try:
        report = parse_report(data)
    except PeerError:
        return
    _check_fields(report)
    encoded = report.encode()
    assert len(encoded) <= limits.MAX_REPORT_BYTES
    again = parse_report(encoded)
    if again != report:
        # Only what does not fit is cut, and a second time nothing is.
        assert len(report._encode_cut(limits.MAX_TEXT)) > limits.MAX_REPORT_BYTES
        assert parse_report(again.encode()) == again


def report_seeds() -> Iterator[bytes]:
    """Reports as a sender writes them, and as another might."""
    texts = {name: name for name, hint in CrashReport.__annotations__.items() if hint == str | None}
    yield CrashReport(**texts, signal=11, pid=4711, core_limit=(1 << 64) - 1).encode()  # type: ignore[arg-type]
    yield CrashReport(program="\u00e9\U0001f600\x1b[2J", signal=6).encode()
    yield b'{"program": "\\ud800", "pid": 1.5, "signal": true, "uid": -1, "later": {"a": [null]}, "tid": 1e400}'
    yield '{"comm": "ü"}'.encode("utf-16")
    yield b"{}"


def check_summary(data: bytes) -> None:
    """An analyser's answer is refused or bounded, and says the same when it is written again."""
    try:
        summary = _parse_answer(data)
    except BrokenError as error:
        check_words(error)
        return
    _check_fields(summary)
    assert len(summary.encode()) <= MAX_SUMMARY_BYTES or len(data) > MAX_SUMMARY_BYTES
    assert parse_summary(summary.encode()) == summary


def summary_seeds() -> Iterator[bytes]:
    """Answers of every shape."""
    yield CoreSummary("x86_64", 11, "address not mapped", 16, 1, 1, 0, "a", "a b", 3, "/bin/a", "4f1c").encode() + b"\n"
    yield b'{"error": "not an ELF file \\u001b[2J"}\n'
    yield b'{"a":' * 2000
    yield b'{"error": 1, "pid": -1, "tid": 1.0, "program": null, "uid": 18446744073709551616}'


def check_elf_size(data: bytes) -> None:
    """The prediction is the one that a second reading of the headers gives, however the bytes arrive."""
    answer = expected_size(data)
    assert answer == _size_by_the_specification(data)
    for step in (len(data) + 1, 13):
        size = CoreSize()
        for at in range(0, len(data), step):
            size.feed(data[at : at + step])
        if size.is_undecided:
            assert (answer, size.expected) == (None, None)
        else:
            # Settled at the first part that tells: what comes behind it changes nothing.
            told = next(found for end in range(step, len(data) + step, step) if (found := expected_size(data[:end])) is not None)
            assert size.expected == (told if told >= 0 else None)
    if answer is not None and answer >= 0:
        assert expected_size(data + b"more") == answer


def _size_by_the_specification(data: bytes) -> int | None:
    """Return the core's length by the tables of the System V gABI, chapters 4 and 5, with the bounds of elfsize."""

    def number(at: int, width: int) -> int:
        return int.from_bytes(data[at : at + width], "little" if data[5] == 1 else "big")

    if len(data) < 64:
        return None if data[:4] == b"\x7fELF"[: len(data)] else -1
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] not in (1, 2) or number(16, 2) != 4:
        return -1
    wide = data[4] == 2
    width = 8 if wide else 4
    table, sections = number(32 if wide else 28, width), number(40 if wide else 32, width)
    entry, count, section = (number(at, 2) for at in ((54, 56, 58) if wide else (42, 44, 46)))
    if entry != (56 if wide else 32) or table > 8 << 20:
        return -1
    if count == PN_XNUM:
        ends = [sections + section if sections else 1 << 64]
    elif len(data) < table + count * entry:
        return None
    else:
        ends = [table + count * entry]
        for at in range(table, ends[0], entry):
            ends.append(number(at + (8 if wide else 4), width) + number(at + (32 if wide else 16), width))
    return max(ends) if max(ends) < 1 << 63 else -1


def core_seeds() -> Iterator[bytes]:
    """Cores in either class and byte order, whole and with more program headers than a field can count."""
    yield Crash().write()
    yield Crash(bits=32, order=">", user_id_bits=16, machine=crash_cores.EM_386, threads=1).write()
    yield Crash(machine=crash_cores.EM_AARCH64, order=">", threads=2).write()
    yield Crash(machine=8, bits=32, order=">").write()
    for bits in (32, 64):
        yield write_core([Segment(b"a" * 10)] * 2, bits=bits, extended_numbering=True)
        yield write_core([], bits=bits, order=">")


def elf_size_seeds() -> Iterator[bytes]:
    """The headers of cores."""
    yield from (core[:400] for core in core_seeds())


def check_core(data: bytes) -> None:
    """A core is refused or summarised, by few reads that all lie within it."""
    reads = 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        assert 0 <= offset < offset + length <= len(data)
        return data[offset : offset + length]

    try:
        summary = summarise(read_at, len(data))
    except BrokenError:
        return
    finally:
        # One for each 12 bytes of notes, one for each small structure: no input makes a core be read twice over.
        assert reads <= len(data) // 12 + 100
    _check_fields(summary)
    assert len(summary.encode()) <= MAX_SUMMARY_BYTES
    assert parse_summary(summary.encode()) == summary


def check_arguments(data: bytes) -> None:
    """Arguments are refused, or they are eight or nine numbers and come back as they were."""
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    try:
        arguments = parse_arguments(words)
    except ConfigError:
        return
    numbers = [number for number in arguments if number is not None]
    assert len(words) in (8, 9)
    assert [str(number) for number in numbers] == [word.lstrip("0") or "0" for word in words]


def argument_seeds() -> Iterator[bytes]:
    """What kernels with and without pidfds say."""
    yield b"4711\x004713\x0033\x0033\x0011\x001763780062\x0018446744073709551615\x001\x003"
    yield b"1\x001\x000\x000\x006\x000\x000\x002"


_ARGUMENTS: Final = KernelArguments(4711, 4711, 33, 33, 11, 1, 0, 1, 3)
_FILES: Final = (
    "4711/comm", "4711/cmdline", "4711/cgroup", "4711/status", "4711/stat", "stat", "self/fdinfo/3", "sys/kernel/random/boot_id",
)  # fmt: skip
_SEPARATOR: Final = b"\n==\n"
"""Between the files of one input; /proc has no such line."""


@cache
def _proc() -> Path:
    path = scratch("proc")
    for directory in ("4711/ns", "self/ns", "self/fdinfo", "sys/kernel/random"):
        (path / directory).mkdir(parents=True)
    for process in ("4711", "self"):
        (path / process / "ns/mnt").symlink_to(f"mnt:[{process}]")
        (path / process / "ns/pid").symlink_to("pid:[1]")
    (path / "4711/exe").symlink_to("/usr/sbin/nginx (deleted)")
    return path


def check_procfs(data: bytes) -> None:
    """Whatever stands in /proc, it costs fields and never the core; and only the crashed process's files are believed."""
    parts = data.split(_SEPARATOR, len(_FILES) - 1)
    found = dict(zip(_FILES, parts + [b""] * (len(_FILES) - len(parts)), strict=True))
    for name, content in found.items():
        (_proc() / name).write_bytes(content)
    snapshot = procfs.snapshot(_ARGUMENTS, str(_proc()))
    fields = snapshot.fields | (snapshot.program.finish() if snapshot.program is not None else {})
    report = CrashReport(**fields)
    assert len(report.encode()) <= limits.MAX_REPORT_BYTES
    read = parse_report(report.encode())
    # What the sender writes, the receiver keeps: no number outside 64 bits.
    assert {name for name, value in read._asdict().items() if value is not None} == set(fields)
    if report.metadata == procfs.VERIFIED:
        assert b"\nPid:\t4711\n" in b"\n" + found["self/fdinfo/3"]
    if report.metadata != procfs.ARGUMENTS:
        first = next(line for line in found["4711/status"].split(b"\n") if line.startswith(b"Uid:\t"))
        assert first.split(b"\t")[1].lstrip(b"0") == b"33"
    else:
        assert report.comm is None


def procfs_seeds() -> Iterator[bytes]:
    """Files as the kernel writes them, with names that lie as far as it lets them."""
    status = b"Name:\t%s\nUmask:\t0022\nPPid:\t1\nUid:\t33\t33\t33\t33\nThreads:\t7\n"
    stat = b"4711 (%s) R 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 7 0 12345 0 0"
    fdinfo = b"pos:\t0\nPid:\t4711\nNSpid:\t4711\n"
    container = b"0::/kubepods.slice/cri-" + b"0f" * 32 + b".scope\n"
    service, root = b"0::/system.slice/nginx.service\n", b"1:cpu:/\n0::/\n"
    for name, cgroup in ((b"nginx", service), (b") R 1 (", root), (b"Uid:\\t0", container)):
        process = [name + b"\n", b"nginx: worker\0-x\0", cgroup, status % name, stat % name]
        yield _SEPARATOR.join([*process, b"cpu 1\nbtime 1700000000\n", fdinfo, b"0f8d\n"])


REPORT = Target(check_report, report_seeds, ("report.parse_report",), is_json=True)
SUMMARY = Target(check_summary, summary_seeds, ("elf.summary.parse_summary", "elf.analysis._parse_answer"), 16384, is_json=True)
ELF_SIZE = Target(check_elf_size, elf_size_seeds, ("elfsize.expected_size", "elfsize.CoreSize.feed"), 1024)
CORE = Target(
    check_core, core_seeds,
    ("elf.core.summarise", "elf.image.open_image", "elf.notes.read_process", "elf.notes.find_mapping", "elf.memory.find_build_id"),
    32768,
)  # fmt: skip
ARGUMENTS = Target(check_arguments, argument_seeds, ("sender.kernel_arguments.parse_arguments",), 512)
PROCFS = Target(check_procfs, procfs_seeds, ("sender.procfs.snapshot",))

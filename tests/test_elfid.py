"""What names a program, read from files that lie in every number that they hold."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.elfid import ProgramIds, find_image_end, identify, uuid_text
from securecore.errors import BrokenError
from tests.support.elf import PT_NOTE, Segment, write_core
from tests.support.programs import BUILD_ID, SHT_NOBITS, SHT_NOTE, Section, build_id_note, compile_program, needed, write_program

NULL_DEREF = Path(__file__).parents[1] / "scripts/crashers/null-deref.c"


def identified(data: bytes) -> ProgramIds:
    """Return what names the file of these bytes."""
    return identify(lambda offset, length: data[offset : offset + length], len(data))


def identified_file(path: Path) -> ProgramIds:
    """Return what names a file."""
    return identified(path.read_bytes())


def whole(order: str = "<") -> list[Section]:
    """Return the sections of a program that has everything."""
    link = b"app.debug\0\0\0" + (0xEFB3B24B).to_bytes(4, "little" if order == "<" else "big")
    return [
        Section(b".note.gnu.property", build_id_note(bytes(16), order=order, kind=5), SHT_NOTE),
        Section(b".note.gnu.build-id", build_id_note(order=order), SHT_NOTE),
        Section(b".text", bytes(100)),
        Section(b".uuid", b"build-77\n"),
        Section(b".gnu_debuglink", link),
    ]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extended", [False, True])
def test_everything_that_names_a_program_is_found(bits: int, order: str, extended: bool) -> None:
    """Either class, either byte order, and sections numbered beyond the header's 16 bits."""
    program = write_program(whole(order), bits=bits, order=order, extended_numbering=extended)
    assert identified(program) == ProgramIds(BUILD_ID.hex(), "build-77", "app.debug", "efb3b24b")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_without_sections_the_build_id_comes_from_a_segment(bits: int, order: str) -> None:
    """What is mapped into a process has segments only."""
    image = write_core([Segment(build_id_note(order=order), PT_NOTE)], bits=bits, order=order, kind=3)
    assert identified(image) == ProgramIds(BUILD_ID.hex())


def test_a_real_program_and_what_is_made_of_it(tmp_path: Path) -> None:
    """The compiler's, objcopy's and strip's files are read as readelf reads them; stripping keeps build-id and `.uuid`."""
    objcopy, strip, readelf = needed("objcopy"), needed("strip"), needed("readelf")
    program = compile_program(NULL_DEREF, tmp_path / "app", "-Wl,--build-id=sha1")
    debug, stripped, stamped = tmp_path / "app.debug", tmp_path / "stripped", tmp_path / "stamped"
    (tmp_path / "stamp").write_bytes(bytes(range(16)))
    subprocess.run([objcopy, "--only-keep-debug", program, debug], check=True)
    additions = [f"--add-section=.uuid={tmp_path / 'stamp'}", f"--add-gnu-debuglink={debug}"]
    subprocess.run([objcopy, *additions, program, stamped], check=True)
    subprocess.run([strip, "-o", stripped, stamped], check=True)
    notes = subprocess.run([readelf, "-n", program], check=True, capture_output=True, text=True).stdout
    (build_id,) = re.findall(r"Build ID: ([0-9a-f]+)", notes)

    assert identified_file(program) == ProgramIds(build_id)
    assert identified_file(debug) == ProgramIds(build_id)
    assert identified_file(stamped)[:3] == (build_id, "00010203-0405-0607-0809-0a0b0c0d0e0f", "app.debug")
    assert identified_file(stripped) == identified_file(stamped)


def test_a_program_without_a_build_id_has_none(tmp_path: Path) -> None:
    """Nothing stands in for what the linker did not write."""
    program = compile_program(NULL_DEREF, tmp_path / "app", "-Wl,--build-id=none")
    assert identified_file(program) == ProgramIds()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"build-77\n", "build-77"),
        (b" build 77\0\0", "build 77"),
        (b"9f0c7d7a-7f3b-4d0f-8a65-0a4f7e9f7e11\n", "9f0c7d7a-7f3b-4d0f-8a65-0a4f7e9f7e11"),
        (bytes(range(0xF0, 0x100)), "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"),
        (b"\x1b[2J", "1b5b324a"),
        (b"\xff\xfe", "fffe"),
        ("ä".encode(), "c3a4"),
        (b"", None),
        (b"\0\n ", None),
    ],
)
def test_a_uuid_section_is_text_uuid_or_hex(content: bytes, text: str | None) -> None:
    """What people put there is shown as they know it, and nothing of it moves a cursor."""
    assert uuid_text(content) == text
    assert identified(write_program([Section(b".uuid", content)])).uuid == text


@given(st.binary(max_size=300))
def test_a_uuid_is_printable_whatever_the_section_holds(content: bytes) -> None:
    """ASCII that no terminal acts on."""
    text = uuid_text(content)
    assert text is None or (text.isascii() and text.isprintable() and text != "")


@pytest.mark.parametrize(
    "section",
    [
        Section(b".uuid", b"x" * 257),
        Section(b".uuid", b"build-77", SHT_NOBITS),
        Section(b".uuid", b"build-77", offset=1 << 40),
        Section(b".uuid", b"build-77", offset=(1 << 64) - 4),
        Section(b".uuid", b"build-77", size=1 << 62),
        Section(b".uuid2", b"build-77"),
        Section(b".gnu_debuglink", b"no terminator"),
        Section(b".gnu_debuglink", b"name\0\0\0\0"),
        Section(b".gnu_debuglink", b"\0\0\0\0\0\0\0\0"),
        Section(b".note.gnu.build-id", build_id_note(b"abc"), SHT_NOTE),
        Section(b".note.gnu.build-id", build_id_note(bytes(65)), SHT_NOTE),
        Section(b".note.gnu.build-id", build_id_note(owner=b"XXX\0"), SHT_NOTE),
        Section(b".note.gnu.build-id", build_id_note(kind=4), SHT_NOTE),
        Section(b".note.gnu.build-id", build_id_note()[:-1], SHT_NOTE),
        Section(b".note.gnu.build-id", b"\xff" * 40, SHT_NOTE),
    ],
    ids=lambda section: f"{section.name.decode()}-{len(section.content)}-{section.kind}-{section.offset}-{section.size}",
)
def test_a_section_that_lies_names_nothing(section: Section) -> None:
    """Too long, without content, outside the file, cut off, or another's."""
    assert identified(write_program([section])) == ProgramIds()


@pytest.mark.parametrize(
    "header",
    [
        {"shoff": 0}, {"shoff": (1 << 64) - 1}, {"shentsize": 40}, {"shentsize": 0}, {"shstrndx": 99}, {"shstrndx": 0},
        {"shnum": 0}, {"shstrndx": 0xFFFF}, {"shoff": 3},
    ],
)  # fmt: skip
def test_a_header_that_lies_about_sections_costs_no_more_than_them(header: dict[str, int]) -> None:
    """The file is still an ELF file; what cannot be found is absent."""
    assert identified(write_program(whole(), **header)).uuid is None


def test_a_table_without_end_is_read_up_to_a_bound() -> None:
    """65,535 sections that the header claims cost 8,192 at most, and names of a MiB."""
    asked = 0
    data = write_program([Section(b".uuid", b"x")], shnum=0xFFFF) + bytes(1 << 20)

    def read_at(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return data[offset : offset + length]

    assert identify(read_at, len(data)).uuid == "x"
    assert asked < 1 << 20


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x03\x01" + bytes(60), b"\x7fELF\x02\x03" + bytes(60)]
)
def test_what_is_no_elf_file_is_refused(data: bytes) -> None:
    """A script, an empty file, a class or byte order that does not exist."""
    with pytest.raises(BrokenError, match="not an ELF file"):
        identified(data)


@pytest.mark.parametrize("bits", [32, 64])
def test_cut_at_every_offset_it_names_less_or_is_refused(bits: int) -> None:
    """Whatever is left is read as far as it goes: never another name, never another error."""
    program = write_program(whole(), bits=bits)
    names = identified(program)
    for length in range(len(program)):
        try:
            found = identified(program[:length])
        except BrokenError:
            continue
        assert all(one in (None, other) for one, other in zip(found, names, strict=True))


@given(st.data())
def test_flipped_bytes_do_no_harm(data: st.DataObject) -> None:
    """Any few bytes changed: names or a refusal."""
    program = bytearray(write_program(whole()))
    for _ in range(data.draw(st.integers(1, 8))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    try:
        identified(bytes(program))
    except BrokenError:
        pass


def test_a_damaged_place_reads_as_absent(tmp_path: Path) -> None:
    """A reader that finds its own frames damaged there costs the names that stand there, not the others."""
    data = write_program(whole())
    at = data.index(b"build-77")

    def read_at(offset: int, length: int) -> bytes:
        if offset <= at < offset + length:
            raise BrokenError("damaged")
        return data[offset : offset + length]

    assert identify(read_at, len(data)) == ProgramIds(BUILD_ID.hex(), None, "app.debug", "efb3b24b")


def test_the_interpreter_that_runs_this_is_an_elf_file() -> None:
    """A large program is read in a few small reads."""
    reads = []
    fd = os.open("/proc/self/exe", os.O_RDONLY)

    def read_at(offset: int, length: int) -> bytes:
        reads.append(length)
        return os.pread(fd, length, offset)

    identify(read_at, os.fstat(fd).st_size)
    os.close(fd)
    assert len(reads) < 100
    assert sum(reads) < 1 << 18


def image_end(data: bytes) -> int:
    """Return where the image in these bytes ends."""
    return find_image_end(lambda offset, length: data[offset : offset + length], len(data))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extended", [False, True])
def test_an_image_ends_where_the_last_thing_that_it_names_does(extended: bool, order: str, bits: int) -> None:
    """The table of sections, wherever its count stands; what takes no room in the file does not count, what is behind neither."""
    program = write_program(
        [*whole(order), Section(b".bss", b"", SHT_NOBITS, size=1 << 30)], bits=bits, order=order, extended_numbering=extended
    )
    assert [image_end(program + appended) for appended in (b"", b"x", bytes(5000))] == [len(program)] * 3


def test_an_image_without_sections_ends_with_its_segments() -> None:
    """As the kernel writes cores."""
    core = write_core([Segment(bytes(5000))])
    assert [image_end(core), image_end(core + b"x")] == [len(core)] * 2


@given(st.binary(max_size=300))
def test_any_numbers_give_an_end_or_an_error_of_ours(rest: bytes) -> None:
    """Offsets and counts beyond all bounds are read nowhere."""
    assert image_end(b"\x7fELF\2\1" + bytes(20) + rest + bytes(64)) >= 64

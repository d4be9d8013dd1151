"""A bundle's form: any tar program lists it, and its reader takes nothing but the one bundle of its members."""

import io
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.audit.bundle import Bundle, read_bundle
from securecore.errors import BrokenError, Bug

DIGEST: Final = "5c" * 32
LISTS: Final = f"crls/{DIGEST}.pem"
WHOLE: Final = Bundle(b"key" * 200, b"proof", b"gone" * 300, b"m" * 512, b"{}", (DIGEST, b"pem"))
"""Every member; one fills its block, none is worth anything."""
ORDER: Final = ["FORMAT", "log-key.jws", "receipt", "deletion", "manifest.jws", "report.json", LISTS]
MEMBERS: Final = dict(WHOLE.members())


def read(data: bytes) -> Bundle:
    """Read a bundle."""
    return read_bundle(io.BytesIO(data))


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return what the standard library makes of some members, without the zeroes by which it fills up its last record."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
        end = archive.offset
    return output.getvalue()[: end + 1024]


def member(name: str, data: bytes, **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member as a bundle has it, but for the changes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    for field, value in changes.items():
        setattr(info, field, value)
    return info, data


def test_the_members_come_back_and_stand_in_their_order() -> None:
    """Whichever are there; two that need not be are left out."""
    assert read(WHOLE.encode()) == WHOLE
    assert [name for name, _ in WHOLE.members()] == ORDER
    least = Bundle(b"key", b"proof")
    assert read(least.encode()) == least
    assert [name for name, _ in least.members()] == ORDER[:3]


def test_the_standard_library_writes_the_same_bytes() -> None:
    """So that whoever has the members can make the bundle again, and compare."""
    assert tar(member(name, data) for name, data in WHOLE.members()) == WHOLE.encode()


def test_tar_unpacks_it(tmp_path: Path) -> None:
    """Files that only their owner may read, with the members' bytes."""
    (tmp_path / "bundle.tar").write_bytes(WHOLE.encode())
    listed = subprocess.run(["tar", "tf", "bundle.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (listed.stdout.split(), listed.stderr) == (ORDER, "")
    subprocess.run(["tar", "xf", "bundle.tar"], cwd=tmp_path, check=True)
    for name, data in WHOLE.members():
        assert (tmp_path / name).read_bytes() == data
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_cut_at_every_offset_it_is_refused() -> None:
    """In words that say so."""
    data = WHOLE.encode()
    for length in range(len(data)):
        with pytest.raises(BrokenError, match="not a bundle: it ends too soon"):
            read(data[:length])


def test_any_changed_byte_is_refused_or_a_members_own() -> None:
    """Each byte that is no member's content has one value."""
    data = WHOLE.encode()
    own = 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            found = read(bytes(changed))
        except BrokenError:
            continue
        assert found != WHOLE
        assert found.encode() == changed
        own += 1
    assert own == sum(len(content) for name, content in MEMBERS.items() if name != "FORMAT")


@given(st.binary(max_size=1600) | st.binary(max_size=300).map(lambda noise: WHOLE.encode()[:1024] + noise))
def test_any_bytes_are_refused_or_the_one_encoding(data: bytes) -> None:
    """Nothing but the project's own error is raised."""
    try:
        found = read(data)
    except BrokenError:
        return
    assert found.encode() == data


def test_what_is_longer_than_a_member_may_be_is_not_read() -> None:
    """The length in a header is bounded before a byte is taken for it."""
    info, _ = member("log-key.jws", b"")
    info.size = 0o77777777777
    huge = WHOLE.encode()[:1024] + info.tobuf(tarfile.USTAR_FORMAT) + b"x" * 512
    tracemalloc.start()
    with pytest.raises(BrokenError, match=r"log-key\.jws has 8589934591 bytes, at most 65536 are read"):
        read(huge)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limits.MIB


def test_each_member_is_taken_at_its_bound_and_refused_beyond() -> None:
    """By who reads, and by who writes: no bundle is made that its reader does not take."""
    most = Bundle(
        bytes(limits.MAX_STATEMENT_BYTES),
        bytes(limits.MAX_RECEIPT_BYTES),
        bytes(limits.MAX_RECEIPT_BYTES),
        bytes(limits.MAX_MANIFEST_BYTES),
        bytes(limits.MAX_REPORT_BYTES),
        (DIGEST, bytes(limits.MAX_CRL_BYTES)),
    )
    assert read(most.encode()) == most
    for name, data in most.members():
        members = [(one, content + b"\0" if one == name else content) for one, content in most.members()]
        with pytest.raises(BrokenError, match=f"not a bundle: {name} has {len(data) + 1} bytes"):
            read(tar(member(*one) for one in members))
    with pytest.raises(Bug):
        most._replace(receipt=bytes(limits.MAX_RECEIPT_BYTES + 1)).encode()


def links() -> bytes:
    """A link in the receipt's place, which unpacks what it leads to."""
    parts = [member("FORMAT", MEMBERS["FORMAT"]), member("log-key.jws", b"k")]
    return tar([*parts, member("receipt", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")])


def changed(name: str, **changes: object) -> Callable[[], bytes]:
    """One member's header is another."""
    return lambda: tar(member(one, data, **(changes if one == name else {})) for one, data in WHOLE.members())


def listed(*names: str) -> Callable[[], bytes]:
    """These members, in this order."""
    return lambda: tar(member(name, MEMBERS.get(name, b"x")) for name in names)


def in_form(form: int, *more: tuple[tarfile.TarInfo, bytes]) -> Callable[[], bytes]:
    """Another format, and more members in it."""
    return lambda: tar([*(member(*one) for one in WHOLE.members()), *more], form)


HOSTILE: Final[dict[str, Callable[[], bytes]]] = {
    "nothing": lambda: b"",
    "an empty tar": lambda: bytes(1024),
    "not a tar": lambda: b"not a tar" * 1000,
    "compressed": lambda: b"\x1f\x8b\x08" + bytes(2000),
    "a symbolic link": links,
    "a hard link": changed("receipt", type=tarfile.LNKTYPE, linkname="FORMAT"),
    "a directory": changed("receipt", type=tarfile.DIRTYPE),
    "a device": changed("receipt", type=tarfile.CHRTYPE),
    "a FIFO": changed("receipt", type=tarfile.FIFOTYPE),
    "a sparse file": changed("receipt", type=tarfile.GNUTYPE_SPARSE),
    "a contiguous file": changed("receipt", type=tarfile.CONTTYPE),
    "a file of old tars": changed("receipt", type=tarfile.AREGTYPE),
    "pax headers": in_form(tarfile.PAX_FORMAT, member("x", b"", pax_headers={"comment": "x"})),
    "a long name of GNU's": in_form(tarfile.GNU_FORMAT, member("x" * 200, b"")),
    "GNU's magic": in_form(tarfile.GNU_FORMAT),
    "another mode": changed("receipt", mode=0o644),
    "set-uid": changed("receipt", mode=0o4600),
    "an owner": changed("receipt", uid=1000),
    "a group": changed("receipt", gid=1000),
    "an owner's name": changed("receipt", uname="anna"),
    "a time": changed("receipt", mtime=1),
    "an absolute name": listed("FORMAT", "log-key.jws", "/receipt"),
    "a way out": listed("FORMAT", "log-key.jws", "../receipt"),
    "a name with a dot": listed("FORMAT", "log-key.jws", "./receipt"),
    "no name": listed("FORMAT", "log-key.jws", ""),
    "a stranger": listed("FORMAT", "log-key.jws", "receipt", "README"),
    "lists under another name": listed("FORMAT", "log-key.jws", "receipt", f"crls/{DIGEST.upper()}.pem"),
    "one twice": listed("FORMAT", "log-key.jws", "receipt", "receipt"),
    "two lists": listed(*ORDER, f"crls/{'00' * 32}.pem"),
    "another order": listed("FORMAT", "receipt", "log-key.jws"),
    "no FORMAT": listed("log-key.jws", "receipt"),
    "no statement": listed("FORMAT", "receipt"),
    "no receipt": listed("FORMAT", "log-key.jws"),
    "another version": lambda: tar([member("FORMAT", b"securecore-bundle 2\n"), *(member(*one) for one in WHOLE.members()[1:])]),
    "something behind the end": lambda: WHOLE.encode() + b"\0",
    "one block of zeroes at the end": lambda: WHOLE.encode()[:-512] + b"x" * 512,
    "filled up as tar does it": lambda: WHOLE.encode() + bytes(4096),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_not_exactly_a_bundle_is_refused(how: str) -> None:
    """Whatever a tar can hold beside."""
    with pytest.raises(BrokenError, match=r"^not a bundle") as refused:
        read(HOSTILE[how]())
    assert refused.value.message.isprintable()


def test_it_is_read_from_a_pipe_and_no_further_than_its_end() -> None:
    """What has no end is not read to it."""

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size >= 0
            data = super().read(size)
            return data if len(data) == size else data + bytes(size - len(data))

    with pytest.raises(BrokenError, match="something behind its end"):
        read_bundle(Endless(WHOLE.encode()))

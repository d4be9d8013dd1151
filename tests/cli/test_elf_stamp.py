"""Stamping programs, as the machine's own compiler makes them."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import Securecore
from tests.support.programs import compile_program, needed, program_file

pytestmark = pytest.mark.slow

NULL_DEREF = Path(__file__).parents[2] / "scripts/crashers/null-deref.c"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A program without a build-id, as the toolchains of small devices write them."""
    return compile_program(NULL_DEREF, tmp_path / "app", "-Wl,--build-id=none")


def test_a_stamp_is_in_the_program_and_the_program_still_runs(securecore: Securecore, app: Path) -> None:
    """PROGRAM itself is stamped, in one step: mode kept, nothing beside it left, and readelf finds the section too."""
    readelf, names = needed("readelf"), sorted(os.listdir(app.parent))
    needed("objcopy")
    app.chmod(0o751)

    code, text, _ = securecore("elf", "stamp", app, "--uuid", "build-77")
    shown = subprocess.run([readelf, "-p", ".uuid", app], check=True, capture_output=True, text=True).stdout

    assert (code, text) == (0, f"{app}: .uuid build-77\n")
    assert "build-77" in shown
    assert stat.S_IMODE(app.stat().st_mode) == 0o751
    assert sorted(os.listdir(app.parent)) == names
    assert subprocess.run([app], check=False).returncode < 0  # null-deref does what it is for


def test_a_stamp_without_a_text_is_a_new_uuid_each_time(securecore: Securecore, app: Path, tmp_path: Path) -> None:
    """Two builds never get the same one; -o leaves PROGRAM alone."""
    needed("objcopy")
    before, made = app.read_bytes(), []
    for name in ("one", "two"):
        code, text, _ = securecore("elf", "stamp", app, "-o", tmp_path / name, "--json")
        made.append(json.loads(text)["uuid"])
        assert code == 0

    assert len(set(made)) == 2
    assert [len(uuid) for uuid in made] == [36, 36]
    assert app.read_bytes() == before


def test_a_stamp_is_not_replaced_unasked(securecore: Securecore, app: Path) -> None:
    """A second stamp is refused; with --replace there is one section, the new one."""
    needed("objcopy")
    securecore("elf", "stamp", app, "--uuid", "build-1")

    refused = securecore("elf", "stamp", app, "--uuid", "build-2")
    replaced = securecore("elf", "stamp", app, "--uuid", "build-2", "--replace")

    assert (refused[0], "has the .uuid build-1 already" in refused[2]) == (3, True)
    assert replaced[0] == 0
    assert app.read_bytes().count(b".uuid\0") == 1
    assert json.loads(securecore("elf", "id", app, "--json")[1])["uuid"] == "build-2"


@pytest.mark.parametrize("text", ["", "ä", "a\nb", "\x1b[2J", " build", "x" * 201])
def test_what_would_not_come_back_is_no_stamp(text: str, securecore: Securecore, app: Path) -> None:
    """Empty, not ASCII, control characters, surrounding space, too long: refused, and the program is as it was."""
    needed("objcopy")
    before = app.read_bytes()
    code, _, words = securecore("elf", "stamp", app, "--uuid", text)
    assert (code, "cannot be a stamp" in words) == (3, True)
    assert app.read_bytes() == before


def test_stamping_what_objcopy_refuses_leaves_it_as_it_was(securecore: Securecore, tmp_path: Path) -> None:
    """An ELF header with nothing behind it: one line with objcopy's words."""
    needed("objcopy")
    path = program_file(tmp_path, "app")
    path.write_bytes(path.read_bytes()[:64] + b"\xff" * 300)
    before = path.read_bytes()

    code, _, words = securecore("elf", "stamp", path, "--uuid", "x")

    assert (code, words.startswith("securecore: objcopy refuses: ")) == (3, True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["app"]


def test_stamp_without_objcopy_says_what_to_install(
    securecore: Securecore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No binutils on a small machine."""
    path = program_file(tmp_path, "app")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, words = securecore("elf", "stamp", path)
    assert (code, words) == (3, "securecore: objcopy is not here\n  hint: install binutils\n")


def test_what_is_appended_to_a_program_is_never_dropped(securecore: Securecore, app: Path) -> None:
    """Programs that carry an archive behind the ELF image (AppImage, PyInstaller): refused, in place and with -o, one byte too."""
    needed("objcopy")
    whole = app.read_bytes()
    for appended in (b"\0", b"PK archive" * 100):
        app.write_bytes(whole + appended)
        for options in ([], ["-o", app.with_name("stamped")]):
            code, _, words = securecore("elf", "stamp", app, "--uuid", "x", *options)
            assert (code, f"{len(appended)} bytes behind the ELF image" in words, "before anything" in words) == (3, True, True)
        assert app.read_bytes() == whole + appended
        assert not app.with_name("stamped").exists()


@pytest.mark.parametrize("options", [["-g"], ["-s"], ["-c"], ["-static"]], ids=str)
def test_what_a_linker_writes_ends_with_its_image(options: list[str], securecore: Securecore, tmp_path: Path) -> None:
    """With debugging symbols, stripped, an object file, static: each is stamped, and a stamped one is stamped again."""
    needed("objcopy")
    path = compile_program(NULL_DEREF, tmp_path / "app", *options)

    assert securecore("elf", "stamp", path, "--uuid", "build-1")[0] == 0
    assert securecore("elf", "stamp", path, "--uuid", "build-2", "--replace")[0] == 0


def test_a_program_with_several_names_is_not_stamped_in_place(securecore: Securecore, app: Path) -> None:
    """The other name would go on with the old content; with -o nothing is parted."""
    needed("objcopy")
    os.link(app, app.with_name("alias"))
    code, _, words = securecore("elf", "stamp", app, "--uuid", "x")

    assert (code, "has 2 names (hard links)" in words) == (3, True)
    assert app.samefile(app.with_name("alias"))
    assert securecore("elf", "stamp", app, "--uuid", "x", "-o", app.with_name("stamped"))[0] == 0


def test_extended_attributes_are_kept(securecore: Securecore, app: Path) -> None:
    """What a build has noted at a file stays there, in place and with -o."""
    needed("objcopy")
    try:
        os.setxattr(app, "user.build", b"77")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    securecore("elf", "stamp", app, "--uuid", "x", "-o", app.with_name("stamped"))
    securecore("elf", "stamp", app, "--uuid", "x")

    assert [os.getxattr(path, "user.build") for path in (app, app.with_name("stamped"))] == [b"77", b"77"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_set_uid_bit_and_capabilities_are_kept(securecore: Securecore, app: Path) -> None:
    """A change of owner takes bit and capabilities away, so both come after it."""
    needed("objcopy")
    os.chown(app, 65534, 65533)
    app.chmod(0o4751)
    subprocess.run([needed("setcap"), "cap_net_raw+ep", app], check=True)
    before = os.getxattr(app, "security.capability")

    assert securecore("elf", "stamp", app, "--uuid", "x")[0] == 0
    status = app.stat()

    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65533, 0o4751)
    assert os.getxattr(app, "security.capability") == before


def test_a_stamped_program_is_durable_before_it_has_its_name(
    securecore: Securecore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old program or the new one: content first, then the name, then the directory."""
    needed("objcopy")
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def note_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    securecore("elf", "stamp", app, "--uuid", "x")

    assert calls == ["fsync program", "replace", f"fsync {app.parent.name}"]

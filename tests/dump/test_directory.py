"""Files through directory descriptors: nothing planted is followed or replaced, and modes do not hang on the umask."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore.dump import directory
from securecore.errors import StorageError

Plant = Callable[[Path], None]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor of an empty directory, ``tmp_path / "own"``."""
    (tmp_path / "own").mkdir()
    opened = os.open(tmp_path / "own", os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """The most generous umask."""
    old = os.umask(0)
    yield
    os.umask(old)


def plant_link(path: Path) -> None:
    """A symbolic link to a file with content."""
    path.symlink_to(path.parent.parent / "target")


def plant_dangling_link(path: Path) -> None:
    """A symbolic link to nothing."""
    path.symlink_to(path.parent.parent / "nothing")


def plant_fifo(path: Path) -> None:
    """A FIFO that nobody writes to."""
    os.mkfifo(path)


def plant_directory(path: Path) -> None:
    """A directory that holds something."""
    path.mkdir()
    (path / "kept").write_bytes(b"kept")


def plant_hard_link(path: Path) -> None:
    """A second name of a file with content."""
    os.link(path.parent.parent / "target", path)


PLANTS = [plant_link, plant_dangling_link, plant_fifo, plant_directory]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """What a planted link leads to."""
    path = tmp_path / "target"
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_planted_is_read_or_written(plant: Plant, fd: int, tmp_path: Path, target: Path) -> None:
    """Whatever is no regular file is refused by every way to open a file, at once, and its target is untouched."""
    plant(tmp_path / "own" / "file")
    for attempt in (
        lambda: directory.read_file("file", fd, 100),
        lambda: directory.open_file("file", fd),
        lambda: directory.open_file("file", fd, append=True),
        lambda: directory.create_file("file", fd),
        lambda: directory.write_new_file("file", fd, b"new"),
    ):
        with pytest.raises(StorageError):
            attempt()
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_hard_link_is_not_written(fd: int, tmp_path: Path, target: Path) -> None:
    """A file that has another name too is never opened for writing."""
    plant_hard_link(tmp_path / "own" / "file")
    with pytest.raises(StorageError, match="one name"):
        directory.open_file("file", fd, append=True)
    with pytest.raises(StorageError):
        directory.write_new_file("file", fd, b"new")
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("plant", [plant_link, plant_dangling_link, plant_fifo, plant_hard_link])
def test_planted_aside_file_is_removed_not_followed(plant: Plant, fd: int, tmp_path: Path, target: Path) -> None:
    """What stands under the name that a file has while it is written is unlinked; its target is untouched."""
    plant(tmp_path / "own" / directory.aside_name("file"))
    directory.write_new_file("file", fd, b"new")
    assert (tmp_path / "own" / "file").read_bytes() == b"new"
    assert target.read_bytes() == b"precious"
    assert os.listdir(fd) == ["file"]


@pytest.mark.parametrize("name", ["file", directory.aside_name("file")])
def test_a_planted_directory_is_refused(name: str, fd: int, tmp_path: Path) -> None:
    """A directory in a file's place stops the writing and keeps its content."""
    plant_directory(tmp_path / "own" / name)
    with pytest.raises(StorageError):
        directory.replace_file("file", fd, b"new")
    assert (tmp_path / "own" / name / "kept").read_bytes() == b"kept"


def test_replacing_a_link_leaves_its_target(fd: int, tmp_path: Path, target: Path) -> None:
    """A file that replaces a link replaces the link, not what it leads to."""
    plant_link(tmp_path / "own" / "file")
    directory.replace_file("file", fd, b"new")
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "own" / "file").is_symlink()


@pytest.mark.parametrize("plant", [plant_link, plant_dangling_link, plant_fifo])
def test_only_a_directory_is_entered(plant: Plant, fd: int, tmp_path: Path) -> None:
    """A link to a directory is not a directory."""
    plant(tmp_path / "own" / "place")
    with pytest.raises(StorageError, match="not a directory"):
        directory.enter_directory("place", fd)


def test_modes_with_no_umask(fd: int, tmp_path: Path, no_umask: None) -> None:
    """Files are 0600 and directories 0700 even when the umask takes nothing away."""
    directory.write_new_file("new", fd, b"")
    directory.replace_file("replaced", fd, b"")
    os.close(directory.create_file("created", fd))
    os.close(directory.enter_directory("place", fd))
    modes = {name: stat.S_IMODE((tmp_path / "own" / name).stat().st_mode) for name in os.listdir(fd)}
    assert modes == {"new": 0o600, "replaced": 0o600, "created": 0o600, "place": 0o700}


def test_too_long_files_are_refused(fd: int, tmp_path: Path) -> None:
    """A file of exactly the bound is read, one byte more is refused."""
    (tmp_path / "own" / "file").write_bytes(b"x" * 10)
    assert directory.read_file("file", fd, 10) == b"x" * 10
    with pytest.raises(StorageError, match="longer than 9 bytes"):
        directory.read_file("file", fd, 9)


def test_missing_files_are_none(fd: int) -> None:
    """What is not there is None for readers, and nothing to remove."""
    assert directory.read_file("file", fd, 10) is None
    assert directory.open_file("file", fd) is None
    assert directory.open_directory("file", fd) is None
    directory.remove_file("file", fd)


def test_a_name_is_there_whatever_has_it(fd: int, tmp_path: Path) -> None:
    """A link that leads nowhere has it too, and a disk that does not say is no answer."""
    plant_dangling_link(tmp_path / "own/link")

    assert directory.exists("link", fd, "cannot look")
    assert not directory.exists("absent", fd, "cannot look")
    with pytest.raises(StorageError, match=r"^cannot look: file name too long"):
        directory.exists("x" * 300, fd, "cannot look")


def test_full_disk_has_a_hint() -> None:
    """A full disk is a StorageError that says what to do."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(StorageError, match="no space left on device") as raised:
            directory.write_all(full, b"x")
    finally:
        os.close(full)
    assert raised.value.hint == "free space on that file system"

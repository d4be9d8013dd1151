"""File systems that a test fills up, makes larger, breaks and repairs; local_files.py makes the small ones."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

BLOCK_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
"""What a tmpfs gives out at a time."""


def fill(disk: Path, left_blocks: int = 0) -> Path:
    """Write a file that leaves so many blocks of a tmpfs free, and return it."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BLOCK_BYTES))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        size = filler.stat().st_size // BLOCK_BYTES * BLOCK_BYTES
        file.truncate(max(0, size - left_blocks * BLOCK_BYTES))
    return filler


def grow(disk: Path, size: str) -> None:
    """Make a tmpfs larger."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


class BreakableDisk:
    """An ext4 in a file, that becomes read-only at once as after an error of its device: whoever has files open meets EROFS."""

    def __init__(self, path: Path, image: Path) -> None:
        self.path = path
        self._image = image

    def mount(self) -> None:
        """Mount it; skips the test where this process may not."""
        mounted = subprocess.run(["mount", "-o", "loop", str(self._image), str(self.path)], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("cannot mount a file")

    def break_down(self) -> None:
        """Make it read-only, open files or not; what was not yet written back is lost."""
        # ext4(5), abort: as the kernel does itself where it meets a broken block. A plain remount is refused while files are open.
        subprocess.run(["mount", "-o", "remount,abort", str(self.path)], check=True)

    def repair(self) -> None:
        """Check it and mount it again, as an operator does once nobody has files open there."""
        subprocess.run(["umount", str(self.path)], check=True)
        checked = subprocess.run(["e2fsck", "-p", str(self._image)], capture_output=True, check=False)
        # e2fsck(8): 1 is for errors that were corrected.
        assert checked.returncode in (0, 1), checked.stdout
        self.mount()


@contextmanager
def breakable_disk(path: Path, size_mib: int = 64) -> Iterator[BreakableDisk]:
    """Mount such a disk while the block runs; skips the test where there is no ext4 or no loop device."""
    if shutil.which("mkfs.ext4") is None or shutil.which("e2fsck") is None:
        pytest.skip("no e2fsprogs here")
    image = path.with_name(f"{path.name}.img")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, check=True)
    path.mkdir()
    disk = BreakableDisk(path, image)
    disk.mount()
    try:
        yield disk
    finally:
        # A receiver that the test has killed may take a moment to let go.
        subprocess.run(["umount", "-l", str(path)], check=True)
        image.unlink()

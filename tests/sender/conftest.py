"""Fixtures that several tests of the sender share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_files import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, with room for one of the cores."""
    with small_disk(tmp_path / "disk", "24m") as path:
        yield path

"""Files of times that no calendar holds: they are listed, and given up, like any other."""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securecore.store.layout import Store, create_store
from securecore.store.reading import modified_at
from securecore.store.rows import row_of
from tests.support.dumps import WEB, begin, core_bytes, dump_id, dump_path

ABSURD = {
    "before the year 1": (-(10**12), datetime(1970, 1, 1, tzinfo=UTC)),
    "before 1970": (-1, datetime(1970, 1, 1, tzinfo=UTC)),
    "1970": (0, datetime(1970, 1, 1, tzinfo=UTC)),
    "the end of 9999": (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "the year 10000": (253_402_300_800, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "the last that a file may have": ((1 << 63) - 1, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
}


@pytest.fixture
def any_time() -> Iterator[Path]:
    """A directory whose files keep 64 bits of time: a tmpfs."""
    try:
        place = tempfile.TemporaryDirectory(dir="/dev/shm")
    except OSError:
        pytest.skip("no tmpfs at /dev/shm")
    with place as name:
        yield Path(name)


@pytest.fixture
def store(any_time: Path) -> Iterator[Store]:
    """A store there."""
    with create_store(str(any_time / "store")) as made:
        yield made


@pytest.mark.parametrize(("seconds", "expected"), ABSURD.values(), ids=ABSURD)
def test_a_time_is_bounded_by_the_calendar(seconds: int, expected: datetime) -> None:
    """Whatever 64 bits hold comes back as a moment that RFC 3339 can spell."""
    assert modified_at(os.stat_result((0,) * 8 + (seconds, 0))) == expected


def test_the_fraction_of_the_last_second_does_not_leave_the_calendar(any_time: Path) -> None:
    """A float cannot tell it from the next year: it is cut before it is a date."""
    (any_time / "file").touch()
    os.utime(any_time / "file", ns=(0, 253_402_300_799_999_999_999))
    assert modified_at(os.stat(any_time / "file")) == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(("seconds", "expected"), ABSURD.values(), ids=ABSURD)
def test_a_dump_of_any_time_is_listed(seconds: int, expected: datetime, store: Store) -> None:
    """One that is coming in is listed by its directory's time; the last frame's is asked for by whoever gives dumps up."""
    begin(store, dump_id(1), core_bytes()).close()
    path = dump_path(store, dump_id(1), "incoming")
    os.utime(path / "core.zst", (seconds, seconds))
    os.utime(path, (seconds, seconds))
    with store.open_dump(WEB, dump_id(1)) as files:
        assert row_of(files).received_at == expected.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert files.last_frame_at() == expected
        (path / "core.zst").unlink()
        os.utime(path, (seconds, seconds))
        assert files.last_frame_at() == expected

"""A core that is checked with its bundle: its frames, and nothing else, are proved by the manifest or by the log's entry."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.bundles import CORE, DELETED, GIVEN_UP, RECEIVED, Collector, container_of, failed, left_out, world
from tests.support.certificates import make_hierarchy
from tests.support.dumps import NOW

EXTENT: Final = "frames and bytes are as many as the manifest says"
ROOT: Final = "the frames give the signed Merkle root"
FRAMES: Final = "every frame decompresses, with the right checksum"
LENGTH: Final = "the core is as long as the manifest says"
PLAIN: Final = "the core's frames give the Merkle root"


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """The dump's core.zst, in a file of its own."""
    (tmp_path / "core").write_bytes(container_of(CORE))
    return tmp_path / "core"


def test_a_core_is_checked_in_full(core: Path) -> None:
    """Frames, seek table, root."""
    found = world().own.verify(world().own.bundle(RECEIVED), core)
    assert found.ok, found.checks
    assert (len(found.checks), left_out(found)) == (14, set())


@pytest.mark.parametrize("event", ["incomplete", "received"])
def test_so_is_the_core_of_a_dump_without_a_manifest(event: str, core: Path) -> None:
    """Against what the proved entry says: of one that was given up, and of a copy of one that was deleted."""
    own = world().own
    bundle = own.tombstone(DELETED) if event == "received" else own.bundle(GIVEN_UP, event=event)
    assert own.verify(bundle, core).ok
    core.write_bytes(container_of(b"another"))
    found = own.verify(bundle, core)
    assert failed(found) == {"the frames give the entry's Merkle root", "frames and bytes are as many as the entry says", FRAMES}


@pytest.mark.slow
def test_any_changed_byte_of_a_core_is_refused(core: Path) -> None:
    """And where frames can tell, the frame is named."""
    own, whole = world().own, core.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        core.write_bytes(changed)
        assert not own.verify(own.bundle(RECEIVED), core).ok, at


def test_another_dumps_core_is_refused(core: Path) -> None:
    """A sound one, too."""
    core.write_bytes(container_of(b"another core"))
    found = world().own.verify(world().own.bundle(RECEIVED), core)
    assert failed(found) == {EXTENT, ROOT, FRAMES}


@pytest.mark.parametrize(("plain", "missing"), [(CORE, set()), (CORE[:-1] + b"!", set()), (CORE[:-1], {LENGTH}), (b"", {LENGTH})])
def test_plaintext_is_never_proved(plain: bytes, missing: set[str], core: Path) -> None:
    """Its length is compared, and that its bytes are the dump's cannot be said: so the outcome is not ok."""
    core.write_bytes(plain)
    found = world().own.verify(world().own.bundle(RECEIVED), core)
    assert not found.ok
    assert (failed(found), left_out(found)) == (missing, {PLAIN})


def test_an_empty_core_has_a_seek_table_and_no_frame(core: Path) -> None:
    """It is no plaintext."""
    own = Collector.make(make_hierarchy(now=NOW))
    own.receive(1, core=b"")
    core.write_bytes(container_of(b""))
    assert own.verify(own.bundle(1), core).ok
    core.write_bytes(b"")
    assert not own.verify(own.bundle(1), core).ok

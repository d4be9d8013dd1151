"""The beginning of a frame that a session did not get to the end of: it is kept for the next one, and cut off where it is none."""

import os

import pytest

from securecore import limits
from securecore.dump.container import FrameEntry, seek_table
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.merkle import leaf_hash
from securecore.store.layout import Store
from securecore.store.writer import IncomingDump
from tests.support.dumps import REPORT, WEB, begin, core_bytes, dump_id, dump_path, frames_of

CORE = core_bytes()
FRAMES = frames_of(CORE)
STORED = b"".join(frame for frame, _ in FRAMES)


def resume(store: Store) -> IncomingDump:
    """Return the dump that was begun, as a new session finds it."""
    return IncomingDump.resume(store, WEB, dump_id(1), REPORT)


def test_the_beginning_of_a_frame_survives_a_session(store: Store) -> None:
    """It stands behind the frames and is no frame: not counted, not hashed, read back as it was."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.append(*FRAMES[0])
    incoming.keep_torn(FRAMES[1][0][:20])
    assert incoming.torn() == FRAMES[1][0][:20]
    incoming.sync()
    incoming.close()
    again = resume(store)
    assert (again.frames, again.root, again.stored_bytes) == (1, leaf_hash(FRAMES[0][0]), len(FRAMES[0][0]))
    assert again.torn() == FRAMES[1][0][:20]
    again.close()


def test_a_later_beginning_takes_the_place_of_an_earlier_one(store: Store) -> None:
    """Whichever is longer: nothing of the earlier one is left behind it."""
    for later in (FRAMES[1][0][:30], FRAMES[1][0][:10]):
        incoming = begin(store, dump_id(1), b"") if not store.incoming() else resume(store)
        incoming.keep_torn(FRAMES[1][0][:20])
        incoming.keep_torn(later)
        assert incoming.torn() == later
        incoming.close()
        assert (dump_path(store, dump_id(1), "incoming") / "core.zst").read_bytes() == later


@pytest.mark.parametrize("way", ["frame", "zero", "end"])
def test_what_follows_drops_the_beginning(way: str, store: Store) -> None:
    """A whole frame, zeroes or the end of the dump stand where it stood."""
    incoming = IncomingDump.begin(store, WEB, dump_id(1), REPORT)
    incoming.keep_torn(FRAMES[1][0][:20])
    incoming.sync()
    incoming.close()
    again = resume(store)
    if way == "frame":
        again.append(*FRAMES[1])
    elif way == "zero":
        again.append_zero_pieces(1)
    else:
        again.finish(b"manifest")
    expected = {"frame": FRAMES[1][0], "zero": ZERO_PIECE_FRAME, "end": seek_table([])}[way]
    assert again.torn() == b""
    assert (dump_path(store, dump_id(1), "incoming") / "core.zst").read_bytes() == expected
    again.close()


NO_BEGINNING = {
    "zeroes": b"\0" * 50,
    "its seek table": seek_table([FrameEntry(len(FRAMES[0][0]), limits.PIECE_BYTES)]),
    "the beginning of it": seek_table([FrameEntry(len(FRAMES[0][0]), limits.PIECE_BYTES)])[:11],
}


@pytest.mark.parametrize("name", NO_BEGINNING)
def test_what_a_crash_leaves_and_is_no_beginning_of_a_frame_is_cut_off(name: str, store: Store) -> None:
    """A power cut leaves zeroes, a receiver that was killed a seek table: neither offered to the sender, nor kept."""
    begin(store, dump_id(1), CORE[: limits.PIECE_BYTES]).close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    with core.open("ab") as file:
        file.write(NO_BEGINNING[name])
    incoming = resume(store)
    assert (incoming.frames, incoming.torn(), incoming.damaged_bytes) == (1, b"", 0)
    assert core.read_bytes() == FRAMES[0][0]
    assert sorted(os.listdir(core.parent)) == ["core.zst", "report.json"]
    incoming.close()


def test_behind_a_short_piece_nothing_is_the_beginning_of_a_frame(store: Store) -> None:
    """No frame may follow the last one of a dump."""
    begin(store, dump_id(1), CORE).close()
    core = dump_path(store, dump_id(1), "incoming") / "core.zst"
    with core.open("ab") as file:
        file.write(FRAMES[1][0][:20])
    incoming = resume(store)
    assert (incoming.frames, incoming.torn()) == (3, b"")
    assert core.read_bytes() == STORED
    incoming.close()

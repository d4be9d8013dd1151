"""Limits: each says where it comes from, and those that depend on each other agree."""

import ast
from itertools import pairwise
from pathlib import Path

from securecore import limits
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.wire.messages import HEADER_BYTES, Kind, max_body_bytes

UNITS = {"KIB", "MIB", "GIB"}


def test_every_limit_has_its_reason() -> None:
    """The constant is Final and followed by a docstring; units need none."""
    body = ast.parse(Path(limits.__file__).read_text(encoding="utf-8")).body
    told = {
        node.target.id
        for node, after in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr)
    }
    assert {name for name in vars(limits) if name.isupper()} - UNITS == told


def test_a_sender_never_waits_for_an_ack_that_the_receiver_does_not_owe_yet() -> None:
    """The window holds what may be unacknowledged: ACK_EVERY_BYTES, and one frame more."""
    assert limits.ACK_EVERY_BYTES + 2 * limits.MAX_FRAME_BYTES < limits.RING_BYTES


def test_a_frame_holds_any_piece() -> None:
    """ZSTD_compressBound for more than 128 KiB is length + length / 256; then headers and checksum."""
    assert limits.MAX_FRAME_BYTES >= limits.PIECE_BYTES + limits.PIECE_BYTES // 256 + 4
    assert len(ZERO_PIECE_FRAME) < 64


def test_counts_and_lengths_fit_their_fields() -> None:
    """Frames are counted in 32 bits on the wire, and stay below what the seekable format allows."""
    assert limits.MAX_FRAMES < 0x8000000 < 1 << 32
    assert all(HEADER_BYTES + max_body_bytes(kind) < 2 * limits.MIB for kind in Kind)


def test_a_receiver_is_not_given_up_on_while_it_does_what_it_may() -> None:
    """Each end's patience is longer than what the other end is allowed to take."""
    assert limits.CONNECT_DEADLINE_S <= limits.HANDSHAKE_DEADLINE_S < limits.IDLE_DEADLINE_S < limits.RECEIPT_DEADLINE_S
    assert limits.ACK_EVERY_S < limits.PROGRESS_DEADLINE_S
    assert 4 * limits.KEEP_ALIVE_EVERY_S <= limits.PATH_DEADLINE_S < limits.RECEIPT_DEADLINE_S
    assert max(limits.CONNECT_DEADLINE_S, limits.PROGRESS_DEADLINE_S, limits.HOLD_BUDGET_S) <= limits.MAX_DEADLINE_S

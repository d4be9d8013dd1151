"""A dump's way to the spool without a thread: for a process that may start none, as where somebody has used up all processes.

No receiver is asked, and nothing is compressed while the next piece is read: slower, but the core is kept.
"""

import math
import os
import time
from collections.abc import Callable

from securecore import limits
from securecore.dump.compression import Compressor
from securecore.elfsize import CoreSize
from securecore.errors import SecurecoreError
from securecore.sender.custody import Custody, least_bytes
from securecore.sender.parcel import Outcome, Parcel
from securecore.sender.pump import SourceEnd, fill, make_frame
from securecore.sender.spool import Spool
from securecore.sender.spool_entry import EntryEnd


def keep_alone(
    source: int,
    parcel: Parcel,
    spool: Spool,
    head: bytes,
    find_cut: Callable[[], str | None],
    failure: SecurecoreError,
    piece_s: float = math.inf,
) -> Outcome:
    """Drain *source* to the spool, close it as soon as it is drained, and return how it ended; *failure* is why no receiver has it.

    *head* was read before; *find_cut* tells why the end that was met is not the source's own, and *piece_s* is as Pump.read has it.
    """
    custody = Custody(*parcel, spool)
    try:
        return _drain(source, custody, head, find_cut, failure, piece_s)
    finally:
        custody.close()


def _drain(
    source: int, custody: Custody, head: bytes, find_cut: Callable[[], str | None], failure: SecurecoreError, piece_s: float
) -> Outcome:
    """Drain *source* to what has *custody*, as keep_alone does."""
    core, begun, size, stored_bytes = CoreSize(), memoryview(head), 0, 0
    problem: str | None = None
    try:
        encoder, buffer, length = Compressor(), bytearray(limits.PIECE_BYTES), limits.PIECE_BYTES
        while length == limits.PIECE_BYTES and custody.failure is None:
            filled, begun = begun[: limits.PIECE_BYTES], begun[limits.PIECE_BYTES :]
            buffer[: len(filled)] = filled
            length, problem = fill(source, buffer, len(filled), piece_s)
            piece = memoryview(buffer)[:length]
            core.feed(piece)
            if custody.entry is None:
                # As a transfer does: what is sure not to fit is not begun.
                custody.fall_back(None, least_bytes(core.expected))
            if length:
                frame = make_frame(encoder, piece)
                custody.take(frame)
                custody.keep_ring()
                size, stored_bytes = size + length, stored_bytes + len(frame.stored)
    except MemoryError:
        problem = "out of memory"
    except SecurecoreError:
        pass  # The spool has taken nothing, and custody knows why.
    finally:
        os.close(source)
    end = SourceEnd(size, core.expected, core.is_undecided, problem or find_cut())
    outcome = end.outcome(is_part_lost=custody.failure is not None)
    tree = custody.all
    custody.finish(EntryEnd(size, end.predicted_size, outcome, int(time.time() * 1000), tree.size, tree.root()))
    return Outcome(None, failure, custody.entry is not None, custody.failure, size, stored_bytes, tree.size, end.failure)

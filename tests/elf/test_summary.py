"""An analyser's answer as bytes: whole, cut, and with more behind it."""

import pytest

from securecore.elf.analysis import _parse_answer
from securecore.elf.summary import CoreSummary, parse_summary
from securecore.errors import BrokenError

FULL = CoreSummary("x86_64", 11, "address not mapped", 16, 4713, 4711, 33, "nginx", "nginx -x", 3, "/usr/sbin/nginx", "4f1c")


def test_a_summary_survives() -> None:
    """encode and parse are each other's inverse, with every field and with none."""
    assert [parse_summary(summary.encode()) for summary in (FULL, CoreSummary())] == [FULL, CoreSummary()]


def test_an_answer_cut_at_every_offset_is_broken() -> None:
    """An analyser that died within its answer has said nothing; nor has one that said more. Its newline may be missing."""
    whole = FULL.encode()
    for other in [*(whole[:cut] for cut in range(len(whole))), whole + b"x", whole + b"\n" + whole]:
        for parse in (parse_summary, _parse_answer):
            with pytest.raises(BrokenError, match="JSON"):
                parse(other)
    assert _parse_answer(whole) == _parse_answer(whole + b"\n") == FULL

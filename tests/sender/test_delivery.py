"""What a receiver can make a sender do by refusing it: show when to come again, in words that move no cursor."""

import pytest

from securecore import limits
from securecore.errors import BusyError, ClockError, RefusedError, SecurecoreError
from securecore.names import Address
from securecore.sender.delivery import refusal
from securecore.wire.messages import Refusal, Refuse

THERE = Address("collector.example:4455")


@pytest.mark.parametrize(
    ("retry_after_s", "hint"),
    [(0, "come again later"), (60, "come again in 60 s"), ((1 << 32) - 1, f"come again in {limits.MAX_RETRY_AFTER_S} s")],
)
def test_a_retry_after_is_capped(retry_after_s: int, hint: str) -> None:
    """R24: the largest number that fits the field is shown as a day."""
    error = refusal(Refuse(Refusal.BUSY, "come back", retry_after_s), THERE)

    assert (type(error), error.hint) == (BusyError, hint)


@pytest.mark.parametrize(
    ("code", "kind"), [(Refusal.REVOKED, RefusedError), (Refusal.NOT_YET_VALID, ClockError), (Refusal.STORAGE, BusyError)]
)
def test_a_refusal_is_the_error_that_it_means_in_printable_words(code: Refusal, kind: type[SecurecoreError]) -> None:
    """The code decides, the words are shown without what would move a cursor or begin a line."""
    error = refusal(Refuse(code, "no\x1b[2J\nsecurecore: delivered\u202e"), THERE)

    assert type(error) is kind
    assert error.message == "refused by collector.example:4455: no?[2J?securecore: delivered?"

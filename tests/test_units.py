"""Sizes as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.units import SIZE_WIDTH, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (102_399, "100.0 KiB"), (102_400, "100 KiB"), (12 << 20, "12.0 MiB"),
        (6.4 * (1 << 30), "6.4 GiB"), (1 << 50, "1.0 PiB"), (1 << 63, "8192 PiB"),
    ],
)  # fmt: skip
def test_three_digits_and_a_binary_unit(number: float, text: str) -> None:
    """As short as it can be said, without a jump at the units' ends."""
    assert size(number) == text


@given(st.integers(0, 1 << 60))
def test_a_size_fits_its_column(number: int) -> None:
    """Up to an exbibyte, which no core has."""
    assert len(size(number)) <= SIZE_WIDTH + 1

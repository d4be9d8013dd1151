"""Sizes as people read them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.units import SIZE_WIDTH, exact_size, exact_span, parse_size, parse_span, size


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


@given(st.integers(0, (1 << 60)))
def test_a_size_that_is_shown_can_be_written(number: int) -> None:
    """What is shown is understood, and means the same but for what its two or three digits do not show."""
    read = parse_size(size(number))
    assert read is not None
    assert abs(read - number) <= number / 20


@given(st.integers(0, 10**15) | st.integers(0, 1 << 40).map(lambda number: number << 10))
def test_a_size_that_is_written_reads_back(number: int) -> None:
    """To the byte."""
    assert parse_size(exact_size(number)) == number


@pytest.mark.parametrize(("number", "text"), [(1, "1B"), (1 << 20, "1MiB"), (3 << 39, "1536GiB"), ((1 << 30) + 1, "1073741825B")])
def test_a_size_is_written_in_its_largest_whole_unit(number: int, text: str) -> None:
    """So that a person reads what was once written."""
    assert exact_size(number) == text


@given(st.integers(1, 10**9 - 1), st.sampled_from("smhdw"))
def test_a_span_that_is_written_reads_back(number: int, unit: str) -> None:
    """To the second, for every one that can be read."""
    span = parse_span(f"{number}{unit}")
    assert span is None or parse_span(exact_span(span)) == span


@given(st.text(max_size=12))
def test_any_text_is_a_size_and_a_span_or_neither(text: str) -> None:
    """Nothing is raised, and nothing is below zero."""
    assert (parse_size(text) or 0) >= 0
    assert (parse_span(text) or timedelta()) >= timedelta()

"""The handler's arguments as the kernel gives them, and as nobody should."""

import pytest

from securecore import limits
from securecore.errors import ConfigError
from securecore.sender.kernel_arguments import SPECIFIERS, KernelArguments, parse_arguments

FULL = ["4711", "4712", "33", "34", "11", "1795317943", "18446744073709551615", "1", "3"]


def test_the_kernels_arguments_are_read_in_order() -> None:
    """Each specifier of the pattern has its field."""
    assert parse_arguments(FULL) == KernelArguments(4711, 4712, 33, 34, 11, 1795317943, (1 << 64) - 1, 1, 3)


def test_a_kernel_without_pidfds_leaves_the_last_one_out() -> None:
    """Before Linux 6.16 %F is dropped: the handler works without it."""
    assert parse_arguments(FULL[:-1]).pidfd is None


@pytest.mark.parametrize(
    "arguments",
    [[], FULL[:7], [*FULL, "1"], ["-1", *FULL[1:]], [*FULL[:-1], "x"], ["4711; id", *FULL[1:]], ["", *FULL[1:]], ["٣", *FULL[1:]]],
)
def test_other_arguments_are_refused(arguments: list[str]) -> None:
    """What does not come from our pattern is a wrong set-up, and is said to be one."""
    with pytest.raises(ConfigError, match="core_pattern"):
        parse_arguments(arguments)


def test_arguments_cut_after_every_one_are_refused_or_lack_the_pidfd() -> None:
    """Eight or nine, and each is there; what an argument lost of its digits nobody can see."""
    for count in range(len(FULL) - 1):
        with pytest.raises(ConfigError, match="core_pattern"):
            parse_arguments(FULL[:count])
    for index in range(len(FULL)):
        with pytest.raises(ConfigError, match="core_pattern"):
            parse_arguments([*FULL[:index], "", *FULL[index + 1 :]])


def test_the_pattern_passes_no_text_of_the_process_and_fits_the_kernel() -> None:
    """R27 and R1: numbers only, no %e, %E, %f or %h; with a usual path it stays under the kernel's bound."""
    specifiers = SPECIFIERS.split()

    assert specifiers == ["%P", "%I", "%u", "%g", "%s", "%t", "%c", "%d", "%F"]
    assert len(f"|/usr/libexec/securecore/handler {SPECIFIERS}") <= limits.CORE_PATTERN_MAX

"""Signal codes in words."""

import signal

import pytest

from securecore.elf.signals import describe_code, has_address


@pytest.mark.parametrize(
    ("number", "code", "words", "addressed"),
    [
        (signal.SIGSEGV, 1, "address not mapped", True),
        (signal.SIGSEGV, 2, "invalid permissions for mapped object", True),
        (signal.SIGBUS, 2, "nonexistent physical address", True),
        (signal.SIGFPE, 1, "integer divide by zero", True),
        (signal.SIGILL, 2, "illegal operand", True),
        (signal.SIGSEGV, 0x80, "sent by the kernel", False),
        (signal.SIGSEGV, 0, "sent by kill", False),
        (signal.SIGABRT, -6, "sent by tgkill, as abort and raise do", False),
        (signal.SIGABRT, 1, "code 1", False),
        (signal.SIGSEGV, 999, "code 999", True),
    ],
)
def test_a_code_is_told_in_words(number: int, code: int, words: str, addressed: bool) -> None:
    """Known codes have words, others their number; only a fault has an address."""
    assert (words, addressed) == (describe_code(number, code), has_address(number, code))

"""Whether a program is the one that crashed: build-ids decide, then stamps, and where neither is there nobody guesses."""

import pytest

from securecore.elf.matching import Crashed, compare
from securecore.elfid import ProgramIds

YES = {
    "the core's own build-id": (Crashed("aa"), ProgramIds("aa")),
    "the report's build-id, where the core has none": (Crashed(None, "aa"), ProgramIds("aa")),
    "a build-id in other letters": (Crashed("AA"), ProgramIds("aa")),
    "stamps, where the core has no build-id": (Crashed(None, None, "build-1"), ProgramIds("aa", "build-1")),
    "stamps, where the program has no build-id": (Crashed("aa", "aa", "build-1"), ProgramIds(None, "build-1")),
    "the same build, stamped twice": (Crashed("aa", "aa", "build-1"), ProgramIds("aa", "build-2")),
}
NO = {
    "another build-id": (Crashed("aa"), ProgramIds("bb")),
    "the core's own build-id goes before the report's": (Crashed("aa", "bb"), ProgramIds("bb")),
    "another stamp": (Crashed(None, None, "build-1"), ProgramIds(None, "build-2")),
    "another build with the same stamp": (Crashed("aa", None, "build-1"), ProgramIds("bb", "build-1")),
}
CANNOT_TELL = {
    "nothing on either side": (Crashed(), ProgramIds(), "program has neither"),
    "a program that nothing names": (Crashed("aa", "aa", "build-1"), ProgramIds(), "program has neither"),
    "a crash that nothing names": (Crashed(), ProgramIds("aa", "build-1"), "neither the core nor its report"),
    "a build-id against a stamp": (Crashed("aa"), ProgramIds(None, "build-1"), "one side has only a build-id"),
    "a stamp against a build-id": (Crashed(None, None, "build-1"), ProgramIds("aa"), "one side has only a build-id"),
}


@pytest.mark.parametrize("case", YES)
def test_yes(case: str) -> None:
    """The program is the one that crashed, and the reason names what both have."""
    verdict = compare(*YES[case])
    assert (verdict.is_match, verdict.why[:9]) == (True, "both have")


@pytest.mark.parametrize("case", NO)
def test_no(case: str) -> None:
    """It is another one, and the reason names both."""
    crashed, program = NO[case]
    verdict = compare(crashed, program)
    assert verdict.is_match is False
    assert "differ: " in verdict.why
    assert str(program.build_id or program.uuid) in verdict.why


@pytest.mark.parametrize("case", CANNOT_TELL)
def test_nobody_guesses(case: str) -> None:
    """Neither yes nor no, and the reason says what is missing where."""
    crashed, program, words = CANNOT_TELL[case]
    verdict = compare(crashed, program)
    assert verdict.is_match is None
    assert words in verdict.why


@pytest.mark.parametrize(
    ("crashed", "program", "words"),
    [
        (Crashed("aa", "bb"), ProgramIds("aa"), "the report gives build-id bb, the core itself aa"),
        (Crashed("aa", None, "build-1"), ProgramIds("aa", "build-2"), ".uuid sections differ"),
        (Crashed("aa", None, "build-1"), ProgramIds("bb", "build-1"), ".uuid sections are the same"),
    ],
)
def test_what_does_not_decide_is_noted(crashed: Crashed, program: ProgramIds, words: str) -> None:
    """A report that contradicts its core, and stamps that contradict build-ids, are worth a look."""
    (note,) = compare(crashed, program).notes
    assert words in note

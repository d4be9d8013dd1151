"""The options in core_pattern: what set-up writes is what the handler reads, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.errors import ConfigError
from securecore.sender.local_mode import KEEP_MAX, LocalMode, parse_local_mode
from tests.sender.test_kernel_arguments import FULL

modes = st.builds(
    LocalMode,
    st.sampled_from(["/a", "/var/lib/securecore/cores", "/x/y.z"]),
    st.sampled_from(["zst", "gz", "zlib"]),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, KEEP_MAX),
)


@given(modes)
def test_written_options_read_back(mode: LocalMode) -> None:
    """For every mode, parse(arguments(x)) is x, and the kernel's numbers are what is left."""
    assert parse_local_mode([*mode.arguments(), *FULL]) == (mode, FULL)


def test_without_options_there_is_no_mode() -> None:
    """The network's pattern begins with a number."""
    assert parse_local_mode(FULL) == (None, FULL)
    assert parse_local_mode([]) == (None, [])


@given(st.lists(st.sampled_from(["--local", "/a", "--format", "gz", "--level", "--keep", "1", "-1", "", "x"]), max_size=8))
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    """Whatever stands in core_pattern, the answer is a mode or a ConfigError."""
    try:
        parse_local_mode(words)
    except ConfigError:
        pass


@pytest.mark.parametrize(
    "words",
    [
        ["--local"],
        ["--local", "cores"],
        ["--local", "/a/../b"],
        ["--local", "/"],
        ["--local", "/a\nb"],
        ["--local", "/a", "--local", "/b"],
        ["--local", "/a", "--frobnicate", "1"],
        ["--local", "/a", "--format", "rar"],
        ["--local", "/a", "--format"],
        ["--local", "/a", "--level", "0"],
        ["--local", "/a", "--level", "20"],
        ["--local", "/a", "--format", "gz", "--level", "10"],
        ["--local", "/a", "--level", "x"],
        ["--local", "/a", "--keep", "0"],
        ["--local", "/a", "--keep", "-1"],
        ["--local", "/a", "--keep", "1000001"],
        ["--local", "/a", "--keep", "٣"],
        ["--format", "gz"],
        ["--keep", "1"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused_in_words(words: list[str]) -> None:
    """A wrong core_pattern is a configuration error; nothing is guessed."""
    with pytest.raises(ConfigError):
        parse_local_mode([*words, *FULL] if words not in (["--local"], ["--help"]) else words)

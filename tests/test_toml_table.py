"""Settings files: every value is of its kind, and every mistake is named with its line."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore.errors import ConfigError
from securecore.toml_table import TomlTable, parse_toml

KNOWN = ("size", "span", "share", "count", "seconds", "texts", "inner", "hosts", "on")


def parse(text: str) -> TomlTable:
    """Return the table that a file with these lines is; its first line is its version."""
    return parse_toml(f"version = 1\n{text}".encode(), "x.toml", 1, *KNOWN)


Read = Callable[[TomlTable], object]


@pytest.mark.parametrize(
    ("text", "read", "value"),
    [
        ('size = "20GiB"', lambda table: table.size("size"), 20 << 30),
        ('size = "1.5 KiB"', lambda table: table.size("size"), 1536),
        ("size = 7", lambda table: table.size("size"), 7),
        ('span = "90s"', lambda table: table.span("span"), timedelta(seconds=90)),
        ('span = "2w"', lambda table: table.span("span"), timedelta(weeks=2)),
        ('share = "5%"', lambda table: table.share("share"), 0.05),
        ('share = "0.125%"', lambda table: table.share("share"), 0.00125),
        ("", lambda table: table.share("share"), None),
        ("count = 0", lambda table: table.count("count"), 0),
        ("seconds = 0.5", lambda table: table.seconds("seconds", 1), 0.5),
        ('texts = ["a", "b"]', lambda table: table.texts("texts"), ("a", "b")),
        ("on = false", lambda table: table.find("on", bool), False),
        ("", lambda table: [table.size("size"), table.span("span"), table.texts("texts"), table.seconds("seconds", 1)], [None] * 4),
        ("", lambda table: list(table.table("inner", "size")), []),
        ('[inner]\nsize = "1B"', lambda table: table.table("inner", "size").size("size"), 1),
        ('[hosts."web-1"]\ncount = 3', lambda table: table.table("hosts").table("web-1", "count").count("count"), 3),
    ],
)
def test_a_value_is_read_as_it_is_meant(text: str, read: Read, value: object) -> None:
    """What is left out is None, and an absent table is an empty one."""
    assert read(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ('size = "20GB"', lambda table: table.size("size"), "x.toml:2: size must be a size"),
        ("size = -1", lambda table: table.size("size"), "x.toml:2: size must be a size"),
        ('size = "8192PiB"', lambda table: table.size("size"), "x.toml:2: size must be a size"),
        ("size = true", lambda table: table.size("size"), "x.toml:2: size must be a size"),
        ("size = 1.5", lambda table: table.size("size"), "x.toml:2: size must be a size"),
        ('span = "0s"', lambda table: table.span("span"), "x.toml:2: span must be a length of time"),
        ('span = "999999999w"', lambda table: table.span("span"), "x.toml:2: span must be a length of time"),
        ("span = 90", lambda table: table.span("span"), "x.toml:2: span must be a text"),
        ("share = 0.05", lambda table: table.share("share"), "x.toml:2: share must be a text"),
        ('share = "100%"', lambda table: table.share("share"), "x.toml:2: share must be a share below 100%"),
        ('share = "-1%"', lambda table: table.share("share"), "x.toml:2: share must be a share below 100%"),
        ('share = "1.%"', lambda table: table.share("share"), "x.toml:2: share must be a share below 100%"),
        ("count = -1", lambda table: table.count("count"), "x.toml:2: count must be 0 to "),
        ("count = 9", lambda table: table.count("count", 8), "x.toml:2: count must be 0 to 8"),
        ("texts = [1]", lambda table: table.texts("texts"), "x.toml:2: texts must be a list of texts"),
        ("on = 1", lambda table: table.find("on", bool), "x.toml:2: on must be a true or false"),
        ("[inner]\n\nsiez = 1", lambda table: table.table("inner", "size"), "x.toml:4: unknown key 'siez'"),
        ("count = 1\n[inner]\ncount = -1", lambda table: table.table("inner", "count").count("count"), "x.toml:4: count must be"),
        ("[hosts.'a.b'] #\ncount = -1", lambda table: table.table("hosts").table("a.b").count("count"), "x.toml:3: count must be"),
        ("[hosts.a]\ncount = 1\n[hosts.b]\ncont = 1", lambda table: table.table("hosts").table("b", "count"), "x.toml:5: unknown"),
        ("inner = 5", lambda table: table.table("inner", "size"), "x.toml:2: inner must be a table"),
        ("\n[iner]\nsize = 1", lambda table: table, "x.toml:3: unknown key 'iner'"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, read: Read, message: str) -> None:
    """Also in a table whose keys stand in another one too."""
    with pytest.raises(ConfigError) as caught:
        read(parse(text))
    assert caught.value.message.startswith(message)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str, name: str) -> None:
    """Whatever stands in the file, a mistake is a ConfigError that begins with the file's name."""
    words = "x.toml"
    try:
        parse(f'{text}\n[hosts."{name}"]\ncont = 1').table("hosts").table(name, "count")
    except ConfigError as error:
        words = error.message
    assert words.startswith("x.toml")

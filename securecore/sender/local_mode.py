"""Local mode: what core_pattern tells a handler that keeps its cores on this machine, before the kernel's numbers.

``--local DIR [--format zst|gz|zlib] [--level N] [--keep N]``. The mode stands in core_pattern itself, so that the handler reads no
settings; what people write is the table ``[local]`` of sender.toml (configuration.py).
"""


from securecore.declarations import Final, NamedTuple, Self, Sequence
from securecore.dump.packing import check_level
from securecore.errors import ConfigError
from securecore.names import is_plain_path

DEFAULT_FORMAT: Final = "zst"
KEEP_MAX: Final = 1_000_000
"""Dumps that --keep may name: each run lists the directory and looks at every file of it."""

_OPTIONS: Final = ("--local", "--format", "--level", "--keep")


class LocalMode(NamedTuple):
    """Where and how cores are kept."""

    directory: str
    """Absolute path; the handler becomes its owner."""
    kind: str = DEFAULT_FORMAT
    level: int | None = None
    """None is the format's own."""
    keep: int | None = None
    """How many of the newest dumps are kept; None keeps all."""

    def check(self, where: str) -> Self:
        """Return itself; raises ConfigError, which begins with *where*, when a value is none that could work."""
        if not is_plain_path(self.directory):
            raise ConfigError(
                f"{where}: the directory must be an absolute path without `..` and control characters, not {self.directory[:300]!a}"
            )
        try:
            check_level(self.kind, self.level)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}") from error
        if self.keep is not None and not 1 <= self.keep <= KEEP_MAX:
            raise ConfigError(f"{where}: keep must be 1 to {KEEP_MAX}, not {self.keep}")
        return self

    def arguments(self) -> list[str]:
        """Return the words that parse_local_mode reads."""
        words = ["--local", self.directory]
        if self.kind != DEFAULT_FORMAT:
            words += ["--format", self.kind]
        if self.level is not None:
            words += ["--level", str(self.level)]
        if self.keep is not None:
            words += ["--keep", str(self.keep)]
        return words


def parse_local_mode(arguments: Sequence[str]) -> tuple[LocalMode | None, Sequence[str]]:
    """Return the mode that *arguments* begin with, None where they begin with no option, and the rest.

    Raises ConfigError for an option that is unknown, twice there, or without a value that it can have.
    """
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        option, *rest = rest
        if option not in _OPTIONS or option in found or not rest:
            raise _refused(f"{option[:40]!a} is unknown, twice there or without a value")
        found[option] = rest.pop(0)
    if not found:
        return None, rest
    if "--local" not in found:
        raise _refused("--local is missing")
    mode = LocalMode(found["--local"], found.get("--format", DEFAULT_FORMAT), _number(found, "--level"), _number(found, "--keep"))
    return mode.check("arguments"), rest


def _number(found: dict[str, str], option: str) -> int | None:
    text = found.get(option)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise _refused(f"{option} takes a number, not {text[:40]!a}")
    return int(text)


def _refused(why: str) -> ConfigError:
    return ConfigError(
        f"arguments are not those of our core_pattern: {why}", hint="--local DIR [--format zst|gz|zlib] [--level N] [--keep N]"
    )

"""The process that fuzzes: ``python -m tests.fuzz.process TABLE DIRECTORY TARGET... -- [libFuzzer's arguments]``.

The package, and the parsers in pure Python below it, are loaded once with atheris' counters in them; then each target runs in a
child of its own, for libFuzzer ends the process that it runs in. The targets themselves are not instrumented, so that coverage
speaks of the product. In DIRECTORY/TARGET stand the inputs that found something new (``corpus``), what libFuzzer said (``log``),
and each input that broke a property. For each target that is done, one line says its name and how libFuzzer ended.
"""

import importlib
import os
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, NoReturn

import atheris

from tests.fuzz.mutation import mutate_json

if TYPE_CHECKING:  # A target knows the product, which must not be loaded before it is instrumented.
    from tests.fuzz.target import Target

INSTRUMENTED: Final = ["securecore", "elftools", "tomllib"]
_LIMITS: Final = ["-rss_limit_mb=768", "-timeout=60"]
"""What no input may cost: MiB, of which interpreter and libraries take 100, and seconds of a machine that does other things too."""


def main(table: str, directory: Path, names: list[str], arguments: list[str]) -> None:
    """Fuzz one target after the other."""
    # atheris names each module that it instruments.
    with redirect_stderr(StringIO()), atheris.instrument_imports(include=INSTRUMENTED):
        targets: dict[str, Target] = importlib.import_module(table).TARGETS
    for name in names:
        place = directory / name
        (place / "corpus").mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            _fuzz(targets[name], place, arguments)
        _, status = os.waitpid(child, 0)
        print(name, os.waitstatus_to_exitcode(status), flush=True)


def _fuzz(target: "Target", place: Path, arguments: list[str]) -> NoReturn:
    """Fuzz until libFuzzer has had enough."""
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    for number, seed in enumerate(target.seeds()):
        (place / "corpus" / f"seed-{number:03d}").write_bytes(seed)
    options = [*_LIMITS, f"-max_len={target.max_bytes}", f"-artifact_prefix={place}/", "-print_final_stats=1"]
    mutator = {"custom_mutator": _mutate_json} if target.is_json else {}
    atheris.Setup(["fuzz", *options, *arguments, str(place / "corpus")], target.check, **mutator)
    atheris.Fuzz()
    raise SystemExit("libFuzzer never comes back")


def _mutate_json(data: bytes, max_bytes: int, seed: int) -> bytes:
    """Change an input in libFuzzer's way or in ours; libFuzzer asks for each, with a number that repeats what we did."""
    random = Random(seed)

    def mutate(part: bytes) -> bytes:
        changed: bytes = atheris.Mutate(part, max(len(part) + 64, 1))
        return changed

    return (mutate(data) if random.random() < 0.5 else mutate_json(data, random, mutate))[:max_bytes]


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:end], sys.argv[end + 1 :])

"""What the crash handler loads: a crashed process waits for each import."""

import subprocess
import sys
from typing import Final

import pytest

from securecore.cli.machine.interpreter import find_interpreter
from securecore.sender import late

DENIED: Final = {
    "argparse", "asyncio", "attr", "attrs", "click", "cryptography", "dataclasses", "elftools", "importlib", "inspect", "logging",
    "pathlib", "platform", "pydantic", "sqlite3", "structlog", "subprocess", "tempfile", "tomllib", "typing", "unittest",
}  # fmt: skip
"""Modules of a few milliseconds each, and libraries of tens of them."""

PATTERNS: Final = {"json", "json.decoder", "json.encoder", "json.scanner", "fnmatch", "signal"}
"""What compiles patterns or makes enumerations when it is loaded, and has a lighter part that does."""
LATE: Final = {*late.LATE, "re"}
"""What the ssl module loads by itself, and not as the handler loads it."""
TLS_NEEDS: Final = {"collections", "enum", "functools", "keyword", "operator", "reprlib", "contextlib", "socket"}
"""What the ssl module, or what goes with a transfer, loads in any case, and nobody before."""


_MET: Final = "import securecore.sender.handler, securecore.sender.crash, securecore.sender.settings, securecore.sender.tally"
UNTAKEN: Final = f"{_MET}, securecore.sender.spool_directory"
LOCAL_UNTAKEN: Final = f"{_MET}, securecore.sender.cores_directory"
HANDLER: Final = f"""{UNTAKEN}
from securecore.sender.late import load_ssl
load_ssl()
import securecore.sender.network, securecore.sender.spool, securecore.sender.transfer"""
LOCAL: Final = (
    "import securecore.sender.handler, securecore.sender.crash, securecore.sender.cores_directory, securecore.sender.local\n"
    "from securecore.dump.packing import make_packing\nmake_packing({kind!r}, None)"
)
NETWORK: Final = {"ssl", "_ssl", "socket", "securecore.tls", "securecore.wire", "securecore.sender.network"}
CARRIED: Final = {
    "securecore.dump.zstd", "zlib", "hashlib", "threading", "securecore.sender.credentials", "securecore.sender.spool",
    "securecore.sender.transfer", "securecore.sender.cores", "securecore.sender.local",
}  # fmt: skip
"""What only a crash needs that is taken, beside the network."""


def loaded(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter, started as a handler's, holds after *statement*."""
    program = f"import sys; sys.path += {[*find_interpreter().packages]}\n{statement}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, check=True, text=True)
    return set(result.stdout.split())


def test_the_handler_loads_nothing_that_is_slow() -> None:
    """Nothing of the deny-list, and nothing that has a lighter part which does, until the handler dials."""
    assert loaded(HANDLER) & (DENIED | PATTERNS | LATE) == set()


def test_a_handler_loads_few_modules() -> None:
    """As many as there are now, and some room for another Python's: each costs a fifth of a millisecond, whatever is in it."""
    ours = {name for name in loaded(HANDLER) if name.startswith("securecore")}
    assert len(ours) <= 75
    assert len(loaded(HANDLER) - ours) - len(loaded("pass")) <= 60


def test_the_handler_loads_only_its_rooms() -> None:
    """No receiver, store, audit, certs, pki or command line; evidence comes when the source is closed."""
    names = {name.split(".")[1] for name in loaded(HANDLER) if name.startswith("securecore.")}
    everybodys = {"plain_json", "errors", "limits", "names", "declarations", "identity", "report", "elfsize", "elfid", "merkle"}
    assert names <= everybodys | {"wire", "dump", "tls", "sender"}
    late = {f"securecore.sender.{name}" for name in ("evidence", "backlog", "flush", "attempt", "schedule")}
    late |= {f"securecore.sender.{name}" for name in ("agent", "agent_limits", "coredump_socket", "kernel_facts", "pidfd")}
    assert late & loaded(HANDLER) == set()


@pytest.mark.parametrize("statement", [UNTAKEN, LOCAL_UNTAKEN], ids=["sent", "kept here"])
def test_a_crash_that_is_not_taken_loads_nothing_of_the_network(statement: str) -> None:
    """No TLS, no credentials, no compressor, no pattern: in a storm most handlers end before they need any of it."""
    assert loaded(statement) & (DENIED | PATTERNS | LATE | TLS_NEEDS | NETWORK | CARRIED) == set()


def test_a_kernel_log_without_a_skipped_crash_loads_no_patterns() -> None:
    """It is read before the core is drained, at each crash that is alone; few logs have a line that must be looked at closely."""
    look = "from securecore.sender.kernel_log import count_skips\nprint(count_skips([b{line!r}]).newest)"

    assert "re" not in loaded(look.format(line="6,7,8,-;usb 1-1: new device\n"))
    assert "re" in loaded(look.format(line="4,7,8,-;coredump: 5(sh): over core_pipe_limit\n"))


@pytest.mark.parametrize(("kind", "other"), [("zst", "dump.deflate"), ("gz", "dump.zstd"), ("zlib", "dump.zstd")])
def test_a_local_handler_loads_no_network_and_one_format(kind: str, other: str) -> None:
    """No TLS, no sockets but the one to the system's log, no spool; of the compressors its own."""
    found = loaded(LOCAL.format(kind=kind)) - loaded("pass")

    assert found & (DENIED | NETWORK | {f"securecore.{other}"}) == set()
    assert found & {"securecore.sender.spool", "securecore.sender.spool_directory", "securecore.sender.transfer"} == set()

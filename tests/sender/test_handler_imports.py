"""What the crash handler loads: a crashed process waits for each import."""

import subprocess
import sys
from typing import Final

import pytest

DENIED: Final = {
    "argparse", "asyncio", "attr", "attrs", "click", "cryptography", "dataclasses", "elftools", "importlib.metadata", "inspect",
    "logging", "pathlib", "pydantic", "sqlite3", "structlog", "subprocess", "tempfile", "tomllib", "unittest",
}  # fmt: skip
"""Modules of a few milliseconds each, and libraries of tens of them."""


HANDLER: Final = "import securecore.sender.handler, securecore.sender.crash, securecore.sender.network"
LOCAL: Final = (
    "import securecore.sender.handler, securecore.sender.crash, securecore.sender.local\n"
    "from securecore.dump.packing import make_packing\nmake_packing({kind!r}, None)"
)
NETWORK: Final = {"ssl", "_ssl", "socket", "selectors", "securecore.tls", "securecore.wire", "securecore.sender.network"}


def loaded(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after *statement*."""
    program = f"{statement}\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True, text=True)
    return set(result.stdout.split())


def test_the_handler_loads_nothing_that_is_slow() -> None:
    """Nothing of the deny-list that a bare interpreter does not hold already (an editable install loads some by itself)."""
    assert (loaded(HANDLER) - loaded("pass")) & DENIED == set()


def test_the_handler_loads_only_its_rooms() -> None:
    """No receiver, store, audit, certs, pki or command line; evidence comes when the source is closed."""
    names = {name.split(".")[1] for name in loaded(HANDLER) if name.startswith("securecore.")}
    everybodys = {"errors", "limits", "names", "identity", "report", "elfsize", "elfid", "merkle"}
    assert names <= everybodys | {"wire", "dump", "tls", "sender"}
    late = {"securecore.sender.evidence", "securecore.sender.backlog", "securecore.sender.flush", "securecore.sender.schedule"}
    assert late & loaded(HANDLER) == set()


@pytest.mark.parametrize(("kind", "others"), [("zst", {"securecore.dump.deflate"}), ("gz", {"zstandard"}), ("zlib", {"zstandard"})])
def test_a_local_handler_loads_no_network_and_one_format(kind: str, others: set[str]) -> None:
    """No TLS, no sockets but the one to the system's log, no settings, no spool; of the compressors its own."""
    found = loaded(LOCAL.format(kind=kind)) - loaded("pass")

    assert found & (DENIED | NETWORK | others) == set()
    assert found & {"securecore.sender.settings", "securecore.sender.spool", "securecore.sender.transfer"} == set()

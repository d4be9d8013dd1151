"""Stores whose receiver gets another log key, with what a host has kept and all that verifies them."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from securecore.certs.identity_directory import load_identity
from securecore.cli.main import run
from securecore.names import DumpId, HostName
from securecore.pki.issue import log_statement
from tests.support.certificates import RECEIVER_NAME, Fleet
from tests.support.kept_receipts import deliver
from tests.support.stores import Commands, Ran

NAME = f"{RECEIVER_NAME}/securecore"


class Place(Commands):
    """A fleet of its own with a store, what web-1 has kept, and the commands that look at both."""

    def __init__(self, place: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(place / "store", fleet, capture)
        self.place, self.spool = place, place / "spool"
        self.kept = self.spool / "receipts.jsonl"

    def deliver(self, *cores: bytes) -> list[DumpId]:
        """Have web-1 send dumps to a receiver with the identity as it is now."""
        return deliver(self.fleet, self.store, self.spool, cores)

    def rekey(self, *arguments: object) -> Ran:
        """Run ``audit rekey`` on the receiver's identity."""
        code = run(["audit", "rekey", "--identity", str(self.fleet.receiver), *map(str, arguments)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def compare(self, *arguments: object) -> list[str | None]:
        """Return what each of web-1's receipts contradicts, by ``audit compare``; the exit code says the same."""
        ran = self("audit", "compare", self.kept, "--root", self.fleet.host / "ca.pem", "--json", *arguments)
        found = [row["contradicts"] for row in ran.document["receipts"]]
        assert ran.code == (0 if ran.document["ok"] else 6)
        return found

    def receipts(self, *arguments: object) -> Ran:
        """Run ``receipts verify`` on web-1."""
        root = ("--root", str(self.fleet.host / "ca.pem"))
        code = run(["receipts", "verify", "--spool", str(self.spool), *root, *map(str, arguments)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def prove(self, dump: DumpId, name: str) -> Path:
        """Write a dump's bundle."""
        ran = self("audit", "prove", dump, "-o", self.place / name, "--root", self.fleet.host / "ca.pem")
        assert ran.code == 0, ran.err
        return self.place / name

    def check(self, bundle: Path) -> int:
        """Return the exit code of ``audit check``."""
        code = run(["audit", "check", str(bundle), "--root", str(self.fleet.host / "ca.pem")])
        self._capture.readouterr()
        return code

    def everything(self, *arguments: object) -> list[int]:
        """Return the exit codes of all that verifies: the logs, the dumps, the receipts against the logs, and by themselves."""
        codes = [self.audit(*arguments).code, self.verify("--all", *arguments).code]
        return [*codes, 6 if any(self.compare(*arguments)) else 0, self.receipts(*arguments).code]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails when it takes too long."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def mint_key(identity: Path, fleet: Fleet) -> None:
    """Put a log key into an identity directory that its TLS key has stated, and nothing else: what a thief of that key can do."""
    key, owner = Ed25519PrivateKey.generate(), load_identity(identity)
    token = log_statement(
        HostName(RECEIVER_NAME), key.public_key().public_bytes_raw(), owner.key_pem, owner.chain_der, datetime.now(UTC)
    )
    (identity / "log-key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (identity / "log-key.jws").write_bytes(token)
    (identity / "log-keys.jsonl").unlink(missing_ok=True)

"""One stored dump, and what it takes to verify it and its log."""

from dataclasses import dataclass
from pathlib import Path

from securecore.audit.checkpoint import LogSigner
from securecore.audit.dump_reading import Expected
from securecore.audit.log import HostLogs
from securecore.audit.log_verification import LogVerification
from securecore.audit.statement import LogKey
from securecore.audit.verification import DumpVerification, verify_dump
from securecore.store.layout import Store
from tests.support.certificates import Hierarchy
from tests.support.dumps import (
    WEB,
    Signer,
    core_bytes,
    dump_id,
    dump_path,
    opened,
)

CORE = core_bytes(5, 60)

ID = dump_id(1)


@dataclass
class Stored:
    """A store with one dump, and what it takes to verify it."""

    store: Store
    logs: HostLogs
    log_signer: LogSigner
    log_key: LogKey
    hierarchy: Hierarchy
    signer: Signer

    @property
    def path(self) -> Path:
        """The dump's directory."""
        return dump_path(self.store, ID)

    @property
    def core(self) -> Path:
        """The dump's core.zst."""
        return self.path / "core.zst"

    @property
    def expected(self) -> Expected:
        """What the dump ought to be."""
        return Expected(WEB, ID, self.store.store_id)

    def verify(self, *, decode: bool = True, **changes: object) -> DumpVerification:
        """Verify the dump."""
        arguments: dict[str, object] = {"expected": self.expected, "anchors": self.hierarchy.anchors, "log_key": self.log_key}
        with opened(self.path) as fd:
            return verify_dump(fd, decode=decode, **{**arguments, **changes})  # type: ignore[arg-type]


def failed(found: DumpVerification | LogVerification) -> list[str]:
    """Return the checks that do not hold."""
    return [check.what for check in found.checks if check.ok is False]

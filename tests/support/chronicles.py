"""Stores whose logs reach over weeks, written with the keys of a real fleet and without waiting for it."""

import json
import os
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from securecore.audit import entry
from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import Held
from securecore.audit.log import HostLogs
from securecore.certs import jws
from securecore.certs.identity_directory import load_identity, load_log_key
from securecore.dump.manifest import COMPLETE, MANIFEST_TYP, Manifest
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, HostName
from securecore.report import CrashReport
from securecore.store.layout import create_store
from tests.support.certificates import DOMAIN, RECEIVER_NAME, Fleet
from tests.support.dumps import begin, frames_of

HOSTILE: Final = {
    "markup": "<script>alert(1)</script>",
    "attribute": "\"><img src=x onerror=\"document.title='owned'\">",
    "template": "{{ 7 * 7 }}{% raw %}",
    "comment": "--><!-- ]]> </style></title></svg>",
    "override": "nginx\u202egpj.exe",
    "control": "bell\x07 and\x1b[2J\r\nforged: line\x00",
    "long": "x" * 255,
    "emoji": "crash💥er 👩\u200d🔬",
    "marks": "z" + "\u0301" * 40 + "algo",
    "surrogate": "half \ud83d of one",
    "formula": "=HYPERLINK(\"https://example.org\",\"open\")",
    "address": "javascript:alert(1)",
    "script": "פרוגרמה.exe",
}
"""Names that a host may give its programs, each by what it tries."""


class Chronicle:
    """Writes dumps and entries into a new store, each at a moment of its own; a context manager."""

    def __init__(self, fleet: Fleet, path: Path) -> None:
        key, statement = load_log_key(fleet.receiver)
        self._fleet = fleet
        self.store = create_store(str(path))
        self.store.put_log_key(statement, (fleet.receiver / "ca.pem").read_bytes())
        self._logs = HostLogs(
            LogSigner(f"{RECEIVER_NAME}/securecore", key), lambda host: self.store.audit_directory(host, create=True)
        )
        self._number = 0

    def __enter__(self) -> "Chronicle":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._logs.close()
        self.store.close()

    def receive(
        self, host: str, moment: datetime, program: str | None = "nginx", *, core: bytes = b"core", signal: int = 11,
        outcome: str = COMPLETE,
    ) -> DumpId:  # fmt: skip
        """Store a dump of a host of the fleet, as a receiver does."""
        dump, name, report = self._new_id(moment), HostName(f"{host}.{DOMAIN}"), _report(program, signal)
        frames = frames_of(core)
        manifest = Manifest(
            dump, name, self.store.store_id, outcome, None, len(core), len(frames),
            root_of(leaf_hash(frame) for frame, _ in frames), sha256(report).digest(),
            int(moment.timestamp() * 1000) - 50, int(moment.timestamp() * 1000), "securecore test",
        )  # fmt: skip
        identity = load_identity(self._fleet.hosts[host])
        token = jws.sign(manifest.encode(), identity.key_pem, identity.chain_der, MANIFEST_TYP)
        incoming = begin(self.store, dump, core, report, name)
        incoming.finish(token)
        line = entry.received_entry(
            moment, manifest, token, stored_bytes=incoming.container_bytes,
            certificate=sha256(identity.chain_der[0]).hexdigest(), program=program, signal=signal,
        )  # fmt: skip
        incoming.put_receipt(self.append(host, line))
        incoming.publish()
        return dump

    def begin(self, host: str, moment: datetime, program: str | None = "nginx", core: bytes = b"core") -> DumpId:
        """Let a dump come in and not end."""
        dump = self._new_id(moment)
        begin(self.store, dump, core, _report(program, 11), HostName(f"{host}.{DOMAIN}")).close()
        then = moment.timestamp()
        os.utime(Path(self.store.path) / "incoming" / f"{host}.{DOMAIN}" / str(dump) / "core.zst", (then, then))
        return dump

    def give_up(self, host: str, moment: datetime, program: str | None = "nginx", core: bytes = b"core") -> DumpId:
        """Publish what came of a dump whose sender did not come back."""
        dump, name, report = self._new_id(moment), HostName(f"{host}.{DOMAIN}"), _report(program, 6)
        incoming = begin(self.store, dump, core, report, name)
        incoming.give_up()
        frames = frames_of(core)
        root = root_of(leaf_hash(frame) for frame, _ in frames)
        held = Held(len(frames), len(core), root, sha256(report).digest(), incoming.container_bytes)
        line = entry.incomplete_entry(
            moment, dump, name, self.store.store_id, held, last_at=moment - timedelta(days=7), program=program, signal=6
        )
        incoming.put_receipt(self.append(host, line))
        incoming.publish()
        return dump

    def extract(self, host: str, moment: datetime, dump: DumpId, user: str = "anna", uid: int = 1000) -> None:
        """Note that somebody took a core out."""
        self.append(host, entry.extracted_entry(moment, dump, HostName(f"{host}.{DOMAIN}"), uid=uid, user=user))

    def delete(self, host: str, moment: datetime, dump: DumpId, reason: str | None = "ticket 4711") -> None:
        """Delete a dump; what stood in its place is left to nobody."""
        place = Path(self.store.path) / "hosts" / f"{host}.{DOMAIN}" / str(dump)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        self.append(host, entry.deleted_entry(moment, dump, HostName(f"{host}.{DOMAIN}"), uid=0, user="root", reason=reason))

    def refuse(self, host: str, moment: datetime, reason: str, *, code: int = 205, others: int = 0) -> None:
        """Note that a host was refused."""
        line = entry.refused_entry(moment, None, HostName(f"{host}.{DOMAIN}"), code=code, reason=reason, others=others)
        self.append(host, line)

    def note(self, host: str, moment: datetime, event: str, **fields: Any) -> None:
        """Append an entry of any event."""
        place = {"version": 1, "event": event, "time": entry.timestamp(moment), "dump": None, "host": f"{host}.{DOMAIN}"}
        self.append(host, entry.encode(place | fields))

    def append(self, host: str, line: bytes) -> bytes:
        """Append an entry and return its receipt."""
        with self._logs.using(HostName(f"{host}.{DOMAIN}")) as log:
            return log.append(line)

    def _new_id(self, moment: datetime) -> DumpId:
        self._number += 1
        return DumpId.make(int(moment.timestamp() * 1000), self._number.to_bytes(10, "big"))


def _report(program: str | None, signal: int) -> bytes:
    """Return a report; its own bounds cut a name that an entry would cut later."""
    known: dict[str, Any] = {"pid": 4711, "program": program, "signal": signal}
    try:
        return CrashReport(**known).encode()
    except UnicodeEncodeError:
        return json.dumps(known, sort_keys=True).encode("ascii")

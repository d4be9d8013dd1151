"""Stores whose hosts have kept their receipts, and what may be done to such a store behind the hosts' backs."""

import os
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pytest

from securecore.audit.checkpoint import LogSigner
from securecore.audit.entry import RECEIVED, encode, parse_entry
from securecore.audit.log import HostLog
from securecore.audit.proof import parse_proof
from securecore.audit.wide_log import Tree, parse_said
from securecore.certs.identity_directory import load_log_key
from securecore.merkle import leaf_hash, root_of
from securecore.names import DumpId, HostName
from tests.support.certificates import DOMAIN, Fleet
from tests.support.samples import Sample
from tests.support.stores import WEB, Ran

NAME: Final = f"collector.{DOMAIN}/securecore"
"""The log key's."""


class Witnessed(Sample):
    """A store with three dumps of web-1 and one of db-2, and what both hosts have kept."""

    def __init__(self, place: Path, fleet: Fleet, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(place / "store", fleet, capture)
        self.web, self.db = place / "web-1/receipts.jsonl", place / "db-2/receipts.jsonl"

    def compare(self, *arguments: object) -> Ran:
        """Run ``audit compare`` with the fleet's root, and with the receipts of both hosts where none are named."""
        receipts = arguments if any("/" in str(one) or one == "-" for one in arguments) else (*arguments, self.web, self.db)
        return self("audit", "compare", *receipts, "--root", self.fleet.host / "ca.pem")

    def kinds(self, *arguments: object) -> dict[str, list[str | None]]:
        """Return what each receipt of both hosts contradicts, by host, and that the exit code says the same."""
        ran = self.compare("--json", *arguments)
        found: dict[str, list[str | None]] = {}
        for row in ran.document["receipts"]:
            found.setdefault(row["host"], []).append(row["contradicts"])
        assert (ran.code, ran.document["ok"]) in ((0, True), (6, False))
        assert ran.document["ok"] <= all(kind is None for kinds in found.values() for kind in kinds)
        return found

    def put_back_to_the_first(self) -> None:
        """Put web-1 back whole to what it was behind its first dump: logs, checkpoints, dumps and their receipts."""
        lines = (self.log() / "entries.jsonl").read_bytes().splitlines(keepends=True)
        (self.log() / "entries.jsonl").write_bytes(b"".join(lines[:2]))
        (self.log() / "checkpoint").write_bytes(parse_proof((self.first / "receipt").read_bytes()).checkpoint)
        for dump in self.dumps[1:3]:
            shutil.rmtree(self.dump(dump))
        self.put_the_wide_log_back()

    def put_the_wide_log_back(self, identity: Path | None = None) -> None:
        """Put the receiver-wide log back to the last state that web-1's log does not contradict.

        Nothing in the store is left to miss what was there then: db-2 is older than web-1.
        """
        place, lines = self.store / "audit/receiver", []
        if self.log().is_dir():
            lines = (self.log() / "entries.jsonl").read_bytes().splitlines()
        leaves = [leaf_hash(line) for line in lines]
        states = [Tree(size, root_of(leaves[:size])) for size in range(1, len(leaves) + 1)]

        def fits(entry: bytes) -> bool:
            said = parse_said(entry)
            return said is not None and (said[0] != HostName(WEB) or said[1] in states)

        entries = list(takewhile(fits, (place / "entries.jsonl").read_bytes().splitlines()))
        shutil.rmtree(place)
        place.mkdir(mode=0o700)
        append_to(place, NAME, entries, identity or self.fleet.receiver)

    def rewrite(self, change: Callable[[list[dict[str, Any]]], None], identity: Path | None = None) -> None:
        """Write web-1's log anew with the key of the receiver's identity, or of another, and each dump's receipt with it.

        What the receiver-wide log said of it since is gone.
        """
        entries = [parse_entry(line) for line in (self.log() / "entries.jsonl").read_bytes().splitlines()]
        change(entries)
        shutil.rmtree(self.log())
        self.log().mkdir(mode=0o700)
        for fields, receipt in zip(entries, append(self, [encode(fields) for fields in entries], identity), strict=True):
            directory = self.dump(DumpId.parse(str(fields["dump"])))
            if fields["event"] == RECEIVED and directory.is_dir():
                (directory / "receipt").write_bytes(receipt)
        self.put_the_wide_log_back(identity)


def append(kept: Witnessed, entries: list[bytes], identity: Path | None = None) -> list[bytes]:
    """Append to web-1's log with the key of the receiver's identity, as whoever has that can, and return the receipts."""
    return append_to(kept.log(), f"{NAME}/{WEB}", entries, identity or kept.fleet.receiver)


def append_to(place: Path, origin: str, entries: list[bytes], identity: Path) -> list[bytes]:
    """Append to a log with the key of a receiver's identity, and return the receipts."""
    key, _ = load_log_key(identity)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    log = HostLog.open(fd, origin, LogSigner(NAME, key))
    os.close(fd)
    try:
        return log.append_all(entries)
    finally:
        log.close()

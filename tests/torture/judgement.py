"""Whether a run has lost anything or told anything false, by a reading of its own of what stands on the disk (docs/store.md).

What must hold, whatever was killed:

1. A core whose sender was not killed is published, byte for byte, and called complete exactly if its source was whole.
2. What a killed sender has left is the beginning of its core: published and called complete only if it is all of it, else called
   otherwise; or under ``incoming``, without a manifest; or nothing, when nothing was acknowledged.
3. Of every dump there are at least the frames that the receiver has said to be durable.
4. For every receipt that a sender kept, or printed, there is the dump, and the log has the entry at that index.
5. Each log begins with all that was signed earlier; each published dump has its entry there.
6. No spool holds a dump, and there are no temporaries that no rule explains.
"""

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from securecore.cli.main import run
from securecore.limits import PIECE_BYTES
from tests.support.certificates import DOMAIN, Fleet
from tests.torture.plan import CRASHING, SENDING
from tests.torture.run import Ran, Sent, signed_entries

_SKIPPABLE = b"\x5e\x2a\x4d\x18"


class Stored(NamedTuple):
    """A dump as it stands in the store."""

    host: str
    dump: str
    is_published: bool
    plain: bytes
    """Of its whole frames."""
    manifest: dict[str, Any] | None
    manifest_sha256: str
    lost: int
    """Bytes at its beginning that stand for frames that were lost, and say so."""

    @property
    def frames(self) -> int:
        """How many frames that is."""
        return -(-len(self.plain) // PIECE_BYTES)

    @property
    def label(self) -> str:
        """What the store calls it."""
        return str(self.manifest["outcome"]) if self.manifest else "incomplete" if self.is_published else "coming in"

    def is_beginning_of(self, core: bytes) -> bool:
        """Whether all that is there of it is what stands there in *core*."""
        return self.plain[self.lost :] == core[self.lost : len(self.plain)]


class Verdict(NamedTuple):
    """What a run has come to."""

    problems: list[str]
    outcomes: Counter[str]
    """What became of the cores."""


def judge(ran: Ran, fleet: Fleet) -> Verdict:
    """Return what became of every core, and all that must not be."""
    problems: list[str] = []
    outcomes: Counter[str] = Counter()
    stored = list(read_store(ran.store, problems))
    for host in (CRASHING, SENDING):
        sent = [one for one in ran.sent if one.source.host == host]
        found = [one for one in stored if one.host == f"{host}.{DOMAIN}"]
        for one in sent:
            outcomes[_outcome(one, _dumps_of(one, found), problems)] += 1
        _check_strangers(sent, found, problems)
        _check_spool(ran.spool(host), problems)
        _check_receipts(ran, host, sent, found, problems)
    _check_promises(ran, stored, problems)
    _check_logs(ran, stored, problems)
    _check_leftovers(ran, problems)
    _check_by_commands(ran, fleet, problems)
    return Verdict(problems, outcomes)


def read_store(store: Path, problems: list[str]) -> Iterator[Stored]:
    """Yield every dump, published or coming in."""
    for place in ("hosts", "incoming"):
        for path in sorted((store / place).glob("*/*-*")):
            if not (path / "report.json").exists():
                problems.append(f"{path} has no report")
                continue
            token = (path / "manifest.jws").read_bytes() if (path / "manifest.jws").exists() else None
            manifest = payload_of(token) if token is not None else None
            if place == "incoming" and token is not None:
                problems.append(f"{path} was not rolled forward")
            lost = (manifest or {}).get("lost_frames", 0) * PIECE_BYTES
            digest = sha256(token or b"").hexdigest()
            plain = plain_of((path / "core.zst").read_bytes())
            yield Stored(path.parent.name, path.name, place == "hosts", plain, manifest, digest, lost)


def payload_of(token: bytes) -> dict[str, Any]:
    """Return what a JWS says."""
    part = token.split(b".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))))


def plain_of(container: bytes) -> bytes:
    """Return what the whole frames of a container stand for."""
    rest, plain = container, b""
    while rest and not rest.startswith(_SKIPPABLE):
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            piece = frame.decompress(rest)
        except zstandard.ZstdError:
            break
        if not frame.eof:
            break
        plain, rest = plain + piece, frame.unused_data
    return plain


def _dumps_of(sent: Sent, found: list[Stored]) -> list[Stored]:
    """Return what there is of a core; cores are told apart by their first kilobyte, so one without a byte is nobody's."""
    return [one for one in found if len(one.plain) > one.lost and one.is_beginning_of(sent.source.core)]


def _outcome(sent: Sent, dumps: list[Stored], problems: list[str]) -> str:
    """Return in words what became of a core, after holding it against rules 1 and 2."""
    whole = sent.source.core[: sent.source.fed]
    name = f"core {sha256(sent.source.core).hexdigest()[:8]} of {sent.source.program.value} (exit code {sent.code}, fed {sent.fed})"
    best = max(dumps, key=lambda one: (len(one.plain) - one.lost, one.is_published), default=None)
    for one in dumps:
        if one.label == "complete" and one.plain != sent.source.core:
            problems.append(f"{name}: {one.dump} is called complete and has {len(one.plain)} of {len(sent.source.core)} bytes")
    if not sent.was_killed:
        wanted = "complete" if len(whole) == len(sent.source.core) else "source-truncated"
        if whole and (best is None or (best.label, best.plain) != (wanted, whole)):
            is_there = f"{best.label}, {len(best.plain)} bytes" if best else "nothing"
            problems.append(f"{name}: {len(whole)} bytes were to arrive as {wanted}; there is {is_there}")
        return f"arrived, {wanted}"
    if best is None:
        return "sender killed before anything was durable"
    if not best.is_published:
        return "sender killed, a beginning waits for it under incoming"
    return f"sender killed, {best.label}" + (", its beginning lost" if best.lost else "")


def _check_strangers(sent: list[Sent], found: list[Stored], problems: list[str]) -> None:
    """Every dump is the beginning of a core that this host has sent."""
    for one in found:
        if not any(one.is_beginning_of(core.source.core) for core in sent):
            problems.append(f"{one.dump} ({one.label}, {len(one.plain)} bytes) is no beginning of any core of {one.host}")


def _check_spool(spool: Path, problems: list[str]) -> None:
    for path in (spool / "dumps").glob("*"):
        if not path.name.startswith("."):
            names = ", ".join(sorted(inner.name for inner in path.iterdir()))
            problems.append(f"{path.name} stays in the spool for ever, with {names}")
        elif not path.name.endswith(".new"):
            problems.append(f"{path} is no name of a spool")


def receipts_of(spool: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a spool's receipt log."""
    path = spool / "receipts.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            problems.append(f"{path}: a line is no receipt: {line[:60]!r}")


def _check_receipts(ran: Ran, host: str, sent: list[Sent], found: list[Stored], problems: list[str]) -> None:
    published = {one.dump: one for one in found if one.is_published}
    log = ran.store / "audit" / f"{host}.{DOMAIN}" / "entries.jsonl"
    entries = log.read_bytes().splitlines() if log.exists() else []
    for receipt in receipts_of(ran.spool(host), problems):
        extra = next(line for line in receipt["receipt"].split("\n") if line.startswith("extra "))
        entry = base64.b64decode(extra.removeprefix("extra "))
        fields = json.loads(entry)
        dump = published.get(fields["dump"])
        if dump is None:
            problems.append(f"{fields['dump']} has a receipt and is not there")
        elif fields["event"] == "received" and fields["manifest_sha256"] != dump.manifest_sha256:
            problems.append(f"{fields['dump']} is another one than its receipt says")
        if receipt["index"] >= len(entries) or entries[receipt["index"]] != entry:
            problems.append(f"the log of {host} has not the entry of the receipt for {fields['dump']}")
    for one in sent:
        if one.code == 0 and one.output and json.loads(one.output)["id"] not in published:
            problems.append(f"{one.output!r} was printed, and the dump is not there")


def _check_promises(ran: Ran, stored: list[Stored], problems: list[str]) -> None:
    promised: Counter[tuple[str, str]] = Counter()
    for line in (ran.directory / "promises").read_text("ascii").splitlines():
        host, dump, frames = line.split()
        promised[host, dump] = max(promised[host, dump], int(frames))
    held = {(one.host, one.dump): one.frames for one in stored}
    for key, frames in promised.items():
        if frames > held.get(key, 0):
            problems.append(f"{frames} frames of {key[1]} were acknowledged, {held.get(key, 0)} are there")


def _check_logs(ran: Ran, stored: list[Stored], problems: list[str]) -> None:
    signed = signed_entries(ran.store)
    for earlier in ran.logs:
        for host, entries in earlier.items():
            if not signed.get(host, b"").startswith(entries):
                problems.append(f"the log of {host} does not begin with what was signed earlier")
    logged = {
        host: {entry["dump"] for entry in map(json.loads, entries.splitlines()) if entry["event"] in ("received", "incomplete")}
        for host, entries in signed.items()
    }
    for one in stored:
        if one.is_published and one.dump not in logged.get(one.host, set()):
            problems.append(f"{one.dump} is published, and its log does not say so")


def _check_leftovers(ran: Ran, problems: list[str]) -> None:
    for directory, _, names in os.walk(ran.store):
        is_incoming = Path(directory).is_relative_to(ran.store / "incoming")
        for name in names:
            if name.startswith(".") and name.endswith(".new") and not is_incoming:
                problems.append(f"{directory}/{name} was left behind")


def _check_by_commands(ran: Ran, fleet: Fleet, problems: list[str]) -> None:
    options = ["--store", str(ran.store), "--root", str(fleet.host / "ca.pem")]
    for command in (["verify", "--all"], ["audit", "verify"]):
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = run([*command, *options])
        if code != 0:
            problems.append(f"{' '.join(command)} ends with {code}: {said.getvalue()[-500:]}")

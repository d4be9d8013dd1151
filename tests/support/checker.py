"""What a store and its senders' spools must be after any fault, by a reading of its own of docs/store.md.

Shares nothing with the package: a mistake there in how a tree is computed or a receipt read would hide from a checker that made the
same one. Whatever may still be changing (a receiver that runs) is not for it.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import zstandard
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.formats import (
    PIECE,
    Container,
    Wrong,
    canonical,
    climb,
    demand,
    dns_names,
    read_container,
    read_jws,
    read_note,
    seek_table,
    tree_root,
    unpadded,
)

UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
WIDE: Final = "receiver"
"""In place of a host's name: the receiver-wide log."""
STANDING: Final = ("received", "incomplete", "deleted")
"""Entries that say where a dump stands."""


class Truth(NamedTuple):
    """What was crashed or sent."""

    host: str
    dump: str
    plain: bytes | None
    """None where only the digest is known: then a part of it cannot be held against the whole."""
    sha256: str
    size: int


class Log(NamedTuple):
    """A host's audit log."""

    lines: list[bytes]
    """Those that the checkpoint covers."""
    entries: list[dict[str, Any]]

    def standing(self, dump: str) -> list[dict[str, Any]]:
        """Return what was said of where a dump stands, in order."""
        return [entry for entry in self.entries if entry["event"] in STANDING and entry["dump"] == dump]


class _Place(NamedTuple):
    """A store, and what its papers are judged by."""

    path: Path
    id: str
    roots: list[x509.Certificate]
    log_name: str
    log_key: bytes

    def origin(self, host: str) -> bytes:
        """Return the name under which a host's log is signed, or the receiver-wide log."""
        return (self.log_name if host == WIDE else f"{self.log_name}/{host}").encode()


def check(
    store: Path,
    root_pem: bytes,
    *,
    spools: Sequence[Path] = (),
    truths: Sequence[Truth] = (),
    receipts: Sequence[dict[str, Any]] = (),
    is_settled: bool = False,
) -> list[str]:
    """Return in words all that must not be; empty when everything holds.

    Receipts of the spools' own logs are read here; *receipts* adds others. *is_settled*: faults are over, everybody was started
    again and has flushed, so nothing may wait any more. Not checked: whether everything that was sent has come; a test knows that.
    """
    problems: list[str] = []
    place = _read_place(store, root_pem, problems)
    if place is None:
        return problems
    hosts = sorted({*_hosts(store / "hosts"), *_hosts(store / "audit")} - {WIDE})
    logs = {host: _read_log(place, host, problems) for host in hosts}
    _tell(problems, "receiver-wide log", _check_wide_log, place, logs, problems)
    known = {(truth.host, truth.dump): truth for truth in truths}
    for path in sorted(store.glob("hosts/*/*")):
        _tell(problems, path, _check_published, place, path, logs, known.get((path.parent.name, path.name)))
    for path in sorted(store.glob("incoming/*/*")):
        _tell(problems, path, _check_incoming, path, known.get((path.parent.name, path.name)), logs, is_settled)
    _check_claims(place, logs, problems)
    kept = [*receipts, *(receipt for spool in spools for receipt in _read_receipts(spool, problems))]
    for receipt in kept:
        _tell(problems, f"receipt of {receipt.get('dump')}", _check_receipt, place, logs, receipt)
    for spool in spools:
        _check_spool(spool, known, problems, is_settled)
    if is_settled:
        problems.extend(f"{path}: a temporary was left behind" for path in store.rglob(".*.new"))
    return problems


def published(store: Path) -> dict[str, bytes]:
    """Return the plaintext of every published dump, by id."""
    return {path.name: read_container(path / "core.zst").plain for path in store.glob("hosts/*/*")}


def _tell(problems: list[str], what: object, check_one: Callable[..., object], *arguments: object) -> None:
    """Do one check; what it finds, also that a file is missing or no JSON, is a problem of *what*."""
    try:
        check_one(*arguments)
    except (Wrong, OSError, ValueError, KeyError, IndexError, TypeError, InvalidSignature) as error:
        problems.append(f"{what}: {error if isinstance(error, (Wrong, OSError)) else repr(error)}")


def _hosts(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def _read_place(store: Path, root_pem: bytes, problems: list[str]) -> _Place | None:
    try:
        found = re.fullmatch(r"securecore-store 1\n([0-9a-f-]{36})\n", (store / "FORMAT").read_text("ascii"))
        demand(found is not None, "FORMAT is none")
        roots = x509.load_pem_x509_certificates(root_pem)
        token = (store / "log-key.jws").read_bytes()
        issued_at = datetime.fromisoformat(json.loads(unpadded(token.split(b".")[1]))["issued_at"])
        payload, certificate = read_jws(token, "securecore-log-key+jws", roots, issued_at)
        demand(payload["name"] == f"{dns_names(certificate)[0]}/securecore", "the log key has another name than its receiver")
        assert found is not None
        return _Place(store, found[1], roots, payload["name"], base64.b64decode(payload["public_key"], validate=True))
    except (Wrong, OSError, ValueError, KeyError, InvalidSignature) as error:
        problems.append(f"{store}: {error!r}")
        return None


def _read_log(place: _Place, host: str, problems: list[str]) -> Log:
    """Return what the checkpoint covers, and hold all of it against docs/store.md, Verifying a log."""
    lines: list[bytes] = []
    entries: list[dict[str, Any]] = []

    def read() -> None:
        directory = place.path / "audit" / host
        if directory.is_dir() and {path.name for path in directory.iterdir()} <= {".checkpoint.new"}:
            return  # One that is being made; whatever claims to be in it is found by its absence.
        note = read_note((directory / "checkpoint").read_bytes(), place.origin(host), place.log_key)
        path = directory / "entries.jsonl"
        found = path.read_bytes().split(b"\n") if path.exists() or note.size else [b""]
        demand(len(found) > note.size, f"has {len(found) - 1} entries, its checkpoint {note.size}")
        lines.extend(found[: note.size])
        entries.extend(json.loads(line) for line in lines)
        demand(tree_root(lines) == note.root, "its entries do not give the root that was signed")
        newest: dict[str, dict[str, Any]] = {}
        for line, entry in zip(lines, entries, strict=True):
            is_own = host == WIDE or entry["host"] == host
            demand(canonical(entry) == line and is_own, f"an entry not canonical or not its own: {line[:80]!r}")
            if entry["event"] in STANDING:
                _check_order(newest.get(entry["dump"]), entry)
                newest[entry["dump"]] = entry

    _tell(problems, f"log of {host}", read)
    return Log(lines, entries)


def _check_wide_log(place: _Place, logs: dict[str, Log], problems: list[str]) -> None:
    """It names every host with a dump; each log is what it says; and it is what entries of hosts' logs say."""
    wide = _read_log(place, WIDE, problems)
    newest: dict[str, int] = {}
    for entry in wide.entries:
        host, size = entry["host"], entry["size"]
        demand(set(entry) == {"version", "event", "time", "host", "size", "root"}, f"an entry of another kind: {entry}")
        demand(size > newest.get(host, 0), f"the log of {host} is said to have {size} entries behind {newest.get(host)}")
        lines = logs[host].lines if host in logs else []
        demand(len(lines) >= size, f"the log of {host} has {len(lines)} entries, and had {size}")
        demand(tree_root(lines[:size]).hex() == entry["root"], f"the log of {host} was another with {size} entries")
        newest[host] = size
    unnamed = {path.parent.name for path in place.path.glob("hosts/*/*")} - set(newest)
    demand(not unnamed, f"does not name {unnamed}")
    for host, log in logs.items():
        for entry in log.entries:
            size = entry.get("wide_size", 0)
            demand(len(wide.lines) >= size, f"has {len(wide.lines)} entries, an entry of {host} says {size}")
            root = tree_root(wide.lines[:size]).hex()
            demand(entry.get("wide_root", root) == root, f"was another when an entry of {host} was written")


def _check_order(before: dict[str, Any] | None, entry: dict[str, Any]) -> None:
    """Nothing is said twice of where a dump stands; only with another manifest, other frames or other damage may it be so again."""
    same = {"received": ["manifest_sha256"], "incomplete": ["root", "damaged_bytes"], "deleted": []}[entry["event"]]
    if before is not None:
        is_new = before["event"] != entry["event"] or any(before.get(name) != entry.get(name) for name in same)
        demand(is_new, f"{entry['dump']} {entry['event']} twice")
        demand((before["event"], entry["event"]) != ("deleted", "incomplete"), f"{entry['dump']} given up behind its deletion")


def _check_published(place: _Place, path: Path, logs: dict[str, Log], truth: Truth | None) -> None:
    host, dump = path.parent.name, path.name
    demand(re.fullmatch(UUID, dump) is not None, "no dump's name")
    has_manifest = (path / "manifest.jws").exists()
    wanted = {"core.zst", "report.json", "receipt"} | ({"manifest.jws"} if has_manifest else set())
    demand({one.name for one in path.iterdir()} == wanted, f"holds {sorted(one.name for one in path.iterdir())}")
    standing = logs[host].standing(dump)
    demand(bool(standing) and standing[-1]["event"] != "deleted", "published, and the log does not say so")
    entry = standing[-1]
    core = read_container(path / "core.zst")
    demand(core.rest == seek_table(core), "its seek table is not that of its frames")
    demand(all(len(piece) == PIECE for piece in _pieces_before_last(core)), "a piece in the middle that is short")
    said: dict[str, Any] = {
        "root": tree_root(core.leaves).hex(),
        "size": len(core.plain),
        "frames": len(core.leaves),
        "report_sha256": sha256((path / "report.json").read_bytes()).hexdigest(),
        "stored_bytes": (path / "core.zst").stat().st_size,
    }
    if has_manifest:
        said |= _manifest_facts(place, path, host, dump, entry, said)
    else:
        demand(entry["event"] == "incomplete", "published without its manifest")
    wrong = [name for name, value in said.items() if entry.get(name) != value]
    demand(not wrong, f"its entry says otherwise of {', '.join(wrong)}")
    proved = _read_receipt((path / "receipt").read_bytes(), place, host, logs[host])
    demand(proved == entry, "its receipt proves another entry")
    _check_truth(core.plain, truth, said.get("outcome") == "complete", int(said.get("lost_frames", 0)))


def _manifest_facts(place: _Place, path: Path, host: str, dump: str, entry: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest adds to what an entry must say."""
    token = (path / "manifest.jws").read_bytes()
    at = datetime.fromisoformat(entry["time"])
    manifest, certificate = read_jws(token, "securecore-manifest+jws", place.roots, at)
    named = (dns_names(certificate), manifest["host"], manifest["dump"], manifest["store"])
    demand(named == ([host], host, dump, place.id), "a manifest of another")
    wrong = [name for name in ("root", "size", "frames", "report_sha256") if manifest[name] != said[name]]
    demand(not wrong, f"its manifest says otherwise of {', '.join(wrong)}")
    predicted = manifest["predicted_size"]
    short = predicted is not None and manifest["size"] < predicted
    demand(manifest["outcome"] != "complete" or not short, "called complete, and shorter than it must be")
    if (digest := entry.get("crl_sha256")) is not None:
        kept = place.path / "crls" / f"{digest}.pem"
        demand(kept.exists() and sha256(kept.read_bytes()).hexdigest() == digest, "its entry's revocation lists are not there")
    facts = {
        "event": "received",
        "outcome": manifest["outcome"],
        "state": "complete" if manifest["outcome"] == "complete" else "incomplete",
        "store": manifest["store"],
        "manifest_sha256": sha256(token).hexdigest(),
        "certificate": sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
    }
    if "lost_frames" in manifest:
        demand(manifest["outcome"] == "cut", "has lost its beginning, and is not called cut")
        facts["lost_frames"] = manifest["lost_frames"]
    return facts


def _pieces_before_last(core: Container) -> Iterator[bytes]:
    for at in range(len(core.leaves) - 1):
        yield zstandard.ZstdDecompressor().decompress(core.leaves[at])


def _check_truth(plain: bytes, truth: Truth | None, is_called_complete: bool, lost_frames: int) -> None:
    """What is called complete is the whole of it; all else is its beginning, or what is left behind a beginning that was lost."""
    if truth is None:
        return
    if is_called_complete:
        demand((len(plain), sha256(plain).hexdigest()) == (truth.size, truth.sha256), "called complete, and not what was sent")
    if truth.plain is not None:
        lost = lost_frames * PIECE
        demand(plain[lost:] == truth.plain[lost : len(plain)] and not plain[:lost].strip(b"\0"), "holds what was not sent")


def _read_receipt(text: bytes, place: _Place, host: str, log: Log) -> dict[str, Any]:
    """Return the entry that a receipt proves, by its own hashes and by the log as it is now."""
    head, _, note_text = text.partition(b"\n\n")
    first, extra, index_line, *hashes = head.split(b"\n")
    demand((first, extra[:6], index_line[:6]) == (b"c2sp.org/tlog-proof@v1", b"extra ", b"index "), "no receipt")
    entry, index = base64.b64decode(extra[6:], validate=True), int(index_line[6:])
    note = read_note(note_text, place.origin(host), place.log_key)
    path = [base64.b64decode(one, validate=True) for one in hashes]
    demand(climb(sha256(b"\0" + entry).digest(), index, note.size, path) == note.root, "a receipt whose hashes lead elsewhere")
    demand(note.size <= len(log.lines), f"a receipt for {note.size} entries, and the log has {len(log.lines)}")
    demand(tree_root(log.lines[: note.size]) == note.root, "a receipt that the log contradicts")
    demand(log.lines[index] == entry, "a receipt for an entry that the log has not")
    found: dict[str, Any] = json.loads(entry)
    return found


def _check_incoming(path: Path, truth: Truth | None, logs: dict[str, Log], is_settled: bool) -> None:
    """What is coming in is the beginning of what was sent; nothing that a receipt vouches for waits here, once all is settled."""
    if not is_settled and not (path / "report.json").exists():
        return
    demand((path / "report.json").exists(), "has no report: nothing was acknowledged, and it is still there")
    allowed = {"report.json", "core.zst", "manifest.jws", "receipt"} | {one.name for one in path.glob(".*.new")}
    demand({one.name for one in path.iterdir()} <= allowed, f"holds {sorted(one.name for one in path.iterdir())}")
    if (path / "core.zst").exists() and truth is not None and truth.plain is not None:
        plain = read_container(path / "core.zst").plain
        demand(plain == truth.plain[: len(plain)] or (path / "manifest.jws").exists(), "holds what was not sent")
    if is_settled:
        demand(not (path / "manifest.jws").exists(), "was sent to its end and never published")
        log = logs.get(path.parent.name)
        standing = log.standing(path.name) if log else []
        demand(not standing or standing[-1]["event"] == "incomplete", "has an entry and was never published")


def _check_claims(place: _Place, logs: dict[str, Log], problems: list[str]) -> None:
    """Every dump that its log says is there is published, or about to be."""
    for host, log in logs.items():
        newest = {entry["dump"]: entry for entry in log.entries if entry["event"] in STANDING}
        for dump, entry in newest.items():
            is_there = any((place.path / where / host / dump).is_dir() for where in ("hosts", "incoming"))
            if is_there == (entry["event"] == "deleted"):
                problems.append(f"{dump} of {host}: the log says {entry['event']}, and it is {'' if is_there else 'not '}there")


def _read_receipts(spool: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a spool's receipt log; a last one without its newline was never promised."""
    path = spool / "receipts.jsonl"
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            problems.append(f"{path}: a line that is none: {line[:60]!r}")


def _check_receipt(place: _Place, logs: dict[str, Log], kept: dict[str, Any]) -> None:
    """A receipt that a sender has kept: its dump is there as the entry says, or somebody has deleted it since, on record."""
    host, dump = kept["host"], kept["dump"]
    log = logs.get(host, Log([], []))
    entry = _read_receipt(kept["receipt"].encode(), place, host, log)
    demand(entry["dump"] == dump, "is another dump's")
    newest = log.standing(dump)[-1]
    path = place.path / "hosts" / host / dump
    if newest["event"] == "deleted":
        return
    demand(path.is_dir(), "the dump is not published")
    token = (path / "manifest.jws").read_bytes() if (path / "manifest.jws").exists() else b""
    demand(sha256(token).hexdigest() == newest.get("manifest_sha256"), "the dump is another than the receipt's")


def _check_spool(spool: Path, known: dict[tuple[str, str], Truth], problems: list[str], is_settled: bool) -> None:
    """What waits is what was sent, from its first frame on; once all is settled nothing does."""
    truths = {dump: truth for (_, dump), truth in known.items()}
    for path in sorted(spool.glob("dumps/*")):
        if is_settled:
            problems.append(f"{path}: still in the spool, with {sorted(one.name for one in path.iterdir())}")
        elif not re.fullmatch(rf"\.{UUID}\.new", path.name):
            _tell(problems, path, _check_spooled, path, truths.get(path.name))


def _check_spooled(path: Path, truth: Truth | None) -> None:
    demand(re.fullmatch(UUID, path.name) is not None, "no name of a spool's")
    entry = json.loads((path / "entry.json").read_bytes())
    demand(entry["dump"] == path.name, "an entry of another dump")
    plain, first = read_container(path / "core.zst").plain, entry["first_frame"] * PIECE
    if truth is not None and truth.plain is not None:
        demand(plain == truth.plain[first : first + len(plain)], "holds what was not sent")

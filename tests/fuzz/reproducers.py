"""Inputs that once broke a property, by target: each made small by hand, with what went wrong."""

import json
from typing import Any, Final

from tests.support.dumps import dump_id


def _entry(**fields: Any) -> bytes:
    """Return an entry of an audit log."""
    entry = {"event": "received", "time": "2026-11-22T09:14:22.123Z", "size": 1, "state": "complete", "program": "a"}
    return json.dumps(entry | fields, sort_keys=True, separators=(",", ":")).encode()


def _start(**fields: Any) -> bytes:
    """Return an entry.json of the spool target's dump."""
    start = {"version": 1, "dump": str(dump_id(1)), "started_at": 1, "store": None, "first_frame": 0, "peaks": []}
    return b"\0" + json.dumps(start | fields).encode()


def _end(**fields: Any) -> bytes:
    return b"\1" + json.dumps({"size": 1, "predicted_size": None, "outcome": "cut", "ended_at": 1} | fields).encode()


def _settings(**fields: Any) -> bytes:
    settings = {"version": 1, "receivers": ["a:1"], "identity": "/i", "spool": "/s", "uid": 1, "gid": 1}
    return json.dumps(settings | fields).encode()


def _proc(*, uid: bytes = b"33", threads: bytes = b"7", ticks: bytes = b"1", boot: bytes = b"1") -> bytes:
    status = b"PPid:\t1\nUid:\t" + uid + b"\t33\nThreads:\t" + threads + b"\n"
    stat = b"4711 (a) R 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 7 0 " + ticks + b" 0"
    return b"\n==\n".join([b"a\n", b"a", b"0::/\n", status, stat, b"btime " + boot + b"\n", b"Pid:\t4711\n", b"0f8d\n"])


REPRODUCERS: Final[dict[str, list[bytes]]] = {
    # A list that never ends: OverflowError, where the grace was added to its nextUpdate.
    # ValueError where thisUpdate was first looked at: ASN.1 has a year 0.
    "revocation": [b"\x0a\x18\x0f99991231235959Z", b"\x09\x18\x0f00000101000000Z"],
    # A number of thousands of digits: ValueError, which is no TOMLDecodeError.
    "configuration": [b"version = " + b"1" * 5000],
    # RecursionError.
    "pki-settings": [b"\0version = " + b"[" * 4000],
    # A control character in the words of an error.
    "ledger": [b'{"event":"x","time":"2026-11-22T09:14:22Z\\u0000"}\n'],
    # Times in no calendar, or of a year with three digits.
    "row": [b'\3{"time":"0001-01-01T00:00:00+23:59"}', b'\3{"time":"0900-01-01T00:00:00Z"}'],
    # A time, a size and a program that are none; another host's; a control character.
    "log-row": [
        _entry(time="x"), _entry(time="0001-01-01T00:00:00+23:59"), _entry(size="x"), _entry(size=10**400), _entry(program=7),
        _entry(host=1), _entry(state="\x1b[2J"), _entry(dump="\x1b[2J"),
    ],
    # A zero of another type was taken for the index.
    "kept-receipt": [b'\1{"index":0.0}', b'\1{"index":false}'],
    # An error without words.
    "summary": [b'{"error": ""}'],
    # Taken, though no system call takes them, or though the list of receivers is none.
    "settings": [_settings(uid=-1), _settings(gid=1 << 32), _settings(spool="/\0"), _settings(receivers={"a:1": 0})],
    # AttributeError, OverflowError; another dump's entry; an empty text for a number; half a FORMAT.
    "spool": [
        _start(first_frame=1.0, peaks=["00" * 32]),
        _start(started_at=float("inf")),
        _start(dump=str(dump_id(2))),
        _end(predicted_size=""),
        b"\3securecore-spool 1",
    ],
    # ValueError from int(), for what str.isdigit takes; numbers of more than 64 bits; white space that is none of the kernel's.
    "procfs": [
        *(_proc(ticks=number) for number in ("²".encode(), b"9" * 5000, b"9" * 20, b"1\x1c")),
        *(_proc(threads=number) for number in (b"9" * 5000, b"9" * 20)),
        _proc(boot=b"9" * 5000),
        _proc(uid=b"33\x1c"),
    ],
}  # fmt: skip

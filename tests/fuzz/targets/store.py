"""What a start makes of a store's files, however a crash, a disk or a person left them: audit logs and dumps that are coming in."""

from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Final

from securecore import limits
from securecore.audit.checkpoint import origin_of
from securecore.audit.entry import extracted_entry, parse_entry
from securecore.audit.log import HostLog
from securecore.audit.proof import verify_receipt
from securecore.dump.container import seek_table
from securecore.dump.frames import is_torn_frame
from securecore.dump.reader import open_container, open_frames, scan_frames
from securecore.errors import BrokenError, PeerError
from securecore.merkle import leaf_hash, root_of
from securecore.store.layout import Store, create_store
from securecore.store.writer import IncomingDump
from tests.fuzz.files import file_of, scratch
from tests.fuzz.fleet import log_signer
from tests.fuzz.target import Target, check_words
from tests.support.dumps import LOG_NAME, NOW, REPORT, WEB, dump_id, dump_path, frames_of, opened

_ORIGIN: Final = origin_of(LOG_NAME, WEB)
_ENTRIES: Final = [extracted_entry(NOW, dump_id(number), WEB, uid=number, user="root") for number in range(3)]
_NEW: Final = extracted_entry(NOW, dump_id(9), WEB, uid=9, user=None)
_DUMP: Final = dump_id(1)


def check_log(data: bytes) -> None:
    """A log that lacks an entry that was signed is refused and left as it is; any other goes on behind its last whole entry.

    The first byte says how many of three entries the checkpoint covers; the rest stands in entries.jsonl.
    """
    if not data:
        return
    signed, content = data[0] % 4, data[1:]
    path = scratch("log")
    (path / "entries.jsonl").write_bytes(content)
    (path / "checkpoint").write_bytes(log_signer().sign(_ORIGIN, signed, root_of(map(leaf_hash, _ENTRIES[:signed]))))
    lines = content.split(b"\n")[:-1]
    try:
        size = _reopened(path)
    except BrokenError as error:
        check_words(error)
        assert (path / "entries.jsonl").read_bytes() == content
        assert lines[:signed] != _ENTRIES[:signed]
        return
    kept = _ENTRIES[:signed] + list(takewhile(_is_entry, lines[signed:]))
    assert (size, lines[: len(kept)]) == (len(kept), kept)
    assert (path / "entries.jsonl").read_bytes() == b"".join(line + b"\n" for line in [*kept, _NEW])
    assert _reopened(path) == len(kept) + 1


def _reopened(path: Path) -> int:
    """Open a log, append an entry and check its receipt; return how many entries it had."""
    with opened(path) as fd:
        log = HostLog.open(fd, _ORIGIN, log_signer())
    try:
        size = log.size
        receipt = verify_receipt(log.append(_NEW), _ORIGIN, log_signer().public_key)
        assert (receipt.entry, receipt.leaf_index, receipt.checkpoint.size) == (_NEW, size, size + 1)
    finally:
        log.close()
    return size


def _is_entry(line: bytes) -> bool:
    try:
        parse_entry(line)
    except BrokenError:
        return False
    return True


def log_seeds() -> Iterator[bytes]:
    """Logs that are whole, torn, and ahead of their checkpoint."""
    whole = b"".join(line + b"\n" for line in _ENTRIES)
    for signed in range(4):
        yield bytes([signed]) + whole
    yield b"\2" + whole[:-9]
    yield b"\1" + _ENTRIES[0] + b"\n\n" + _ENTRIES[1] + b"\n"
    yield b"\0"


@cache
def _incoming() -> tuple[Store, Path]:
    """Return a store with a dump that is coming in, and the dump's directory."""
    store = create_store(str(scratch("incoming") / "store"))
    incoming = IncomingDump.begin(store, WEB, _DUMP, REPORT)
    incoming.sync()
    incoming.close()
    return store, dump_path(store, _DUMP, "incoming")


def check_resume(data: bytes) -> None:
    """What is held of a dump after a crash are the whole frames at its beginning; with a manifest, a core that is whole or nothing.

    What may hide frames behind them is kept beside it. The first byte says whether there is a manifest, or a receipt in its place,
    which vouches for as much; the rest is core.zst.
    """
    if not data:
        return
    store, directory = _incoming()
    content, is_vouched_for = data[1:], bool(data[0] & 1)
    witness, other = ("manifest.jws", "receipt")[:: -1 if data[0] & 2 else 1]
    for name in (witness, other):
        (directory / name).unlink(missing_ok=True)
    if is_vouched_for:
        (directory / witness).write_bytes(b"a.b.c")
    (directory / "core.zst").write_bytes(content)
    reader, end = open_frames(file_of(content))
    frames = [reader.frame(index) for index in range(len(reader.entries))]
    plain_bytes, table = reader.size, seek_table(reader.entries)
    is_whole = not is_vouched_for and frames and _may_be_completed(frames[-1], content[end:], end)
    if is_whole:
        entries = reader.entries[:-1]
        end, plain_bytes, table = end - len(frames.pop()), sum(entry.plain for entry in entries), seek_table(entries)
    try:
        incoming = IncomingDump.resume(store, WEB, _DUMP, REPORT)
    except BrokenError as error:
        check_words(error)
        assert is_vouched_for
        assert content[end:] != table
        assert (directory / "core.zst").read_bytes() == content
        return
    try:
        assert (incoming.frames, incoming.stored_bytes, incoming.plain_bytes) == (len(frames), end, plain_bytes)
        assert incoming.root == root_of(map(leaf_hash, frames))
        assert (incoming.has_manifest or incoming.is_given_up) is is_vouched_for
        if is_vouched_for:
            assert open_container(file_of(content)).entries == reader.entries
        else:
            torn = incoming.torn()
            assert torn in (b"", content[end:])
            assert len(torn) < limits.MAX_FRAME_BYTES
            assert torn == b"" or is_torn_frame(torn)
            assert (directory / "core.zst").read_bytes() == content[:end] + torn
            tail = content[end:]
            is_explained = _may_be_cut(tail, table, end)
            assert _take_remains(directory) == ([] if is_explained else [tail])
            assert incoming.damaged_bytes == (0 if is_explained else len(tail))
            appended = _go_on(incoming)
            assert (directory / "core.zst").read_bytes() == content[:end] + (appended or torn)
    finally:
        incoming.close()


def _may_be_cut(tail: bytes, table: bytes, offset: int) -> bool:
    """Return whether a crash, or a power cut that has lost what was not durable, leaves such a tail behind the last frame."""
    written = tail.rstrip(b"\0")
    if written == table[: len(written)]:
        return True
    whole = next((bytes(scanned.data) for scanned in scan_frames(file_of(tail))), None)
    is_cut = whole is None or _may_be_completed(whole, tail[len(whole) :], offset + len(whole))
    return is_torn_frame(written) and is_cut


def _may_be_completed(frame: bytes, behind: bytes, end: int) -> bool:
    """Return whether zeroes may have completed the frame that ends at *end*: its whole checksum, or from a sector on."""
    if behind.strip(b"\0") or not frame[4] & 4:
        return False
    is_at_a_sector = any(frame.endswith(bytes(lost)) and (end - lost) % 512 == 0 for lost in (1, 2, 3))
    return frame.endswith(bytes(4)) or (behind != b"" and is_at_a_sector)


def _take_remains(directory: Path) -> list[bytes]:
    """Return what was kept of a damaged core, and leave none of it for the next input."""
    kept = [path for path in directory.iterdir() if path.name.startswith("core.damaged")]
    found = [path.read_bytes() for path in kept]
    for path in kept:
        path.unlink()
    return found


def _go_on(incoming: IncomingDump) -> bytes:
    """Append a frame, which fits unless the last one was short, and return what was appended."""
    ((frame, plain),) = frames_of(b"more")
    before = incoming.frames
    try:
        incoming.append(frame, plain)
    except PeerError:
        assert incoming.plain_bytes % (1 << 20) != 0
        return b""
    assert incoming.frames == before + 1
    return frame


def resume_seeds() -> Iterator[bytes]:
    """Cores that are whole, torn, without and with their seek table."""
    frames = b"".join(frame for frame, _ in frames_of(b"a" * (1 << 20) + bytes(1 << 20)))
    last = frames_of(b"the end")[0][0]
    reader, _ = open_frames(file_of(frames + last))
    whole = frames + last + seek_table(reader.entries)
    torn = frames_of(b"b" * (1 << 20))[0][0][:-3]
    cut = (whole[:-3], torn, frames + torn, frames + last + torn, frames + torn + bytes(99), frames + last[:-4] + bytes(4))
    for content in (b"", frames, frames + last, whole, *cut):
        yield b"\0" + content
        yield b"\1" + content
        yield b"\3" + content


LOG = Target(check_log, log_seeds, ("audit.log.HostLog.open", "audit.log_files.scan_lines"), is_json=True)
RESUME = Target(check_resume, resume_seeds, ("store.writer.IncomingDump.resume", "dump.reader.scan_frames"))

"""What a transfer makes of every way in which a source, a receiver or our own code can fail: labelled truly, and never lost."""

import os
import threading
from pathlib import Path

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump import compression
from securecore.dump.compression import Compressor
from securecore.dump.manifest import parse_manifest
from securecore.errors import Bug, BusyError, ConfigError, StorageError, UnreachableError
from securecore.names import Address
from securecore.receiver.server import Receiver
from securecore.sender import evidence, network
from securecore.sender import pump as pump_module
from securecore.sender.custody import Custody
from securecore.sender.dialling import Dialler
from securecore.sender.flush import flush
from securecore.sender.parcel import Outcome, Parcel
from securecore.sender.patience import usual_patience
from securecore.sender.pump import Frame, Pump
from securecore.sender.spool import Spool
from securecore.sender.transfer import Transfer
from securecore.store.layout import open_store
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.custody import kept
from tests.support.elf import write_core
from tests.support.kernel import wait_until
from tests.support.receivers import new_dump_id, papers_of, running_receiver, send_bytes
from tests.support.scripted import Peer, scripted_receiver

NOWHERE = Address("127.0.0.1:9")


def outcomes(store_path: Path) -> list[str]:
    """Return the outcome that each published dump's manifest states."""
    found = []
    with open_store(str(store_path)) as store:
        for host in store.host_names():
            for dump in store.dump_ids(host):
                with store.open_dump(host, dump) as files:
                    payload = jws.parse(files.read_manifest() or b"", limits.MAX_MANIFEST_BYTES).payload
                    found.append(parse_manifest(payload).outcome)
    return found


CORE = write_core()
LENGTHS = [*range(0, 200, 7), 64, 63, 65, 120, 176, 177, len(CORE) - 1]


def test_a_core_cut_anywhere_is_never_called_complete(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """The crasher was killed while it dumped: within the headers, before the first byte, before the last."""
    papers = papers_of(fleet.host)
    for length in LENGTHS:
        assert send_bytes(CORE[:length], papers, receiver.addresses).receipt is not None

    assert outcomes(tmp_path / "store") == ["source-truncated"] * len(LENGTHS)


@pytest.mark.parametrize("core", [CORE, b"no ELF core at all", b"\x7fELX"])
def test_what_ended_by_itself_is_complete(core: bytes, fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """A whole core is complete, and what is no ELF core has no length that it could miss."""
    send_bytes(core, papers_of(fleet.host), receiver.addresses)

    assert outcomes(tmp_path / "store") == ["complete"]


class InterruptedPump(Pump):
    """A pump whose reading ends with an exception, after a piece."""

    def read(self, fd: int) -> None:
        """Read one piece and fail as nobody foresaw."""
        self._on_progress = self._fail
        super().read(fd)

    def _fail(self, size: int) -> None:
        raise RuntimeError("upgraded in the middle of a crash")


def test_an_exception_while_reading_is_never_a_complete_dump(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """What was read is kept, labelled cut; nothing signs that it is all."""
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, b"x" * 1000), os.close(writing)))
    writer.start()
    pump = InterruptedPump(Compressor)
    running = Transfer(Parcel(new_dump_id(), b"{}", 1), pump, receiver.addresses, papers_of(fleet.host), None)
    running.start()
    with pytest.raises(RuntimeError):
        pump.read(reading)
    os.close(reading)
    running.source_closed.set()
    running.wait()
    writer.join()

    assert outcomes(tmp_path / "store") == ["cut"]


UNLUCKY = b"no memory for it"


class PoorCompressor(Compressor):
    """A compressor on a machine that has no memory for pieces which begin with UNLUCKY."""

    __slots__ = ()

    def frame(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Return the frame, where there is memory for it."""
        if bytes(piece[: len(UNLUCKY)]) == UNLUCKY:
            raise MemoryError
        return super().frame(piece)


def unlucky_at(number: int) -> bytes:
    """Return twenty pieces, more than are ever under way at once, of which *number* cannot be compressed."""
    pieces = [os.urandom(limits.PIECE_BYTES) for _ in range(20)]
    pieces[number] = UNLUCKY + pieces[number][len(UNLUCKY) :]
    return b"".join(pieces)


@pytest.mark.parametrize("number", [0, 1, 3, 19])
def test_a_piece_without_memory_ends_a_dump_that_is_delivered(
    number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver is there: it has what came before the piece, signed for as cut, and the cause is told."""
    monkeypatch.setattr(compression, "Compressor", PoorCompressor)

    outcome = send_bytes(unlucky_at(number), papers_of(fleet.host), receiver.addresses, spool=spool)

    assert (outcome.failure, outcome.frames) == (None, number)
    assert outcome.receipt is not None
    assert outcome.source_failure == "a piece could not be compressed: out of memory"
    assert outcomes(tmp_path / "store") == ["cut"]
    assert spool.dump_ids() == []


@pytest.mark.parametrize("number", [0, 1, 3, 19])
def test_a_piece_without_memory_ends_a_dump_that_is_spooled(
    number: int, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No receiver is there: the spool has what came before the piece and says that it is cut, and so does who gets it later."""
    monkeypatch.setattr(compression, "Compressor", PoorCompressor)
    core, papers, dump = unlucky_at(number), papers_of(fleet.host), new_dump_id()

    outcome = send_bytes(core, papers, [NOWHERE], spool=spool, dump=dump)

    assert isinstance(outcome.failure, UnreachableError)
    assert (outcome.spooled, outcome.spool_failure) == (True, None)
    assert outcome.source_failure == "a piece could not be compressed: out of memory"
    assert kept(spool, dump) == (0, core[: number * limits.PIECE_BYTES])
    entry = spool.entry(dump)
    assert entry is not None
    end = entry.end()
    entry.close()
    assert end is not None
    assert (end.size, end.outcome) == (number * limits.PIECE_BYTES, "cut")
    assert [flushed.failure for flushed in flush(spool, receiver.addresses, papers)] == [None]
    assert outcomes(tmp_path / "store") == ["cut"]


def test_the_log_tells_why_a_dump_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivered or spooled, the line names what became of the rest."""
    lines: list[tuple[str, object]] = []
    monkeypatch.setattr(network, "log", lambda event, **facts: lines.append((event, facts["cut"])))
    whole = Outcome({}, None, False, None, 5, 5, 1, None)

    network.conclude(new_dump_id(), whole)
    network.conclude(new_dump_id(), whole._replace(source_failure="out of memory"))
    network.conclude(new_dump_id(), Outcome(None, UnreachableError("gone"), True, None, 5, 5, 1, "out of memory"))

    assert lines == [("delivered", None), ("delivered", "out of memory"), ("spooled", "out of memory")]


def test_an_entry_of_nothing_is_no_dump_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one frame came of the core, and not because it has none: the log says that it failed."""
    lines: list[str] = []
    monkeypatch.setattr(network, "log", lambda event, **facts: lines.append(event))
    nothing = Outcome(None, UnreachableError("gone"), True, None, 0, 0, 0, "out of memory")

    assert network.conclude(new_dump_id(), nothing) == UnreachableError.exit_code
    network.conclude(new_dump_id(), nothing._replace(source_failure=None))

    assert lines == ["failed", "spooled"]


def test_the_size_is_that_of_the_frames(fleet: Fleet, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read and could not be kept is not told as if it were there."""
    take, calls = Custody.take, []

    def take_two(self: Custody, frame: Frame) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        take(self, frame)

    monkeypatch.setattr(Custody, "take", take_two)
    outcome = send_bytes(bytes(4 * limits.PIECE_BYTES), papers_of(fleet.host), [], spool=spool)

    assert (outcome.frames, outcome.size) == (2, 2 * limits.PIECE_BYTES)


@pytest.mark.parametrize("has_spool", [True, False])
def test_a_frame_that_finds_no_memory_ends_the_dump(
    has_spool: bool, fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump has no holes: what came before it is signed for as cut over the wire, which is well, and the source is let go."""
    take = Custody.take
    frames = iter(range(100))

    def take_some(custody: Custody, frame: Frame) -> None:
        if next(frames) == 3:
            raise MemoryError
        take(custody, frame)

    monkeypatch.setattr(Custody, "take", take_some)
    papers = papers_of(fleet.host)
    outcome = send_bytes(os.urandom(40 * limits.PIECE_BYTES), papers, receiver.addresses, spool=spool if has_spool else None)

    assert outcome.receipt is not None
    assert (outcome.failure, outcome.spooled, outcome.source_failure) == (None, False, "out of memory")
    assert (outcome.frames, outcome.size < 40 * limits.PIECE_BYTES) == (3, True)
    assert outcomes(tmp_path / "store") == ["cut"]
    assert spool.dump_ids() == []


def test_a_statement_that_finds_no_memory_does_not_make_a_whole_dump_a_cut_one(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame was there by then: the dump waits, and a later flush delivers it as what it is."""

    def fail(*arguments: object) -> bytes:
        raise MemoryError

    papers = papers_of(fleet.host)
    with monkeypatch.context() as poor:
        poor.setattr(evidence, "sign_manifest", fail)
        outcome = send_bytes(os.urandom(5 * limits.MIB), papers, receiver.addresses, spool=spool)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert (outcome.spooled, outcome.spool_failure, outcome.source_failure) == (True, None, None)
    assert isinstance(outcome.failure, StorageError)
    assert [result.failure for result in flushed] == [None]
    assert outcomes(tmp_path / "store") == ["complete"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_foresaw_does_not_cost_the_core(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own code fails in the middle: the rest is in the spool, and a later flush delivers the whole."""
    core, papers = os.urandom(5 * limits.MIB), papers_of(fleet.host)

    def fail(*arguments: object) -> bytes:
        raise RuntimeError("upgraded in the middle of a crash")

    with monkeypatch.context() as broken:
        broken.setattr(evidence, "sign_manifest", fail)
        outcome = send_bytes(core, papers, receiver.addresses, spool=spool)
    flushed = list(flush(spool, receiver.addresses, papers))

    assert outcome.spooled
    assert isinstance(outcome.failure, Bug)
    assert [result.failure for result in flushed] == [None]
    assert outcomes(tmp_path / "store") == ["complete"]


def test_a_source_that_stands_still_keeps_nothing_in_memory_once_the_time_is_up(fleet: Fleet, spool: Spool) -> None:
    """No frame comes with which that would be noticed: what was sent and not acknowledged goes to the spool at once."""
    core, dump, arrived = os.urandom(3 * limits.PIECE_BYTES), new_dump_id(), threading.Event()

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.hear()
        peer.hear()
        arrived.set()
        peer.stay()

    reading, writing = os.pipe()
    pump = Pump(Compressor)
    reader = threading.Thread(target=pump.read, args=(reading,))
    with scripted_receiver(fleet.receiver, script) as scripted:
        running = Transfer(Parcel(dump, b"{}", 1), pump, [scripted.address], papers_of(fleet.host), spool)
        running.start()
        reader.start()
        with os.fdopen(writing, "wb") as source:
            source.write(core)
            source.flush()
            assert arrived.wait(60)
            running.call_off()
            place = Path(f"/proc/self/fd/{spool.fd}").readlink() / "dumps" / str(dump) / "core.zst"
            wait_until(lambda: (place.exists() and place.stat().st_size > len(core)) or None)
            assert reader.is_alive()
        reader.join()
        os.close(reading)
        running.source_closed.set()
        outcome = running.wait()

    assert isinstance(outcome.failure, BusyError)
    assert (outcome.spooled, outcome.spool_failure, kept(spool, dump)) == (True, None, (0, core))


def test_the_second_receiver_gets_what_the_first_refuses(
    fleet: Fleet, receiver: Receiver, own_fleet: Fleet, tmp_path: Path
) -> None:
    """Receivers are tried in order until one takes the dump: dead ones, strangers, and then ours."""
    with running_receiver(own_fleet.receiver, tmp_path / "strangers") as stranger:
        outcome = send_bytes(b"core", papers_of(fleet.host), [NOWHERE, stranger.addresses[0], *receiver.addresses])

    assert outcome.failure is None
    assert outcome.receipt is not None
    assert outcome.receipt["receiver"] == str(receiver.addresses[0])


def test_a_flush_finds_the_receiver_that_holds_the_beginning(
    fleet: Fleet, receiver: Receiver, spool: Spool, tmp_path: Path
) -> None:
    """A tail belongs to one store: another receiver that answers first is passed over."""
    from tests.support.proxies import Cut, cutting

    core, papers = os.urandom(40 * limits.MIB), papers_of(fleet.host)
    # Behind what a sender keeps in memory: by then it has heard of frames that are durable.
    with cutting(receiver.addresses[0], Cut(30_000_000, True)) as proxy:
        outcome = send_bytes(core, papers, [proxy.address], spool=spool)
    with running_receiver(fleet.receiver, tmp_path / "other") as other:
        alone = list(flush(spool, other.addresses, papers))
        both = list(flush(spool, [*other.addresses, *receiver.addresses], papers))

    assert outcome.spooled
    assert [type(result.failure).__name__ for result in alone] == ["OtherStoreError"]
    assert [result.failure for result in both] == [None]
    assert outcomes(tmp_path / "store") == ["complete"]
    assert outcomes(tmp_path / "other") == []


def test_without_a_spool_the_failure_is_told(fleet: Fleet) -> None:
    """Nowhere to send and nowhere to keep: the error says so, and the source is let go."""
    outcome = send_bytes(os.urandom(40 * limits.MIB), papers_of(fleet.host), [NOWHERE])

    assert isinstance(outcome.failure, UnreachableError)
    assert not outcome.spooled
    assert outcome.receipt is None


def test_with_the_reading_first_nobody_is_dialled_before_it_has_its_head_start(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake takes the processors that the process which crashed waits for."""
    ends: list[object] = []
    pump = Pump(Compressor)

    def connect(*_: object) -> None:
        ends.append(pump.end)
        raise UnreachableError("nobody is there")

    monkeypatch.setattr(Dialler, "connect", connect)
    monkeypatch.setattr(pump_module, "_HEAD_START_S", 60.0)
    core = tmp_path / "core"
    core.write_bytes(os.urandom(3 * limits.MIB))
    running = Transfer(Parcel(new_dump_id(), b"{}", 1), pump, [NOWHERE], papers_of(fleet.host), None, reads_first=True)
    running.start()
    with core.open("rb") as source:
        pump.read(source.fileno())
    running.source_closed.set()
    running.wait()

    assert ends == [pump.end]
    assert pump.end is not None


def test_a_connection_that_was_begun_and_not_asked_for_is_closed(fleet: Fleet, receiver: Receiver, tmp_path: Path) -> None:
    """What has called the transfer off keeps no place at the receiver."""
    dialler, papers = Dialler(), papers_of(fleet.host)
    dialler.begin(receiver.addresses, papers.context, usual_patience())
    wait_until(lambda: receiver.session_count == 1 or None)
    pump = Pump(Compressor)
    running = Transfer(
        Parcel(new_dump_id(), b"{}", 1), pump, receiver.addresses, ConfigError("no identity"), None, dialler=dialler
    )  # fmt: skip
    running.start()
    (tmp_path / "core").write_bytes(b"a core")
    with (tmp_path / "core").open("rb") as source:
        pump.read(source.fileno())
    running.source_closed.set()
    outcome = running.wait()
    wait_until(lambda: receiver.session_count == 0 or None)

    assert isinstance(outcome.failure, ConfigError)

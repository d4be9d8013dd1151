"""The end of a handler that would live for ever: first the receiver is given up, then the source, then the handler itself.

Real handlers with a deadline of a second or two, each held up in one place where nothing else would end it while the test waits.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import COMPLETE, CUT, Manifest, parse_manifest
from securecore.errors import BusyError, StorageError, UnreachableError
from securecore.names import Address
from securecore.sender.confinement import Confinement
from securecore.sender.flush import flush
from securecore.sender.patience import Patience
from securecore.sender.spool import open_spool
from securecore.sender.spool_limits import SpoolLimits
from securecore.wire.messages import Ack, End
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments, wait_until, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.local_handlers import LocalHost
from tests.support.receivers import papers_of, running_receiver
from tests.support.scripted import Peer, forge_receipt, scripted_receiver
from tests.support.sizes import size_of

pytestmark = pytest.mark.slow

NOWHERE: Final = Address("127.0.0.1:9")
PATIENT: Final = Patience(600, 600, 600)
"""Every other deadline of a handler is longer than the test."""
SOON: Final = Confinement(deadline_s=2)
LATER: Final = Confinement(deadline_s=4)
"""Where all of a core has to be read, or spooled, within the grace, which is as long, on a machine that others use too."""
NOISE: Final = os.urandom(40 * limits.PIECE_BYTES)
"""More than a ring, the pump's queue and the sockets' buffers together."""

Running = subprocess.Popen[bytes]


@pytest.fixture
def handlers() -> Iterator[list[Running]]:
    """Handlers to be ended after the test, whatever became of them."""
    started: list[Running] = []
    yield started
    for handler in started:
        handler.kill()
        handler.communicate()


def start(installed: Installed, handlers: list[Running]) -> Running:
    """Start an installed handler with a pipe for its core."""
    handler = subprocess.Popen(
        [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()],
        stdin=subprocess.PIPE, env={}, cwd="/",
    )  # fmt: skip
    handlers.append(handler)
    return handler


def flushed_manifest(installed: Installed, fleet: Fleet, directory: Path) -> Manifest:
    """Deliver what is in the spool, which is one dump and all that the store gets, and return its manifest."""
    with running_receiver(fleet.receiver, directory / "store") as receiver:
        (flushed,) = flush(open_spool(str(installed.spool)), receiver.addresses, papers_of(fleet.host))
    assert flushed.failure is None
    assert installed.spooled() == []
    (manifest,) = (directory / "store/hosts").glob("*/*/manifest.jws")
    return parse_manifest(jws.parse(manifest.read_bytes(), limits.MAX_MANIFEST_BYTES).payload)


def test_a_receiver_that_never_gives_its_receipt_is_given_up(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """The dump waits in the spool, whole, and the code is that of a receiver that did not answer in time."""
    core = write_core([Segment(os.urandom(3 * limits.PIECE_BYTES))])

    def script(peer: Peer) -> None:
        peer.reach(State.ENDING)
        peer.stay()

    with scripted_receiver(fleet.receiver, script) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT, confinement=LATER)
        handler = start(installed, handlers)
        handler.communicate(core, timeout=60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert handler.returncode == BusyError.exit_code
    assert (manifest.outcome, manifest.size) == (COMPLETE, len(core))


def test_a_receiver_that_takes_no_byte_is_given_up_and_the_rest_goes_to_the_spool(
    fleet: Fleet, tmp_path: Path, handlers: list[Running]
) -> None:
    """A process that is held by it is let go after the deadline, with every byte kept."""
    core = write_core([Segment(NOISE)])

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.wait_unread()

    with scripted_receiver(fleet.receiver, script) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT, confinement=LATER)
        handler = start(installed, handlers)
        handler.communicate(core, timeout=60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert handler.returncode == BusyError.exit_code
    assert (manifest.outcome, manifest.size) == (COMPLETE, len(core))


EVERY_S: Final = 0.1
"""Between two frames that a slow receiver takes. At the deadline of SLOW some sixty of SLOW_CORE's have gone; the thirty that may
be in memory then take half of the grace."""
SLOW: Final = Confinement(deadline_s=6)
SLOW_CORE: Final = write_core([Segment(os.urandom(120 * limits.PIECE_BYTES))])


def test_a_receiver_that_is_only_slow_gets_what_the_spool_has_no_room_for(
    fleet: Fleet, tmp_path: Path, handlers: list[Running]
) -> None:
    """The source is given up instead of it: what was read by then is delivered, and signed for as cut."""
    ended: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        while not isinstance(peer.hear(), End):
            threading.Event().wait(EVERY_S)
            peer.say(Ack(peer.frames))
        ended.append(peer.manifest)
        peer.say(forge_receipt(fleet.receiver, peer.manifest))

    with scripted_receiver(fleet.receiver, script) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT, confinement=SLOW, spool_limits=SpoolLimits(floor_share=0.0, max_bytes=limits.MIB))
        handler = start(installed, handlers)
        handler.communicate(SLOW_CORE, timeout=60)

    assert handler.returncode == 0
    (token,) = ended
    manifest = parse_manifest(jws.parse(token, limits.MAX_MANIFEST_BYTES).payload)
    assert manifest.outcome == CUT
    assert 10 * limits.PIECE_BYTES < manifest.size < len(SLOW_CORE)
    assert (len(installed.receipts()), installed.spooled()) == (1, [])


def test_a_receiver_that_takes_nothing_is_given_up_a_grace_later_where_the_spool_has_no_room(
    fleet: Fleet, tmp_path: Path, handlers: list[Running]
) -> None:
    """It had its time. The handler ends by itself, and says that the core could be kept nowhere."""

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        peer.wait_unread()

    with scripted_receiver(fleet.receiver, script) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT, confinement=LATER, spool_limits=SpoolLimits(floor_share=0.0, max_bytes=limits.MIB))
        handler = start(installed, handlers)
        handler.communicate(write_core([Segment(NOISE)]), timeout=60)

    assert handler.returncode == StorageError.exit_code
    assert installed.spooled() == []


def test_a_receiver_that_never_greets_is_given_up_at_the_deadline(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """However long it may take to greet by itself: the whole dump is in the spool, and the handler ends by itself."""
    core = write_core([Segment(os.urandom(3 * limits.PIECE_BYTES))])
    with scripted_receiver(fleet.receiver, Peer.stay) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT, confinement=LATER)
        handler = start(installed, handlers)
        handler.communicate(core, timeout=60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert handler.returncode in (UnreachableError.exit_code, BusyError.exit_code)
    assert (manifest.outcome, manifest.size) == (COMPLETE, len(core))


def test_a_deadline_that_has_passed_is_told_to_who_comes_late() -> None:
    """A handler may take long until there is a wire that could be given up: it is told at once."""
    program = (
        "import os, signal\n"
        "from securecore.sender.lifetime import Lifetime\n"
        "lifetime = Lifetime(os.pipe()[0], 2)\n"
        "signal.pause()\n"
        "lifetime.attend(lambda: os.write(1, b'off'), lambda: None)\n"
        "os._exit(0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True)

    assert (result.returncode, result.stdout) == (0, b"off")


def test_a_source_that_is_given_up_early_ends_a_read_that_waits_for_it() -> None:
    """Who gives it up is another thread; the one that reads does so in the kernel, and would wait for ever."""
    program = (
        "import os, threading\n"
        "from securecore.sender.lifetime import Lifetime\n"
        "reading, writing = os.pipe()\n"
        "lifetime = Lifetime(reading, 20)\n"
        "threading.Timer(0.2, lifetime.end_source).start()\n"
        "print(os.read(reading, 1), lifetime.cut)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)

    assert result.stdout.startswith("b'' the handler's time is up (20 s")


def test_a_core_that_never_ends_is_cut(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """The handler closes the pipe by itself; what it had read is delivered as cut, also where it is no whole piece."""
    core = write_core([Segment(NOISE)])[: 5 * limits.PIECE_BYTES // 2]
    installed = Installed(tmp_path, fleet.host, [NOWHERE])
    installed.change(confinement=LATER)
    handler = start(installed, handlers)
    assert handler.stdin is not None
    handler.stdin.write(core)
    handler.stdin.flush()
    code = handler.wait(60)
    with pytest.raises(BrokenPipeError):
        os.write(handler.stdin.fileno(), b"more")
    handler.stdin.close()
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert code in (UnreachableError.exit_code, BusyError.exit_code)
    assert (manifest.outcome, manifest.size) == (CUT, len(core))


def test_a_handler_that_does_not_even_hear_of_its_deadline_is_killed(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """One that stands still in the kernel's hands: what it had spooled arrives later, as cut."""
    installed = Installed(tmp_path, fleet.host, [NOWHERE])
    installed.change(confinement=SOON)
    handler = start(installed, handlers)
    assert handler.stdin is not None
    handler.stdin.write(NOISE[: 3 * limits.PIECE_BYTES])
    handler.stdin.flush()
    wait_until(lambda: any(size_of(core) for core in (installed.spool / "dumps").glob("*/core.zst")) or None)
    handler.send_signal(signal.SIGSTOP)
    code = handler.wait(60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert code == -signal.SIGKILL
    assert manifest.outcome == CUT
    assert manifest.size > 0


def test_the_timer_needs_nothing_of_the_process() -> None:
    """It kills one that blocks every signal and never leaves a computation that no signal's handler interrupts."""
    program = (
        "import signal\n"
        "from securecore.sender.lifetime import kill_after\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())\n"
        "kill_after(0.2)\n"
        "sum(range(1 << 60))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert result.returncode == -signal.SIGKILL


def test_the_timer_is_found_where_an_older_c_library_has_it() -> None:
    """Before glibc 2.34 it is in a library of its own."""
    program = (
        "import ctypes, os, time\n"
        "real = ctypes.CDLL\n"
        "class Old:\n"
        "    pass\n"
        "def load(name, **options):\n"
        "    return Old() if name is None else real(None, **options) if name == 'librt.so.1' else real(name, **options)\n"
        "ctypes.CDLL = load\n"
        "from securecore.sender.lifetime import kill_after\n"
        "kill_after(0.2)\n"
        "time.sleep(60)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=90)

    assert result.returncode == -signal.SIGKILL


def test_a_local_core_that_never_ends_is_kept_as_cut(tmp_path: Path, handlers: list[Running]) -> None:
    """Where there is no wire, the source is given up all the same, and the file says that it is not whole."""
    host = LocalHost(tmp_path)
    write_script(
        host.handler,
        host.handler.read_text().replace("main(", "from securecore import limits\nlimits.HANDLER_DEADLINE_S = 0.5\nmain("),
    )
    handler = host.start()
    handlers.append(handler)
    assert handler.stdin is not None
    handler.stdin.write(NOISE[:1000])
    handler.stdin.flush()
    code = handler.wait(60)
    handler.stdin.close()
    reports: dict[str, Any] = host.reports()

    assert code == 0
    (report,) = reports.values()
    assert report["local"]["outcome"] == CUT
    (name,) = host.cores_kept()
    assert name.endswith(".truncated.zst")
    assert host.plain(name) == NOISE[:1000]


def test_a_healthy_handler_is_not_touched(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """The deadline does nothing before its time: a core that ends is delivered, whole."""
    core = write_core([Segment(NOISE)])
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        installed = Installed(tmp_path, fleet.host, receiver.addresses)
        installed.change(confinement=Confinement(deadline_s=60))
        handler = start(installed, handlers)
        handler.communicate(core, timeout=60)
        wait_until(lambda: installed.receipts() or None)

    assert handler.returncode == 0
    assert installed.spooled() == []

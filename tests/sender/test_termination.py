"""A handler that is told to end, as all that is left is at a shutdown: what it has read of a core is durable, and is called cut.

Real handlers, whose crashed process never ends its core; or one that is told while it starts.
"""

import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.certs import jws
from securecore.dump.manifest import COMPLETE, CUT, Manifest, parse_manifest
from securecore.errors import BusyError, StorageError, UnreachableError
from securecore.names import Address
from securecore.sender.admission import EXCLUDE, Admission, Rule
from securecore.sender.flush import flush
from securecore.sender.patience import Patience
from securecore.sender.spool import open_spool
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.elf import Segment, write_core
from tests.support.kernel import Installed, kernel_arguments, wait_until, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.local_files import noise
from tests.support.local_handlers import LocalHost
from tests.support.receivers import papers_of, running_receiver
from tests.support.scripted import Peer, scripted_receiver
from tests.support.sizes import size_of

pytestmark = pytest.mark.slow

NOWHERE: Final = Address("127.0.0.1:9")
PATIENT: Final = Patience(600, 600, 600)
"""A receiver has longer than the test."""
CORE: Final = write_core([Segment(noise(5 * limits.MIB))])
BEGUN: Final = CORE[: 5 * limits.MIB // 2]
"""What a process has written of it that never ends."""
SHORT_GRACE: Final = "from securecore import limits\nlimits.TERMINATION_GRACE_S = 0.5\nmain("
ALARMED: Final = 99
"""The exit code of a handler that ends while a SIGALRM is still to come."""
TOLD_EARLY: Final = """import os, signal
from securecore.sender import settings

load = settings.load_settings
def load_and_tell(path):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(path)

settings.load_settings = load_and_tell
main("""

TELLS_OF_ALARMS: Final = f"""import atexit, os, signal
atexit.register(lambda: signal.getitimer(signal.ITIMER_REAL)[0] and os._exit({ALARMED}))
main("""

Running = subprocess.Popen[bytes]


@pytest.fixture
def handlers() -> Iterator[list[Running]]:
    """Handlers to be ended after the test, whatever became of them."""
    started: list[Running] = []
    yield started
    for handler in started:
        handler.kill()
        handler.communicate()


def begin(handler: Running) -> None:
    """Give a handler the beginning of a core."""
    assert handler.stdin is not None
    handler.stdin.write(BEGUN)
    handler.stdin.flush()


def start(installed: Installed, handlers: list[Running], beginning: str = SHORT_GRACE) -> Running:
    """Start an installed handler, with *beginning* in place of its call."""
    write_script(installed.handler, installed.handler.read_text().replace("main(", beginning))
    handler = subprocess.Popen(
        [*as_by_the_kernel(), str(installed.handler), *kernel_arguments()], stdin=subprocess.PIPE, env={}, cwd="/",
    )  # fmt: skip
    handlers.append(handler)
    return handler


def flushed_manifest(installed: Installed, fleet: Fleet, directory: Path) -> Manifest:
    """Deliver what is in the spool, which is one dump with an end, and return its manifest."""
    assert len(list((installed.spool / "dumps").glob("*/end.json"))) == 1
    with running_receiver(fleet.receiver, directory / "store") as receiver:
        (flushed,) = flush(open_spool(str(installed.spool)), receiver.addresses, papers_of(fleet.host))
    assert flushed.failure is None
    (manifest,) = (directory / "store/hosts").glob("*/*/manifest.jws")
    return parse_manifest(jws.parse(manifest.read_bytes(), limits.MAX_MANIFEST_BYTES).payload)


def test_what_was_read_for_the_spool_is_durable_there(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """The source has a few seconds more to end by itself; the handler says how it ended."""
    installed = Installed(tmp_path, fleet.host, [NOWHERE])
    handler = start(installed, handlers)
    begin(handler)
    wait_until(lambda: any(size_of(core) for core in (installed.spool / "dumps").glob("*/core.zst")) or None)
    handler.send_signal(signal.SIGTERM)
    code = handler.wait(60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert code in (BusyError.exit_code, UnreachableError.exit_code)
    assert (manifest.outcome, manifest.size) == (CUT, len(BEGUN))


def test_what_no_receiver_has_acknowledged_goes_to_the_spool(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """It was in memory alone. The wire is given up at once, however well it is: the machine goes down."""
    is_streaming: list[bool] = []

    def script(peer: Peer) -> None:
        peer.reach(State.STREAMING)
        is_streaming.append(True)
        peer.stay()

    with scripted_receiver(fleet.receiver, script) as receiver:
        installed = Installed(tmp_path, fleet.host, [receiver.address])
        installed.change(deadlines=PATIENT)
        handler = start(installed, handlers)
        begin(handler)
        wait_until(lambda: is_streaming or None)
        handler.send_signal(signal.SIGTERM)
        code = handler.wait(60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert code == BusyError.exit_code
    assert (manifest.outcome, manifest.size) == (CUT, len(BEGUN))


Silent = AbstractContextManager[tuple[Address, Callable[[], bool]]]
"""A receiver that never takes a dump, and whether the sender has come to where it waits for ever."""


@contextmanager
def never_greeting(_identity: Path) -> Iterator[tuple[Address, Callable[[], bool]]]:
    """Yield one that nobody serves, as where the network goes down first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Address(f"127.0.0.1:{listener.getsockname()[1]}"), lambda: bool(select.select([listener], [], [], 0)[0])


@contextmanager
def never_accepting(identity: Path) -> Iterator[tuple[Address, Callable[[], bool]]]:
    """Yield one that greets and says nothing more."""
    has_asked: list[bool] = []

    def script(peer: Peer) -> None:
        peer.reach(State.OPENING)
        has_asked.append(True)
        peer.stay()

    with scripted_receiver(identity, script) as receiver:
        yield receiver.address, lambda: bool(has_asked)


@pytest.mark.parametrize("silent", [never_greeting, never_accepting])
def test_no_receiver_is_waited_for_that_has_not_taken_the_dump(
    silent: Callable[[Path], Silent], fleet: Fleet, tmp_path: Path, handlers: list[Running]
) -> None:
    """Until one has, nothing of the core is anywhere; a machine that goes down kills in five seconds who is left."""
    with silent(fleet.receiver) as (address, has_come):
        installed = Installed(tmp_path, fleet.host, [address])
        installed.change(deadlines=PATIENT)
        handler = start(installed, handlers)
        begin(handler)
        wait_until(lambda: has_come() or None)
        handler.send_signal(signal.SIGTERM)
        # The scripted one goes by itself after twenty seconds.
        code = handler.wait(15)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert code == BusyError.exit_code
    assert (manifest.outcome, manifest.size) == (CUT, len(BEGUN))


def test_a_handler_that_is_told_while_it_starts_keeps_its_core(fleet: Fleet, tmp_path: Path, handlers: list[Running]) -> None:
    """Before anything of it could be kept; a core that ends by itself within the time that is left is whole."""
    installed = Installed(tmp_path, fleet.host, [NOWHERE])
    handler = start(installed, handlers, TOLD_EARLY)
    handler.communicate(CORE, timeout=60)
    manifest = flushed_manifest(installed, fleet, tmp_path)

    assert handler.returncode > 0
    assert (manifest.outcome, manifest.size) == (COMPLETE, len(CORE))


def test_a_local_core_is_durable_under_a_name_that_says_that_it_was_cut(tmp_path: Path, handlers: list[Running]) -> None:
    """Where there is no receiver the core is a file all the same, with its report."""
    host = LocalHost(tmp_path)
    write_script(host.handler, host.handler.read_text().replace("main(", SHORT_GRACE))
    handler = host.start()
    handlers.append(handler)
    begin(handler)
    wait_until(lambda: any(size_of(core) for core in host.cores.glob(".*.zst.new")) or None)
    handler.send_signal(signal.SIGTERM)
    code = handler.wait(60)
    (name,) = host.cores_kept()
    (report,) = host.reports().values()

    assert (code, report["local"]["outcome"]) == (0, CUT)
    assert name.endswith(".truncated.zst")
    assert host.plain(name) == BEGUN


@pytest.mark.parametrize("told", [1, 3])
def test_who_is_told_more_than_once_has_no_more_time(told: int) -> None:
    """The time is up, the source ends a grace later and says why, and each is done however often the signal comes."""
    program = (
        "import os, signal, sys\n"
        "from securecore import limits\n"
        "limits.TERMINATION_GRACE_S = 0.5\n"
        "from securecore.sender.lifetime import Lifetime\n"
        "reading, writing = os.pipe()\n"
        "lifetime = Lifetime(reading, 600)\n"
        "lifetime.attend(lambda: print('off', flush=True), lambda: None)\n"
        f"for _ in range({told}):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(os.read(reading, 1), lifetime.cut, lifetime.is_over)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)

    first, *_, last = result.stdout.splitlines()
    assert (first, last) == ("off", "b'' the handler was told to end (SIGTERM) True")


def test_a_handler_whose_dump_is_safe_ends_at_once() -> None:
    """What it does then, for other dumps, loses nothing by that."""
    program = (
        "import os, signal\n"
        "from securecore.sender.lifetime import Lifetime\n"
        "Lifetime(os.pipe()[0], 600).release()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert result.returncode == -signal.SIGTERM


def test_a_handler_whose_dump_is_safe_does_not_die_of_its_deadline() -> None:
    """While an interpreter ends, SIGALRM kills: the exit code would no more be the handler's."""
    program = (
        "import os, signal\n"
        "from securecore.sender.lifetime import Lifetime\n"
        "Lifetime(os.pipe()[0], 600).release()\n"
        "print(signal.getitimer(signal.ITIMER_REAL)[0])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)

    assert result.stdout == "0.0\n"


DECLINES: Final = Admission(rules=(Rule(EXCLUDE, signal=11),))


@pytest.mark.parametrize(
    ("admission", "mode", "code"),
    [(Admission(), 0o700, 0), (DECLINES, 0o700, 0), (Admission(), 0o500, StorageError.exit_code)],
    ids=["kept", "declined", "failed"],
)
def test_no_local_handler_dies_of_its_deadline_once_it_is_done(tmp_path: Path, admission: Admission, mode: int, code: int) -> None:
    """Whatever became of the crash, no SIGALRM is to come any more while the interpreter ends: the exit code is the handler's."""
    host = LocalHost(tmp_path)
    host.admit(admission)
    host.cores.chmod(mode)
    write_script(host.handler, host.handler.read_text().replace("main(", TELLS_OF_ALARMS))

    assert host.run(CORE) == code

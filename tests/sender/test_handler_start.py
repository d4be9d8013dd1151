"""The handler as a process of its own, started in every odd way that a kernel or a test can think of."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore import limits
from securecore.cli.machine.interpreter import find_interpreter
from securecore.errors import ConfigError
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments, write_script
from tests.support.launchers import as_by_the_kernel
from tests.support.local_handlers import LocalHost
from tests.support.receivers import running_receiver
from tests.support.stores import published

CORE = os.urandom(3 * limits.MIB) + b"the end"


class Handler(Installed):
    """An installed handler, and ways to start it."""

    def run(self, *changes: str, closed: tuple[int, ...] = (1, 2), cwd: str = "/", env: dict[str, str] | None = None) -> int:
        """Run it with a core on its standard input and return its exit code."""
        result = subprocess.run(
            [*as_by_the_kernel(closed, env), str(self.handler), *(changes or kernel_arguments())],
            input=CORE, cwd=cwd, check=False, timeout=60,
        )  # fmt: skip
        return result.returncode


@pytest.fixture
def installed(fleet: Fleet, tmp_path: Path) -> Iterator[Handler]:
    """A handler with a running receiver."""
    with running_receiver(fleet.receiver, tmp_path / "store") as receiver:
        yield Handler(tmp_path, fleet.host, receiver.addresses)


@pytest.mark.parametrize("closed", [(), (1,), (2,), (1, 2)])
def test_the_core_is_all_that_arrives_whatever_is_closed(closed: tuple[int, ...], installed: Handler, tmp_path: Path) -> None:
    """Descriptors 1 and 2 missing, as the kernel leaves them: no text of ours gets into the core."""
    assert installed.run(closed=closed) == 0
    assert published(tmp_path / "store") == [CORE]


def test_a_hostile_directory_and_environment_change_nothing(installed: Handler, tmp_path: Path) -> None:
    """R13: no module is taken from the working directory or from PYTHONPATH."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("ssl", "json", "os", "securecore", "sitecustomize", "zstandard"):
        (trap / f"{name}.py").write_text("raise SystemExit('trapped')\n")

    code = installed.run(
        cwd=str(trap), env={"PYTHONPATH": str(trap), "PYTHONSTARTUP": str(trap / "os.py"), "PYTHONHOME": str(trap)}
    )

    assert code == 0
    assert published(tmp_path / "store") == [CORE]


@pytest.mark.parametrize("arguments", [("--help",), ("1", "2"), ("x",) * 9, ("$(id)",) * 8])
def test_arguments_that_are_not_the_kernels_end_in_words(arguments: tuple[str, ...], installed: Handler, tmp_path: Path) -> None:
    """A wrong core_pattern is a configuration error, by its exit code."""
    assert installed.run(*arguments) == ConfigError.exit_code
    assert published(tmp_path / "store") == []


def test_an_identity_that_is_gone_does_not_cost_the_core(installed: Handler, tmp_path: Path) -> None:
    """Without a certificate nothing can be sent, but everything can be kept."""
    settings = installed.settings.read_text().replace("web-1", "gone")
    installed.settings.write_text(settings)

    assert installed.run() == ConfigError.exit_code
    kept = list((installed.spool / "dumps").glob("*/end.json"))
    assert len(kept) == 1


def test_a_spool_that_is_gone_does_not_cost_the_core(installed: Handler, tmp_path: Path) -> None:
    """With a receiver at hand the core needs no spool."""
    (installed.spool / "FORMAT").unlink()

    assert installed.run() == 0
    assert published(tmp_path / "store") == [CORE]


def test_a_spool_of_another_user_does_not_cost_the_core(installed: Handler, tmp_path: Path) -> None:
    """The receipt cannot be kept here then; the core is stored all the same, and that is what counts."""
    os.chown(installed.spool, 0, 0)

    assert installed.run() == 0
    assert published(tmp_path / "store") == [CORE]


_NO_LATE_IMPORTS = """
import sys
from securecore.sender import handler, privileges

class Refuse:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{{name}} is loaded after the drop")

drop = privileges.drop
def drop_and_refuse(uid, gid):
    drop(uid, gid)
    sys.meta_path.insert(0, Refuse())

privileges.drop = drop_and_refuse
privileges.can_others_import = lambda paths: False
handler.main({settings!r})
"""


def test_nothing_is_loaded_after_the_drop_where_only_root_can_read(installed: Handler, tmp_path: Path) -> None:
    """Installed below /root, the handler loads all that it will need while it still may: signing and checking included."""
    write_script(installed.handler, f"#!{sys.executable} -I\n" + _NO_LATE_IMPORTS.format(settings=str(installed.settings)))

    assert installed.run() == 0
    assert published(tmp_path / "store") == [CORE]


_GARBAGE = """
import fcntl, gc, os
from securecore.sender import crash, handler, transfer

# Above what the handler binds to /dev/null.
seen = os.fdopen(fcntl.fcntl(os.open({seen!r}, os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 20), "w")

def note(name, call):
    def noted(*arguments, **named):
        print(name, gc.isenabled(), gc.get_freeze_count() > 1000, file=seen, flush=True)
        return call(*arguments, **named)
    return noted

crash.handle, transfer.carry = note("begins", crash.handle), note("carries", transfer.carry)
handler.main({settings!r})
"""


def test_garbage_is_collected_again_once_all_is_loaded(installed: Handler, tmp_path: Path) -> None:
    """Not while modules are loaded, which stay; what the handler makes of a core is, and of these modules nothing is looked at."""
    text = _GARBAGE.format(settings=str(installed.settings), seen=str(tmp_path / "seen"))
    write_script(installed.handler, f"#!{sys.executable} -I\n{text}")

    assert installed.run() == 0
    assert (tmp_path / "seen").read_text().splitlines() == ["begins False False", "carries True True"]


_LIGHT = """
import fcntl, os, sys
from securecore.sender import handler, privileges

# Above what the handler binds to /dev/null.
seen = fcntl.fcntl(os.open({seen!r}, os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 20)
can_others_import = privileges.can_others_import

def note(paths):
    os.write(seen, f"{{[name for name in ('ssl', 'base64', 'selectors') if name in sys.modules]}}".encode())
    return can_others_import(paths)

privileges.can_others_import = note
handler.main({settings!r})
"""


def test_the_tls_that_a_crash_waits_for_is_the_lighter_one(installed: Handler, tmp_path: Path) -> None:
    """Until the handler is about to give root up and to dial, ssl has loaded nothing that nobody uses (late.py)."""
    text = _LIGHT.format(settings=str(installed.settings), seen=str(tmp_path / "seen"))
    find = f"sys.path += {[*find_interpreter().packages]}"
    write_script(installed.handler, f"#!{sys.executable} -IS\nimport sys\n{find}\n{text}")

    assert installed.run() == 0
    # It asks twice: for the kernel's log, and before the drop.
    assert (tmp_path / "seen").read_text() == "[]['ssl']"


_NOTING = """
import fcntl, os, sys

# Above what the handler binds to /dev/null, and opened by root still.
seen = fcntl.fcntl(os.open({seen!r}, os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 20)
owner = os.getpid()

def note(name, call):
    def noted(*arguments):
        if os.getpid() == owner:
            os.write(seen, f"{{name}} {{'securecore.sender.transfer' in sys.modules}}\\n".encode())
        return call(*arguments)
    return noted
"""
"""Has a handler note what it does, in order, and whether it has loaded by then what takes the core to the receiver."""

_EARLY = _NOTING + """
from securecore.sender import dialling, handler, privileges
{also}

# So that the rest can be loaded from wherever the tests are.
privileges.can_others_import = lambda paths: True
privileges.drop = note("drops", lambda uid, gid: None)
dialling.Dialler.begin = note("dials", dialling.Dialler.begin)
handler.main({settings!r})
"""


def dialling_beside(installed: Handler, seen: Path, also: str = "") -> list[str]:
    """Return what a handler notes."""
    text = _EARLY.format(settings=str(installed.settings), seen=str(seen), also=also)
    write_script(installed.handler, f"#!{sys.executable} -I\n{text}")
    assert installed.run() == 0
    return seen.read_text().splitlines()


def test_the_receiver_is_dialled_while_the_rest_is_loaded(installed: Handler, tmp_path: Path) -> None:
    """Not before the handler has given root up, and before all is there that takes the core to the receiver."""
    assert dialling_beside(installed, tmp_path / "seen")[:2] == ["drops False", "dials False"]
    assert published(tmp_path / "store") == [CORE]


def test_where_all_is_loaded_the_core_is_read_first(installed: Handler, tmp_path: Path) -> None:
    """As in the agent's children: there is nothing to do meanwhile but to read the core, which a handshake would only slow down."""
    seen = dialling_beside(installed, tmp_path / "seen", "from securecore.sender import backlog, evidence, schedule, transfer")

    assert seen[0] == "drops True"
    assert "dials True" not in seen
    assert published(tmp_path / "store") == [CORE]


_FAILING = _NOTING + """
from securecore.errors import ConfigError
from securecore.sender import cores, handler, network, privileges, program

def fail(*arguments):
    raise ConfigError("nothing goes any further")

network.send = cores.CoreDirectory = fail
privileges.drop = note("drops", privileges.drop)
program.ProgramReader.leave = note("leaves", program.ProgramReader.leave)
handler.main({settings!r})
"""


@pytest.mark.parametrize("is_local", [False, True], ids=["sent", "kept here"])
def test_a_crash_that_fails_has_its_programs_reader_ended_by_root(
    is_local: bool, installed: Handler, tmp_path: Path
) -> None:
    """Who has become another user may not end the child that reads it any more, which is root's while it hangs in the opening."""
    (tmp_path / "local").mkdir()
    host = LocalHost(tmp_path / "local")
    text = _FAILING.format(settings=str(installed.settings), seen=str(tmp_path / "seen"))
    handler = host.handler if is_local else installed.handler
    write_script(handler, f"#!{sys.executable} -I\n{text}")

    assert (host.run(CORE) if is_local else installed.run()) == ConfigError.exit_code
    assert [line.split()[0] for line in (tmp_path / "seen").read_text().splitlines()][:2] == ["leaves", "drops"]


_STALE = """
import fcntl, os, sys
from securecore.sender import handler, system_log

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({name!r}):
            raise ImportError(f"no {{name}} for this Python")

# Above what the handler binds to /dev/null, and opened by root still.
said = fcntl.fcntl(os.open({said!r}, os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 20)

def note(event, **facts):
    if event == "failed":
        os.write(said, facts["error"].encode())

system_log.log = note
sys.meta_path.insert(0, Refuse())
handler.main({settings!r})
"""


@pytest.mark.parametrize("name", ["securecore.sender.crash", "securecore.sender.transfer"])
def test_an_installation_that_does_not_fit_is_said_with_its_remedy(name: str, installed: Handler, tmp_path: Path) -> None:
    """A module that is not there, or is none for this Python, is no bug of ours and no riddle: setup is to be run again."""
    text = _STALE.format(name=name, said=str(tmp_path / "said"), settings=str(installed.settings))
    write_script(installed.handler, f"#!{sys.executable} -I\n{text}")

    assert installed.run() == ConfigError.exit_code
    assert (tmp_path / "said").read_text() == (
        f"the handler cannot be loaded: no {name} for this Python; run `securecore setup sender` again"
    )


def fill(sender: socket.socket) -> None:
    """Send until the other end's queue is full."""
    for _ in range(100_000):
        sender.send(b"x")


def test_a_full_system_log_does_not_hold_the_crash(installed: Handler, tmp_path: Path) -> None:
    """The log's daemon may be the process that crashed: nobody waits for it."""
    if os.path.exists("/dev/log") or os.geteuid() != 0:
        pytest.skip("needs root and a machine whose /dev/log is free to be stood in for")
    full = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    full.bind("/dev/log")
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    filler.connect("/dev/log")
    try:
        with pytest.raises(BlockingIOError):
            fill(filler)
        assert installed.run() == 0
    finally:
        os.unlink("/dev/log")
        full.close()
        filler.close()

    assert published(tmp_path / "store") == [CORE]

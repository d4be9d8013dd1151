"""``securecore demo``: all of it on one machine, told as it happens."""

import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final

import click

from securecore.cli import core_pattern, terminal
from securecore.errors import BrokenError, ConfigError, UnreachableError
from securecore.names import Address, HostName
from securecore.store.catalogue import open_catalogue
from securecore.store.rows import DumpRow

_NOBODY: Final = 65534
"""The user that Debian and most others call nobody: the demo adds no user of its own."""
_DOMAIN: Final = "hosts.demo.example"
_RECEIVER: Final = "collector.demo.example"
_DEADLINE_S: Final = 60.0
_ID_LENGTH: Final = 36

EPILOG = """\b
Examples:
  securecore demo
  securecore demo --keep /root/securecore-demo
"""


@click.command("demo", epilog=EPILOG)
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Do it in this new directory, and keep it.")
def command(keep: Path | None) -> None:
    """Show the whole way of a core on this machine: mint, receive, crash, send, verify, audit, debug.

    Where this process may set core_pattern (as root), a small program crashes for real and the kernel starts our handler; the
    old pattern is put back whatever happens. Elsewhere a core that was made another way is sent, and the demo says so.
    """
    if keep is not None and keep.exists():
        raise ConfigError(f"{keep}: already exists", hint="name a new directory")
    click.echo(f"securecore demo: everything on this machine, in {keep or 'a temporary directory'}")
    with _directory(keep) as directory, ExitStack() as stack:
        _Demo(directory, stack).run()
    if keep is not None:
        click.echo(f"Kept in {keep}. Look around: securecore list --store {keep / 'store'}")
    else:
        click.echo("Kept nothing; `--keep DIR` keeps it all. Next: README, “Two machines”.")


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(mode=0o700, parents=True)
        yield keep.absolute()
        return
    path = Path(tempfile.mkdtemp(prefix="securecore-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


class _Demo:
    """The story, step by step."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._step = 0
        self._address = Address("127.0.0.1:0")

    def run(self) -> None:
        """Tell the whole story; raises what goes wrong in it."""
        self._mint()
        self._receive()
        program = self._crash() if core_pattern.is_borrowable() else self._send_other_core()
        row = self._find_stored()
        self._verify(row)
        self._debug(row, program)

    def _say(self, title: str, words: str, started: float | None = None) -> None:
        self._step += 1
        took = f"{time.monotonic() - started:.2f} s" if started is not None else ""
        click.echo(f" {self._step:>2}  {click.style(f'{title:<11}', bold=True)} {words:<76} {took}".rstrip())

    def _more(self, words: str) -> None:
        click.echo(f"     {'':<11} {words}".rstrip())

    def _mint(self) -> None:
        from securecore.pki import creation, issue

        started = time.monotonic()
        now = datetime.now(UTC)
        pki = creation.create_pki(self._directory / "pki", "Demo", _DOMAIN, None, now)
        self._say("CA", f"root, hosts CA for {_DOMAIN}, receivers CA", started)
        started = time.monotonic()
        issue.issue_host(pki, HostName(f"web-1.{_DOMAIN}"), self._directory / "host", _no_passphrase, now)
        addresses = [issue.parse_address("127.0.0.1")]
        issue.issue_receiver(pki, HostName(_RECEIVER), addresses, self._directory / "receiver", _no_passphrase, now)
        self._say("identities", f"host web-1, receiver {_RECEIVER}", started)

    def _receive(self) -> None:
        from securecore.receiver.server import open_receiver
        from securecore.receiver.settings import ReceiverSettings

        logger = logging.getLogger("securecore.receiver")
        handler = logging.FileHandler(self._directory / "receiver.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._stack.callback(handler.close)
        self._stack.callback(logger.removeHandler, handler)
        settings = ReceiverSettings((self._address,), self._directory / "store", self._directory / "receiver")
        receiver = open_receiver(settings)
        thread = threading.Thread(target=receiver.serve)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(receiver.stop)
        self._address = receiver.addresses[0]
        self._say("receiver", f"listening on {self._address} (TLS 1.3, client certificate required)")

    def _crash(self) -> Path | None:
        """Crash for real; return the program, when gdb can make something of it."""
        program, arguments = self._crasher()
        pattern = self._install_handler()
        with core_pattern.borrowed(pattern, patience_s=10):
            started = time.monotonic()
            with _unlimited_cores():
                crasher = subprocess.Popen(arguments, cwd=self._directory, stderr=subprocess.DEVNULL)
            code = crasher.wait()
            held = time.monotonic() - started
            self._say("crash", f"core_pattern -> handler; running {program.name} (pid {crasher.pid})")
            if code >= 0:
                raise BrokenError(f"{program.name} did not crash: exit code {code}")
            self._wait_for_receipt()
        self._more(f"{terminal.signal_name(-code)}; let go {held * 1000:.0f} ms after it was started")
        self._more(f"core_pattern is back to {core_pattern.CORE_PATTERN.read_text().strip()!r}")
        return program if program.parent == self._directory else None

    def _crasher(self) -> tuple[Path, list[str]]:
        """Return a program that crashes, built from C where there is a compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return Path(sys.executable), [sys.executable, "-I", "-c", "import ctypes; ctypes.string_at(0)"]
        source, program = self._directory / "null-deref.c", self._directory / "null-deref"
        source.write_text(resources.files("securecore.cli").joinpath("null-deref.c").read_text())
        subprocess.run([compiler, "-g", "-O0", "-o", str(program), str(source)], check=True, capture_output=True)
        return program, [str(program), "index.html"]

    def _install_handler(self) -> str:
        """Write what `securecore setup sender` would, into our directory; return the core_pattern."""
        from securecore.cli.machine.interpreter import find_interpreter
        from securecore.sender import installation
        from securecore.sender.settings import Settings
        from securecore.sender.spool import create_spool

        spool, settings, script = (self._directory / name for name in ("spool", "handler.json", "handler"))
        create_spool(str(spool), os.urandom(16), (_NOBODY, _NOBODY))
        settings.write_bytes(Settings((self._address,), str(self._directory / "host"), str(spool), _NOBODY, _NOBODY).encode())
        settings.chmod(0o644)
        script.write_bytes(find_interpreter().handler_script(str(settings)))
        script.chmod(0o755)
        return installation.core_pattern(str(script))

    def _wait_for_receipt(self) -> None:
        """Wait until the handler has kept its receipt; nobody is told when a handler ends."""
        deadline = time.monotonic() + _DEADLINE_S
        while not (self._directory / "spool" / "receipts.jsonl").exists():
            if any((self._directory / "spool" / "dumps").iterdir()):
                raise UnreachableError("the handler could not deliver the core and kept it in its spool")
            if time.monotonic() > deadline:
                raise UnreachableError("no receipt came", hint="the handler says why in syslog: journalctl -t securecore")
            time.sleep(0.01)

    def _send_other_core(self) -> Path | None:
        """Send a core that was made without our handler; return as _crash does."""
        core, how, program = self._other_core()
        self._say("core", f"core_pattern cannot be set from here, so {how}")
        identity = str(self._directory / "host")
        self._command(["send", str(core), "--to", str(self._address), "--identity", identity])
        return program

    def _other_core(self) -> tuple[Path, str, Path | None]:
        """Return a real core that was made without our handler, how, and of which program of ours."""
        pattern = core_pattern.CORE_PATTERN.read_text().strip()
        if not pattern.startswith(("|", "@", "/")):
            core, program = self._core_file()
            return core, f"the kernel wrote a core file, by its pattern {pattern!r}", program
        return self._gcore(), "gdb's gcore made one of a live process", None

    def _core_file(self) -> tuple[Path, Path | None]:
        """Crash where core_pattern names a file in the working directory; return that file, and the program if it is ours."""
        program, arguments = self._crasher()
        place = self._directory / "crash"
        place.mkdir()
        with _unlimited_cores():
            subprocess.run(arguments, cwd=place, stderr=subprocess.DEVNULL, check=False)
        cores = list(place.iterdir())
        if len(cores) != 1:
            hint = "run the demo as root, outside a container"
            raise ConfigError(f"the kernel wrote {len(cores)} core files instead of one", hint=hint)
        return cores[0], program if program.parent == self._directory else None

    def _gcore(self) -> Path:
        gcore = shutil.which("gcore")
        if gcore is None:
            raise ConfigError("no core to show", hint="run the demo as root, outside a container, or install gdb for its gcore")
        sleeper = subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(600)"])
        try:
            command = [gcore, "-o", str(self._directory / "core"), str(sleeper.pid)]
            result = subprocess.run(command, capture_output=True, check=False, text=True)
        finally:
            sleeper.kill()
            sleeper.wait()
        core = self._directory / f"core.{sleeper.pid}"
        if not core.exists():
            raise ConfigError(f"gcore made no core: {result.stderr.strip()[-200:]}")
        return core

    def _find_stored(self) -> DumpRow:
        from securecore.store.layout import open_store

        with open_store(str(self._directory / "store")) as store, open_catalogue(store) as catalogue:
            catalogue.reconcile()
            rows = catalogue.rows()
        if len(rows) != 1:
            raise BrokenError(f"the store lists {len(rows)} dumps instead of one")
        row = rows[0]
        sizes = f"{terminal.size(row.size_bytes)} as {terminal.size(row.stored_bytes)}"
        self._say("stored", f"{terminal.short_id(row.id)} {row.host}  {row.state}, {sizes}, receipt verified by the host")
        self._show("list", [])
        self._show("show", [row.id, "--root", "host/ca.pem"])
        return row

    def _verify(self, row: DumpRow) -> None:
        started = time.monotonic()
        root = str(self._directory / "host/ca.pem")
        checks = json.loads(self._on_store(["verify", row.id, "--root", root, "--json"]))[0]["checks"]
        words = f"{len(checks)} checks ok, offline, with the root certificate alone: frames, signatures, receipt"
        self._say("verify", words, started)
        started = time.monotonic()
        logs = json.loads(self._on_store(["audit", "verify", "--root", root, "--json"]))
        words = f"{terminal.count(logs[0]['entries'], 'entry')}, checkpoint signed by {_RECEIVER}, log verified"
        self._say("audit", words, started)

    def _show(self, command: str, arguments: list[str]) -> None:
        """Say a command, and what it prints."""
        shown = [terminal.short_id(argument) if len(argument) == _ID_LENGTH else argument for argument in arguments]
        self._say(command, f"$ securecore {' '.join([command, *shown])}")
        own = [str(self._directory / argument) if argument.endswith(".pem") else argument for argument in arguments]
        for line in self._on_store([command, *own]).rstrip("\n").split("\n"):
            self._more(line)

    def _on_store(self, arguments: list[str]) -> str:
        """Run a command on our store and return what it prints; raises BrokenError when it fails."""
        return self._command([*arguments, "--store", str(self._directory / "store")])

    def _command(self, arguments: list[str]) -> str:
        """Run a command and return what it prints; raises BrokenError when it fails."""
        from securecore.cli.main import run

        output = io.StringIO()
        with redirect_stdout(output):
            code = run(arguments)
        if code:
            raise BrokenError(f"`securecore {arguments[0]}` left with exit code {code}")
        return output.getvalue()

    def _debug(self, row: DumpRow, program: Path | None) -> None:
        core = self._directory / "extracted.core"
        self._on_store(["extract", row.id, "-o", str(core)])
        self._say("extract", f"$ securecore extract {terminal.short_id(row.id)} -o core     (audited: who took it, and when)")
        gdb = shutil.which("gdb")
        if gdb is None or program is None:
            self._say("debug", "no gdb or no C compiler here, so no backtrace; the core is as good as the kernel made it")
            return
        # The core is hostile input in general: no init files, no auto-loaded scripts, nothing fetched.
        result = subprocess.run(
            [gdb, "-nx", "-q", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off", "-ex", "bt",
             str(program), str(core)],
            capture_output=True, text=True, check=False, timeout=_DEADLINE_S,
        )  # fmt: skip
        # gdb prints the innermost frame when it loads the core, and again for bt.
        frames = list(dict.fromkeys(line for line in result.stdout.split("\n") if line.startswith("#")))
        if not frames:
            raise BrokenError(f"gdb found no frames in the extracted core: {result.stderr.strip()[-200:]}")
        self._say("debug", "$ gdb null-deref core -ex bt")
        for frame in frames[:4]:
            self._more(terminal.printable(frame.replace(f"{self._directory}/", ""), 100))


@contextmanager
def _unlimited_cores() -> Iterator[None]:
    """Let children dump core: a limit below a page would tell kernel and handler that nobody wants theirs."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    unlimited = resource.RLIM_INFINITY if os.geteuid() == 0 else before[1]
    resource.setrlimit(resource.RLIMIT_CORE, (unlimited, unlimited))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def _no_passphrase() -> bytes:
    raise ConfigError("the demo's CA keys have no passphrase")

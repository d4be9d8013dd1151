"""``securecore demo``: all of it on one machine, told as it happens."""

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
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import click

from securecore import tls
from securecore.cli import core_pattern, terminal
from securecore.errors import BrokenError, ConfigError, UnreachableError
from securecore.names import Address, DumpId, HostName
from securecore.store.catalogue import open_catalogue
from securecore.store.rows import DumpRow

_NOBODY: Final = 65534
"""The user that Debian and most others call nobody: the demo adds no user of its own."""
_DOMAIN: Final = "hosts.demo.example"
_RECEIVER: Final = "collector.demo.example"
_DEADLINE_S: Final = 60.0

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


class _Sent(NamedTuple):
    """What the host's side did."""

    words: str
    program: Path | None
    """The program that crashed, when gdb can make something of it."""


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
        sent = self._crash() if core_pattern.is_borrowable() else self._send_other_core()
        row = self._find_stored()
        self._verify(row)
        self._audit()
        self._debug(row, sent)

    def _say(self, title: str, words: str, started: float | None = None) -> None:
        self._step += 1
        took = f"{time.monotonic() - started:.2f} s" if started is not None else ""
        click.echo(f"  {self._step}  {click.style(f'{title:<11}', bold=True)} {words:<72} {took}".rstrip())

    def _more(self, words: str) -> None:
        click.echo(f"     {'':<11} {words}")

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
        from securecore.receiver.server import ReceiverSettings, open_receiver

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

    def _crash(self) -> _Sent:
        program, arguments = self._crasher()
        pattern = self._install_handler()
        with core_pattern.borrowed(pattern, patience_s=10):
            # A limit below a page would tell the handler that nobody wants this core; children inherit ours.
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            started = time.monotonic()
            crasher = subprocess.Popen(arguments, cwd=self._directory, stderr=subprocess.DEVNULL)
            code = crasher.wait()
            held = time.monotonic() - started
            self._say("crash", f"core_pattern -> handler; running {program.name} (pid {crasher.pid})")
            if code >= 0:
                raise BrokenError(f"{program.name} did not crash: exit code {code}")
            self._wait_for_receipt()
        self._more(f"{terminal.signal_name(-code)}; {held * 1000:.0f} ms from its start until the kernel let it go")
        old = core_pattern.CORE_PATTERN.read_text().strip()
        self._more(f"core_pattern is back to {old!r}")
        return _Sent("crashed", program if program.parent == self._directory else None)

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
        from securecore.sender import installation
        from securecore.sender.settings import Settings
        from securecore.sender.spool import create_spool

        spool, settings, script = (self._directory / name for name in ("spool", "handler.json", "handler"))
        create_spool(str(spool), os.urandom(16), (_NOBODY, _NOBODY))
        settings.write_bytes(Settings((self._address,), str(self._directory / "host"), str(spool), _NOBODY, _NOBODY).encode())
        settings.chmod(0o644)
        script.write_bytes(installation.handler_script(sys.executable, str(settings)))
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

    def _send_other_core(self) -> _Sent:
        """Send a core that was made without core_pattern."""
        from securecore.report import CrashReport
        from securecore.sender.credentials import read_credentials
        from securecore.sender.pump import Pump
        from securecore.sender.transfer import Papers, Parcel, Transfer

        core, how = self._other_core()
        self._say("core", f"not root, so no real core_pattern: {how}")
        identity = str(self._directory / "host")
        papers = Papers(tls.sender_context(identity), read_credentials(identity))
        now_ms = time.time_ns() // 1_000_000
        report = CrashReport(sender="securecore demo", source="file", core_name=core.name)
        pump = Pump()
        parcel = Parcel(DumpId.make(now_ms, os.urandom(10)), report.encode(), now_ms)
        transfer = Transfer(parcel, pump, [self._address], papers, None)
        transfer.start()
        fd = os.open(core, os.O_RDONLY)
        try:
            pump.read(fd)
        finally:
            os.close(fd)
            transfer.source_closed.set()
        outcome = transfer.wait()
        if outcome.failure is not None:
            raise outcome.failure
        return _Sent("sent", None)

    def _other_core(self) -> tuple[Path, str]:
        """Return a real core of a live process, by gdb's gcore."""
        gcore = shutil.which("gcore")
        if gcore is None:
            raise ConfigError("no core to show", hint="run the demo as root, or install gdb for its gcore")
        sleeper = subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(600)"])
        try:
            result = subprocess.run(
                [gcore, "-o", str(self._directory / "core"), str(sleeper.pid)], capture_output=True, check=False, text=True
            )
        finally:
            sleeper.kill()
            sleeper.wait()
        core = self._directory / f"core.{sleeper.pid}"
        if not core.exists():
            raise ConfigError(f"gcore made no core: {result.stderr.strip()[-200:]}")
        return core, f"gcore of a live process (pid {sleeper.pid})"

    def _find_stored(self) -> DumpRow:
        from securecore.store.layout import open_store

        with open_store(str(self._directory / "store")) as store, open_catalogue(store) as catalogue:
            catalogue.reconcile()
            rows = catalogue.rows()
        if len(rows) != 1:
            raise BrokenError(f"the store lists {len(rows)} dumps instead of one")
        row = rows[0]
        words = f"{terminal.short_id(row.id)} {row.host}  {row.state}, {terminal.size(row.size_bytes)}"
        self._say("stored", f"{words} as {terminal.size(row.stored_bytes)}")
        return row

    def _verify(self, row: DumpRow) -> None:
        from securecore.cli.main import run

        started = time.monotonic()
        self._say("verify", f"securecore verify {terminal.short_id(row.id)} --root ca.pem")
        arguments = ["verify", row.id, "--store", str(self._directory / "store"), "--root", str(self._directory / "host/ca.pem")]
        if code := run(arguments):
            raise BrokenError(f"verify left with exit code {code}")
        self._more(f"verified offline with the root certificate alone, {time.monotonic() - started:.2f} s")

    def _audit(self) -> None:
        from securecore.audit.checkpoint import origin_of
        from securecore.audit.verification import verify_log
        from securecore.cli.evidence import load_anchors, load_log_key
        from securecore.store.layout import open_store

        with open_store(str(self._directory / "store")) as store:
            anchors, _ = load_anchors(store, self._directory / "host/ca.pem")
            log_key = load_log_key(store, anchors)
            for host in store.audited_hosts():
                fd = store.audit_directory(host, create=False)
                try:
                    result = verify_log(fd, origin_of(log_key.name, host), log_key.public_key)
                finally:
                    os.close(fd)
                if not result.ok:
                    raise BrokenError(f"the audit log of {host} does not verify")
                self._say("audit", f"{result.size} entry, checkpoint signed by {_RECEIVER}, log verified")

    def _debug(self, row: DumpRow, sent: _Sent) -> None:
        from securecore.cli.main import run

        core = self._directory / "extracted.core"
        store = str(self._directory / "store")
        if code := run(["extract", row.id, "-o", str(core), "--store", store]):
            raise BrokenError(f"extract left with exit code {code}")
        gdb = shutil.which("gdb")
        if gdb is None or sent.program is None:
            self._say("debug", "no gdb or no C compiler here, so no backtrace; the core is as good as the kernel made it")
            return
        # The core is hostile input in general: no init files, no auto-loaded scripts, nothing fetched.
        result = subprocess.run(
            [gdb, "-nx", "-q", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off", "-ex", "bt",
             str(sent.program), str(core)],
            capture_output=True, text=True, check=False, timeout=_DEADLINE_S,
        )  # fmt: skip
        frames = [line for line in result.stdout.split("\n") if line.startswith("#")]
        if not frames:
            raise BrokenError(f"gdb found no frames in the extracted core: {result.stderr.strip()[-200:]}")
        self._say("debug", "gdb on the extracted core")
        for frame in frames[:4]:
            self._more(terminal.printable(frame.replace(f"{self._directory}/", ""), 100))


def _no_passphrase() -> bytes:
    raise ConfigError("the demo's CA keys have no passphrase")

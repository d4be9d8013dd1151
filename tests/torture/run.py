"""One run: a plan carried out with real programs, then everything healed. What came of it is for judgement.py to say."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from securecore.names import Address
from tests.support.certificates import Fleet
from tests.support.proxies import Cut, CuttingProxy, cutting
from tests.torture.plan import CRASHING, SENDING, Flush, Kill, Plan, Program, Source
from tests.torture.programs import PATIENCE_S, Host, ReceiverProcess, Sender, kill_when

FLUSHES: Final = 5
"""How often a spool is flushed, at most, once all is well: two are enough, more tell that something stays for ever."""


NOWHERE: Final = Address("127.0.0.1:9")
"""Where nobody listens."""


class Durations(NamedTuple):
    """How long the programs take here when nobody disturbs them, in seconds."""

    handler: float = 0.5
    send: float = 0.5
    flush: float = 0.5

    def of(self, program: Program) -> float:
        """Return that of one program."""
        return {Program.HANDLER: self.handler, Program.SEND: self.send}.get(program, self.flush)

    @property
    def horizon(self) -> float:
        """How long a run goes on before it is healed."""
        return self.handler + self.send


class Sent(NamedTuple):
    """How one source's sender ended."""

    source: Source
    code: int
    """Its exit code, below 0 when it was killed."""
    fed: int
    """Bytes of the core that it had read by then."""
    output: bytes

    @property
    def was_killed(self) -> bool:
        """Whether the kill came before its end."""
        return self.code < 0

    @property
    def moment(self) -> str:
        """Where in the core's way it was killed."""
        return "before the core" if self.fed == 0 else "within the core" if self.fed < self.source.fed else "behind the core"


class Ran(NamedTuple):
    """What a run leaves for judgement."""

    plan: Plan
    directory: Path
    sent: tuple[Sent, ...]
    flush_codes: tuple[int, ...]
    receiver_kills: tuple[int, ...]
    """For each kill of the receiver how many senders were at work."""
    cuts: int
    logs: tuple[dict[str, bytes], ...]
    """By host, what stood in its audit log under its checkpoint whenever the receiver had gone."""

    @property
    def store(self) -> Path:
        """The store."""
        return self.directory / "store"

    def spool(self, host: str) -> Path:
        """Return a host's spool."""
        return self.directory / host / "spool"


class Run:
    """A plan on its way."""

    def __init__(self, plan: Plan, fleet: Fleet, directory: Path, durations: Durations, planted: str = "") -> None:
        self._plan, self._directory, self._durations = plan, directory, durations
        self._receiver = ReceiverProcess(fleet.receiver, directory / "store", directory / "promises")
        self._hosts = {name: Host(directory / name, fleet.hosts[name], planted) for name in (CRASHING, SENDING)}
        self._hosts[CRASHING].install(len(plan.sources))
        self._began = time.monotonic()
        self._sent: list[Sent | None] = [None] * len(plan.sources)
        self._senders: list[Sender] = []
        self._flush_codes: list[int] = []
        self._receiver_kills: list[int] = []
        self._proxies: list[CuttingProxy] = []
        self._logs: list[dict[str, bytes]] = []
        self._problems: list[BaseException] = []

    def __call__(self) -> Ran:
        """Carry the plan out and heal; raises what any part of it has raised."""
        with self._receiver.running():
            self._began = time.monotonic()
            self._together(
                [self._at(source.starts_at, self._send, number, source) for number, source in enumerate(self._plan.sources)]
                + [self._at(flush.starts_at, self._flush, flush) for flush in self._plan.flushes]
                + [self._stop_receiver]
            )
            self._heal()
            # In good order, so that no session is still at work when everything is looked at.
            self._receiver.end(is_kill=False)
        cuts = sum(proxy.was_cut for proxy in self._proxies)
        sent = tuple(one for one in self._sent if one is not None)
        return Ran(
            self._plan, self._directory, sent, tuple(self._flush_codes), tuple(self._receiver_kills), cuts, tuple(self._logs)
        )

    def _at(self, share: float, act: Callable[..., None], *arguments: object) -> Callable[[], None]:
        def wait_and_act() -> None:
            self._wait_until(share)
            act(*arguments)

        return wait_and_act

    def _wait_until(self, share: float) -> None:
        threading.Event().wait(max(0.0, self._began + share * self._durations.horizon - time.monotonic()))

    def _together(self, acts: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=self._guard, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._problems:
            raise self._problems[0]

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits for this one
            self._problems.append(error)

    def _send(self, number: int, source: Source) -> None:
        host = self._hosts[source.host]
        with self._wire(source.cut) as address:
            sender = host.crash(number, address) if source.program is Program.HANDLER else host.send(address)
            self._senders.append(sender)
            feeder = threading.Thread(target=sender.feed, args=(source.core[: source.fed], source.feeding_s))
            feeder.start()
            self._accompany(sender, source.kill, source.fed, self._durations.of(source.program))
            feeder.join()
            self._sent[number] = Sent(source, sender.finish(), sender.taken, sender.output)

    def _flush(self, flush: Flush) -> None:
        if not (self._hosts[flush.host].spool / "FORMAT").exists():
            return
        with self._wire(flush.cut) as address:
            sender = self._hosts[flush.host].flush(address)
            self._accompany(sender, flush.kill, 0, self._durations.flush)
            self._flush_codes.append(sender.finish())

    def _accompany(self, sender: Sender, kill: Kill | None, core_bytes: int, duration_s: float) -> None:
        if kill is not None:
            kill_when(sender, kill, core_bytes, duration_s)

    @contextmanager
    def _wire(self, cut: Cut | None) -> Iterator[Address]:
        if cut is None:
            yield self._receiver.address
            return
        with cutting(self._receiver.address, cut) as proxy:
            self._proxies.append(proxy)
            yield proxy.address

    def _stop_receiver(self) -> None:
        for stop in self._plan.stops:
            self._wait_until(stop.at)
            busy = sum(sender.taken > 0 and sender.popen.poll() is None for sender in self._senders)
            self._receiver.end(is_kill=stop.is_kill)
            if stop.is_kill:
                self._receiver_kills.append(busy)
            self._logs.append(signed_entries(self._directory / "store"))
            self._receiver.start()

    def _heal(self) -> None:
        """Flush, with nothing in the way any more, until the spools are empty or it is plain that they will not be."""
        self._logs.append(signed_entries(self._directory / "store"))
        self._together([partial(self._empty, host) for host in self._hosts.values()])

    def _empty(self, host: Host) -> None:
        for _ in range(FLUSHES):
            if not host.waiting():
                return
            host.flush(self._receiver.address).finish()


def signed_entries(store: Path) -> dict[str, bytes]:
    """Return, by host, the entries that its checkpoint covers."""
    found = {}
    for directory in (store / "audit").glob("*"):
        checkpoint = directory / "checkpoint"
        if checkpoint.exists():
            count = int(checkpoint.read_text("utf-8").split("\n")[1])
            lines = (directory / "entries.jsonl").read_bytes().splitlines(keepends=True) if count else []
            found[directory.name] = b"".join(lines[:count])
    return found


def calibrate(fleet: Fleet, directory: Path) -> Durations:
    """Return how long the programs take on this machine, undisturbed and one after the other."""
    receiver = ReceiverProcess(fleet.receiver, directory / "store", directory / "promises")
    core = bytes(range(256)) * 8192
    with ExitStack() as stack:
        stack.enter_context(receiver.running())
        crashing, sending = (Host(directory / name, fleet.hosts[name]) for name in (CRASHING, SENDING))
        crashing.install(1)
        taken = []
        for _ in range(2):
            handler = _seconds(crashing.crash(0, receiver.address), core)
            send = _seconds(sending.send(receiver.address), core)
            _seconds(sending.send(NOWHERE), core)
            taken.append((handler, send, _seconds(sending.flush(receiver.address), b"")))
    # The least of each: what else this machine does is not theirs.
    return Durations(*map(min, zip(*taken, strict=True)))


def _seconds(sender: Sender, core: bytes) -> float:
    if sender.popen.stdin is not None:
        sender.feed(core, 0)
    sender.popen.wait(PATIENCE_S)
    sender.finish()
    return time.monotonic() - sender.started

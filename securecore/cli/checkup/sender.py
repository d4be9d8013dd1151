"""What can be wrong with a sender, in the order of a core's way: kernel, handler, settings, identity, spool, receiver."""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from securecore import limits
from securecore.cli import terminal
from securecore.cli.checkup.findings import Finding, attempt, ok, warning, wrong
from securecore.cli.checkup.reach import reach
from securecore.cli.checkup.sender_units import check_agent, check_flush_timer, check_renewal
from securecore.cli.checkup.shared import certificate_finding, room_finding
from securecore.cli.checkup.storm_limits import check_storm_limits, check_storm_limits_of_cores
from securecore.cli.machine import handover, local_sender, plan, rivals, sender, trust, users
from securecore.cli.machine.interpreter import find_interpreter
from securecore.cli.machine.kernel_setting import CORE_PATTERN, CORE_PIPE_LIMIT, read_setting
from securecore.cli.machine.root import Root
from securecore.errors import SecurecoreError, UnreachableError
from securecore.sender import installation, receipt_log
from securecore.sender.configuration import AGENT, LocalConfiguration, SenderConfiguration, parse_configuration
from securecore.sender.cores import open_cores
from securecore.sender.cores_directory import check_owner
from securecore.sender.floor import Floor
from securecore.sender.local_mode import LocalMode
from securecore.sender.room import Usage
from securecore.sender.settings import Settings, load_local_settings, load_settings
from securecore.sender.spool import open_spool
from securecore.sender.spool_limits import SpoolLimits
from securecore.units import size

SETUP: Final = "securecore setup sender"

_WAITING_TOO_LONG: Final = timedelta(seconds=2 * limits.BACK_OFF_MAX_S)
"""Twice the longest that the flush timer waits by itself."""

_MANY_RECEIPTS_BYTES: Final = 256 * limits.MIB
"""Of some 65,000 dumps; two and a half times what the rule for logrotate in docs/operations.md lets come together."""

_CLOCK_SLACK: Final = timedelta(minutes=5)
"""As much as certificates are backdated, for clocks that differ."""


def is_set_up(root: Root) -> bool:
    """Return whether anything of a sender's set-up is here."""
    places = (installation.CONFIGURATION, installation.SETTINGS, plan.state_path("sender"))
    return any(root.status(path) is not None for path in places)


def check_sender(root: Root, now: datetime, *, offline: bool) -> Iterator[Finding]:
    """Yield what is found; changes nothing. *offline* leaves the receivers alone."""
    said = _find_configuration(root)
    local = said if isinstance(said, LocalConfiguration) else None
    pattern = installation.core_pattern(installation.HANDLER, local.mode if local else None)
    is_agents = isinstance(said, SenderConfiguration) and said.kernel == AGENT
    yield from attempt("core_pattern", lambda: _core_pattern(pattern, is_agents, root))
    yield from attempt("core_pipe_limit", lambda: _pipe_limit(root))
    yield from attempt("next boot", lambda: _next_boot(pattern, root))
    yield from attempt("handler", lambda: _handler(root))
    yield from attempt("interpreter", lambda: _interpreter(root))
    yield from attempt("configuration", lambda: _configuration(root))
    if local is not None:
        # Options stand in core_pattern, so there are no other settings; and nothing is signed, sent or spooled.
        yield from attempt("admission", lambda: _admission(local, root))
        yield from attempt("cores", lambda: _cores(local, root))
        yield from attempt("storm limits", lambda: check_storm_limits_of_cores(local, root))
        return
    try:
        settings = load_settings(root.outside(installation.SETTINGS))
    except SecurecoreError as error:
        yield wrong("settings", error.message, error.hint or SETUP)
        return
    yield from attempt("settings", lambda: _settings(settings, said, root))
    yield from attempt("clock", lambda: _clock(root, now))
    yield from attempt("identity", lambda: _identity(settings, root, now))
    yield from attempt("spool", lambda: _spool(settings, root, now))
    if isinstance(said, SenderConfiguration) and is_agents:
        yield from attempt("agent", lambda: check_agent(said, root))
    else:
        yield from attempt("flush timer", lambda: check_flush_timer(root))
    if isinstance(said, SenderConfiguration):
        yield from attempt("renewal", lambda: check_renewal(said, root))
    if not offline:
        yield from attempt("receiver", lambda: _receivers(settings, root))


def _find_configuration(root: Root) -> SenderConfiguration | LocalConfiguration | None:
    """Return what sender.toml says; None when it is missing or not understood, which has a check of its own."""
    try:
        found = root.find(installation.CONFIGURATION)
        return parse_configuration(found.content, installation.CONFIGURATION) if found is not None else None
    except SecurecoreError:
        return None


def _core_pattern(expected: str, is_agents: bool, root: Root) -> Iterator[Finding]:
    found = read_setting(CORE_PATTERN, root)
    if found is None:
        yield ok("core_pattern", "not set yet: this root is not running")
    elif is_agents and found == expected and handover.is_awake(root):
        words = "the kernel starts the handler for each crash, and does not connect to the agent: crashed processes wait for longer"
        yield warning("core_pattern", words, "systemctl restart securecore-agent")
    elif found == expected or (is_agents and found == installation.agent_pattern()):
        yield ok("core_pattern", found)
    else:
        yield wrong("core_pattern", f"is {found[: limits.CORE_PATTERN_MAX]!a}: crashes do not come to securecore", SETUP)


def _pipe_limit(root: Root) -> Iterator[Finding]:
    found = read_setting(CORE_PIPE_LIMIT, root)
    if found == "0":
        words = "is 0: any number of handlers at once, and the kernel keeps /proc of a crashed process for none of them"
        yield warning("core_pipe_limit", words, SETUP)
    elif found is not None:
        yield ok("core_pipe_limit", f"at most {found} crashes at once")


def _next_boot(pattern: str, root: Root) -> Iterator[Finding]:
    """The sysctl.d file that sets both kernel settings when the machine boots, and who else does."""
    found, name = root.find(installation.SYSCTL), "next boot"
    if found is None or found.content != installation.sysctl_file(pattern):
        what = "is missing" if found is None else "is not what set-up writes"
        yield wrong(name, f"{root.outside(installation.SYSCTL)} {what}: core_pattern will not be ours", SETUP)
    others = rivals.find_rivals(root, installation.SYSCTL)
    for path in others.later:
        place = root.outside(path)
        yield wrong(name, f"{place} sets core_pattern too, is read after ours and wins", f"take kernel.core_pattern out of {place}")
    for service in others.services:
        yield warning(name, f"{service} sets core_pattern when it starts", f"systemctl disable --now {service}")
    if not others.later and not others.services and found is not None:
        yield ok(name, f"{root.outside(installation.SYSCTL)} sets core_pattern, and nothing after it does")


def _handler(root: Root) -> Iterator[Finding]:
    """What the kernel starts as root: that it is ours, and that nobody else can change it (R26)."""
    place, found = root.outside(installation.HANDLER), root.find(installation.HANDLER)
    if found is None:
        yield wrong("handler", f"{place} is missing: a crash starts nothing", SETUP)
        return
    warnings = trust.check_trusted(installation.HANDLER, root, "handler")
    if found.content != find_interpreter().handler_script():
        starts = found.content.split(b"\n")[0].decode("utf-8", "backslashreplace")[:200]
        yield wrong("handler", f"{place} is not what this installation writes; it begins with {starts!a}", SETUP)
    elif not found.mode & 0o111:
        yield wrong("handler", f"{place} cannot be started (mode {found.mode:04o})", SETUP)
    else:
        yield ok("handler", place)
    for words in warnings:
        yield warning("handler", words)


def _interpreter(root: Root) -> Iterator[Finding]:
    interpreter = find_interpreter()
    warnings = interpreter.check(root)
    yield ok("interpreter", interpreter.executable)
    for words in warnings:
        yield warning("interpreter", words)
    if root.is_live and interpreter.stale_sources():
        yield warning("interpreter", "bytecode is missing or old: each crash compiles it again", SETUP)


def _configuration(root: Root) -> Iterator[Finding]:
    place, found = root.outside(installation.CONFIGURATION), root.find(installation.CONFIGURATION)
    if found is None:
        yield wrong("configuration", f"{place} is missing", f"{SETUP} --to HOST:PORT --identity IDENTITY")
        return
    parse_configuration(found.content, place)
    yield ok("configuration", place)


def _settings(settings: Settings, said: SenderConfiguration | LocalConfiguration | None, root: Root) -> Iterator[Finding]:
    """The handler's settings, against the configuration that they were compiled from."""
    place, source = root.outside(installation.SETTINGS), root.outside(installation.CONFIGURATION)
    warnings = trust.check_trusted(installation.SETTINGS, root, "settings")
    if isinstance(said, SenderConfiguration):
        user = users.find_user(said.user, root)
        if user is None and ":" not in said.user:
            yield wrong("settings", f"user {said.user} of {source} does not exist", SETUP)
        owner = (user.uid, user.gid) if user is not None else (settings.uid, settings.gid)
        if settings != sender.compile_settings(said, owner, root):
            yield wrong("settings", f"{place} is older than {source}: what stands there does not hold yet", SETUP)
            return
    elif root.find(installation.CONFIGURATION) is not None:
        return  # It is not understood, and the check before this one has said so.
    receivers = " ".join(map(str, settings.receivers))
    yield ok("settings", f"{place}, to {receivers} as {settings.uid}:{settings.gid}, {_bounds(settings)}")
    for words in warnings:
        yield warning("settings", words)


def _bounds(settings: Settings) -> str:
    """Return what a handler may take of the machine, for people."""
    bounds = settings.confinement
    return f"nice {bounds.nice}, disk {bounds.io_priority}, {size(bounds.memory_bytes)}, {bounds.deadline_s:.0f} s"


def _clock(root: Root, now: datetime) -> Iterator[Finding]:
    """A clock that is behind what set-up has written is behind for certificates too."""
    status = root.status(installation.SETTINGS)
    written = (terminal.moment(status.st_mtime) if status is not None else None) or now
    if now + _CLOCK_SLACK < written:
        words = f"says {now:%Y-%m-%d %H:%M} UTC, but the settings were written at {written:%Y-%m-%d %H:%M}"
        yield wrong("clock", words, "timedatectl set-ntp true")
    else:
        yield ok("clock", f"{now:%Y-%m-%d %H:%M} UTC")


def _identity(settings: Settings, root: Root, now: datetime) -> Iterator[Finding]:
    own, warnings = sender.check_identity(settings.identity, root, now)
    yield certificate_finding("identity", own, now, f"securecore pki issue host {own.name} --out IDENTITY")
    for words in warnings:
        yield warning("identity", words)


def _admission(said: LocalConfiguration, root: Root) -> Iterator[Finding]:
    """What the handler of local mode takes, against the configuration that it was compiled from."""
    place, source = root.outside(installation.ADMISSION), root.outside(installation.CONFIGURATION)
    warnings = trust.check_trusted(installation.ADMISSION, root, "admission")
    if load_local_settings(place) != local_sender.compile_local_settings(said, root):
        yield wrong("admission", f"{place} is older than {source}: what stands there does not hold yet", SETUP)
    else:
        yield ok("admission", place)
    for words in warnings:
        yield warning("admission", words)


def _cores(said: LocalConfiguration, root: Root) -> Iterator[Finding]:
    """The directory of local mode: whose it is, who else sees into it, and its room."""
    place = root.outside(said.mode.directory)
    warnings = trust.check_trusted(os.path.dirname(said.mode.directory), root, "cores")
    directory = open_cores(place)
    user = users.find_user(said.user, root)
    try:
        check_owner(directory.owner, place)
    finally:
        directory.close()
    if user is not None and directory.owner != (user.uid, user.gid):
        owner = ":".join(map(str, directory.owner))
        yield warning("cores", f"{place} belongs to {owner}, so the handler becomes that, and not {said.user}", SETUP)
    elif os.stat(place).st_mode & 0o077:
        yield warning("cores", f"{place}: others may look into it, and cores hold secrets", f"chmod 0700 {place}")
    else:
        yield ok("cores", f"{place}, {_kept(said.mode)}")
    loss = "a new core is lost, or cut" if said.mode.keep is None else "a new core costs older ones, or is cut"
    yield room_finding("cores' room", place, said.floor or Floor(), loss)
    for words in warnings:
        yield warning("cores", words)


def _kept(mode: LocalMode) -> str:
    return f"{mode.kind}, all of them are kept" if mode.keep is None else f"{mode.kind}, the newest {mode.keep} are kept"


def _spool(settings: Settings, root: Root, now: datetime) -> Iterator[Finding]:
    place = root.outside(settings.spool)
    warnings = trust.check_trusted(os.path.dirname(settings.spool), root, "spool")
    spool = open_spool(place)
    try:
        owner, dumps, usage = spool.owner, spool.dump_ids(), spool.usage()
        storming = check_storm_limits(spool.fd, settings.admission, place)
        receipts = list(attempt("receipts", lambda: [_receipts(spool.fd, place)]))
    finally:
        spool.close()
    if owner != (settings.uid, settings.gid):
        words = f"{place} belongs to {owner[0]}:{owner[1]}, but the handler is {settings.uid}:{settings.gid} and cannot write there"
        yield wrong("spool", words, f"chown -R {settings.uid}:{settings.gid} {place}")
        return
    oldest = terminal.moment(dumps[0].time_ms / 1000) if dumps else None
    if oldest is None:
        yield ok("spool", f"{place}, nothing waits")
    else:
        words = f"{terminal.count(len(dumps), 'dump')} in {place}, the oldest since {oldest:%Y-%m-%d %H:%M} UTC"
        is_late = now - oldest > _WAITING_TOO_LONG
        yield warning("spool", words, "securecore spool flush") if is_late else ok("spool", words)
    if settings.spool_limits.has_quota:
        yield _spool_quota(usage, settings.spool_limits)
    yield room_finding("spool's room", place, settings.spool_limits.floor, "what no receiver takes is lost")
    yield from receipts
    yield storming
    for words in warnings:
        yield warning("spool", words)


def _receipts(spool: int, place: str) -> Finding:
    """How long the receipt log is, which is evidence: no limit of ours bounds it, and a person has to part it."""
    taken = receipt_log.length(spool)
    words = f"{terminal.size(taken)} in {receipt_log.NAME}"
    if taken < _MANY_RECEIPTS_BYTES:
        return ok("receipts", words)
    path = f"{place}/{receipt_log.NAME}"
    return warning("receipts", f"{words}, which no limit bounds", f"mv {path} {path}-$(date +%Y%m%d), and keep it; or logrotate")


_SPOOL_REMEDY: Final = "securecore spool flush, or a higher bound in sender.toml's [spool_limits]"


def _spool_quota(usage: Usage, bounds: SpoolLimits) -> Finding:
    """How full the spool is; what is full takes no crash for which there is no receiver."""
    words = terminal.fullness(*usage, bounds.max_dumps, bounds.max_bytes)
    shares = [
        used / most if most else 1.0
        for used, most in ((usage.dumps, bounds.max_dumps), (usage.taken_bytes + limits.MAX_FRAME_BYTES, bounds.max_bytes))
        if most is not None
    ]
    if max(shares) >= 1:
        return wrong("spool's quota", f"{words}: full, what no receiver takes is lost", _SPOOL_REMEDY)
    return warning("spool's quota", f"{words}: nearly full", _SPOOL_REMEDY) if max(shares) >= 0.9 else ok("spool's quota", words)


def _receivers(settings: Settings, root: Root) -> Iterator[Finding]:
    """Each receiver with a real handshake, up to READY; one that is away matters little where another takes us."""
    answers = reach(root.outside(settings.identity), (settings.uid, settings.gid), settings.receivers)
    is_any_ready = any("store" in answer for answer in answers)
    for answer in answers:
        if "store" in answer:
            yield ok("receiver", f"{answer['address']} takes us, store {answer['store']}")
        elif is_any_ready and answer["code"] == UnreachableError.exit_code:
            yield warning("receiver", answer["error"], answer["hint"])
        else:
            yield wrong("receiver", answer["error"], answer["hint"] or "securecore doctor, on the receiver")

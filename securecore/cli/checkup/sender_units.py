"""What can be wrong with what runs beside the handler: the timers that deliver and renew, or the agent that does both."""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from securecore.cli.checkup.findings import Finding, ok, warning, wrong
from securecore.cli.checkup.timers import Timer, check_timer, find_drift
from securecore.cli.machine import handover, sender_units, systemd
from securecore.cli.machine.enrolment import is_enrolled
from securecore.cli.machine.interpreter import find_interpreter
from securecore.cli.machine.kernel_setting import CORE_PATTERN, read_setting
from securecore.cli.machine.root import Root
from securecore.sender import installation, renewal_units
from securecore.sender.configuration import AGENT, SenderConfiguration

_SETUP: Final = "securecore setup sender"
_RESTART: Final = f"systemctl restart {sender_units.AGENT_SOCKET} {sender_units.AGENT_SERVICE}"
_DIRECTORY: Final = os.path.dirname(installation.AGENT_SOCKET)


def check_flush_timer(root: Root) -> Iterator[Finding]:
    """What delivers the spool."""
    interpreter = find_interpreter().executable
    units = {installation.SERVICE: installation.flush_service(interpreter), installation.TIMER: installation.flush_timer()}
    cost, by_hand = "nothing delivers what waits", "have `securecore spool flush --when-due` run every two minutes"
    timer = Timer("flush timer", units, installation.TIMER_LINK, installation.TIMER, cost, by_hand, _SETUP)
    yield check_timer(timer, root)


def check_renewal(said: SenderConfiguration, root: Root) -> Iterator[Finding]:
    """What renews a certificate that an enroller has given, the agent or a timer; no other renews itself."""
    if not is_enrolled(said.identity, root):
        return
    if said.kernel == AGENT:
        yield ok("renewal", "the agent looks every day whether it is due")
        return
    files = sender_units.unit_files(said, find_interpreter(), root)
    units = {path: files[path] for path in (renewal_units.SERVICE, renewal_units.TIMER)}
    cost, by_hand = "the certificate will expire", f"have `securecore renew --identity {said.identity}` run each day"
    yield check_timer(Timer("renewal", units, renewal_units.TIMER_LINK, renewal_units.TIMER, cost, by_hand, _SETUP), root)


def check_agent(said: SenderConfiguration, root: Root) -> Iterator[Finding]:
    """The agent: its units, the kernel that is to connect to it, its socket, and whether it runs."""
    files = sender_units.unit_files(said, find_interpreter(), root)
    if (drift := find_drift(files, root)) is not None:
        yield wrong("agent", drift, _SETUP)
        return
    links = sender_units.enabled_links(said, root)
    if missing := [os.path.basename(unit) for link, unit in links.items() if root.link_target(link) != unit]:
        words = f"{missing[0]} is not enabled: from the next boot on the kernel starts the handler for each crash"
        yield warning("agent", words, _SETUP)
        return
    obstacle = handover.find_obstacle(root)
    if not handover.is_awake(root):
        yield ok("agent", "enabled") if obstacle is None else warning("agent", f"enabled; {obstacle}")
    elif obstacle is not None:
        yield wrong("agent", obstacle, f"{_SETUP} --kernel pipe")
    else:
        yield from list(_socket(root)) or [_runs(root)]


def _socket(root: Root) -> Iterable[Finding]:
    """Yield what is wrong with the socket: where it is, whose, and whether somebody listens; nobody connects to it for that."""
    # While the kernel starts the handler, a socket that is out of order costs no core.
    say, cost = (wrong, "and crashes are lost") if _is_used(root) else (warning, "so the kernel goes on starting the handler")
    for path, mode, is_kind in ((_DIRECTORY, 0o700, stat.S_ISDIR), (installation.AGENT_SOCKET, 0o600, stat.S_ISSOCK)):
        place, status = root.outside(path), root.status(path)
        if status is None:
            yield say("agent", f"{place} is missing, {cost}", _RESTART)
            return
        if not is_kind(status.st_mode):
            yield say("agent", f"{place} is in the way: it is something else, {cost}", f"rm {place}, and then {_RESTART}")
            return
        if status.st_uid not in ({0} if root.is_live else {0, os.geteuid()}):
            words = f"{place} belongs to uid {status.st_uid}, who could take the kernel's place, or ours"
            yield wrong("agent", words, f"chown root:root {place}")
        elif (found := stat.S_IMODE(status.st_mode)) & ~mode:
            words = f"{place} is open to others than root (mode {found:04o})"
            yield wrong("agent", words, f"chmod {mode:04o} {place}")
    if not handover.is_listening(root):
        yield say("agent", f"nobody listens at {root.outside(installation.AGENT_SOCKET)}, {cost}", _RESTART)
    elif systemd.is_running(root) and not systemd.is_active(sender_units.AGENT_SOCKET):
        # Anybody who has mounts of his own can bind a socket whose path reads the same in the kernel's list.
        place = root.outside(installation.AGENT_SOCKET)
        words = f"{sender_units.AGENT_SOCKET} is not active: unless an agent that runs by hand listens at {place}, nobody does"
        yield say("agent", f"{words}, {cost}", _RESTART)


def _is_used(root: Root) -> bool:
    return read_setting(CORE_PATTERN, root) == installation.agent_pattern()


def _runs(root: Root) -> Finding:
    """Return whether the agent runs; without it the handler has the crashes, but the spool is delivered by nobody, or a timer."""
    if systemd.is_running(root) and not systemd.is_active(sender_units.AGENT_SERVICE):
        if _is_used(root):
            return wrong("agent", "its socket is there, and no agent: crashed processes wait", _RESTART)
        timer = sender_units.FLUSH_TIMER
        if not systemd.is_active(timer):
            return wrong("agent", f"does not run, nor does {timer}: nothing delivers what waits in the spool", _RESTART)
        return warning("agent", f"does not run, and {timer} delivers in its place", _RESTART)
    return ok("agent", f"listens at {root.outside(installation.AGENT_SOCKET)}")

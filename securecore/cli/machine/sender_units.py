"""The units of a sender: what delivers its spool, what renews its certificate, and the agent, which does both by itself."""

import os
from collections.abc import Mapping
from typing import Final

from securecore.cli.machine import plan
from securecore.cli.machine.enrolment import is_enrolled
from securecore.cli.machine.interpreter import Interpreter
from securecore.cli.machine.root import Root
from securecore.cli.machine.steps import MakeLink, RemoveFile, RemoveLink, Step, WriteFile
from securecore.sender import agent_units, installation, renewal_units
from securecore.sender.configuration import AGENT, SenderConfiguration

FLUSH_TIMER: Final = os.path.basename(installation.TIMER)
RENEW_TIMER: Final = os.path.basename(renewal_units.TIMER)
AGENT_SERVICE: Final = os.path.basename(agent_units.SERVICE)
AGENT_SOCKET: Final = os.path.basename(agent_units.SOCKET)

_LINKS: Final = {
    installation.TIMER_LINK: installation.TIMER,
    renewal_units.TIMER_LINK: renewal_units.TIMER,
    agent_units.SOCKET_LINK: agent_units.SOCKET,
    agent_units.SERVICE_LINK: agent_units.SERVICE,
}


def unit_files(configuration: SenderConfiguration, interpreter: Interpreter, root: Root) -> dict[str, bytes]:
    """Return the unit files of a sender by their paths; raises ConfigError when a path cannot stand in one.

    The agent has those of the two timers too: its unit starts them where it cannot go on.
    """
    python = interpreter.executable
    files = {installation.SERVICE: installation.flush_service(python), installation.TIMER: installation.flush_timer()}
    if is_enrolled(configuration.identity, root):
        files[renewal_units.SERVICE] = renewal_units.renew_service(python, configuration.identity)
        files[renewal_units.TIMER] = renewal_units.renew_timer()
    if configuration.kernel == AGENT:
        files[agent_units.SOCKET] = agent_units.agent_socket()
        files[agent_units.SERVICE] = agent_units.agent_service(python, configuration.spool, configuration.identity)
    return files


def enabled_links(configuration: SenderConfiguration, root: Root) -> dict[str, str]:
    """Return the links that enable a sender's units, and where each leads."""
    if configuration.kernel == AGENT:
        enabled = [agent_units.SOCKET_LINK, agent_units.SERVICE_LINK]
    else:
        enabled = [installation.TIMER_LINK]
        if is_enrolled(configuration.identity, root):
            enabled.append(renewal_units.TIMER_LINK)
    return {link: _LINKS[link] for link in enabled}


def unit_steps(files: Mapping[str, bytes], links: Mapping[str, str], root: Root) -> list[Step]:
    """Return the steps that bring these units about, before the kernel is told; beside an agent no timer is enabled."""
    timers = (installation.TIMER_LINK, renewal_units.TIMER_LINK) if agent_units.SERVICE in files else ()
    return [
        *(WriteFile(path, content) for path, content in files.items()),
        *(RemoveLink(link) for link in timers if root.link_target(link) is not None),
        *(MakeLink(link, target) for link, target in links.items()),
    ]


def farewell_steps(files: Mapping[str, bytes], root: Root) -> list[Step]:
    """Return the steps that take away units of an earlier set-up, once the kernel goes by the new one; what others wrote stays.

    The flush timer outlives a change to local mode: what waits in the spool is to be delivered.
    """
    present = [unit for unit in _ENABLING if unit not in files and root.status(unit) is not None]
    gone = [unit for unit in present if plan.has_written(unit, "sender", root)]
    steps: list[Step] = []
    for unit in gone:
        steps += [RemoveLink(link) for link, target in _LINKS.items() if target == unit and root.link_target(link) is not None]
        steps += [RemoveFile(unit), *(RemoveFile(service) for service in _ENABLING[unit])]
    return [step for step in steps if not step.is_done(root)]


_ENABLING: Final[Mapping[str, tuple[str, ...]]] = {
    renewal_units.TIMER: (renewal_units.SERVICE,),
    agent_units.SOCKET: (),
    agent_units.SERVICE: (),
}
"""Units that are enabled, and those that they start."""

"""``securecore agent``: the daemon behind the kernel's coredump socket."""

import os
import sys
from typing import Final

import click

from securecore.sender.installation import AGENT_SOCKET, SETTINGS

EPILOG: Final = f"""\b
Examples:
  securecore agent
  securecore agent --settings /etc/securecore/handler.json --socket {AGENT_SOCKET}
  securecore setup sender --kernel agent              has systemd run it, and the kernel connect to it
"""


@click.command("agent", epilog=EPILOG)
@click.option("--settings", "settings_path", default=SETTINGS, show_default=True, help="As setup wrote them; a change counts.")
@click.option("--socket", "socket_path", default=AGENT_SOCKET, show_default=True, help="Where core_pattern leads, behind `@@`.")
@click.option("--no-chores", is_flag=True, help="Leave the spool and the certificate to timers.")
def command(settings_path: str, socket_path: str, no_chores: bool) -> int:
    """Take crashes from the kernel's coredump socket (Linux 6.17), with all that they need in memory already.

    It does what the crash handler does, by the same settings, and sooner. It also flushes the spool when that is due, and looks
    once a day whether the certificate is to be renewed. It takes the socket from systemd, or makes it. SIGTERM ends it, with 0,
    once the crashes that it has are settled; SIGHUP has it see now to what is due of spool and certificate. What becomes of each
    crash stands in the system's log.

    The kernel connects where core_pattern leads it: `securecore setup sender` has that changed when the agent is ready, and back
    when it ends.
    """
    from securecore.errors import ConfigError
    from securecore.sender import agent, agent_chores, privileges
    from securecore.sender.agent_socket import find_readiness, open_listener
    from securecore.sender.settings import load_settings

    if os.geteuid() != 0:
        raise ConfigError("the agent needs root, to see who has crashed and to become its own user", hint="`sudo securecore agent`")
    privileges.forbid_own_core()
    os.umask(0o077)
    tell_ready = find_readiness(os.environ)
    listener = open_listener(socket_path, os.environ, os.getpid())
    try:
        load_settings(settings_path)
    except ConfigError as error:
        # It serves all the same: what is mended counts for the next crash, and until then each one is let go, and says why.
        click.echo(f"securecore: warning: {error.message}: no crash can be handled until that is mended", err=True)
        click.echo(f"  hint: {error.hint}", err=True)
    chores = [] if no_chores else agent_chores.plan([sys.executable, "-I", "-m", __package__ + ".main"], settings_path)
    agent.Agent(listener, settings_path, chores).serve(tell_ready)
    return 0

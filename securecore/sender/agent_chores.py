"""The agent's own chores: what the timers of `spool flush` and `renew` would do, by the same commands."""

from collections.abc import Sequence
from functools import partial

from securecore import limits
from securecore.sender import agent_limits
from securecore.sender.agent import run_command
from securecore.sender.chores import Chore
from securecore.sender.settings import load_settings


def plan(program: Sequence[str], settings_path: str) -> list[Chore]:
    """Return the chores of a host with these settings; *program* is the command line as far as the command's name."""
    flush = [*program, "spool", "flush", "--when-due", "--settings", settings_path]
    return [
        Chore(
            "spool flush", partial(run_command, flush, limits.FLUSH_MEMORY_BYTES), agent_limits.FLUSH_FIRST_S,
            agent_limits.FLUSH_EVERY_S, agent_limits.FLUSH_JITTER_S, agent_limits.FLUSH_MOST_S,
        ),
        Chore(
            "renew", partial(_renew, program, settings_path), agent_limits.RENEWAL_FIRST_S,
            agent_limits.RENEWAL_EVERY_S, agent_limits.RENEWAL_JITTER_S, agent_limits.RENEWAL_MOST_S,
        ),
    ]  # fmt: skip


def _renew(program: Sequence[str], settings_path: str) -> int:
    """Be the child that renews: which identity that is, the settings say by now. Raises ConfigError when they cannot be read."""
    identity = load_settings(settings_path).identity
    return run_command([*program, "renew", "--identity", identity], limits.FLUSH_MEMORY_BYTES)

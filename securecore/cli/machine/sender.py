"""Making a machine a sender: what must hold before, and the steps."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from securecore import limits, tls
from securecore.certs.identity_directory import CA, CERTIFICATE, KEY, load_identity
from securecore.certs.judge import Judgement, Purpose, judge
from securecore.cli.machine import handover, rivals, sender_units, trust, users
from securecore.cli.machine.interpreter import Interpreter
from securecore.cli.machine.kernel_setting import SetSysctl
from securecore.cli.machine.root import Root
from securecore.cli.machine.steps import MakeSpool, Step, WriteFile
from securecore.cli.machine.users import User
from securecore.errors import ConfigError, NotFoundError, UntrustedError
from securecore.names import Address
from securecore.sender import installation
from securecore.sender.admission import Admission
from securecore.sender.admission_table import resolve_users
from securecore.sender.configuration import AGENT, SenderConfiguration, parse_configuration
from securecore.sender.confinement import Confinement
from securecore.sender.settings import MAX_BYTES, Settings
from securecore.sender.spool_limits import SpoolLimits

IDENTITY_FILES: Final = (CA, CERTIFICATE, KEY)
"""What ``check_identity`` reads."""


@dataclass(frozen=True)
class Wishes:
    """What the command line says; None and empty where it says nothing."""

    receivers: tuple[Address, ...]
    identity: str | None
    spool: str | None
    user: str | None
    spool_mode: str | None = None
    kernel: str | None = None
    """One of KERNEL_WAYS, or handover.AUTO."""

    @property
    def is_about_sending(self) -> bool:
        """Whether any option is given that only a machine which sends its cores has."""
        wishes = (self.identity, self.spool, self.spool_mode, self.kernel)
        return bool(self.receivers) or any(wish is not None for wish in wishes)


class Read(NamedTuple):
    """A sender's configuration; the bytes of its file; and why the kernel's way is not the agent's, where that was ours to say."""

    configuration: SenderConfiguration
    content: bytes
    obstacle: str | None


def read_configuration(wishes: Wishes, root: Root) -> Read:
    """Return the configuration, and the bytes of its file: those that a person wrote, unless *wishes* say something else.

    Raises ConfigError when the file is not understood, when there is none and *wishes* do not make one, and as handover.choose.
    """
    found = root.find(installation.CONFIGURATION)
    before = parse_configuration(found.content, root.outside(installation.CONFIGURATION)) if found is not None else None
    if isinstance(before, SenderConfiguration):
        current = before
    elif wishes.receivers and wishes.identity is not None:
        current = SenderConfiguration(wishes.receivers, wishes.identity)
        if before is not None:
            # Which crashes are taken does not depend on where they go.
            current = replace(current, user=before.user, admission=before.admission)
    else:
        raise ConfigError(
            f"{root.outside(installation.CONFIGURATION)} names no receiver yet, and --to or --identity is missing",
            hint="securecore setup sender --to collector.example.org:4455 --identity /etc/securecore/identity",
        )
    # A file from before there was an agent, or of local mode, says nothing; a machine that is set up keeps what it has.
    said = current.kernel if before is not None else None
    kernel, obstacle = handover.choose(wishes.kernel, said, root)
    wanted = replace(
        current,
        kernel=kernel,
        receivers=wishes.receivers or current.receivers,
        identity=wishes.identity or current.identity,
        spool=wishes.spool or current.spool,
        spool_mode=wishes.spool_mode or current.spool_mode,
        user=wishes.user or current.user,
    ).check("setup sender")
    content = found.content if found is not None and wanted == before else wanted.encode()
    return Read(wanted, content, obstacle)


def check_identity(identity: str, root: Root, now: datetime) -> tuple[Judgement, list[str]]:
    """Return whom the sender's identity stands for, and warnings; raises SecurecoreError when it is not fit to send."""
    place = root.outside(identity)
    warnings = trust.check_trusted(identity, root, "identity")
    try:
        parts = load_identity(Path(place))
        tls.sender_context(place)
        chain = parts.chain_der
        own = judge(chain[0], chain[1:], parts.anchors, Purpose.HOST, now)
    except UntrustedError as error:
        raise ConfigError(f"identity {place}: {error.message}", hint=error.hint or _ISSUE_HINT) from error
    except NotFoundError as error:
        hint = _ISSUE_HINT if root.is_live else f"--identity is a path on the machine that boots from {root.path}"
        raise NotFoundError(error.message, hint=error.hint or hint) from error
    return own, warnings


_ISSUE_HINT = "make one with `securecore pki issue host NAME --out IDENTITY`, and carry it here"


def check_places(configuration: SenderConfiguration, root: Root) -> list[str]:
    """Return warnings about the handler's and the spool's place, and about who else wants core_pattern.

    Raises ConfigError when others than root can change anything on the way to them.
    """
    warnings = trust.check_trusted(installation.HANDLER, root, "handler")
    warnings += trust.check_trusted(installation.SETTINGS, root, "settings")
    warnings += trust.check_trusted(os.path.dirname(configuration.spool), root, "spool")
    return list(dict.fromkeys([*warnings, *warn_of_rivals(root)]))


def warn_of_rivals(root: Root) -> list[str]:
    """Return warnings about who else wants core_pattern."""
    warnings: list[str] = []
    found = rivals.find_rivals(root, installation.SYSCTL)
    for path in found.earlier:
        warnings.append(f"{root.outside(path)} sets core_pattern too; ours is read later and holds after the next boot")
    for path in found.later:
        warnings.append(f"{root.outside(path)} sets core_pattern too, is read after ours and wins at boot: take it out there")
    for service in found.services:
        warnings.append(f"{service} sets core_pattern when it starts: systemctl disable --now {service}")
    return warnings


def sender_steps(
    configuration: SenderConfiguration, content: bytes, user: User, interpreter: Interpreter, root: Root
) -> Sequence[Step]:
    """Return the steps, in the order that never lets the kernel start a handler that is not wholly there.

    With the agent too it starts the handler, until the agent runs: its unit then changes the pattern (handover.py). Raises
    ConfigError when the pattern or the script's first line would be too long, or a path cannot stand in a unit.
    """
    also = (installation.agent_pattern(),) if configuration.kernel == AGENT else ()
    kernel = kernel_steps(installation.core_pattern(installation.HANDLER), also)
    users.check_owner(configuration.spool, user, root)
    owner = (user.uid, user.gid)
    settings = compile_settings(configuration, owner, root)
    files = sender_units.unit_files(configuration, interpreter, root)
    steps: list[Step] = [
        WriteFile(installation.CONFIGURATION, content),
        MakeSpool(configuration.spool, owner),
        WriteFile(installation.SETTINGS, settings.encode()),
        WriteFile(installation.HANDLER, interpreter.handler_script(), 0o755),
        *sender_units.unit_steps(files, sender_units.enabled_links(configuration, root), root),
    ]
    if not (root.is_live or user.is_listed):
        steps.append(WriteFile(installation.SYSUSERS, users.sysusers_file(user)))
    return [*steps, *kernel, *sender_units.farewell_steps(files, root)]


def compile_settings(configuration: SenderConfiguration, owner: tuple[int, int], root: Root) -> Settings:
    """Return the handler's settings; raises ConfigError when a rule names a user who is not in *root*'s passwd file."""
    settings = Settings(
        configuration.receivers, configuration.identity, configuration.spool, *owner,
        configuration.spool_mode, configuration.deadlines, compile_admission(configuration.admission, root),
        configuration.spool_limits or SpoolLimits(), configuration.confinement or Confinement(),
    )  # fmt: skip
    check_length(settings.encode(), root)
    return settings


def compile_admission(admission: Admission | None, root: Root) -> Admission:
    """Return what the handler takes, with users by their numbers; raises ConfigError as compile_settings does."""
    place = root.outside(installation.CONFIGURATION)
    return resolve_users(admission or Admission(), lambda name: users.find_uid(name, root), place)


def check_length(compiled: bytes, root: Root) -> None:
    """Raise ConfigError when a file is longer than the handler reads: it would keep no core at all, or not by these rules."""
    if len(compiled) > MAX_BYTES:
        place = root.outside(installation.CONFIGURATION)
        raise ConfigError(f"{place}: compiled, its rules take more than {MAX_BYTES} bytes", hint="write fewer or shorter ones")


def kernel_steps(pattern: str, also: tuple[str, ...] = ()) -> list[Step]:
    """Return the steps after which the kernel starts a handler by *pattern*, or goes by one of *also* as it does already."""
    return [
        WriteFile(installation.SYSCTL, installation.sysctl_file(pattern)),
        SetSysctl("kernel.core_pipe_limit", str(limits.CORE_PIPE_LIMIT), ours=(), default="0"),
        SetSysctl("kernel.core_pattern", pattern, ours=handover.OURS, default="core", also=also),
    ]

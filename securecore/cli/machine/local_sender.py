"""Making a machine keep its cores in a directory of its own: what must hold before, and the steps."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from securecore.cli.machine import sender_units, trust, users
from securecore.cli.machine.interpreter import Interpreter
from securecore.cli.machine.root import Root
from securecore.cli.machine.sender import check_length, compile_admission, kernel_steps, warn_of_rivals
from securecore.cli.machine.steps import MakeCores, Step, WriteFile
from securecore.cli.machine.users import User
from securecore.errors import ConfigError
from securecore.sender import installation
from securecore.sender.configuration import DEFAULT_USER, LocalConfiguration, parse_configuration
from securecore.sender.floor import Floor
from securecore.sender.local_mode import LocalMode
from securecore.sender.settings import LocalSettings


@dataclass(frozen=True)
class LocalWishes:
    """What the command line says; None where it says nothing."""

    directory: str | None
    kind: str | None
    level: int | None
    keep: int | None
    user: str | None

    @property
    def is_about_local(self) -> bool:
        """Whether any option of local mode is given."""
        return any(value is not None for value in (self.directory, self.kind, self.level, self.keep))


def is_local(root: Root) -> bool:
    """Return whether the configuration that is there keeps cores on this machine; raises ConfigError when it is not understood."""
    found = root.find(installation.CONFIGURATION)
    path = root.outside(installation.CONFIGURATION)
    return found is not None and isinstance(parse_configuration(found.content, path), LocalConfiguration)


def read_configuration(wishes: LocalWishes, root: Root) -> tuple[LocalConfiguration, bytes]:
    """Return the configuration, and the bytes of its file: those that a person wrote, unless *wishes* say something else.

    Raises ConfigError when the file is not understood, or when neither it nor *wishes* name a directory.
    """
    found = root.find(installation.CONFIGURATION)
    before = parse_configuration(found.content, root.outside(installation.CONFIGURATION)) if found is not None else None
    user = wishes.user or (before.user if before is not None else DEFAULT_USER)
    if isinstance(before, LocalConfiguration):
        mode = before.mode
    elif wishes.directory is not None:
        mode = LocalMode(wishes.directory)
    else:
        raise ConfigError(
            f"{root.outside(installation.CONFIGURATION)} has no table [local] yet, and --local is missing",
            hint="securecore setup sender --local /var/lib/securecore/cores",
        )
    if wishes.kind not in (None, mode.kind):
        # A level means something else in another format.
        mode = mode._replace(level=None)
    wanted = LocalConfiguration(
        LocalMode(
            wishes.directory or mode.directory,
            wishes.kind or mode.kind,
            mode.level if wishes.level is None else wishes.level,
            mode.keep if wishes.keep is None else wishes.keep,
        ),
        user,
        # Which crashes are taken does not depend on where they go.
        before.admission if before is not None else None,
        before.floor if isinstance(before, LocalConfiguration) else None,
    ).check("setup sender")
    content = found.content if found is not None and wanted == before else wanted.encode()
    return wanted, content


def compile_local_settings(configuration: LocalConfiguration, root: Root) -> LocalSettings:
    """Return what the handler reads; raises ConfigError for a rule's user who is not in *root*'s passwd file."""
    return LocalSettings(compile_admission(configuration.admission, root), configuration.floor or Floor())


def check_places(configuration: LocalConfiguration, root: Root) -> list[str]:
    """Return warnings about the places of handler, admission and cores, and about who else wants core_pattern.

    Raises ConfigError when others than root can change anything on the way to them.
    """
    warnings = trust.check_trusted(installation.HANDLER, root, "handler")
    warnings += trust.check_trusted(installation.ADMISSION, root, "admission")
    warnings += trust.check_trusted(os.path.dirname(configuration.mode.directory), root, "cores")
    return list(dict.fromkeys([*warnings, *warn_of_rivals(root)]))


def local_steps(
    configuration: LocalConfiguration, content: bytes, user: User, interpreter: Interpreter, root: Root
) -> Sequence[Step]:
    """Return the steps, in the order that never lets the kernel start a handler that is not wholly there.

    Raises ConfigError when the pattern or the script's first line would be too long, the directory is somebody else's, or a rule
    names a user who is not in *root*'s passwd file.
    """
    kernel = kernel_steps(installation.core_pattern(installation.HANDLER, configuration.mode))
    directory = configuration.mode.directory
    users.check_owner(directory, user, root)
    _check_is_spare(directory, user, root)
    settings = compile_local_settings(configuration, root).encode()
    check_length(settings, root)
    steps: list[Step] = [
        WriteFile(installation.CONFIGURATION, content),
        MakeCores(directory, 0o700, (user.uid, user.gid), is_ours=True),
        WriteFile(installation.ADMISSION, settings),
        WriteFile(installation.HANDLER, interpreter.handler_script(), 0o755),
    ]
    if not (root.is_live or user.is_listed):
        steps.append(WriteFile(installation.SYSUSERS, users.sysusers_file(user)))
    return [*steps, *kernel, *sender_units.farewell_steps({}, root)]


def _check_is_spare(directory: str, user: User, root: Root) -> None:
    """Raise ConfigError when *directory* is there, is not the user's yet, and may be meant for something else.

    What set-up takes becomes private to the handler: an empty /tmp, /srv or /home of an image would be everybody's loss.
    """
    status = root.status(directory)
    if status is None or status.st_uid == user.uid:
        return
    is_roots = status.st_uid in ({0} if root.is_live else {0, os.geteuid()})
    if directory.count("/") > 1 and is_roots and not status.st_mode & (stat.S_ISVTX | 0o022):
        return
    raise ConfigError(
        f"{root.outside(directory)} is there already, and may be meant for others than {user.name}",
        hint=f"name one that set-up can make, as in {directory.rstrip('/')}/cores",
    )

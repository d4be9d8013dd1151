"""``securecore setup``: make this machine, or an image of one, a sender or a receiver; and take it back."""

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from securecore.cli.machine import handover, local_sender, plan, receiver, sender, sender_units, sight, systemd, trust, users
from securecore.cli.machine.interpreter import Interpreter, find_interpreter
from securecore.cli.machine.plan import Done
from securecore.cli.machine.root import Root
from securecore.cli.machine.steps import SPOOL_FILES, Step
from securecore.cli.machine.users import User
from securecore.cli.options import DEFAULT_RECEIVER_IDENTITY, DEFAULT_STORE, address, incomplete_after_option
from securecore.dump.packing import FORMATS
from securecore.errors import ConfigError
from securecore.names import Address
from securecore.receiver.installation import CONFIGURATION
from securecore.sender.configuration import AGENT, DEFAULT_USER, KERNEL_WAYS, SenderConfiguration, check_user
from securecore.sender.installation import AGENT_SOCKET
from securecore.sender.settings import SPOOL_MODES

_SYSTEM_UNITS: Final = "/etc/systemd/system"
_RECEIVER_TIMERS: Final = ("securecore-vacuum.timer", "securecore-fetch.timer")
_UNITS: Final = {
    "sender": [
        sender_units.AGENT_SERVICE, sender_units.AGENT_SOCKET, sender_units.FLUSH_TIMER, sender_units.RENEW_TIMER,
    ],
    "receiver": ["securecore-receiver.service", *_RECEIVER_TIMERS],
}

EPILOG: Final = """\b
Examples:
  securecore setup sender --to collector.acme.example:4455 --identity /etc/securecore/identity --dry-run
  securecore setup sender --local /var/lib/securecore/cores --format gz --keep 10
  securecore setup sender                             after a change in /etc/securecore/sender.toml
  securecore setup sender --kernel pipe               no agent: the kernel starts the handler for each crash
  securecore setup sender --undo
  securecore setup receiver --listen 0.0.0.0:4455 --identity /etc/securecore/receiver
  securecore setup receiver                           after a change of addresses or store in /etc/securecore/receiver.toml
  securecore setup sender --root /mnt/image --user 990:990 --to ... --identity ...
"""

_Command = Callable[..., Any]


@click.group("setup", epilog=EPILOG)
def command() -> None:
    """Make this machine a sender of its crashes, or a receiver."""


def _common(function: _Command) -> _Command:
    for option in (
        click.option("--undo", "is_undo", is_flag=True, help="Put back what was there before the first set-up."),
        click.option("--dry-run", is_flag=True, help="Show every change, make none."),
        click.option(
            "--root", "root_path", type=click.Path(path_type=Path), default=Path("/"), show_default=True, metavar="DIR",
            help="Work in another root, such as a mounted image; all other paths are paths in it.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("sender", epilog=EPILOG)
@click.option("--to", "receivers", multiple=True, type=address, metavar="HOST:PORT", help="Receiver; repeat for others, in order.")
@click.option("--identity", metavar="IDENTITY", help="This host's identity directory, on this host for good.")
@click.option("--spool", metavar="SPOOL", help="Where undelivered cores wait; default /var/lib/securecore/spool.")
@click.option(
    "--spool-mode", type=click.Choice(SPOOL_MODES), help="What it keeps of a core: tail (default), what no receiver has; or whole."
)
@click.option(
    "--kernel", type=click.Choice([*KERNEL_WAYS, handover.AUTO]),
    help="How the kernel hands cores over: pipe, it starts the handler; agent, it connects to a socket; auto, the agent where "
    "kernel and systemd let it, which is the default of a first set-up.",
)
@click.option("--user", metavar="NAME|UID:GID", help="Whom the handler becomes; default securecore, made when it is missing.")
@click.option("--local", metavar="DIR", help="Keep cores in this directory of this machine instead, and send nothing.")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), help="With --local: format of the cores; default zst.")
@click.option("--level", type=int, metavar="N", help="With --local: higher is smaller, and holds the crashed process longer.")
@click.option("--keep", type=int, metavar="N", help="With --local: keep the newest N dumps; without it all of them.")
@_common
def sender_(
    receivers: tuple[Address, ...], identity: str | None, spool: str | None, spool_mode: str | None, kernel: str | None,
    user: str | None, local: str | None, kind: str | None, level: int | None, keep: int | None,
    root_path: Path, dry_run: bool, is_undo: bool,
) -> None:  # fmt: skip
    """Have the kernel hand each crash of this machine to securecore, which sends it, or with --local keeps it here.

    What is not said here is taken from /etc/securecore/sender.toml, once that is there.
    """
    with Root(root_path) as root:
        _check_may(root, dry_run)
        if is_undo:
            _undo("sender", root, dry_run)
            return
        if root.is_live:
            identity, local = (os.path.abspath(path) if path is not None else None for path in (identity, local))
        wishes = sender.Wishes(receivers, identity, spool, user, spool_mode, kernel)
        local_wishes = local_sender.LocalWishes(local, kind, level, keep, user)
        if local_wishes.is_about_local and wishes.is_about_sending:
            others = "--to, --identity, --spool, --spool-mode, --kernel"
            raise click.UsageError(f"--local keeps cores on this machine: not together with {others}")
        if local_wishes.is_about_local or (not wishes.is_about_sending and local_sender.is_local(root)):
            _set_up_local(local_wishes, root, dry_run)
            return
        _set_up_network(wishes, root, dry_run)


def _set_up_network(wishes: sender.Wishes, root: Root, dry_run: bool) -> None:
    configuration, content, obstacle = sender.read_configuration(wishes, root)
    heading, warnings = _look_at_sender(configuration.identity, root, dry_run)
    interpreter = find_interpreter()
    warnings += interpreter.check(root) + sender.check_places(configuration, root)
    owner = _user(configuration.user, root, dry_run)
    click.echo(heading)
    click.echo(_way_words(configuration.kernel, obstacle))
    if dry_run:
        _say_unseen(configuration.identity, sender.IDENTITY_FILES, root)
        _say_unseen(configuration.spool, SPOOL_FILES, root)
    _compile(interpreter, root, dry_run)
    steps = sender.sender_steps(configuration, content, owner, interpreter, root)
    is_changed = _carry_out(steps, "sender", root, dry_run)
    if not dry_run:
        _start_sender(configuration, is_changed, root)
    _warn(warnings)
    if not dry_run:
        _say_next(_SENDER_NEXT if root.is_live else _IMAGE_NEXT)


def _way_words(way: str, obstacle: str | None) -> str:
    """Return in words how the kernel hands cores over."""
    if way == AGENT:
        words = f"the kernel hands cores to the agent, at {AGENT_SOCKET}"
        return words if obstacle is None else f"{words}, if it can: {obstacle}"
    return f"the kernel starts the handler for each crash{'' if obstacle is None else f': {obstacle}'}"


def _start_sender(configuration: SenderConfiguration, is_changed: bool, root: Root) -> None:
    """Have systemd run what set-up has enabled, and no more."""
    if configuration.kernel == AGENT:
        # Also where nothing has changed: after an upgrade what runs is of the version before it. The handler has crashes meanwhile.
        _systemctl(root, ["daemon-reload"], ["restart", sender_units.AGENT_SERVICE])
        if systemd.is_running(root) and (words := handover.find_fallback(root)) is not None:
            _warn([f"{words}: systemctl status {sender_units.AGENT_SERVICE}"])
    elif is_changed:
        _stop_absent("sender", root)
        enabled = sender_units.enabled_links(configuration, root).values()
        _systemctl(root, ["daemon-reload"], ["start", *map(os.path.basename, enabled)])


def _stop_absent(role: str, root: Root) -> None:
    """Have nothing run of which the unit was taken away."""
    present = _present(_UNITS[role], root)
    _systemctl(root, ["stop", *(unit for unit in _UNITS[role] if unit not in present)], is_optional=True)


def _look_at_sender(identity: str, root: Root, dry_run: bool) -> tuple[str, list[str]]:
    """Return a line about who the sender is, and warnings; an identity that only root may read is no obstacle to a dry run."""
    if dry_run and sight.find_unseen(identity, sender.IDENTITY_FILES, root) is not None:
        return "sender, whose identity root will check", trust.check_trusted(identity, root, "identity")
    own, warnings = sender.check_identity(identity, root, datetime.now(UTC))
    return f"sender {own.name} (certificate valid until {own.not_after:%Y-%m-%d})", warnings


def _set_up_local(wishes: local_sender.LocalWishes, root: Root, dry_run: bool) -> None:
    configuration, content = local_sender.read_configuration(wishes, root)
    interpreter = find_interpreter()
    warnings = interpreter.check(root) + local_sender.check_places(configuration, root)
    owner = _user(configuration.user, root, dry_run)
    click.echo(f"cores stay on this machine, in {configuration.mode.directory}")
    if dry_run:
        _say_unseen(configuration.mode.directory, (), root)
    _compile(interpreter, root, dry_run)
    is_changed = _carry_out(local_sender.local_steps(configuration, content, owner, interpreter, root), "sender", root, dry_run)
    if is_changed and not dry_run:
        _stop_absent("sender", root)
        _systemctl(root, ["daemon-reload"])
    _warn(warnings)
    if not dry_run:
        _say_next(_LOCAL_NEXT.format(directory=configuration.mode.directory) if root.is_live else _IMAGE_NEXT)


@command.command("receiver", epilog=EPILOG)
@click.option("--listen", multiple=True, type=address, metavar="ADDR:PORT", help="Where to listen; may be repeated.")
@click.option("--identity", help=f"The receiver's identity directory; default {DEFAULT_RECEIVER_IDENTITY}.")
@click.option("--store", help=f"Directory of the store; default {DEFAULT_STORE}.")
@click.option("--user", "user_text", metavar="NAME|UID:GID", help=f"Whom it runs as; default {DEFAULT_USER}, made if missing.")
@incomplete_after_option
@_common
def receiver_(
    listen: tuple[Address, ...],
    identity: str | None,
    store: str | None,
    user_text: str | None,
    incomplete_after: timedelta | None,
    root_path: Path,
    dry_run: bool,
    is_undo: bool,
) -> None:
    """Write a systemd unit that runs a receiver with no privilege and only its store to write to.

    What is not said here is taken from /etc/securecore/receiver.toml, once that is there; the user from the unit.
    """
    with Root(root_path) as root:
        _check_may(root, dry_run)
        if is_undo:
            _undo("receiver", root, dry_run)
            return
        if root.is_live:
            identity, store = (os.path.abspath(path) if path is not None else None for path in (identity, store))
        configuration, content = receiver.read_configuration(receiver.Wishes(listen, store, identity, incomplete_after), root)
        user_text = user_text or receiver.find_service_user(root) or DEFAULT_USER
        check_user(user_text, "--user")
        own, warnings = receiver.check_identity(configuration.identity, root, datetime.now(UTC))
        interpreter = find_interpreter()
        warnings += interpreter.check(root) + trust.check_trusted(CONFIGURATION, root, "configuration")
        user = _user(user_text, root, dry_run)
        click.echo(f"receiver {own.name} (certificate valid until {own.not_after:%Y-%m-%d})")
        _compile(interpreter, root, dry_run)
        steps = receiver.receiver_steps(configuration, content, user, interpreter, root)
        is_changed = _carry_out(steps, "receiver", root, dry_run)
        if is_changed and not dry_run:
            _stop_absent("receiver", root)
            _systemctl(root, ["daemon-reload"], ["start", *_present(_RECEIVER_TIMERS, root)])
        _warn(warnings)
        if not dry_run:
            _say_next(_RECEIVER_NEXT if root.is_live else _RECEIVER_IMAGE_NEXT.format(root=root.path))


_SENDER_NEXT: Final = (
    "test it:      sh -c 'ulimit -c unlimited; kill -SEGV $$'\n"
    "what it said: journalctl -t securecore -n 5\n"
    "what arrived: securecore list, on the receiver\n"
    "take it back: securecore setup sender --undo"
)
_LOCAL_NEXT: Final = (
    "test it:      sh -c 'ulimit -c unlimited; kill -SEGV $$'\n"
    "what it said: journalctl -t securecore -n 5\n"
    "what it kept: ls -l {directory}\n"
    "take it back: securecore setup sender --undo"
)
_IMAGE_NEXT: Final = "the settings hold when a machine boots from this root"
_RECEIVER_NEXT: Final = (
    "start it:     systemctl enable --now securecore-receiver\n"
    "what it says: journalctl -u securecore-receiver\n"
    "configure it: /etc/securecore/receiver.toml\n"
    "reload it:    systemctl reload securecore-receiver, after a change there, a new certificate or a new CRL\n"
    "take it back: securecore setup receiver --undo"
)
_RECEIVER_IMAGE_NEXT: Final = "enable it in this root: systemctl --root={root} enable securecore-receiver"


def _check_may(root: Root, dry_run: bool) -> None:
    if root.is_live and os.geteuid() != 0 and not dry_run:
        raise ConfigError("set-up changes this machine: only root can do that", hint="sudo securecore setup ..., or try --dry-run")


def _user(text: str, root: Root, dry_run: bool) -> User:
    """Return the user, made on the live machine when it is missing; with numbers that stand for it while nothing may be changed."""
    user = users.find_user(text, root)
    if user is not None:
        return user
    if not root.is_live:
        raise ConfigError(
            f"user {text} is not in {root.outside('/etc/passwd')}",
            hint="say which numbers it will have there, as in --user 990:990; a sysusers.d file then makes it at the first boot",
        )
    if dry_run:
        _say(Done("would be made", f"user {text} (its numbers, not known yet, are shown as {users.UNKNOWN})"))
        return User(text, users.UNKNOWN, users.UNKNOWN, False)
    users.make_user(text)
    user = users.find_user(text, root)
    if user is None:
        raise ConfigError(f"user {text}: useradd made it, but it is not in /etc/passwd")
    _say(Done("made", f"user {text} ({user.uid}:{user.gid})"))
    return user


def _compile(interpreter: Interpreter, root: Root, dry_run: bool) -> None:
    """Write our bytecode, which the handler, without a right to write there, would otherwise compile anew at each crash."""
    if not root.is_live or not interpreter.stale_sources():
        return
    if dry_run:
        _say(Done("would be compiled", interpreter.package))
    elif interpreter.compile():
        _say(Done("compiled", interpreter.package))
    else:
        _warn([f"{interpreter.package}: bytecode could not be written there; each crash pays some 30 ms for it"])


def _carry_out(steps: Sequence[Step], role: str, root: Root, dry_run: bool) -> bool:
    """Do the steps, or show them; return whether anything was to be changed."""
    is_changed = False
    for done in (plan.preview if dry_run else plan.apply)(steps, role, root):
        _say(done)
        is_changed = is_changed or done.word != "unchanged"
    if not is_changed:
        click.echo("nothing to change")
    return is_changed


def _undo(role: str, root: Root, dry_run: bool) -> None:
    if dry_run:
        raise click.UsageError("--undo and --dry-run exclude each other")
    _systemctl(root, ["disable", "--now", *_present(_UNITS[role], root)], is_optional=True)
    for done in plan.undo(role, root):
        _say(done)
    _systemctl(root, ["daemon-reload"])
    click.echo("all else is as it was before, but for a user that was made: its files may outlive it")


def _present(units: Iterable[str], root: Root) -> list[str]:
    """Return those of our units that are there: for a command about one that is not, systemctl may do nothing at all."""
    return [unit for unit in units if root.status(f"{_SYSTEM_UNITS}/{unit}") is not None]


def _systemctl(root: Root, *commands: list[str], is_optional: bool = False) -> None:
    """Tell systemd, where it runs."""
    if not systemd.is_running(root):
        return
    for arguments in commands:
        answer = subprocess.run(["systemctl", *arguments], capture_output=True, check=False, text=True)
        if answer.returncode != 0 and not is_optional:
            said = answer.stderr.strip().splitlines() or [f"ended with {answer.returncode}"]
            _warn([f"systemctl {' '.join(arguments)}: {said[-1]}"])


def _say(done: Done) -> None:
    click.echo(f"  {done.word:<17}  {done.place}")
    for line in done.difference:
        click.echo(f"      {line}")


def _say_unseen(directory: str, names: Sequence[str], root: Root) -> None:
    """Say what a dry run has passed over."""
    if (path := sight.find_unseen(directory, names, root)) is not None:
        _say(Done("not looked at", f"{path}  (this user may not; root sees it)"))


def _warn(warnings: Iterable[str]) -> None:
    for warning in dict.fromkeys(warnings):
        click.echo(f"  warning: {warning}", err=True)


def _say_next(words: str) -> None:
    for line in words.splitlines():
        click.echo(line)

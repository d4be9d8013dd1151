"""Options that several commands share, and what they stand for."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from securecore import limits, units
from securecore.cli.sources import open_named
from securecore.errors import ConfigError, NotFoundError, SecurecoreError
from securecore.identity import host_from_operator
from securecore.names import Address, HostName, NameRefused
from securecore.receiver import installation
from securecore.store.layout import Store
from securecore.units import parse_span

DEFAULT_STORE: Final = installation.DEFAULT_STORE
DEFAULT_RECEIVER_IDENTITY: Final = installation.DEFAULT_IDENTITY

_HOSTS_SHOWN: Final = 5

_Command = TypeVar("_Command", bound=Callable[..., Any])


def address(text: str) -> Address:
    """Return the address that an option's text means; a usage error says what is wrong with it."""
    try:
        return Address(text)
    except NameRefused as error:
        raise click.BadParameter(f"{error.message}: write {error.hint}") from error


def moment(text: str) -> datetime:
    """Return the aware moment that an option's text means: 90s, 15m, 6h, 1d or 2w ago, or ISO 8601, UTC when it has no zone."""
    try:
        if (span := parse_span(text)) is not None:
            return datetime.now(UTC) - span
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!a} is no time: write 15m, 6h, 1d, 2w, 2026-11-22 or 2026-11-22T09:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """Return how long an option's text means: 90s, 15m, 6h, 1d or 2w; a usage error says what is wrong with it."""
    span = parse_span(text)
    if not span:
        raise click.BadParameter(f"{text!a} is no length of time: write 90s, 15m, 6h, 1d or 2w")
    return span


def least_age(text: str) -> timedelta:
    """Return the same, and no time at all for none or 0."""
    return timedelta() if text in ("none", "0") else duration(text)


def size(text: str) -> int:
    """Return the bytes that an option's text means: 500MiB, 1.5TiB; a usage error says what is wrong with it."""
    number = units.parse_size(text)
    if number is None:
        raise click.BadParameter(f"{text!a} is no size: write 500MiB, 20GiB or 1.5TiB")
    return number


def incomplete_after_option(command: _Command) -> _Command:
    """Add ``--incomplete-after``; None where it is not given."""
    usual = f"{limits.INCOMPLETE_AFTER_S // 86400}d"
    option = click.option(
        "--incomplete-after", type=duration, show_default=f"that of receiver.toml, or {usual}", metavar="TIME",
        help="How long after its last frame a dump is given up and listed as incomplete: 90s, 15m, 6h, 1d, 2w. A sender that comes"
        " back later goes on all the same.",
    )  # fmt: skip
    return option(command)


def store_option(command: _Command) -> _Command:
    """Add ``--store``."""
    option = click.option(
        "--store", "store_path", envvar="SECURECORE_STORE", default=DEFAULT_STORE, show_default=True, metavar="STORE",
        help="Directory of the store; also $SECURECORE_STORE.",
    )  # fmt: skip
    return option(command)


def find_store(store_path: str | None, config: Path | None) -> str | None:
    """Return the store that a command with ``--store`` and ``--config`` is told of beside its file.

    Who names a file means its store: then only ``--store`` itself says another one, and not the environment.
    """
    source = click.get_current_context().get_parameter_source("store_path")
    return None if config is not None and source is ParameterSource.ENVIRONMENT else store_path


def host_option(command: _Command) -> _Command:
    """Add ``--host``."""
    return click.option("--host", "host_text", metavar="HOST", help="Only this host; the domain may be left out.")(command)


def receiver_identity_option(words: str) -> Callable[[_Command], _Command]:
    """Return what adds ``--identity``, a receiver's, usually where its set-up expects it; *words* say what it is for."""
    return click.option(
        "--identity", type=click.Path(path_type=Path), default=DEFAULT_RECEIVER_IDENTITY, show_default=True, help=words
    )  # fmt: skip


def json_option(command: _Command) -> _Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, errors too.")(command)


def root_option(command: _Command) -> _Command:
    """Add ``--root``, the certificate that everything is verified up to, and ``--trust-log-key``."""
    option = click.option(
        "--root", "root_path", envvar="SECURECORE_ROOT", type=click.Path(path_type=Path), metavar="CA.PEM",
        help="The root that you trust; also $SECURECORE_ROOT. Without it the store's own copy is used, which is no proof"
        " against whoever can write the store.",
    )  # fmt: skip
    return option(trust_option(command))


def trust_option(command: _Command) -> _Command:
    """Add ``--trust-log-key``: which keys may have taken the place of a lost one."""
    option = click.option(
        "--trust-log-key", "trusted", multiple=True, type=_verifier_key, metavar="KEY",
        help="A log key that took the place of a lost one, as the receiver's operator has told you: as `audit rekey` wrote it.",
    )  # fmt: skip
    return option(command)


def _verifier_key(text: str) -> str:
    if not re.fullmatch(r"[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+", text):
        raise click.BadParameter(f"{text[:300]!a} is no key: write NAME+ID+BASE64, as `audit rekey` does")
    return text


def find_host(text: str | None, store: Store, removed: Iterable[HostName] = ()) -> HostName | None:
    """Return the host that a person means: a full name, or the first labels of one that the store knows.

    A store knows the hosts that have dumps in it, published or still coming in, or an audit log, and those that it had: *removed*.
    Raises NotFoundError when *text* means none or several of them, NameRefused when it has dots and is no host name.
    """
    if text is None:
        return None
    incoming = (host for host, _ in store.incoming())
    known = sorted({*store.host_names(), *store.audited_hosts(), *incoming, *removed})
    name = str(host_from_operator(text, None)) if "." in text else text.strip().lower()
    matches = [host for host in known if str(host) == name] or [host for host in known if str(host).startswith(f"{name}.")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotFoundError(f"{text[:300]!a} means {len(matches)} hosts in this store", hint=f"one of {_names(matches)}")
    hint = f"it has {_names(known)}" if known else "it has no host yet"
    shown = name[:300] if name.isascii() and name.isprintable() else ascii(name[:300])
    raise NotFoundError(f"no host {shown} in this store", hint=hint)


def _names(hosts: Sequence[HostName]) -> str:
    more = f" and {len(hosts) - _HOSTS_SHOWN} more" if len(hosts) > _HOSTS_SHOWN else ""
    return ", ".join(map(str, hosts[:_HOSTS_SHOWN])) + more


def read_file(path: Path, maximum: int) -> bytes:
    """Return the bytes of a file that a person named.

    Raises NotFoundError when it is not there, ConfigError when it cannot be read or is longer than *maximum*.
    """
    fd = open_named(str(path))
    try:
        with open(fd, "rb", closefd=False) as file:
            data = file.read(maximum + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from error
    finally:
        os.close(fd)
    if len(data) > maximum:
        raise ConfigError(f"{path}: longer than {maximum} bytes")
    return data


def exit_code(error: SecurecoreError | None) -> int:
    """Return an error's exit code, 0 for none."""
    return error.exit_code if error is not None else 0

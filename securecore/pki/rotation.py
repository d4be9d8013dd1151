"""Replacing an issuing CA while everybody can send: what is new is made known first, then used, and what is old leaves last.

=========  ==========================  =====================================================================
step       who signs certificates      what receivers must have afterwards
=========  ==========================  =====================================================================
``start``  the old CA                  ca.pem and crl.pem with both, before the next step
``switch`` the new CA                  the same
``finish`` the new CA                  ca.pem and crl.pem with the new one alone
=========  ==========================  =====================================================================

Hosts need nothing but a certificate of the new CA before ``finish``: they believe the root, and bring their CA along. Each step is
one line of the ledger; one that was interrupted before it is done again by the same command.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from securecore.certs.chain import fingerprint, load_pem_certificates
from securecore.certs.private_file import read_public
from securecore.certs.profiles import BACKDATED_S, HOSTS_CA, RECEIVERS_CA, ROOT_CA, Profile
from securecore.errors import BrokenError, PkiError
from securecore.limits import MAX_CERTIFICATE_BYTES
from securecore.pki.directory import FOLDERS, PkiDirectory, certificate_pem, issue_fields
from securecore.pki.keys import AskPassphrase, make_key, private_pem
from securecore.pki.ledger import Issued, State, Succession, format_time
from securecore.pki.minting import Authority, crl_days, mint_ca, mint_crl
from securecore.pki.recording import keep
from securecore.pki.revocation import Remembered, assemble, check_not_behind
from securecore.pki.staging import PRIVATE_MODE, PUBLIC_MODE, stage

ROTATED: Final = {"hosts": HOSTS_CA, "receivers": RECEIVERS_CA}
"""What a person calls the CAs that can be rotated."""


class Rotated(NamedTuple):
    """What a step did: the CA that it concerns, and where it is."""

    certificate: x509.Certificate
    folder: Path


def start(pki: PkiDirectory, profile: Profile, ask_passphrase: AskPassphrase, now: datetime) -> Rotated:
    """Make the next CA of a profile, which signs nothing yet; needs the root's key.

    Its key is locked with the passphrase of the root's key, where that has one. Raises PkiError when a rotation is under way or the
    root is about to end, NotFoundError where the root's key is not here, ConfigError, StorageError, BrokenError.
    """
    passphrase = Remembered(ask_passphrase)
    root = pki.authority(ROOT_CA.name, passphrase)
    with _steps(pki):
        state = pki.ledger.follow()
        succession = state.succession(profile.name)
        if succession.next is not None:
            raise PkiError(f"a rotation of the {profile.name} has started already", hint="the next step is `switch`")
        if succession.previous is not None:
            raise PkiError(f"a rotation of the {profile.name} is not finished", hint="the next step is `finish`")
        folder = f"{FOLDERS[profile.name]}-{len(succession.folders) + 2}"
        path = pki.path / folder
        if not path.exists():
            _make_ca(pki, profile, path, root, passphrase.answer, now)
        certificate = _made_ca(pki, profile, path)
        fields = {"profile": profile.name, "step": "start", "serial": f"{certificate.serial_number:x}", "folder": folder}
        pki.ledger.append(now, "rotate", {**fields})
    return Rotated(certificate, path)


def switch(pki: PkiDirectory, profile: Profile, now: datetime) -> Rotated:
    """Have the next CA sign from now on; raises PkiError when none was started, StorageError, BrokenError."""
    with _steps(pki):
        succession = pki.ledger.follow().succession(profile.name)
        if succession.next is None:
            raise PkiError(f"no rotation of the {profile.name} was started", hint=_next_step(succession))
        pki.ledger.append(now, "rotate", {"profile": profile.name, "step": "switch", "serial": f"{succession.next:x}"})
    return Rotated(pki.certificate(profile.name), pki.folder(profile.name))


def finish(pki: PkiDirectory, profile: Profile, now: datetime, *, is_forced: bool = False) -> Rotated:
    """Let go of the previous CA: from the next ca.pem on nobody believes it, and its CRL is signed no more.

    Raises PkiError when there is none and, unless *is_forced*, when a name has no other valid certificate than one of that CA;
    StorageError, BrokenError.
    """
    with _steps(pki):
        state = pki.ledger.follow()
        succession = state.succession(profile.name)
        if succession.previous is None:
            raise PkiError(f"there is no previous {profile.name} to let go of", hint=_next_step(succession))
        left = find_left_behind(state, succession.previous, now)
        if left and not is_forced:
            names = ", ".join(one.names[0] for one in left[:3]) + (" ..." if len(left) > 3 else "")
            words = f"{len(left)} have no certificate of the new CA yet: {names}"
            raise PkiError(words, hint="renew them first, or give --force: they are refused then until they are renewed")
        path = pki.path / succession.folders.get(succession.previous, FOLDERS[profile.name])
        pki.ledger.append(now, "rotate", {"profile": profile.name, "step": "finish", "serial": f"{succession.previous:x}"})
    return Rotated(pki.certificate(profile.name), path)


def find_left_behind(state: State, issuer: int, now: datetime) -> Sequence[Issued]:
    """Return the newest certificate of each name that is valid and was signed by a CA, by its serial number."""
    newest: dict[tuple[str, str], Issued] = {}
    for one in state.issued.values():
        if one.names and one.state(now) == "valid":
            newest[one.profile, one.names[0]] = one
    return [one for one in newest.values() if one.issuer == issuer]


@contextmanager
def _steps(pki: PkiDirectory) -> Iterator[None]:
    """Hold the PKI's lock for a step, and put the files for receivers right before it and after it.

    Before it too, for the step before may have been killed between its line of the ledger and the files: whoever repeats that step
    is told that it was taken, and then distributes them.
    """
    with pki.lock():
        check_not_behind(pki)
        assemble(pki)
        yield
        assemble(pki)


def _next_step(succession: Succession) -> str:
    if succession.previous is not None:
        return "the next step is `finish`"
    return "the next step is `switch`" if succession.next is not None else "the first step is `start`"


def _make_ca(
    pki: PkiDirectory, profile: Profile, path: Path, root: Authority, passphrase: bytes | None, now: datetime
) -> None:
    """Make a CA's directory, its certificate recorded before it appears; one that then does not appear is discarded.

    It is given to the owner of the PKI directory: where root takes the step, an enroller of another user has to sign with it.
    """
    key = make_key()
    authority = Authority(mint_ca(profile, pki.organisation, pki.domain, key, root, now), key)
    serial = f"{authority.certificate.serial_number:x}"
    this_update = now.replace(microsecond=0) - timedelta(seconds=BACKDATED_S)
    next_update = this_update + timedelta(days=crl_days(profile.name))
    with stage(path) as staged:
        staged.write("key.pem", private_pem(key, passphrase), PRIVATE_MODE)
        staged.write("cert.pem", certificate_pem(authority.certificate), PUBLIC_MODE)
        crl = mint_crl(authority, 1, this_update, crl_days(profile.name), [])
        staged.write("crl.pem", crl.public_bytes(Encoding.PEM), PUBLIC_MODE)
        staged.give_to_owner_of(pki.path)
        keep(pki, authority.certificate)
        pki.ledger.append(now, "issue", issue_fields(authority.certificate, profile.name, root.certificate, [], []))
        update = {"this_update": format_time(this_update), "next_update": format_time(next_update)}
        pki.ledger.append(now, "crl", {"issuer": serial, "number": 1, "revoked": 0, **update})
        try:
            staged.publish()
        finally:
            if not staged.is_published:
                pki.ledger.append(now, "discard", {"serial": serial})


def _made_ca(pki: PkiDirectory, profile: Profile, path: Path) -> x509.Certificate:
    """Return the CA in a directory that a run has made, this one or one that was killed before it could say so."""
    file = path / "cert.pem"
    (certificate,) = load_pem_certificates(read_public(file, 2 * MAX_CERTIFICATE_BYTES), 1, what=str(file))
    one = pki.ledger.follow().issued.get(certificate.serial_number)
    if one is None or one.profile != profile.name or one.is_discarded or one.fingerprint != fingerprint(certificate):
        raise BrokenError(f"{path}: not a {profile.name} that this PKI has made", hint="look at it, then move it away")
    return certificate

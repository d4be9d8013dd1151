"""Holding a PKI directory against its own ledger: nothing was edited, added or taken away behind its back."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from securecore.certs.chain import fingerprint, load_pem_certificates
from securecore.certs.private_file import read_public
from securecore.certs.revocation import RevocationLists
from securecore.errors import BrokenError, SecurecoreError
from securecore.limits import MAX_CERTIFICATE_BYTES, MAX_CRL_BYTES
from securecore.pki.directory import PkiDirectory
from securecore.pki.ledger import State
from securecore.pki.revocation import check_not_behind, files_for_receivers, find_unlisted


class Head(NamedTuple):
    """A place in the ledger: how many lines there are up to it, and the SHA-256 of the last one, which holds all before it."""

    lines: int
    digest: str

    def __str__(self) -> str:
        return f"{self.lines}:{self.digest}"


_RUNBOOK: Final = "it has forgotten what came since: pki/runbooks/after-a-restore.md"


class Check(NamedTuple):
    """What was checked, what there is to say of it, what is wrong, None where it holds, and what to do about that."""

    what: str
    detail: str
    problem: str | None
    hint: str | None = None


def verify_log(pki: PkiDirectory, noted: Head | None) -> Iterator[Check]:
    """Check, in order: the chain of lines, the *noted* place in it, the certificates, the CAs, the CRLs.

    Later steps are left out where the ledger itself does not hold. Not checked: that lines are missing at the end, unless a place
    beyond them was noted; dates; keys, which may be elsewhere.
    """
    heads: list[str] = []
    state = State()

    def chain() -> str:
        nonlocal state
        state = pki.ledger.read()
        heads.extend(pki.ledger.digests())
        return f"{len(heads)} lines; to note: {Head(len(heads), heads[-1])}" if heads else "no lines"

    check = _run("every line follows the one before it", chain)
    yield check
    if check.problem is not None:
        return
    if noted is not None:
        yield _run("the ledger goes on from the place that you noted", lambda: check_noted(heads, noted))
    yield _run("every certificate that was issued is there as it was", lambda: _check_issued(pki, state))
    yield _run("there is no certificate that was not issued", lambda: _check_strangers(pki, state))
    yield _run("the CAs are those of the ledger", lambda: _check_authorities(pki, state))
    yield _run("the CRLs are the last ones, and list every revocation", lambda: _check_crls(pki, state))


def _run(what: str, step: Callable[[], str]) -> Check:
    try:
        return Check(what, step(), None)
    except SecurecoreError as error:
        return Check(what, "", error.message, error.hint)


def check_noted(heads: list[str], noted: Head) -> str:
    """Return how many lines there are since a place was noted, in words; raises BrokenError when *heads* do not go on from it."""
    if not 1 <= noted.lines <= len(heads):
        words = f"it has {len(heads)} lines, and {noted.lines} were noted: lines are missing at its end"
        raise BrokenError(words, hint=_RUNBOOK)
    if heads[noted.lines - 1] != noted.digest:
        words = f"line {noted.lines} is not the one that was noted: another history was put in its place"
        raise BrokenError(words, hint=_RUNBOOK)
    return f"{len(heads) - noted.lines} lines since"


def _check_issued(pki: PkiDirectory, state: State) -> str:
    for one in state.issued.values():
        path = pki.path / "issued" / f"{one.serial:x}.pem"
        (certificate,) = load_pem_certificates(read_public(path, 2 * MAX_CERTIFICATE_BYTES), 1, what=str(path))
        if fingerprint(certificate) != one.fingerprint:
            raise BrokenError(f"{path}: not the certificate that the ledger has under this serial number")
    return f"{len(state.issued)} certificates"


def _check_strangers(pki: PkiDirectory, state: State) -> str:
    known = {f"{serial:x}.pem" for serial in state.issued}
    strangers = sorted(path.name for path in (pki.path / "issued").iterdir() if path.name not in known)
    if strangers:
        others = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
        words = "a run that was killed has left it before anybody had it, or somebody put it there; look at it and remove it"
        hint = "after a restore `securecore pki learn` records it: pki/runbooks/after-a-restore.md"
        raise BrokenError(f"issued/{strangers[0]}{others} is not in the ledger: {words}", hint=hint)
    return ""


def _check_authorities(pki: PkiDirectory, state: State) -> str:
    for name in pki.authorities(state):
        certificate = pki.certificate(name)
        one = state.issued.get(certificate.serial_number)
        if one is None or one.fingerprint != fingerprint(certificate) or one.profile != name.partition(" ")[0]:
            raise BrokenError(f"{pki.folder(name) / 'cert.pem'}: not a {name} that this ledger has issued")
    return ""


def _check_crls(pki: PkiDirectory, state: State) -> str:
    check_not_behind(pki)
    lists = RevocationLists.parse(read_public(pki.crl_path, MAX_CRL_BYTES), pki.anchors())
    for name in pki.authorities(state):
        problem = find_unlisted(pki, state, name)
        if problem is not None:
            raise BrokenError(f"{pki.folder(name) / 'crl.pem'}: {problem}")
    for path, together in files_for_receivers(pki).items():
        # A PKI that an older version has made has no ca.pem before the first rotation.
        if path.exists() and read_public(path, MAX_CRL_BYTES) != together:
            raise BrokenError(f"{path}: not what is beside it: `securecore pki crl` puts it right, receivers may have a wrong one")
    return f"{lists.count} CRLs"


def parse_head(text: str) -> Head:
    """Return the place that Head's words name; raises ValueError."""
    lines, _, digest = text.strip().partition(":")
    if not (lines.isascii() and lines.isdecimal() and len(lines) < 19 and digest.isalnum()) or len(digest) != 64:
        raise ValueError("not a place in a ledger")
    int(digest, 16)
    return Head(int(lines), digest.lower())

"""What an enroller does: gives out what is public, and certifies hosts' keys, for a token or for the certificate before.

It needs the PKI directory and the hosts CA's key in it; the other keys may be elsewhere. A token is used up by the line of the
ledger that records its certificate, so whatever interrupts it there is never a second one; and the same key is given the same
certificate again while the token's time lasts, so that an answer that got lost costs nothing.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from securecore.certs.chain import key_fingerprint
from securecore.certs.judge import Judgement, Purpose, Reason, Refusal, judge
from securecore.certs.profiles import HOST, HOSTS_CA
from securecore.errors import BrokenError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.enrolment import Answer, Denied, Request, encode_answer
from securecore.pki.keys import AskPassphrase
from securecore.pki.known_keys import find_key_problem
from securecore.pki.ledger import Fields, Issued, State, Token
from securecore.pki.limits import ANSWER_DEADLINE_S, RENEWALS_PER_DAY
from securecore.pki.minting import Authority
from securecore.pki.noting import find_lost
from securecore.pki.publication import Publication
from securecore.pki.recording import Subject, mint_judged, record
from securecore.pki.reply import encode_reply
from securecore.pki.revocation import Remembered, SignedCrl, sign_crls
from securecore.pki.signing import issued_certificate
from securecore.pki.signing_request import MAX_REQUEST_BYTES, requested_key_of_der
from securecore.pki.tokens import is_mac, stolen_token_answer

_MAX_HOST: Final = 253
"""Characters of a name that are repeated: RFC 1035 allows no more."""

AFTER_A_RESTORE: Final = "what it has forgotten may have been used or revoked: pki/runbooks/after-a-restore.md"

_RESCUE: Final = "a new token: `securecore pki token HOST` where the PKI is, then `securecore enroll` on the host"


class Done(NamedTuple):
    """An answer, and what was issued, in words for the log; empty where nothing was."""

    answer: Answer
    issued: str = ""
    encoded: bytes = b""
    """Its line, where it has been written already."""

    @property
    def line(self) -> bytes:
        """The line that says it."""
        return self.encoded or encode_answer(self.answer)


class Enroller:
    """Answers requests, for several threads; *clock* returns the moment, aware."""

    def __init__(
        self, pki: PkiDirectory, ask_passphrase: AskPassphrase, clock: Callable[[], datetime], note: Path | None = None
    ) -> None:
        """Unlock the hosts CA; raises as PkiDirectory.authority does, and BrokenError when find_lost finds something."""
        self._pki, self._clock, self._note = pki, clock, note
        self._ask = Remembered(ask_passphrase)
        self._guard = threading.Lock()
        self._publication = Publication(pki)
        self._authority = pki.authority(HOSTS_CA.name, self._ask)
        self._lost = find_lost(pki, note)
        self._check_not_lost()

    def find_lost(self) -> str | None:
        """Return how the PKI is an older copy, in which used tokens are open again; None when it is not.

        Until it is found not to be, nobody is certified and no CRL signed. Notes how far the ledger has come; raises as
        noting.find_lost does for all but a broken ledger.
        """
        try:
            self._lost = find_lost(self._pki, self._note)
        except BrokenError as error:
            return error.message  # It is found at each request, too, and no longer than it is so.
        return self._lost

    def answer(self, request: Request, peer_der: bytes | None, server_der: bytes) -> Done:
        """Answer a request of who showed a certificate, or none, to the server with a certificate; both leaves, as DER.

        Raises Denied when the answer is no; any other SecurecoreError when it can't be given, and is nobody's business.
        """
        if request.op in ("roots", "lists"):
            answer, line = self._publication.find(request.op)
            return Done(answer, encoded=line)
        self._check_not_lost()
        return self._enroll(request, peer_der, server_der) if request.op == "enroll" else self._renew(request, peer_der)

    def sign_crls(self) -> tuple[SignedCrl, ...]:
        """Sign the CRLs that are due, of the CAs whose key is here; raises as revocation.sign_crls does, within the deadline.

        BrokenError, too, when find_lost has found something: receivers would take the list, and let in who was revoked since.
        """
        self._check_not_lost()
        return sign_crls(self._pki, self._ask, self._clock(), lock_timeout_s=ANSWER_DEADLINE_S)

    def _check_not_lost(self) -> None:
        if self._lost is not None:
            raise BrokenError(self._lost, hint=AFTER_A_RESTORE)

    def _enroll(self, request: Request, peer_der: bytes | None, server_der: bytes) -> Done:
        # Before the lock: who has no token must not keep others waiting.
        name = HostName(self._check_mac(self._pki.ledger.follow(), request, server_der).name)
        with _told_of(name):
            key, authority = _requested_key(request), self._find_authority()
            with self._state() as (now, state):
                token = self._check_mac(state, request, server_der)
                if token.used_for is not None:
                    return self._repeat(state, token, key, peer_der, now)
                _check_open(token, request, now)
                _check_key(state, key, name, now)
                return self._issue(state, name, key, authority, {"token": token.id}, now)

    def _renew(self, request: Request, peer_der: bytes | None) -> Done:
        if peer_der is None:
            raise Denied("no-certificate", "a renewal is asked for with the certificate that is to be renewed", hint=_RESCUE)
        shown = _find_shown(self._pki.ledger.follow(), peer_der)
        with _told_of(None if shown is None else HostName(shown.names[0])):
            judged = self._judge_host(peer_der)
        with _told_of(judged.name):
            # Before the lock: whose certificate was revoked must not keep others waiting.
            _renewable(self._pki.ledger.follow(), judged)
            key, authority = _requested_key(request), self._find_authority()
            with self._state() as (now, state):
                one = _renewable(state, judged)
                _check_key(state, key, judged.name, now)
                _check_number(state, judged.name, now)
                return self._issue(state, judged.name, key, authority, {"renews": f"{one.serial:x}"}, now)

    @contextmanager
    def _state(self) -> Iterator[tuple[datetime, State]]:
        """Yield the moment and the ledger's state under the PKI's lock; raises BrokenError when an older copy was put back."""
        with self._pki.lock(ANSWER_DEADLINE_S):
            yield self._clock(), self._pki.ledger.acknowledge()

    def _judge_host(self, peer_der: bytes) -> Judgement:
        try:
            return judge(peer_der, [], self._pki.anchors(), Purpose.HOST, self._clock())
        except Refusal as refusal:
            hint = _RESCUE if refusal.reason is Reason.EXPIRED else refusal.hint
            raise Denied(refusal.reason.value, refusal.message, hint=hint) from refusal

    def _issue(
        self, state: State, name: HostName, key: ec.EllipticCurvePublicKey, authority: Authority, why: Fields, now: datetime
    ) -> Done:
        subject = Subject(HOST, (name,))
        leaf = mint_judged(self._pki, state, subject, key, authority, now, HOST.default_days)
        reply = encode_reply(self._pki, leaf, authority.certificate, subject)
        record(self._pki, leaf, subject, authority, why, now)
        ((kind, source),) = why.items()
        return Done(Answer(reply=reply.decode("ascii")), f"host={name} serial={leaf.serial_number:x} {kind}={source}")

    def _repeat(self, state: State, token: Token, key: ec.EllipticCurvePublicKey, peer_der: bytes | None, now: datetime) -> Done:
        """Return what was issued for a token to the same key once more; raises Denied for another key, and later."""
        one = state.issued[token.used_for or 0]
        if one.public_key != key_fingerprint(key) or one.revoked_at is not None or now > token.expires:
            revoked = "" if one.revoked_at is None else ", which is revoked"
            words = f"the token was used already, for certificate {one.serial:x}{revoked}"
            counts = _find_heir(state, one, peer_der) or (one if one.revoked_at is None else None)
            hint = f"if that was not this host: {stolen_token_answer(token.name)}"
            raise Denied("token-used", words, hint=hint, serial=None if counts is None else counts.serial)
        leaf, issuer = issued_certificate(self._pki, one), issued_certificate(self._pki, state.issued[one.issuer])
        reply = encode_reply(self._pki, leaf, issuer, Subject(HOST, (HostName(token.name),)))
        return Done(Answer(reply=reply.decode("ascii")))

    def _check_mac(self, state: State, request: Request, server_der: bytes) -> Token:
        """Return the token by which a request is vouched for; of one that is not there no more is said than of a wrong HMAC."""
        token = state.tokens.get(request.token)
        key = secrets.token_bytes(32) if token is None else token.key
        if not is_mac(request.mac, key, request.csr, server_der) or token is None:
            raise Denied("bad-token", "no token that is known here vouches for this request", hint=_RESCUE)
        return token

    def _find_authority(self) -> Authority:
        """Return the hosts CA that signs now: after a rotation's switch another one."""
        with self._guard:
            if self._authority.certificate != self._pki.certificate(HOSTS_CA.name):
                self._authority = self._pki.authority(HOSTS_CA.name, self._ask)
            return self._authority


def _renewable(state: State, judged: Judgement) -> Issued:
    """Return what the ledger has of a host's certificate; raises Denied when it does not have it, or has it revoked."""
    one = state.issued.get(judged.serial)
    if one is None or one.fingerprint != judged.fingerprint or one.is_discarded:
        raise Denied("unknown", "this PKI's ledger does not have the certificate", hint=_RESCUE)
    for serial, what in ((one.serial, "this host's certificate"), (one.issuer, "the certificate of the hosts CA")):
        revoked = state.issued[serial]
        if revoked.revoked_at is not None:
            raise Denied("revoked", f"{what} was revoked on {revoked.revoked_at:%Y-%m-%d} ({revoked.reason})", hint=_RESCUE)
    return one


def _find_heir(state: State, one: Issued, peer_der: bytes | None) -> Issued | None:
    """Return the certificate that the client showed, where it comes from *one* by renewals and has not been revoked; else None.

    Its dates are not looked at. That it is the client's own is for TLS to have found out.
    """
    heir = None if peer_der is None else _find_shown(state, peer_der)
    if heir is None or heir.revoked_at is not None:
        return None
    ancestor: Issued | None = heir
    # Each renews one that stood in the ledger before it, so this ends.
    while ancestor is not None and ancestor.serial != one.serial:
        ancestor = None if ancestor.renews is None else state.issued.get(ancestor.renews)
    return None if ancestor is None else heir


def _find_shown(state: State, peer_der: bytes) -> Issued | None:
    """Return what the ledger has of a certificate that was shown; None where it has nothing."""
    mark = hashlib.sha256(peer_der).hexdigest()
    return next((one for one in state.issued.values() if one.fingerprint == mark and one.names), None)


@contextmanager
def _told_of(name: HostName | None) -> Iterator[None]:
    """Have whatever is denied within the block be told of a host, so that no stranger's lines hide it."""
    try:
        yield
    except Denied as denied:
        denied.host = None if name is None else str(name)
        raise


def _requested_key(request: Request) -> ec.EllipticCurvePublicKey:
    if len(request.csr) > MAX_REQUEST_BYTES:
        raise Denied("bad-csr", f"a request of {len(request.csr)} bytes, at most {MAX_REQUEST_BYTES} are read")
    try:
        return requested_key_of_der(request.csr, what="the request")
    except PkiError as error:
        raise Denied("bad-csr", error.message) from error


def _check_open(token: Token, request: Request, now: datetime) -> None:
    state = token.state(now)
    if state != "open":
        words = f"the token expired on {token.expires:%Y-%m-%d %H:%M:%S} UTC" if state == "expired" else "the token was recalled"
        raise Denied(f"token-{state}", words, hint=_RESCUE)
    if request.host not in (None, token.name):
        words = f"the token is for {token.name}, and this machine is {request.host[:_MAX_HOST]!a}"
        raise Denied("wrong-name", words, hint="enrol it with a token of its own, or in another identity directory")


def _check_key(state: State, key: ec.EllipticCurvePublicKey, name: HostName, now: datetime) -> None:
    problem = find_key_problem(state, key, Subject(HOST, (name,)), now)
    if problem is not None:
        raise Denied(problem.code, problem.words, hint="make a new key: `--new-key`, or another identity directory")


def _check_number(state: State, name: HostName, now: datetime) -> None:
    day = now - timedelta(days=1)
    renewals = (one for one in state.issued.values() if one.renews is not None and one.names == (str(name),))
    # Those of a clock that was ahead would count for as long as it was.
    recent = [one for one in renewals if day < one.not_before <= now]
    if len(recent) >= RENEWALS_PER_DAY:
        raise Denied("busy", f"{name} was given {len(recent)} certificates within a day", retry_after_s=3600)

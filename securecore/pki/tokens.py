"""Tokens: one lets one host enrol once, for a while.

A token is 256 random bits, written ``securecore-token-`` and 64 hexadecimal digits, so that whoever scans texts for secrets finds
it. Its holder never sends it: he shows that he has it with an HMAC over the request and the certificate of the server that he
talks to, so that another server gets nothing that the real one would take. The key of the HMAC, SHA-256 of the 32 bytes, is what
the ledger keeps; the token cannot be had from it, but who reads it can use the token, so the ledger is its owner's alone.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.ledger import Token, format_time
from securecore.pki.limits import MAX_TOKEN_TTL_S, MIN_TOKEN_TTL_S
from securecore.pki.minting import check_permitted
from securecore.units import exact_span

PREFIX: Final = "securecore-token-"
CONTEXT: Final = b"securecore/enrol/1 token\0"
"""What the HMAC begins with, so that it is good for nothing else."""

_ID_CONTEXT: Final = b"securecore/enrol/1 token id\0"
_TOKEN: Final = re.compile(rf"{PREFIX}([0-9a-f]{{64}})\Z")
_ID_BYTES: Final = 8


class Secret(NamedTuple):
    """What a token's holder has: its id, and the key of the HMAC."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        return f"Secret({self.id})"


def make_token(pki: PkiDirectory, name: HostName, ttl: timedelta, now: datetime) -> tuple[str, Token]:
    """Return a new token for a host, and what the ledger has of it; the text is nowhere else.

    Raises PkiError when *ttl* is out of bounds or the hosts CA may not sign the name; NotFoundError, StorageError, BrokenError.
    """
    if not timedelta(seconds=MIN_TOKEN_TTL_S) <= ttl <= timedelta(seconds=MAX_TOKEN_TTL_S):
        bounds = [exact_span(timedelta(seconds=seconds)) for seconds in (MIN_TOKEN_TTL_S, MAX_TOKEN_TTL_S)]
        raise PkiError(f"a token counts for {bounds[0]} to {bounds[1]}, not {exact_span(ttl)}")
    check_permitted([name], pki.certificate("hosts-ca"))
    text = PREFIX + secrets.token_hex(32)
    secret, expires = parse_token(text), now.replace(microsecond=0) + ttl
    with pki.lock():
        fields = {"id": secret.id, "key": secret.key.hex(), "name": str(name), "expires": format_time(expires)}
        pki.ledger.append(now, "token", {**fields})
    return text, Token(secret.id, secret.key, str(name), expires)


def recall_token(pki: PkiDirectory, token_id: str, now: datetime) -> Token:
    """Have a token count no more; raises NotFoundError, PkiError when it has been used, StorageError, BrokenError."""
    with pki.lock():
        token = pki.ledger.follow().tokens.get(token_id)
        if token is None:
            raise NotFoundError(f"there is no token {token_id[:100]!a}", hint="see `securecore pki token --list`")
        if token.used_for is not None:
            hint = f"if it was not the host itself: {stolen_token_answer(token.name)}"
            raise PkiError(f"token {token.id} was used for certificate {token.used_for:x}", hint=hint)
        if not token.is_recalled:
            pki.ledger.append(now, "recall", {"id": token.id})
    return token


def stolen_token_answer(name: str) -> str:
    """Return what to do when a thief has used a host's token, in words: a certificate may have been renewed since."""
    return f"`securecore pki revoke {name} --reason keyCompromise`, then a new token: `securecore pki token {name}`"


def parse_token(text: str) -> Secret:
    """Return what a token's text stands for; raises PkiError, which does not repeat it."""
    found = _TOKEN.match(text.strip())
    if found is None:
        raise PkiError("not a token", hint=f"`securecore pki token` prints one: {PREFIX} and 64 hexadecimal digits")
    secret = bytes.fromhex(found[1])
    return Secret(hashlib.sha256(_ID_CONTEXT + secret).hexdigest()[: 2 * _ID_BYTES], hashlib.sha256(secret).digest())


def make_mac(key: bytes, csr_der: bytes, server_der: bytes) -> bytes:
    """Return the HMAC-SHA-256 by which a token's holder vouches for a request towards the server with one certificate."""
    return hmac.digest(key, CONTEXT + hashlib.sha256(csr_der).digest() + hashlib.sha256(server_der).digest(), "sha256")


def is_mac(mac: bytes, key: bytes, csr_der: bytes, server_der: bytes) -> bool:
    """Whether it is that HMAC; takes as long whatever the answer."""
    return hmac.compare_digest(mac, make_mac(key, csr_der, server_der))

"""Tokens: what is printed once, what the ledger keeps, and what a token vouches for."""

import hashlib
import hmac
import json
from datetime import timedelta

import pytest

from securecore.errors import NotFoundError, PkiError
from securecore.names import HostName
from securecore.pki.directory import PkiDirectory
from securecore.pki.limits import MAX_TOKEN_TTL_S, MIN_TOKEN_TTL_S
from securecore.pki.tokens import Secret, is_mac, make_mac, make_token, parse_token, recall_token
from tests.support.certificates import HOST_NAME, NOW

HOUR = timedelta(hours=1)
NAME = HostName(HOST_NAME)


def test_the_token_itself_is_kept_nowhere(pki: PkiDirectory) -> None:
    """Of its 256 bits the PKI directory has the SHA-256, in a ledger that is its owner's alone."""
    text, made = make_token(pki, NAME, HOUR, NOW)
    secret = text.removeprefix("securecore-token-")
    files = {path: path.read_bytes() for path in pki.path.rglob("*") if path.is_file()}
    assert [path for path, data in files.items() if secret.encode() in data] == []
    line = json.loads(pki.ledger.path.read_bytes().splitlines()[-1])
    assert (line["event"], line["name"]) == ("token", HOST_NAME)
    assert line["key"] == hashlib.sha256(bytes.fromhex(secret)).hexdigest()
    assert pki.ledger.path.stat().st_mode & 0o777 == 0o600
    assert pki.ledger.read().tokens == {made.id: made}
    assert parse_token(f" {text}\n") == Secret(made.id, made.key)


def test_no_two_tokens_are_alike(pki: PkiDirectory) -> None:
    """For one host or for several."""
    made = [make_token(pki, NAME, HOUR, NOW) for _ in range(8)]
    assert len({text for text, _ in made}) == len({token.id for _, token in made}) == 8


def test_a_secret_does_not_show_itself() -> None:
    """Not in a traceback, not in a log."""
    secret = parse_token("securecore-token-" + "5a" * 32)
    assert secret.key.hex() not in repr(secret)
    assert "5a" * 8 not in repr(secret)


@pytest.mark.parametrize("text", ["", "5a" * 32, "securecore-token-5a", "securecore-token-" + "5A" * 32, "\x1b[2J" * 9])
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    """A mistyped token is a secret still."""
    with pytest.raises(PkiError, match="not a token") as caught:
        parse_token(text)
    assert caught.value.message == "not a token"


def test_a_token_lives_between_bounds(pki: PkiDirectory) -> None:
    """No token for ever, and none that is over before it is used."""
    for seconds in (MIN_TOKEN_TTL_S, MAX_TOKEN_TTL_S):
        make_token(pki, NAME, timedelta(seconds=seconds), NOW)
    for seconds in (MIN_TOKEN_TTL_S - 1, MAX_TOKEN_TTL_S + 1):
        with pytest.raises(PkiError, match="a token counts for 1m to 1w, not "):
            make_token(pki, NAME, timedelta(seconds=seconds), NOW)


def test_a_name_that_the_hosts_ca_may_not_sign_gets_no_token(pki: PkiDirectory) -> None:
    """It would be found out on the host."""
    with pytest.raises(PkiError, match="lies outside"):
        make_token(pki, HostName("web-1.elsewhere.example"), HOUR, NOW)


def test_a_recalled_token_counts_no_more(pki: PkiDirectory) -> None:
    """To recall it twice is no mistake; one that never was is not found."""
    _, made = make_token(pki, NAME, HOUR, NOW)
    for _ in range(2):
        recall_token(pki, made.id, NOW)
    assert pki.ledger.read().tokens[made.id].state(NOW) == "recalled"
    with pytest.raises(NotFoundError, match="there is no token"):
        recall_token(pki, "0" * 16, NOW)


def test_an_hmac_is_of_everything_that_it_binds() -> None:
    """RFC 2104 over the context, the request's digest and the certificate's; another key, request or certificate is another one."""
    key, csr, server = bytes(range(32)), b"request", b"certificate"
    message = b"securecore/enrol/1 token\0" + hashlib.sha256(csr).digest() + hashlib.sha256(server).digest()
    mac = make_mac(key, csr, server)
    assert mac == hmac.new(key, message, hashlib.sha256).digest()
    assert is_mac(mac, key, csr, server)
    assert not is_mac(mac, bytes(32), csr, server)
    assert not is_mac(mac, key, b"another", server)
    assert not is_mac(mac, key, csr, b"another")
    assert not is_mac(b"", key, csr, server)

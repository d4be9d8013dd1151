"""Checkpoints: C2SP signed notes that others can read, and nothing else is read as one."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.audit.checkpoint import (
    LogSigner,
    decode_base64,
    key_id,
    origin_of,
    parse_checkpoint,
    verifier_key,
    verify_checkpoint,
)
from securecore.errors import BrokenError, Bug, ConfigError
from tests.support.dumps import LOG_NAME, WEB

SIGNER = LogSigner(LOG_NAME, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
ORIGIN = origin_of(LOG_NAME, WEB)
ROOT = bytes(range(32))
NOTE = SIGNER.sign(ORIGIN, 214, ROOT)


def test_key_ids_are_those_of_other_implementations() -> None:
    """Key ids agree with the published keys of Go's checksum database and of the example in Go's note package."""
    for text in (
        "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ):
        name, _, encoded = text.split("+", 2)
        assert verifier_key(name, base64.b64decode(encoded)[1:]) == text


def test_a_note_of_another_implementation_verifies() -> None:
    """The example note of Go's package has the key id that we work out, before a signature over its text as we cut it."""
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = base64.b64decode("x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=")
    key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    assert line[:4] == key_id("PeterNeumann", key)
    Ed25519PublicKey.from_public_bytes(key).verify(line[4:], text)


def test_form_of_a_checkpoint() -> None:
    """Origin, size, root, a blank line, and one signature under the origin's name."""
    lines = NOTE.decode().split("\n")
    assert lines[:4] == [ORIGIN, "214", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", ""]
    assert lines[4].startswith(f"— {ORIGIN} ")
    assert lines[5:] == [""]
    checkpoint = verify_checkpoint(NOTE, ORIGIN, SIGNER.public_key)
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (ORIGIN, 214, ROOT)


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    """No byte of a checkpoint can be another one."""
    at = data.draw(st.integers(0, len(NOTE) - 1))
    changed = bytearray(NOTE)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BrokenError):
        verify_checkpoint(bytes(changed), ORIGIN, SIGNER.public_key)


def test_truncated_at_every_offset() -> None:
    """No beginning of a checkpoint is one."""
    for length in range(len(NOTE)):
        with pytest.raises(BrokenError):
            verify_checkpoint(NOTE[:length], ORIGIN, SIGNER.public_key)


def test_another_log_and_another_key_are_refused() -> None:
    """A checkpoint of another host's log, or signed with another key, is not this log's."""
    with pytest.raises(BrokenError, match="is of log"):
        verify_checkpoint(NOTE, origin_of(LOG_NAME, type(WEB)("db-2.hosts.test.example")), SIGNER.public_key)
    with pytest.raises(BrokenError, match="not signed by the log's key"):
        verify_checkpoint(NOTE, ORIGIN, LogSigner(LOG_NAME, Ed25519PrivateKey.generate()).public_key)


def other_line(name: str = "witness.example", size: int = 64) -> bytes:
    return f"— {name} {base64.b64encode(bytes(4 + size)).decode()}\n".encode()


def test_other_signatures_are_passed_over() -> None:
    """Cosignatures by unknown keys, sixteen at least and of any length, before or behind ours, change nothing."""
    body, line = NOTE.split(b"\n\n")
    others = b"".join(other_line(f"witness{index}.example") for index in range(16))
    for note in (NOTE + others, body + b"\n\n" + others + line, NOTE + other_line(size=4900), NOTE + other_line(ORIGIN)):
        assert verify_checkpoint(note, ORIGIN, SIGNER.public_key).size == 214
    with pytest.raises(BrokenError, match="not signed by the log's key"):
        verify_checkpoint(body + b"\n\n" + others, ORIGIN, SIGNER.public_key)


def test_a_wrong_signature_beside_a_right_one_is_refused() -> None:
    """When a line claims to be our key's and does not verify, the whole note is refused."""
    forged = f"— {ORIGIN} {base64.b64encode(key_id(ORIGIN, SIGNER.public_key) + bytes(64)).decode()}\n".encode()
    with pytest.raises(BrokenError, match="wrong signature"):
        verify_checkpoint(NOTE + forged, ORIGIN, SIGNER.public_key)


def test_extension_lines_are_signed_and_not_interpreted() -> None:
    """More lines behind the root are let through when they are signed, and are not part of it."""
    text = f"{ORIGIN}\n1\n{base64.b64encode(ROOT).decode()}\nextension\n".encode()
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signature = base64.b64encode(key_id(ORIGIN, SIGNER.public_key) + key.sign(text)).decode()
    note = text + f"\n— {ORIGIN} {signature}\n".encode()
    assert verify_checkpoint(note, ORIGIN, SIGNER.public_key).text == text


@pytest.mark.parametrize(
    "body",
    [
        "o\n1\n",
        "o\n01\nROOT\n",
        "o\n-1\nROOT\n",
        "o\n\u0661\nROOT\n",
        "o\n1\nAAAA\n",
        "o\n1\nROOT=\n",
        "\n1\nROOT\n",
        "o\n1\nROOT\n\nx\n",
        "o\t\n1\nROOT\n",
        "o\r\n1\nROOT\n",
        "o\n99999999999999999999\nROOT\n",
    ],
)
def test_malformed_bodies_are_refused(body: str) -> None:
    """Sizes and roots have one spelling, no line is empty, no control character passes."""
    text = body.replace("ROOT", base64.b64encode(ROOT).decode())
    with pytest.raises(BrokenError):
        parse_checkpoint(text.encode() + b"\n" + other_line())


@pytest.mark.parametrize(
    "tail", ["", "— a\n", "— a AAAA\n", "- a AAAAAAAAAA==\n", "— a+b AAAAAAA=\n", "— a AAAAAAB=\n", "— a AAAAAAA=", "—  AAAAAAA=\n"]
)
def test_malformed_signature_lines_are_refused(tail: str) -> None:
    """A line that is no signature line makes the note none."""
    with pytest.raises(BrokenError):
        parse_checkpoint(NOTE.split(b"\n\n")[0] + b"\n\n" + tail.encode())


def test_too_long_and_not_text() -> None:
    """A note beyond the bound and one that is not UTF-8 are refused."""
    with pytest.raises(BrokenError, match="too long"):
        parse_checkpoint(NOTE + other_line(size=limits.MAX_CHECKPOINT_BYTES))
    with pytest.raises(BrokenError, match="UTF-8"):
        parse_checkpoint(b"\xff" + NOTE)


def test_a_log_key_signs_under_its_own_name_only() -> None:
    """An origin that does not begin with the key's name is a bug."""
    with pytest.raises(Bug):
        SIGNER.sign("elsewhere/securecore/host", 1, ROOT)


def test_loading_a_log_key() -> None:
    """An Ed25519 key in PKCS#8 is loaded; another kind, an encrypted one and nonsense are refused."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert LogSigner.load(LOG_NAME, pem).public_key == SIGNER.public_key
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for bad in (other, b"", b"nonsense"):
        with pytest.raises(ConfigError, match="log key"):
            LogSigner.load(LOG_NAME, bad)


def test_base64_has_one_spelling() -> None:
    """Stray bits, missing padding, line breaks and other alphabets are not base64 here."""
    assert decode_base64("AAECAw==") == b"\x00\x01\x02\x03"
    for text in ("AAECAx==", "AAECAw=", "AAECAw", "AAEC\nAw==", "-_8=", "ü"):
        assert decode_base64(text) is None

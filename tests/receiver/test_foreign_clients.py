"""TLS clients of other makers at a real receiver: what docs/wire.md says is all that they need, and nothing else lets them in."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import limits
from securecore.certs.profiles import HOST
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.names import DumpId
from securecore.receiver.session import quoted
from securecore.sender import evidence
from securecore.sender.credentials import read_credentials
from securecore.store.layout import open_store
from securecore.wire.messages import Accept, Data, End, Open, Ready, Receipt, Refusal, Refuse, Zero
from securecore.wire.states import End as WireEnd
from tests.support.certificates import HOST_NAME, Made, make_hierarchy, mint
from tests.support.doors import Door, opened_door
from tests.support.dumps import REPORT, Signer, frames_of
from tests.support.foreign import PATIENCE_S, Client, Foreign, gnutls_cli, needs, running, s_client
from tests.support.identities import write_identity
from tests.support.receivers import new_dump_id
from tests.support.stores import stored_cores

CORE: Final = random.Random(1).randbytes(limits.PIECE_BYTES + 5) + bytes(2 * limits.PIECE_BYTES) + b"the end"
PAST: Final = datetime.now(UTC) - timedelta(days=30)
FUTURE: Final = datetime.now(UTC) + timedelta(days=30)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One receiver for the whole module: what a case does to it is what the next one finds."""
    with opened_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


class Program(NamedTuple):
    """A foreign client, and how it is told to stop at TLS 1.2."""

    command: Callable[..., list[str]]
    old: tuple[str, ...]


PROGRAMS: Final = {
    "openssl": Program(s_client, ("-tls1_2",)),
    "gnutls-cli": Program(gnutls_cli, ("--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2")),
}
EACH: Final = pytest.mark.parametrize("program", [pytest.param(name, marks=needs(name)) for name in PROGRAMS])


def client_of(door: Door, tmp_path: Path, **changes: object) -> Client:
    """Return a client with an honest host's certificate and our protocol, but for *changes*."""
    honest = Client(door.address, door.host / "ca.pem", tmp_path / "log", door.host)
    return honest._replace(**changes)  # type: ignore[arg-type]


@EACH
def test_a_foreign_client_is_greeted(program: str, door: Door, tmp_path: Path) -> None:
    """A host's certificate and our protocol are all that it takes."""
    with running(PROGRAMS[program].command(client_of(door, tmp_path)), WireEnd.SENDER) as foreign:
        greeting = foreign.hear()

    assert isinstance(greeting, Ready)
    with open_store(str(door.store)) as store:
        assert greeting.store == store.store_id


def send_dump(foreign: Foreign, signer: Signer, dump: DumpId, core: bytes) -> tuple[bytes, Receipt]:
    """Send a whole dump by hand; return its manifest and the receipt."""
    greeting = foreign.hear()
    assert isinstance(greeting, Ready)
    foreign.say(Open(dump, REPORT, len(core)))
    assert isinstance(foreign.hear(), Accept)
    for frame, _ in frames_of(core):
        foreign.say(Zero(1) if frame == ZERO_PIECE_FRAME else Data(frame))
    manifest = signer.sign(signer.manifest(dump, greeting.store, core))
    foreign.say(End(manifest))
    receipt = foreign.hear()
    assert isinstance(receipt, Receipt)
    return manifest, receipt


@EACH
def test_a_dump_that_a_foreign_client_sends_is_stored_and_proved(program: str, tmp_path: Path) -> None:
    """OPEN, DATA and END through another TLS library's pipes: the receipt proves the entry, the store has the core."""
    with opened_door(tmp_path) as door:
        made = mint(HOST, issuer=door.hierarchy.hosts)
        identity = write_identity(tmp_path / "by-hand", made, door.hierarchy.root.pem)
        client, dump = client_of(door, tmp_path, identity=identity), new_dump_id()
        with running(PROGRAMS[program].command(client), WireEnd.SENDER) as foreign:
            manifest, receipt = send_dump(foreign, Signer(made), dump, CORE)
        facts = evidence.check_receipt(read_credentials(str(identity)), receipt, door.address, dump, manifest, time.time())

    assert (facts["host"], facts["index"]) == (HOST_NAME, 1)
    assert stored_cores(tmp_path / "store") == {str(dump): CORE}


@needs("openssl")
@pytest.mark.parametrize("letter", ["k", "K"])
def test_keys_may_change_in_the_middle(letter: str, tmp_path: Path) -> None:
    """A KeyUpdate (RFC 8446 section 4.6.3), asked for or not, is TLS's own affair: the session goes on."""
    with opened_door(tmp_path) as door:
        made = mint(HOST, issuer=door.hierarchy.hosts)
        identity = write_identity(tmp_path / "by-hand", made, door.hierarchy.root.pem)
        command = s_client(client_of(door, tmp_path, identity=identity), "-brief")
        command = [part for part in command if part not in ("-quiet", "-nocommands")]
        with running(command, WireEnd.SENDER, subprocess.PIPE) as foreign:
            assert isinstance(foreign.hear(), Ready)
            foreign.say_bytes(letter.encode() + b"\n")
            # What it reads together with the letter it takes for a part of the command, and throws away.
            foreign.await_words(b"KEYUPDATE")
            foreign.say(Open(new_dump_id(), REPORT, None))
            answer = foreign.hear()

    assert isinstance(answer, Accept)


# Who is not let in.


class Refused(NamedTuple):
    """What is wrong with a client, and what the receiver's log says of it."""

    change: Callable[[Door, Path], dict[str, object]]
    logged: str
    is_old: bool = False


def showing(make: Callable[[Door], Made]) -> Callable[[Door, Path], dict[str, object]]:
    """Return the change to a client that makes it show another certificate."""
    return lambda door, directory: {"identity": write_identity(directory / "other", make(door), door.hierarchy.root.pem)}


REFUSED: Final = {
    "no ALPN": Refused(lambda *_: {"alpn": None}, "the other end does not speak securecore/1"),
    "another ALPN": Refused(lambda *_: {"alpn": "http/1.1"}, "the other end does not speak securecore/1"),
    "TLS 1.2": Refused(lambda *_: {}, "client does not speak TLS 1.3", is_old=True),
    "no certificate": Refused(lambda *_: {"identity": None}, "client sent no certificate"),
    "another fleet's certificate": Refused(
        showing(lambda _: mint(HOST, issuer=make_hierarchy(suffix=" of others").hosts)),
        "client certificate refused by TLS: unable to get local issuer certificate",
    ),
    "a same-name impostor's": Refused(
        showing(lambda _: mint(HOST, issuer=make_hierarchy().hosts)),
        "client certificate refused by TLS: unable to get local issuer certificate",
    ),
}


@EACH
@pytest.mark.parametrize("case", REFUSED)
def test_a_foreign_client_that_is_not_a_host_hears_nothing(
    case: str, program: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a byte of ours; one line in the log with the reason; the program itself sees that it failed."""
    change, logged, is_old = REFUSED[case]
    options = PROGRAMS[program].old if is_old else ()
    client = client_of(door, tmp_path, **change(door, tmp_path))
    with running(PROGRAMS[program].command(client, *options), WireEnd.SENDER) as foreign:
        heard = foreign.hear_out()
        code = foreign.popen.wait(PATIENCE_S)

    assert (heard, code) == (b"", 1)
    assert door.lines(caplog) == [f"failed host=- peer=127.0.0.1 error='{logged}'"]
    door.check_untouched()


JUDGED: Final = {
    "no extended key usage": (showing(lambda door: mint(HOST, issuer=door.hierarchy.hosts, omit=["extended_key_usage"])), 104),
    "a wildcard": (showing(lambda door: mint(HOST, issuer=door.hierarchy.hosts, dns=["*.hosts.test.example"])), 105),
    "revoked": (showing(lambda door: door.revoked), 103),
    "expired": (
        showing(lambda door: mint(HOST, issuer=door.hierarchy.hosts, not_before=PAST, not_after=PAST + timedelta(days=1))),
        102,
    ),
    "not yet valid": (showing(lambda door: mint(HOST, issuer=door.hierarchy.hosts, not_before=FUTURE)), 200),
}


@EACH
@pytest.mark.parametrize("case", JUDGED)
def test_a_foreign_client_reads_why_it_was_refused(
    case: str, program: str, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whom the judge refuses hears one REFUSE with the code of docs/wire.md, and the words that the log has."""
    change, code = JUDGED[case]
    with running(PROGRAMS[program].command(client_of(door, tmp_path, **change(door, tmp_path))), WireEnd.SENDER) as foreign:
        refusal = foreign.hear()

    assert isinstance(refusal, Refuse)
    assert refusal.code == Refusal(code)
    (line,) = door.lines(caplog)
    assert line.endswith(f"peer=127.0.0.1 error={quoted(refusal.words)}")
    door.check_untouched()


@needs("gnutls-cli")
def test_a_session_is_not_resumed(door: Door, tmp_path: Path) -> None:
    """GnuTLS comes back with what it was given the first time, which is nothing: both handshakes show the certificate."""
    command = gnutls_cli(client_of(door, tmp_path), "--resume")
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)

    said = (tmp_path / "log").read_text()
    assert "trying to resume" in said
    assert said.count("Successfully sent 2 certificate(s)") == 2
    assert "This is a resumed session" not in said


@needs("openssl")
def test_there_is_nothing_to_send_early_data_with(door: Door, tmp_path: Path) -> None:
    """Early data needs a session to resume (RFC 8446 section 2.3), and OpenSSL is given none to keep."""
    with running(s_client(client_of(door, tmp_path), "-sess_out", str(tmp_path / "session")), WireEnd.SENDER) as foreign:
        assert isinstance(foreign.hear(), Ready)

    assert not (tmp_path / "session").exists()


@needs("openssl")
def test_nobody_renegotiates(door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TLS 1.3 has no renegotiation: OpenSSL's own client gives up when it is told to, and the receiver sees it go."""
    command = [part for part in s_client(client_of(door, tmp_path), "-brief") if part not in ("-quiet", "-nocommands")]
    with running(command, WireEnd.SENDER) as foreign:
        assert isinstance(foreign.hear(), Ready)
        foreign.say_bytes(b"R\n")
        heard, code = foreign.hear_out(), foreign.popen.wait(PATIENCE_S)

    assert (heard, code) == (b"", 1)
    assert door.lines(caplog) == []
    door.check_untouched()

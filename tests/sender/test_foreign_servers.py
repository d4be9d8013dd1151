"""OpenSSL's own server in the receiver's place: our sender speaks with it as docs/wire.md says, and trusts it no further."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore import limits, tls
from securecore.certs import jws
from securecore.certs.profiles import HOST, RECEIVER
from securecore.dump.frames import ZERO_PIECE_FRAME
from securecore.dump.manifest import MANIFEST_TYP, parse_manifest
from securecore.errors import PeerError, RefusedError, SecurecoreError, UntrustedError
from securecore.merkle import EMPTY_ROOT, leaf_hash, root_of
from securecore.sender.parcel import Outcome, Papers
from securecore.sender.spool import Spool
from securecore.wire.messages import Accept, Data, End, Open, Ready, Receipt, Refusal, Refuse, Zero
from securecore.wire.states import End as WireEnd
from tests.support.certificates import HOST_NAME, Hierarchy, Made, make_hierarchy, mint
from tests.support.foreign import Foreign, listening_at, needs, running, s_server
from tests.support.identities import write_identity
from tests.support.receivers import new_dump_id, papers_of, send_bytes
from tests.support.wire import STORE

pytestmark = needs("openssl")

CORE: Final = b"a secret of the crashed process" * 50_000 + bytes(2 * limits.PIECE_BYTES)


@pytest.fixture
def papers(hierarchy: Hierarchy, tmp_path: Path) -> Papers:
    """What an honest host shows."""
    return papers_of(write_identity(tmp_path / "host", mint(HOST, issuer=hierarchy.hosts), hierarchy.root.pem))


class Sending:
    """A real transfer in a thread, to a foreign server that the test plays."""

    def __init__(self, foreign: Foreign, papers: Papers, spool: Spool) -> None:
        self.address = listening_at(foreign.popen.pid)
        self.dump = new_dump_id()
        self._arguments = (papers, spool)
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        papers, spool = self._arguments
        self._outcome = send_bytes(CORE, papers, [self.address], spool=spool, dump=self.dump)

    def outcome(self) -> Outcome:
        """Wait for its end."""
        self._thread.join()
        assert self._outcome is not None
        return self._outcome


@contextmanager
def serving(made: Made, hierarchy: Hierarchy, directory: Path, *options: str, **changes: str | None) -> Iterator[Foreign]:
    """Run OpenSSL's server with a certificate while the block runs."""
    command = s_server(
        directory / "host" / "ca.pem", write_identity(directory / "server", made, hierarchy.root.pem), *options, **changes
    )
    with running(command, WireEnd.RECEIVER) as foreign:
        yield foreign


def receiver(hierarchy: Hierarchy) -> Made:
    """Return a perfect receiver's certificate for the address that the tests dial."""
    return mint(RECEIVER, issuer=hierarchy.receivers, ips=["127.0.0.1"])


def hear_dump(foreign: Foreign) -> tuple[Open, list[bytes], bytes]:
    """Play a receiver until END; return the opening, the frames and the manifest."""
    foreign.say(Ready(STORE, limits.MAX_FRAMES))
    opening = foreign.hear()
    assert isinstance(opening, Open)
    foreign.say(Accept(0, EMPTY_ROOT))
    frames: list[bytes] = []
    while not isinstance(message := foreign.hear(), End):
        assert isinstance(message, (Data, Zero))
        frames += [message.frame] if isinstance(message, Data) else [ZERO_PIECE_FRAME] * message.pieces
    return opening, frames, message.manifest


def test_a_foreign_receiver_gets_a_whole_dump_and_no_custody(
    hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path
) -> None:
    """OPEN, frames and a manifest that holds, as docs/wire.md says; but for a receipt without proof the core stays in the spool."""
    with serving(receiver(hierarchy), hierarchy, tmp_path) as foreign:
        sending = Sending(foreign, papers, spool)
        opening, frames, token = hear_dump(foreign)
        foreign.say(Receipt(b"believe me", b"I have it"))
        outcome = sending.outcome()

    manifest = parse_manifest(jws.verify(token, MANIFEST_TYP, limits.MAX_MANIFEST_BYTES).payload)
    assert (opening.dump, manifest.dump, str(manifest.host)) == (sending.dump, sending.dump, HOST_NAME)
    assert (manifest.store, manifest.size, manifest.frames) == (STORE, len(CORE), len(frames))
    assert manifest.root == root_of(leaf_hash(frame) for frame in frames)
    assert isinstance(outcome.failure, UntrustedError)
    assert "a receipt that proves nothing" in outcome.failure.message
    assert (outcome.receipt, outcome.spooled) == (None, True)


def test_a_foreign_receivers_refusal_is_heard(hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path) -> None:
    """REFUSE instead of READY, in another program's bytes."""
    with serving(receiver(hierarchy), hierarchy, tmp_path) as foreign:
        sending = Sending(foreign, papers, spool)
        foreign.say(Refuse(Refusal.NOT_ALLOWED, "not on the list\x1b[2J"))
        outcome = sending.outcome()

    assert isinstance(outcome.failure, RefusedError)
    assert outcome.failure.message == f"refused by {sending.address}: not on the list?[2J"
    assert outcome.spooled


class Refused(NamedTuple):
    """What is wrong with a foreign server, and what the sender says of it."""

    make: Callable[[Hierarchy], Made]
    error: type[SecurecoreError]
    words: str
    options: tuple[str, ...] = ()
    alpn: str | None = tls.ALPN


UNTRUSTED: Final = "is not the receiver that we trust: its certificate "
REFUSED: Final = {
    "TLS 1.2": Refused(receiver, PeerError, "does not speak securecore/1 over TLS 1.3", options=("-tls1_2",)),
    "no ALPN": Refused(receiver, PeerError, "does not speak securecore/1", alpn=None),
    "another ALPN": Refused(receiver, PeerError, "does not speak securecore/1 over TLS 1.3", alpn="h2"),
    "another fleet's": Refused(
        lambda _: receiver(make_hierarchy(suffix=" of others")), UntrustedError, UNTRUSTED + "does not lead to our root"
    ),
    "a same-name impostor's": Refused(
        lambda _: receiver(make_hierarchy()), UntrustedError, UNTRUSTED + "does not lead to our root"
    ),
    "a host's": Refused(lambda ours: mint(HOST, issuer=ours.hosts), UntrustedError, UNTRUSTED + "is not a receiver's"),
    "at another address": Refused(
        lambda ours: mint(RECEIVER, issuer=ours.receivers), UntrustedError, UNTRUSTED + "is for another address"
    ),
    "no extended key usage": Refused(
        lambda ours: mint(RECEIVER, issuer=ours.receivers, ips=["127.0.0.1"], omit=["extended_key_usage"]),
        UntrustedError,
        "its extended key usage is not serverAuth alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_foreign_server_that_is_not_our_receiver_gets_no_byte(
    case: str, hierarchy: Hierarchy, papers: Papers, spool: Spool, tmp_path: Path
) -> None:
    """OpenSSL's server hands over everything that a client says, and that is nothing."""
    make, error, words, options, alpn = REFUSED[case]
    with serving(make(hierarchy), hierarchy, tmp_path, *options, alpn=alpn) as foreign:
        sending = Sending(foreign, papers, spool)
        outcome = sending.outcome()
        heard = foreign.hear_out()

    assert heard == b""
    assert type(outcome.failure) is error
    assert outcome.failure.message.endswith(words)
    assert (outcome.receipt, outcome.spooled) == (None, True)

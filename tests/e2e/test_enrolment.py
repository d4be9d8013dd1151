"""From a token to a dump in a store, and from a revocation to a refusal, without a file that is carried."""

import signal
from pathlib import Path

import pytest

from securecore.names import HostName
from securecore.pki.enrolling import enroll, renew
from securecore.pki.fetching import fetch
from securecore.pki.issue import issue_receiver, parse_address
from securecore.pki.revocation import revoke_name
from tests.support.certificates import HOST_NAME, RECEIVER_NAME, no_passphrase
from tests.support.enrolment import Place
from tests.support.processes import receiving, send_file


@pytest.mark.slow
def test_a_host_that_enrolled_on_line_sends_until_it_is_revoked(tmp_path: Path) -> None:
    """With its first certificate, with a renewed one, with a new key; then the receiver fetches the list, and it is told why."""
    place = Place(tmp_path)
    identity, web = tmp_path / "collector", tmp_path / "web-1"
    issue_receiver(place.pki, HostName(RECEIVER_NAME), [parse_address("127.0.0.1")], identity, no_passphrase, place.now)
    (tmp_path / "core").write_bytes(b"core" * 1000)
    secret, _ = place.token()
    with place.serving() as address, receiving(identity, tmp_path / "store") as receiver:

        def send() -> tuple[int, str]:
            sent = send_file(tmp_path / "core", str(receiver.addresses[0]), web)
            return sent.returncode, sent.stderr

        enroll(address, place.root_fingerprint, secret, web, place.now)
        assert send()[0] == 0
        renew(address, web, place.now)
        assert send()[0] == 0
        renew(address, web, place.now, is_rekey=True)
        assert send()[0] == 0
        revoke_name(place.pki, HostName(HOST_NAME), "keyCompromise", no_passphrase, place.now)
        assert fetch(address, identity, place.now).is_new
        receiver.popen.send_signal(signal.SIGHUP)
        receiver.logged("reloaded identity")
        code, words = send()
        assert (code, "this host's certificate was revoked on" in words) == (13, True)

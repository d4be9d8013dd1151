"""Where a receiver listens: what a name stands for, how addresses are written, and what cannot be had."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from securecore.cli.main import run
from securecore.errors import ConfigError, UnreachableError
from securecore.names import Address
from securecore.receiver.listeners import bound_address, listen, written
from tests.support.certificates import Fleet, make_fleet
from tests.support.crash_cores import Crash
from tests.support.processes import PATIENCE_S, SECURECORE, Seclusion, receiving, secluded, send_file

NAME = "both.example"
NAMES = f"127.0.0.1 {NAME}\n::1 {NAME}\n127.0.0.1 {NAME}\n"
"""A name with an address of each family, one of them twice, as a table of hosts gets after some years."""


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_that_the_kernel_chooses_is_known(host: str) -> None:
    """Port 0 asks for any; what is bound is written as it can be dialled, and a peer in the same way."""
    (listener,) = listen(Address(f"{host}:0"))
    with listener:
        bound = bound_address(listener)
        with socket.create_connection((bound.host, bound.port)) as client:
            accepted, peer = listener.accept()
            accepted.close()
            own = written(client.getsockname())

    assert str(bound) == f"{host}:{bound.port}"
    assert bound.port > 0
    assert written(peer) == own == f"{host}:{Address(own).port}"


CANNOT_BE_HAD: dict[str, tuple[str, str, str]] = {
    "an address of another machine": (
        "192.0.2.77:4455", "cannot listen on 192.0.2.77:4455: cannot assign requested address", "name an address of this machine",
    ),
    "a name that nobody knows": (
        "no.such.name.invalid:4455", "cannot listen on no.such.name.invalid:4455: (?!unknown error)[a-z ]+",
        "name an address of this machine",
    ),
    "a name that cannot be one": (
        f"{'a' * 64}.example:4455", f"cannot listen on {'a' * 64}.example:4455: [a-z ]+", "name an address of this machine",
    ),
    "IPv4 in an IPv6 coat": (
        "[::ffff:127.0.0.1]:0", "cannot listen on \\[::ffff:127.0.0.1\\]:0: invalid argument", "name an address of this machine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT_BE_HAD)
def test_what_cannot_be_had_is_refused_in_words(case: str) -> None:
    """One line that says what and why, never an error of the resolver's codec or number."""
    text, words, hint = CANNOT_BE_HAD[case]
    with pytest.raises(ConfigError, match=f"^{words}$") as caught:
        listen(Address(text))

    assert caught.value.hint == hint


def test_a_port_in_use_is_refused_in_words(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second receiver on the same port hears so with exit code 3, and leaves no store behind."""
    (listener,) = listen(Address("127.0.0.1:0"))
    with listener:
        arguments = [
            "--listen",
            str(bound_address(listener)),
            "--store",
            str(tmp_path / "store"),
            "--identity",
            str(fleet.receiver),
        ]
        code = run(["receive", *arguments])
        line, hint = capsys.readouterr().err.splitlines()

    assert code == 3
    assert line == f"securecore: cannot listen on {arguments[1]}: address already in use"
    assert hint == "  hint: is another receiver running there?"
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_name_is_listened_on_with_all_its_addresses(fleet: Fleet, tmp_path: Path) -> None:
    """Each address has a line of its own, and a core that comes over it is logged with a peer of that family."""
    with (
        secluded(tmp_path, NAMES) as network,
        receiving(fleet.receiver, tmp_path / "store", listen=[f"{NAME}:0"], count=2, within=network.within) as process,
    ):
        for address in process.addresses:
            assert delivered(tmp_path, fleet, network, str(address)) == (0, "")
        log = process.logged(r"complete(?s:.*)complete") and process.said

    assert {address.host for address in process.addresses} == {"127.0.0.1", "::1"}
    assert sorted(re.findall(r"started .* peer=(\S+):\d+\n", log)) == ["127.0.0.1", "[::1]"]


@pytest.mark.slow
def test_every_ipv6_address_is_no_ipv4_address(fleet: Fleet, tmp_path: Path) -> None:
    """``[::]`` is what was named and no more, whatever the machine's default: a peer is never written as ::ffff:127.0.0.1."""
    with (
        secluded(tmp_path, "", "sysctl -q -w net.ipv6.bindv6only=0") as network,
        receiving(fleet.receiver, tmp_path / "store", listen=["[::]:4455"], within=network.within),
    ):
        codes = [delivered(tmp_path, fleet, network, to)[0] for to in ("[::1]:4455", "127.0.0.1:4455")]

    assert codes == [0, UnreachableError.exit_code]


@pytest.mark.slow
def test_both_families_may_have_the_same_port(fleet: Fleet, tmp_path: Path) -> None:
    """``--listen 0.0.0.0:P --listen [::]:P``: neither takes the other's, and a core arrives over both."""
    with (
        secluded(tmp_path, "") as network,
        receiving(fleet.receiver, tmp_path / "store", listen=["0.0.0.0:4455", "[::]:4455"], within=network.within) as process,
    ):
        for to in ("127.0.0.1:4455", "[::1]:4455"):
            assert delivered(tmp_path, fleet, network, to) == (0, "")

    assert [str(address) for address in process.addresses] == ["0.0.0.0:4455", "[::]:4455"]


@pytest.mark.slow
def test_one_address_of_a_name_that_cannot_be_had_means_none(fleet: Fleet, tmp_path: Path) -> None:
    """A receiver that would be deaf on one of its addresses says on which, and does not start: senders might dial just that one."""
    with secluded(tmp_path, "127.0.0.1 far.example\n192.0.2.77 far.example\n") as network:
        places = ["--listen", "far.example:4455", "--store", str(tmp_path / "store"), "--identity", str(fleet.receiver)]
        command = [*network.within, *SECURECORE, "receive", *places]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.splitlines()[0] == (
        "securecore: cannot listen on far.example:4455, which is 192.0.2.77:4455: cannot assign requested address"
    )


@pytest.mark.slow
def test_a_link_local_address_is_listened_on_and_dialled_with_its_zone(tmp_path: Path) -> None:
    """The zone says which link; the certificate names the address without one, for a zone means nothing to another machine."""
    fleet = make_fleet(tmp_path / "fleet", addresses=["fe80::7"])
    with (
        secluded(tmp_path, "", "ip addr add fe80::7/64 dev lo nodad") as network,
        receiving(fleet.receiver, tmp_path / "store", listen=["[fe80::7%lo]:4455"], within=network.within) as process,
    ):
        sent = delivered(tmp_path, fleet, network, "[fe80::7%lo]:4455")
        peer = process.logged(r"started .* peer=(\S+):\d+")[1]

    assert [str(address) for address in process.addresses] == ["[fe80::7%lo]:4455"]
    assert sent == (0, "")
    assert peer == "[fe80::7%lo]"


def delivered(tmp_path: Path, fleet: Fleet, network: Seclusion, to: str) -> tuple[int, str]:
    """Send a core within a network of its own; return exit code and standard error."""
    (tmp_path / "core").write_bytes(Crash().write())
    sent = send_file(tmp_path / "core", to, fleet.host, within=network.within)
    return sent.returncode, sent.stderr

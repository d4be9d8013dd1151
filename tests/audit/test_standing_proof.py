"""What a log proves of one dump: the newest that it says, under its checkpoint, whatever its size."""

from pathlib import Path
from typing import Final

import pytest

from securecore.audit.checkpoint import LogSigner, origin_of
from securecore.audit.log import HostLog
from securecore.audit.proof import Receipt, parse_proof, verify_receipt
from securecore.audit.standing_proof import Proofs, prove_standing
from securecore.errors import BrokenError
from tests.support.dumps import LOG_NAME, WEB, dump_id, make_log_signer, opened
from tests.support.entries import deleted, incomplete, received, received_as
from tests.support.stores import flip

ORIGIN: Final = origin_of(LOG_NAME, WEB)
OTHERS: Final = [received(number) for number in range(100, 140)]


def write(path: Path, signer: LogSigner, entries: list[bytes]) -> None:
    """Write a log with these entries."""
    with opened(path) as fd:
        log = HostLog.open(fd, ORIGIN, signer)
        log.append_all(entries)
        log.close()


def prove(path: Path, signer: LogSigner) -> Proofs:
    """Ask a log about the dump with the number 1."""
    with opened(path) as fd:
        return prove_standing(fd, ORIGIN, signer.public_key, dump_id(1))


def read(proof: bytes | None, signer: LogSigner) -> Receipt | None:
    """Return what a proof proves."""
    return verify_receipt(proof, ORIGIN, signer.public_key) if proof is not None else None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 33])
def test_any_entry_of_a_log_of_any_size_is_proved(size: int, tmp_path: Path, signer: LogSigner) -> None:
    """Under the checkpoint of all of them, with no more hashes than the size has bits."""
    for at in range(size):
        path = tmp_path / str(at)
        path.mkdir()
        write(path, signer, [*OTHERS[:at], received(1), *OTHERS[at : size - 1]])
        proofs = prove(path, signer)
        found = read(proofs.receipt, signer)
        assert found is not None
        assert (found.entry, found.leaf_index, found.checkpoint.size) == (received(1), at, size)
        assert len(parse_proof(proofs.receipt or b"").hashes) <= size.bit_length()
        assert proofs.deletion is None


@pytest.mark.parametrize(
    ("entries", "stands", "gone"),
    [
        ([], None, None),
        ([received(2), deleted(2)], None, None),
        ([received(1)], 0, None),
        ([incomplete(1, bytes(32)), received(1)], 1, None),
        ([received_as(1, bytes(32)), received_as(1, b"\1" * 32)], 1, None),
        ([received(1), received(2), deleted(1)], 0, 2),
        ([incomplete(1, bytes(32)), deleted(1)], 0, 1),
        ([received(1), deleted(1), received(1)], 2, None),
        ([received(1), deleted(1), received(1), deleted(1)], 2, 3),
        ([deleted(1)], None, 0),
    ],
)
def test_the_newest_counts(entries: list[bytes], stands: int | None, gone: int | None, tmp_path: Path, signer: LogSigner) -> None:
    """Of what says where the dump stands, and of its deletion only what is newer than that."""
    write(tmp_path, signer, [OTHERS[0], *entries, OTHERS[1]])
    proofs = prove(tmp_path, signer)
    places = [found.leaf_index - 1 if found is not None else None for found in (read(proof, signer) for proof in proofs)]
    assert places == [stands, gone]


def test_both_are_proved_under_one_checkpoint(tmp_path: Path, signer: LogSigner) -> None:
    """The one on the disk, byte for byte."""
    write(tmp_path, signer, [received(1), OTHERS[0], deleted(1)])
    checkpoints = {parse_proof(proof or b"").checkpoint for proof in prove(tmp_path, signer)}
    assert checkpoints == {(tmp_path / "checkpoint").read_bytes()}


def test_what_is_behind_the_checkpoint_is_not_proved(tmp_path: Path, signer: LogSigner) -> None:
    """It may be an append that is under way; it may be torn."""
    write(tmp_path, signer, [OTHERS[0]])
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(received(1) + b"\n" + received(1)[:20])
    assert prove(tmp_path, signer) == (None, None)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_log_that_is_not_what_was_signed_proves_nothing(at: int, tmp_path: Path, signer: LogSigner) -> None:
    """Whichever entry was changed, that of the dump too."""
    lines = [OTHERS[0], received(1), OTHERS[1]]
    write(tmp_path, signer, lines)
    flip(tmp_path / "entries.jsonl", sum(len(line) + 1 for line in lines[:at]) + len(lines[at]) - 3)
    with pytest.raises(BrokenError, match="does not begin as it was signed"):
        prove(tmp_path, signer)


def test_what_cannot_be_proved_is_said(tmp_path: Path, signer: LogSigner) -> None:
    """Another key's checkpoint, none, a log without its entries or with too few of them."""
    write(tmp_path, signer, [received(1), OTHERS[0]])
    with pytest.raises(BrokenError, match="not signed by the log's key"):
        prove(tmp_path, make_log_signer())
    entries = (tmp_path / "entries.jsonl").read_bytes()
    (tmp_path / "entries.jsonl").write_bytes(entries.splitlines(keepends=True)[0])
    with pytest.raises(BrokenError, match="log has 1 entries, its checkpoint says 2"):
        prove(tmp_path, signer)
    (tmp_path / "entries.jsonl").unlink()
    with pytest.raises(BrokenError, match=r"entries.jsonl is missing"):
        prove(tmp_path, signer)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(BrokenError, match="checkpoint is missing"):
        prove(tmp_path, signer)

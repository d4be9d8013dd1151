"""A noted place in the ledger: by whom it is moved, and what is no place."""

import threading
from pathlib import Path

import pytest

from securecore.errors import ConfigError, StorageError
from securecore.names import HostName
from securecore.pki.directory import open_pki
from securecore.pki.noting import find_lost
from securecore.pki.revocation import revoke_name, sign_crls
from tests.support.certificates import HOST_NAME, NOW, Fleet, no_passphrase


def test_a_note_is_made_and_moved(fleet: Fleet, tmp_path: Path) -> None:
    """As `pki log verify` prints it; where nothing was done since it stays the same file."""
    note = tmp_path / "note"
    assert find_lost(fleet.pki, note) is None
    digests = fleet.pki.ledger.digests()
    assert note.read_text() == f"{len(digests)}:{digests[-1]}\n"
    inode = note.stat().st_ino
    assert find_lost(fleet.pki, note) is None
    assert note.stat().st_ino == inode
    revoke_name(fleet.pki, HostName(HOST_NAME), "superseded", no_passphrase, NOW)
    assert find_lost(fleet.pki, note) is None
    assert note.read_text() == f"{len(digests) + 2}:{fleet.pki.ledger.digests()[-1]}\n"


def test_many_who_look_while_lists_are_signed_miss_nothing_and_disturb_nobody(fleet: Fleet, tmp_path: Path) -> None:
    """One of them notes; none takes what is being signed for a loss, and the note is a whole one at the end."""
    note, found, is_over = tmp_path / "note", list[object](), threading.Event()

    def look() -> None:
        while not is_over.is_set():
            try:
                found.append(find_lost(open_pki(fleet.pki.path), note))
            except Exception as error:  # noqa: BLE001
                found.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        sign_crls(fleet.pki, no_passphrase, NOW, is_forced=True)
    is_over.set()
    for thread in threads:
        thread.join()
    assert set(found) == {None}
    assert find_lost(fleet.pki, note) is None
    assert note.read_text().startswith(f"{len(fleet.pki.ledger.digests())}:")


def test_a_note_in_a_directory_that_is_not_there_is_an_error(fleet: Fleet, tmp_path: Path) -> None:
    """It is not made: a mistake in a path would note anew each time."""
    with pytest.raises(StorageError, match="No such file"):
        find_lost(fleet.pki, tmp_path / "gone" / "note")


@pytest.mark.parametrize("text", ["", "12", "12:zz", "9" * 30 + ":" + "0" * 64, "\u0663:" + "0" * 64, "x" * 5000])
def test_a_note_that_is_none_is_an_error_and_stays(text: str, own_fleet: Fleet, tmp_path: Path) -> None:
    """Whatever stands in the file, it is not written over."""
    noted = tmp_path / "noted"
    noted.write_text(text)
    with pytest.raises(ConfigError):
        find_lost(own_fleet.pki, noted)
    assert noted.read_text() == text


def test_a_note_inside_the_directory_is_refused(own_fleet: Fleet) -> None:
    """An old copy would bring its own old note."""
    with pytest.raises(ConfigError, match="would bring it along"):
        find_lost(own_fleet.pki, own_fleet.pki.path / "noted")


def test_a_note_cut_at_every_offset_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """But for its newline; and so is one with a byte behind it."""
    note = tmp_path / "note"
    find_lost(fleet.pki, note)
    whole = note.read_bytes()
    for text in (*(whole[:length] for length in range(len(whole) - 1)), whole + b"0"):
        note.write_bytes(text)
        with pytest.raises(ConfigError, match="holds no noted place"):
            find_lost(fleet.pki, note)
    note.write_bytes(whole[:-1])
    assert find_lost(fleet.pki, note) is None

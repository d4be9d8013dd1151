"""The identity as a thread reads it: the same papers, or the same reason why there are none."""

import threading
from pathlib import Path

import pytest

from securecore.errors import ConfigError
from securecore.sender import papers
from securecore.sender.papers import PapersReader
from securecore.sender.parcel import Papers
from tests.support.certificates import Fleet


def test_papers_are_those_of_the_directory(fleet: Fleet) -> None:
    """Certificate and key as they stand there, and a context that has them."""
    found = PapersReader(str(fleet.host)).finish()

    assert isinstance(found, Papers)
    assert found.credentials.certificate == (fleet.host / "cert.pem").read_bytes()
    assert found.credentials.key == (fleet.host / "key.pem").read_bytes()
    assert found.context.get_ca_certs()


def test_an_identity_that_is_not_there_is_said_and_not_raised(tmp_path: Path) -> None:
    """The core can be kept until there is one."""
    found = PapersReader(str(tmp_path / "gone")).finish()

    assert isinstance(found, ConfigError)
    assert "gone/key.pem: No such file or directory" in found.message


def test_they_are_read_while_their_reader_does_something_else(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody waits for them."""
    has_read, read = threading.Event(), papers.read_credentials

    def read_and_tell(identity: str) -> object:
        found = read(identity)
        has_read.set()
        return found

    monkeypatch.setattr(papers, "read_credentials", read_and_tell)
    reader = PapersReader(str(fleet.host))

    assert has_read.wait(60)
    assert isinstance(reader.finish(), Papers)


def test_they_are_read_where_no_thread_can_be_started(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have used up all processes."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert isinstance(PapersReader(str(fleet.host)).finish(), Papers)


def test_want_of_memory_in_the_thread_is_no_answer(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the papers tries again."""
    read, calls = papers.read_credentials, []

    def fail_once(identity: str) -> object:
        calls.append(threading.current_thread())
        if len(calls) == 1:
            raise MemoryError
        return read(identity)

    monkeypatch.setattr(papers, "read_credentials", fail_once)

    assert isinstance(PapersReader(str(fleet.host)).finish(), Papers)
    assert calls[0] is not calls[1] is threading.current_thread()

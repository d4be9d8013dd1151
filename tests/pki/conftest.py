"""Fixtures of several tests of the PKI: each has one of its own, to change as it likes."""

from pathlib import Path

import pytest

from securecore.pki.creation import create_pki
from securecore.pki.directory import PkiDirectory
from tests.support.certificates import DOMAIN, NOW, Fleet, make_fleet


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Every PKI is synced line by line."""
    return in_memory


@pytest.fixture
def pki(tmp_path: Path) -> PkiDirectory:
    """A fresh PKI, made at NOW."""
    return create_pki(tmp_path / "pki", "Test", DOMAIN, None, NOW)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet made at NOW: a receiver, web-1 and db-2, for 90 days each."""
    return make_fleet(tmp_path, now=NOW)

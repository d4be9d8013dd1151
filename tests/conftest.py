"""Fixtures that several parts' tests share; everything else is made where it is used."""

from pathlib import Path

import pytest

from tests.support.certificates import Fleet, Hierarchy, make_fleet, make_hierarchy


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A PKI with a receiver and two hosts, made by the real code; tests must not change its files."""
    return make_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def own_fleet(tmp_path: Path) -> Fleet:
    """A fleet that the test may revoke in, break and delete."""
    return make_fleet(tmp_path / "fleet")


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    """A root and its issuing CAs in memory, for minting certificates that the real code would refuse to mint."""
    return make_hierarchy()

"""The handler's settings: what setup compiled, and nothing else."""

import json
from pathlib import Path

import pytest

from securecore.errors import ConfigError
from securecore.names import Address
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.patience import Patience
from securecore.sender.settings import Settings, load_settings

GOOD = Settings((Address("collector.example.org:4455"), Address("[::1]:4455")), "/etc/securecore/identity", "/var/spool", 999, 998)


SLOW = GOOD._replace(deadlines=Patience(30, 60.5, 0.5))
CHOOSY = GOOD._replace(
    admission=Admission(
        "ignore", 1 << 40, (Rule(EXCLUDE, "/usr/*", "33", signal=6), Rule(EXCLUDE, unit="*.scope")), StormLimit(1, 2)
    )
)


def write(path: Path, data: bytes, mode: int = 0o644) -> str:
    """Write a settings file of a mode."""
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_settings_come_back_as_they_were_compiled(tmp_path: Path) -> None:
    """encode and load are each other's inverse."""
    for settings in (GOOD, SLOW, CHOOSY):
        assert load_settings(write(tmp_path / "s", settings.encode())) == settings


def test_settings_of_a_version_without_deadlines_hold(tmp_path: Path) -> None:
    """An upgrade must not make the handler lose crashes until somebody has run setup again."""
    assert load_settings(write(tmp_path / "s", changed(deadlines=None))) == GOOD


def test_settings_of_an_earlier_setup_keep_the_tail(tmp_path: Path) -> None:
    """They do not say what the spool has; a crash between an upgrade and the next set-up must not be lost for that."""
    assert load_settings(write(tmp_path / "s", changed(spool_mode=None))) == GOOD
    whole = GOOD._replace(spool_mode="whole")
    assert load_settings(write(tmp_path / "s", whole.encode())) == whole


def test_an_admission_that_says_nothing_of_its_own_is_the_versions(tmp_path: Path) -> None:
    """It is not compiled: settings of an earlier set-up have the limits of the version that reads them."""
    assert b"admission" not in GOOD.encode()
    assert load_settings(write(tmp_path / "s", GOOD.encode())).admission == Admission()


def changed(**fields: object) -> bytes:
    """Return good settings with fields replaced; None removes one."""
    document = json.loads(GOOD.encode()) | fields
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


BAD = {
    "empty": b"",
    "not JSON": b"{",
    "not an object": b"[]",
    "null": b"null",
    "another version": changed(version=2),
    "no version": changed(version=None),
    "an unknown key": changed(surprise=1),
    "no receivers": changed(receivers=[]),
    "receivers missing": changed(receivers=None),
    "a receiver that is none": changed(receivers=["collector"]),
    "a relative path": changed(spool="spool"),
    "a path that is a number": changed(identity=7),
    "a uid that is text": changed(uid="0"),
    "a uid that is true": changed(uid=True),
    "a uid that setresuid takes for none": changed(uid=-1),
    "the same, unsigned": changed(uid=(1 << 32) - 1),
    "a gid of 33 bits": changed(gid=1 << 32),
    "receivers that are the keys of an object": changed(receivers={"collector.example.org:4455": 1}),
    "a path with a NUL": changed(spool="/var\0spool"),
    "a path with a lone surrogate": changed(identity="/etc/\ud800"),
    "deadlines that are a number": changed(deadlines=5),
    "deadlines that are a list": changed(deadlines=[5, 5, 5]),
    "deadlines that lack one": changed(deadlines={"connect_s": 5, "progress_s": 5}),
    "deadlines with one more": changed(deadlines={"connect_s": 5, "progress_s": 5, "hold_s": 5, "x": 5}),
    "a deadline of nothing": changed(deadlines={"connect_s": 5, "progress_s": 0, "hold_s": 5}),
    "a deadline that never comes": changed(deadlines={"connect_s": float("inf"), "progress_s": 5, "hold_s": 5}),
    "a deadline that is no number": changed(deadlines={"connect_s": float("nan"), "progress_s": 5, "hold_s": 5}),
    "a deadline that is true": changed(deadlines={"connect_s": 5, "progress_s": 5, "hold_s": True}),
    "an admission that is a number": changed(admission=7),
    "an admission that lacks something": changed(admission={}),
    "an admission with one more": changed(admission=Admission().encode() | {"x": 1}),
    "rules that are none": changed(admission=Admission().encode() | {"rules": [7]}),
    "a spool mode that is none": changed(spool_mode="half"),
    "a spool mode that is a number": changed(spool_mode=1),
    "deep nesting": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    """Half-understood settings would send cores to the wrong place."""
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path / "s", BAD[name]))

    assert "setup sender" in (caught.value.hint or "")


def test_settings_cut_at_every_offset_are_refused(tmp_path: Path) -> None:
    """But for the newline at the end, no beginning of settings is settings, and no more follows them."""
    whole = GOOD.encode()
    for other in [*(whole[:cut] for cut in range(len(whole) - 1)), whole + b"x", whole + whole]:
        with pytest.raises(ConfigError):
            load_settings(write(tmp_path / "s", other))
    assert load_settings(write(tmp_path / "s", whole[:-1])) == GOOD


def test_settings_that_others_can_write_are_refused(tmp_path: Path) -> None:
    """They say as which user root's process goes on, and whom it trusts."""
    with pytest.raises(ConfigError, match="only root can write"):
        load_settings(write(tmp_path / "s", GOOD.encode(), 0o666))


def test_missing_settings_are_told_as_such(tmp_path: Path) -> None:
    """No file: what to run stands in the hint."""
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(str(tmp_path / "absent"))

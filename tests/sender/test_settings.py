"""The handler's settings: what setup compiled, and nothing else."""

import json
from pathlib import Path
from typing import Final

import pytest

from securecore.errors import ConfigError
from securecore.names import Address
from securecore.sender.admission import EXCLUDE, Admission, Rule, StormLimit
from securecore.sender.confinement import IDLE, Confinement
from securecore.sender.floor import Floor
from securecore.sender.patience import Patience
from securecore.sender.settings import LocalSettings, Settings, load_local_settings, load_settings
from securecore.sender.spool_limits import SpoolLimits

GOOD = Settings((Address("collector.example.org:4455"), Address("[::1]:4455")), "/etc/securecore/identity", "/var/spool", 999, 998)


SLOW = GOOD._replace(deadlines=Patience(30, 60.5, 0.5))
CHOOSY = GOOD._replace(
    admission=Admission(
        "ignore", 1 << 40, (Rule(EXCLUDE, "/usr/*", "33", signal=6), Rule(EXCLUDE, unit="*.scope")), StormLimit(1, 2)
    )
)


CONFINED = GOOD._replace(confinement=Confinement(19, IDLE, 1 << 30, 0.5, 0.25))
BOUNDED = GOOD._replace(spool_limits=SpoolLimits(1 << 40, 7, 0.125, 1))


def write(path: Path, data: bytes, mode: int = 0o644) -> str:
    """Write a settings file of a mode."""
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_settings_come_back_as_they_were_compiled(tmp_path: Path) -> None:
    """encode and load are each other's inverse."""
    for settings in (GOOD, SLOW, CHOOSY, CONFINED, BOUNDED):
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


def test_what_the_handler_may_take_is_the_versions_where_nothing_is_said(tmp_path: Path) -> None:
    """As with the admission: an earlier set-up's handler is held to what the version that reads it holds it to."""
    assert b"confinement" not in GOOD.encode()
    assert load_settings(write(tmp_path / "s", GOOD.encode())).confinement == Confinement()


def test_limits_of_the_spool_that_say_nothing_of_their_own_are_the_versions(tmp_path: Path) -> None:
    """The floor of the version that reads them holds, as it does for settings of an earlier set-up."""
    assert b"spool_limits" not in GOOD.encode()
    assert load_settings(write(tmp_path / "s", GOOD.encode())).spool_limits == SpoolLimits()
    assert SpoolLimits().floor_share > 0


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
    "a confinement that is a list": changed(confinement=[5]),
    "a confinement that lacks nothing but is of another kind": changed(confinement={"nice": True}),
    "a piece that has no time": changed(confinement={"source_deadline_s": 0}),
    "a confinement with one more": changed(confinement={"x": 1}),
    "a priority above an ordinary process's": changed(confinement={"nice": -1}),
    "a disk priority that is none": changed(confinement={"io_priority": "real-time"}),
    "memory in which nothing works": changed(confinement={"memory_bytes": 1 << 20}),
    "memory that is a text": changed(confinement={"memory_bytes": "1GiB"}),
    "a handler that lives for ever": changed(confinement={"deadline_s": float("inf")}),
    "a handler that does not live": changed(confinement={"deadline_s": 0}),
    "rules that are none": changed(admission=Admission().encode() | {"rules": [7]}),
    "spool limits that are a number": changed(spool_limits=7),
    "spool limits with one more": changed(spool_limits=SpoolLimits()._asdict() | {"x": 1}),
    "a quota below nothing": changed(spool_limits=SpoolLimits(max_bytes=-1)._asdict()),
    "a quota of true dumps": changed(spool_limits=SpoolLimits(max_dumps=True)._asdict()),
    "a floor of nothing known": changed(spool_limits=SpoolLimits()._asdict() | {"floor_bytes": None}),
    "a floor of all": changed(spool_limits=SpoolLimits(floor_share=1.0)._asdict()),
    "a floor that is no number": changed(spool_limits=SpoolLimits(floor_share=float("nan"))._asdict()),
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


LOCAL: Final = LocalSettings(CHOOSY.admission, Floor(0.125, 1 << 30))


def test_local_settings_come_back_as_they_were_compiled(tmp_path: Path) -> None:
    """What says nothing of its own is the version's, and is not compiled."""
    for settings in (LOCAL, LocalSettings(), LocalSettings(CHOOSY.admission), LocalSettings(floor=Floor(0.0, 1))):
        assert load_local_settings(write(tmp_path / "a", settings.encode())) == settings
    assert json.loads(LocalSettings().encode()) == {"version": 1}


def test_local_settings_cut_at_every_offset_are_refused(tmp_path: Path) -> None:
    """But for the newline at its end, which says nothing."""
    whole = LOCAL.encode()
    for length in range(len(whole) - 1):
        with pytest.raises(ConfigError):
            load_local_settings(write(tmp_path / "a", whole[:length]))


@pytest.mark.parametrize(
    "data",
    [
        b"[]", b"null", b'"version"', b'{"version": 2}', b'{"admission": {}}', b'{"version": 1, "admission": {}}',
        b'{"version": 1, "admission": null}', b'{"version": 1, "x": 1}', GOOD.encode(), b"[" * 60_000,
        b'{"version": 1, "floor": 0.05}', b'{"version": 1, "floor": {"share": 1.0}}', b'{"version": 1, "floor": {"share": NaN}}',
        b'{"version": 1, "floor": {"share": 0}}', b'{"version": 1, "floor": {"free_bytes": -1}}',
        b'{"version": 1, "floor": {"free_bytes": true}}', b'{"version": 1, "floor": {"free": 1}}',
    ],
    ids=[
        "a list", "null", "a text", "another version", "no version", "nothing said", "null said", "one more", "settings", "deep",
        "no floor", "all of the disk", "no number", "a whole number", "below nothing", "true", "another field",
    ],
)  # fmt: skip
def test_what_are_no_local_settings_is_refused_with_what_to_do(data: bytes, tmp_path: Path) -> None:
    """Settings of a machine that sends are none either."""
    with pytest.raises(ConfigError) as caught:
        load_local_settings(write(tmp_path / "a", data))
    assert caught.value.hint == "run `securecore setup sender` again"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_local_settings_that_others_can_write_are_refused(mode: int, tmp_path: Path) -> None:
    """Whoever writes it decides which crashes leave no trace."""
    with pytest.raises(ConfigError, match="only root can write"):
        load_local_settings(write(tmp_path / "a", LocalSettings().encode(), mode))

"""``setup sender`` in another root: what its options, and what a person wrote, become in the handler's settings."""

from pathlib import Path

import pytest

from securecore.errors import ConfigError
from securecore.sender.admission import Admission, Rule
from securecore.sender.configuration import SenderConfiguration, parse_configuration
from securecore.sender.patience import usual_patience
from securecore.sender.settings import load_settings
from tests.support.machines import SENDER, USER, setup, snapshot


def test_handler_settings_are_what_the_options_say(root: Path) -> None:
    """The compiled settings load, and hold the options' receivers in order, and the user's numbers."""
    assert setup(root, "sender", *SENDER) == 0
    settings = load_settings(str(root / "etc/securecore/handler.json"))
    assert [str(address) for address in settings.receivers] == ["collector.example:4455", "[fd00::5]:4455"]
    assert settings.identity == "/etc/securecore/identity"
    assert f"{settings.uid}:{settings.gid}" == USER
    owner = (root / "var/lib/securecore/spool").stat()
    assert f"{owner.st_uid}:{owner.st_gid}" == USER


def test_the_spool_keeps_what_the_option_says(root: Path) -> None:
    """`tail` where nothing is said; what was said once holds, in the file and in the settings, until something else is."""
    modes = []
    for options in (SENDER, ["--spool-mode", "whole"], ["--to", "other.example:1"], [], ["--spool-mode", "tail"]):
        assert setup(root, "sender", *options) == 0
        configuration = parse_configuration((root / "etc/securecore/sender.toml").read_bytes(), "sender.toml")
        assert isinstance(configuration, SenderConfiguration)
        assert load_settings(str(root / "etc/securecore/handler.json")).spool_mode == configuration.spool_mode
        modes.append(configuration.spool_mode)

    assert modes == ["tail", "whole", "whole", "whole", "tail"]


def test_rules_are_compiled_with_the_numbers_of_their_users(root: Path) -> None:
    """The handler asks no directory of users; who edits the file and runs set-up again keeps what was written."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    rules = (
        '[admission]\ncore_limit = "ignore"\nrules = [{ action = "exclude", user = "root" }, { action = "exclude", user = "7" }]\n'
    )
    configuration.write_text(written := configuration.read_text() + rules)
    assert setup(root, "sender") == 0
    admission = load_settings(str(root / "etc/securecore/handler.json")).admission

    assert admission == Admission(core_limit="ignore", rules=(Rule("exclude", user="0"), Rule("exclude", user="7")))
    assert configuration.read_text() == written


def test_a_rule_for_a_user_who_is_not_there_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be a rule that silently never fits."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    configuration.write_text(configuration.read_text() + '[admission]\nrules = [{ action = "exclude", user = "nemo" }]\n')
    before = snapshot(root)
    capsys.readouterr()

    assert setup(root, "sender") == ConfigError.exit_code
    assert "rule 1: user 'nemo' is not in /etc/passwd" in capsys.readouterr().err
    assert snapshot(root) == before


def test_rules_that_the_handler_could_not_read_change_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would keep no core at all."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    rule = f'{{ action = "exclude", executable = "/{"é" * 250}" }}'
    configuration.write_text(configuration.read_text() + f"[admission]\nrules = [{', '.join([rule] * 60)}]\n")
    before = snapshot(root)
    capsys.readouterr()

    assert setup(root, "sender") == ConfigError.exit_code
    assert "its rules take more than 65536 bytes" in capsys.readouterr().err
    assert snapshot(root) == before


def test_edited_configuration_is_compiled_and_kept(root: Path) -> None:
    """A bare `setup sender` compiles what a person wrote, comments and all untouched."""
    setup(root, "sender", *SENDER)
    configuration = root / "etc/securecore/sender.toml"
    text = "# ours\n" + configuration.read_text().replace("collector.example:4455", "other.example:1")
    configuration.write_text(text)
    assert setup(root, "sender") == 0
    assert configuration.read_text() == text
    settings = load_settings(str(root / "etc/securecore/handler.json"))
    assert str(settings.receivers[0]) == "other.example:1"


def test_deadlines_that_a_person_wrote_are_compiled(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table at the end of the file reaches the handler's settings, survives other options, and a wrong one names its line."""
    setup(root, "sender", *SENDER)
    configuration, compiled = root / "etc/securecore/sender.toml", root / "etc/securecore/handler.json"
    assert load_settings(str(compiled)).deadlines is None
    configuration.write_text(configuration.read_text() + "[deadlines]\nconnect = 20\nhold = 0.5\n")
    assert setup(root, "sender", "--to", "third.example:1") == 0
    assert load_settings(str(compiled)).deadlines == usual_patience()._replace(connect_s=20, hold_s=0.5)
    lines = configuration.read_text().splitlines()
    configuration.write_text("\n".join(lines).replace("hold = 0.5", "hold = 601"))
    capsys.readouterr()
    assert setup(root, "sender") == 3
    assert f"sender.toml:{lines.index('hold = 0.5') + 1}: hold must be seconds" in capsys.readouterr().err


def test_unknown_key_names_file_and_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt key is an error that names the file and the line."""
    (root / "etc/securecore/sender.toml").write_text("version = 1\nreciever = 'x'\n")
    assert setup(root, "sender", *SENDER) == 3
    assert "etc/securecore/sender.toml:2: unknown key 'reciever'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 3, "--to or --identity is missing"),
        (["--to", "nowhere"], 2, "not an address"),
        ([*SENDER, "--identity", "relative"], 3, "identity must be an absolute path"),
        ([*SENDER, "--identity", "/nowhere"], 4, "no identity directory there"),
        ([*SENDER, "--identity", "/etc/securecore/receiver"], 3, "identity"),
        ([*SENDER, "--spool", "/var/../spool"], 3, "spool must be an absolute path"),
        ([*SENDER, "--spool-mode", "half"], 2, "'half' is not one of 'tail', 'whole'"),
        (["--local", "/var/lib/securecore/cores", "--spool-mode", "whole"], 2, "--local keeps cores on this machine: not together"),
        (["--spool-mode", "whole"], 3, "--to or --identity is missing"),
        ([*SENDER, "--to", "collector.example:0"], 3, "a port above 0"),
        ([*SENDER, "--user", "root"], 3, "must not be root"),
        ([*SENDER, "--user", "0:0"], 3, "must not be root"),
        ([*SENDER, "--user", "-x;"], 3, "is no user"),
        ([*SENDER, "--user", "nobody-here"], 3, "user nobody-here is not in"),
    ],
)
def test_bad_sender_options_are_refused(
    root: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is one line with an exit code, and nothing is changed."""
    before = snapshot(root)
    assert setup(root, "sender", *options) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert snapshot(root) == before

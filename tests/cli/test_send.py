"""`securecore send`: what a receiver says is shown in one line that obeys nobody, with the exit code of its meaning."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from securecore.cli.main import run
from securecore.wire.messages import Message, Refuse
from securecore.wire.states import State
from tests.support.certificates import Fleet
from tests.support.custody import CORE, held_open
from tests.support.local_files import small_disk
from tests.support.scripted import scripted_receiver

HOSTILE: Final = "\x1b]0;owned\x07\x1b[2J\nsecurecore: stored\r\u202egnp"
SHOWN: Final = "?]0;owned??[2J?securecore: stored??gnp"
ANSWERS: Final[dict[str, tuple[Message, int]]] = {
    "for good": (Refuse(100, HOSTILE), 13),
    "for now": (Refuse(201, HOSTILE, (1 << 32) - 1), 14),
    "for a clock": (Refuse(200, HOSTILE), 15),
    "by a later version": (Refuse(65535, HOSTILE), 14),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("state", [State.GREETING, State.OPENING], ids=lambda state: state.value)
def test_hostile_words_are_one_harmless_line(
    state: State, name: str, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal and in JSON; the core is in the spool, and the day that a receiver may impose is the most that is said."""
    answer, code = ANSWERS[name]
    (tmp_path / "core").write_bytes(CORE)
    with scripted_receiver(fleet.receiver, held_open(state, answer)) as scripted:
        arguments = ["send", str(tmp_path / "core"), "--to", str(scripted.address), "--identity", str(fleet.host)]
        plain = run([*arguments, "--spool", str(tmp_path / "spool")])
        shown = capsys.readouterr()
        as_json = run([*arguments, "--json"])
        document = json.loads(capsys.readouterr().out)

    assert (plain, as_json, shown.out) == (code, code, "")
    lines = [line for line in shown.err.splitlines() if not line.startswith("note: ")]
    assert lines[0] == f"securecore: refused by {scripted.address}: {SHOWN}"
    assert lines[1].startswith("  hint: ")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert document["error"]["message"] == f"refused by {scripted.address}: {SHOWN}"
    assert ("come again in 86400 s" in document["error"]["hint"]) == (name == "for now")


STAYS: Final = "what has arrived there stays, as dump "
NOTHING: Final = "nothing was stored"
WORDS: Final = {
    "all gone": (Refuse(202, "full"), False, [NOTHING, "`--spool DIR` would keep what cannot be delivered"]),
    "kept there": (Refuse(202, "full", kept=True), False, [STAYS, "`--spool DIR` would keep the rest"]),
    "kept there, no room in the spool": (Refuse(202, "full", kept=True), True, [STAYS]),
    "no room in the spool": (Refuse(202, "full"), True, [NOTHING]),
}


@pytest.mark.parametrize("name", WORDS)
def test_who_is_refused_hears_what_became_of_the_core(
    name: str, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a receiver keeps is listed there, and takes room: nobody is to read that there is nothing."""
    answer, has_spool, parts = WORDS[name]
    (tmp_path / "core").write_bytes(CORE)
    with scripted_receiver(fleet.receiver, held_open(State.STREAMING, answer)) as scripted, ExitStack() as stack:
        arguments = ["send", str(tmp_path / "core"), "--to", str(scripted.address), "--identity", str(fleet.host)]
        if has_spool:
            arguments += ["--spool", str(stack.enter_context(small_disk(tmp_path / "disk", "1m")) / "spool")]
        assert run(arguments) != 0
    hint = capsys.readouterr().err.splitlines()[-1]
    assert [part in hint for part in parts] == [True] * len(parts)
    assert (STAYS in hint, NOTHING in hint, "--spool" in hint) == (STAYS in parts, NOTHING in parts, not has_spool)

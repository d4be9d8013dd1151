"""`audit log`: what stands in a log, one line for each entry."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from securecore.cli import audit, event_words
from tests.support.samples import Sample
from tests.support.stores import DB, WEB

ODD_ENTRIES: dict[str, dict[str, Any]] = {
    "no time": {"time": ""},
    "a time in no calendar": {"time": "2026-13-01T00:00:00Z"},
    "a time without a zone": {"time": "2026-11-22T09:14:22"},
    "a time before the first year": {"time": "0001-01-01T00:00:00+23:59"},
    "a size that is a text": {"size": "many"},
    "a size beyond every unit": {"size": 10**400},
    "a program that is a number": {"program": 7},
    "a state that moves the cursor": {"state": "\x1b[2J"},
    "a host that is a number": {"host": 1},
    "another host": {"host": DB},
    "a number of its own": {"entry": None},
    "a certificate with a cursor": {"event": "certificate", "certificate": "\x1b[2J\n", "not_after": "\x1b[2J", "key": "\n"},
    "a certificate of nothing": {"event": "certificate", "certificate": None, "not_after": 7, "key": None},
    "a dump that goes on for ever": {"event": "resumed", "frames": 10**4000, "others": 10**4000},
    "a dump that goes on with words": {"event": "resumed", "frames": "\x1b[2J", "others": "\x1b[2J"},
    "findings with a cursor": {"event": "verified", "problem": "\x1b[2J\n", "user": "\x1b[2J"},
    "findings that are numbers": {"event": "verified", "problem": 7, "user": None, "uid": None},
}


@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_an_entry_that_no_receiver_wrote_is_shown_all_the_same(name: str, sample: Sample) -> None:
    """`audit log` shows what stands in the log, one line each, and says nothing of its truth; whose log it is, the store knows."""
    lines = [json.dumps(sample.entries()[0] | ODD_ENTRIES[name], sort_keys=True, separators=(",", ":")), ""]
    (sample.log() / "entries.jsonl").write_text("\n".join(lines))

    ran = sample("audit", "log", "--host", WEB)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.replace("\n", "").isprintable()
    (row,) = sample("audit", "log", "--host", WEB, "--json").document
    assert (row["entry"], row["host"], row["event"]) == (0, WEB, ODD_ENTRIES[name].get("event", "received"))


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["table", "json"])
def test_a_long_log_is_printed_while_it_is_read(as_json: list[str], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry at a time: a log of millions of entries needs no more memory than one of a hundred, and is read once."""
    waiting: list[int] = []
    most = 0
    real_read, real_echo = audit.parse_entry, click.echo

    def parse(entry: bytes) -> dict[str, Any]:
        nonlocal most
        waiting.append(1)
        most = max(most, len(waiting))
        return dict(real_read(entry))

    def echo(*arguments: Any, **options: Any) -> None:
        waiting.clear()
        real_echo(*arguments, **options)

    monkeypatch.setattr(audit, "parse_entry", parse)
    monkeypatch.setattr(click, "echo", echo)
    line = json.dumps(sample.entries()[0], sort_keys=True, separators=(",", ":"))
    (sample.log() / "entries.jsonl").write_text(f"{line}\n" * 500)

    ran = sample("audit", "log", *as_json)

    assert ran.code == 0
    assert (len(ran.document) if as_json else len(ran.out.splitlines()) - 1) == 500 + len(sample.all_entries(DB))
    assert most <= 2


def test_a_log_without_entries_says_so(sample: Sample) -> None:
    """To a person in words, to a program as a list of none."""
    (sample.log() / "entries.jsonl").write_bytes(b"")

    assert sample("audit", "log", "--host", WEB).out == "no entries\n"
    assert sample("audit", "log", "--host", WEB, "--json").document == []


def test_an_append_under_way_is_called_that(sample: Sample) -> None:
    """What has no newline yet is no damage."""
    with (sample.log() / "entries.jsonl").open("ab") as file:
        file.write(b'{"certificate":')

    assert sample("audit", "log", "--host", WEB).out.splitlines()[-1].endswith("not whole: an append is under way, or was cut off")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event": "certificate", "not_after": "2027-02-20T00:00:00.000Z", "key": "first"}, "until 2027-02-20"),
        ({"event": "certificate", "key": "kept"}, "the key is that of the one before"),
        ({"event": "certificate", "key": "rotated"}, "with another key than the one before"),
        ({"event": "resumed", "frames": 3, "others": 0}, "goes on, 3 frames held"),
        ({"event": "resumed", "frames": 3, "others": 2}, "goes on, 3 frames held; 2 times more before"),
        ({"event": "resumed", "frames": 1, "others": 1}, "goes on, 1 frame held; 1 time more before"),
        ({"event": "resumed", "frames": "x", "others": "y"}, "goes on, - frames held; - times more before"),
        ({"event": "verified", "user": "anna", "problem": None}, "all of it holds, by anna"),
        ({"event": "verified", "user": None, "uid": 7, "problem": "the report is another"}, "broken, by 7: the report is another"),
    ],
)
def test_arrivals_and_findings_are_told_in_words(fields: dict[str, object], words: str) -> None:
    """What a person asks of them: until when, with which key, how much was held, who found what."""
    assert (event_words.find_words(fields) or "").endswith(words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event": "incomplete", "frames": 1}, "1 frame held, its sender did not come back"),
        ({"event": "incomplete", "frames": None}, "- frames held, its sender did not come back"),
        ({"event": "refused", "reason": "it has no room", "others": 1}, "it has no room, and 1 time more before"),
        ({"event": "refused", "reason": "it has no room", "others": 2}, "it has no room, and 2 times more before"),
        ({"event": "refused", "reason": "it has no room", "others": -2}, "it has no room"),
    ],
)
def test_one_frame_and_one_time_are_told_as_such(fields: dict[str, object], words: str, sample: Sample) -> None:
    """In words that agree with their number; what no receiver writes is no number."""
    entry = {"version": 1, "host": WEB, "dump": str(sample.dumps[0]), "time": "2026-11-27T00:00:00.000Z"} | fields
    with (sample.log() / "entries.jsonl").open("a") as log:
        log.write(json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n")

    assert sample("audit", "log", "--host", WEB).out.splitlines()[-1].endswith(words)


def test_a_dump_has_a_history(sample: Sample, tmp_path: Path) -> None:
    """By any part of its id that `show` takes: who sent it, who took it out, who removed it, and nothing about others."""
    first = sample.dumps[0]
    assert sample.extract(first, tmp_path / "core").code == 0
    sample.delete(first)

    for text in (first, first.short, str(first)[:24].upper(), str(first).replace("-", "")):
        rows = sample("audit", "log", text, "--json").document
        assert [row["event"] for row in rows] == ["certificate", "received", "extracted", "deleted"]
        assert {row["dump"] for row in rows} == {str(first)}
    ran = sample("audit", "log", first.short)
    assert ran.out.count(first.short) == 4
    assert sample("audit", "log", sample.dumps[1].short, "--json").document[0]["dump"] == str(sample.dumps[1])


@pytest.mark.parametrize("text", ["00000000", "zzzz", "", " ", "-", "\x1b[2J"])
def test_a_dump_that_no_entry_is_about_is_not_found(text: str, sample: Sample) -> None:
    """Exit code 4, and no cursor moved: an empty list would look like a dump that nobody has touched."""
    ran = sample("audit", "log", text)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.replace("\n", "").isprintable()


def test_entries_of_a_period_are_told(sample: Sample) -> None:
    """And those whose time nobody can tell, for they may be of any."""
    with (sample.log() / "entries.jsonl").open("a") as log:
        log.write(json.dumps(sample.entries()[0] | {"time": "never"}, sort_keys=True, separators=(",", ":")) + "\n")

    def times(since: str) -> list[str]:
        return [row["time"] for row in sample("audit", "log", "--host", WEB, "--since", since, "--json").document]

    assert times("2099-01-01") == ["never"]
    assert len(times("1d")) == len(sample.all_entries())

"""What of a commit is durable when something is promised: each promise of the document, and the calls that keep it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from securecore.store.layout import create_store
from tests.receiver import test_deletion, test_giving_up_interrupted
from tests.support.commits import AUDIT, CRL, ENDS, FRAMES, ID, INCOMING, PUBLISHED, STORED, WIDE, Life
from tests.support.disk import Disk
from tests.support.dumps import REPORT, WEB, Keys

Survivors = dict[str, bytes | None]


def core_of(before: Survivors) -> bytes:
    """Return what is left of the incoming core."""
    return before.get(f"{INCOMING}/core.zst") or b""


def has_report(before: Survivors) -> bool:
    """Whether the report is there under its name, with all the directories that lead to it."""
    return before.get(f"{INCOMING}/report.json") == REPORT


def has_whole_core(before: Survivors) -> bool:
    """Whether all frames are there, and something behind them."""
    return core_of(before).startswith(STORED) and len(core_of(before)) > len(STORED)


def has_published(before: Survivors) -> bool:
    """Whether the dump is in its new place, and there alone."""
    return {name for name in before if str(ID) in name} == {
        PUBLISHED, *(f"{PUBLISHED}/{name}" for name in ("core.zst", "report.json", "manifest.jws", "receipt"))
    }  # fmt: skip


PROMISES: dict[str, tuple[str, Callable[[Survivors], bool]]] = {
    "the first acknowledgement of a frame (ACK, or held in ACCEPT)": ("ACK", has_report),
    "any acknowledgement of a frame": ("ACK", lambda before: core_of(before) in {STORED[:end] for end in ENDS}),
    "manifest.jws has its name": (f"link {INCOMING}/manifest.jws", has_whole_core),
    "the entry is written": (
        f"write {AUDIT}/entries.jsonl",
        lambda before: bool(before.get(f"{INCOMING}/manifest.jws")) and before.get(f"crls/{CRL.sha256}.pem") == CRL.pem,
    ),
    "the checkpoint is replaced": (
        f"rename {AUDIT}/checkpoint",
        lambda before: '"event":"received"' in text_of(before, f"{AUDIT}/entries.jsonl"),
    ),
    "receipt has its name": (
        f"link {INCOMING}/receipt",
        lambda before: text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "2",
    ),
    "the receiver-wide log says a checkpoint of a host's log": (
        f"write {WIDE}/entries.jsonl",
        lambda before: text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "2",
    ),
    "the first receipt of a host has its name": (
        f"link {INCOMING}/receipt",
        lambda before: (
            str(WEB) in text_of(before, f"{WIDE}/entries.jsonl") and text_of(before, f"{WIDE}/checkpoint").split("\n")[1] == "1"
        ),
    ),
    "the dump is renamed from incoming to hosts": (f"rename {PUBLISHED}", lambda before: bool(before.get(f"{INCOMING}/receipt"))),
    "RECEIPT is sent": ("RECEIPT", has_published),
}
"""By the first column of the table in docs/store.md: the call, or what a sender hears, and what must have been durable before."""


def text_of(before: Survivors, name: str) -> str:
    """Return a file's text, empty when it is lost."""
    return (before.get(name) or b"").decode()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[list[tuple[str, Survivors]]]:
    """Every call of a reception from begin to publish, in order, and what a power cut just before it leaves."""
    path = tmp_path_factory.mktemp("recorded") / "store"
    create_store(str(path)).close()
    steps: list[tuple[str, Survivors]] = []
    life, disk = Life(path, keys), Disk(path)

    def record(call: str) -> None:
        steps.append((call, disk.survivors()))

    disk.before = record
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        life.receive(record)
    life.end()
    yield steps
    disk.close()


def documented_promises() -> list[str]:
    """Return the first column of the table of docs/store.md, without its code marks."""
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text("utf-8")
    rows = text.partition("| Before | is durable |")[2].partition("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().replace("`", "") for row in rows]


def test_every_documented_promise_is_held_here() -> None:
    """docs/store.md promises what is tested below, and nothing else."""
    assert documented_promises() == [*PROMISES, *test_giving_up_interrupted.PROMISES, *test_deletion.PROMISES]


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_durable_when(promise: str, recorded: list[tuple[str, Survivors]]) -> None:
    """Whenever this happens, a power cut in that instant leaves what docs/store.md promises."""
    name, holds = PROMISES[promise]
    found = [before for call, before in recorded if call == name]
    if AUDIT in name:
        found = found[1:]  # The first time it is the certificate's entry.

    assert [holds(before) for before in found] == [True] * (len(FRAMES) if name == "ACK" else 1)


def test_a_certificate_is_durable_before_anything_of_its_dump(recorded: list[tuple[str, Survivors]]) -> None:
    """Its entry, under a checkpoint, whenever a sender hears of a frame; the dump's own then adds no write to the disk."""
    told = [before for call, before in recorded if call == "ACK"]
    for before in told:
        assert text_of(before, f"{AUDIT}/entries.jsonl").count('"event":"certificate"') == 1
        assert text_of(before, f"{AUDIT}/checkpoint").split("\n")[1] == "1"


def test_each_acknowledgement_covers_its_frame(recorded: list[tuple[str, Survivors]]) -> None:
    """The n-th acknowledgement finds n frames durable, not fewer."""
    assert [core_of(before) for call, before in recorded if call == "ACK"] == [STORED[:end] for end in ENDS]


def test_the_rename_is_made_durable_in_both_directories(recorded: list[tuple[str, Survivors]]) -> None:
    """First where the dump is now, so that it is never in neither; then where it was."""
    calls = [call for call, _ in recorded]
    assert calls[calls.index(f"rename {PUBLISHED}") + 1 :] == [f"fsync hosts/{WEB}", f"fsync incoming/{WEB}", "RECEIPT"]

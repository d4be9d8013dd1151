"""The independent checker: a sound store passes, and each kind of damage is found. One that cannot fail would prove nothing."""

import ast
import json
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from securecore.names import Address, DumpId
from securecore.sender.spool import create_spool, open_spool
from tests.support import checker, formats
from tests.support.certificates import Fleet
from tests.support.checker import Truth, check
from tests.support.receivers import papers_of, send_bytes
from tests.support.stores import CORE, CUT_CORE, WEB, fill_store, flip

SMALL: Final = b"a small core"
GONE: Final = 1
"""A port where nobody listens."""


class Scene(NamedTuple):
    """A store with three dumps of one host, what was sent, and the spool of a sender with its receipts."""

    store: Path
    spool: Path
    dumps: list[str]
    truths: list[Truth]
    root: bytes

    def problems(self, *, is_settled: bool = True) -> list[str]:
        """Return what the checker finds."""
        return check(self.store, self.root, spools=[self.spool], truths=self.truths, is_settled=is_settled)

    def dump(self, number: int) -> Path:
        """Return where a dump is published."""
        return self.store / "hosts" / WEB / self.dumps[number]

    @property
    def log(self) -> Path:
        """The host's log."""
        return self.store / "audit" / WEB


def truth(dump: object, core: bytes) -> Truth:
    """Return what is known of a core that was sent."""
    return Truth(WEB, str(dump), core, sha256(core).hexdigest(), len(core))


@pytest.fixture(scope="module")
def sound(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A sound one; tests work on copies."""
    place = tmp_path_factory.mktemp("sound")
    cores = [CORE, CUT_CORE, SMALL]
    dumps = fill_store(fleet, place / "store", [("web-1", core) for core in cores])
    (place / "spool" / "dumps").mkdir(parents=True)
    truths = [truth(dump, core) for dump, core in zip(dumps, cores, strict=True)]
    scene = Scene(place / "store", place / "spool", list(map(str, dumps)), truths, (fleet.host / "ca.pem").read_bytes())
    lines = [json.dumps({"dump": str(dump), "host": WEB, "receipt": (scene.dump(at) / "receipt").read_text()}) + "\n"
             for at, dump in enumerate(dumps)]  # fmt: skip
    (scene.spool / "receipts.jsonl").write_text("".join(lines))
    return scene


@pytest.fixture
def scene(sound: Scene, tmp_path: Path) -> Scene:
    """A copy of the sound one, to be damaged."""
    for path in (sound.store, sound.spool):
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("control.sock"))
    return sound._replace(store=tmp_path / "store", spool=tmp_path / "spool", truths=list(sound.truths))


@pytest.mark.parametrize("module", [checker, formats])
def test_the_checker_shares_nothing_with_what_it_checks(module: Any) -> None:
    """It imports the standard library, zstandard, cryptography and its own other half."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    strangers = {name for name in names if name.partition(".")[0] not in {*sys.stdlib_module_names, "zstandard", "cryptography"}}
    assert strangers <= {"tests.support.formats"}


def test_a_sound_store_passes(scene: Scene) -> None:
    """With dumps that are complete, cut off at their source, and of one piece."""
    assert scene.problems() == []


def test_a_log_with_a_last_line_under_way_passes(scene: Scene) -> None:
    """A crash leaves one; nothing was promised of it."""
    with (scene.log / "entries.jsonl").open("ab") as log:
        log.write(b'{"torn')
    assert scene.problems() == []


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes."""
    path.write_bytes(change(path.read_bytes()))


def swap(scene: Scene, *names: str) -> None:
    """Exchange files of two dumps."""
    for name in names:
        first, second = (scene.dump(at) / name for at in (0, 2))
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)


def spooled(scene: Scene, name: str) -> None:
    """Leave a dump's directory in the spool."""
    path = scene.spool / "dumps" / name
    path.mkdir()
    (path / "core.zst").write_bytes(b"")
    (path / "entry.json").write_text(json.dumps({"dump": name, "first_frame": 0}))


def forget(scene: Scene) -> None:
    """Take a dump away, and all that the store says of it but its log."""
    shutil.rmtree(scene.dump(0))


def unpublish(scene: Scene, number: int) -> None:
    """Put a published dump back to where it came in."""
    target = scene.store / "incoming" / WEB / scene.dumps[number]
    target.parent.mkdir(parents=True, exist_ok=True)
    scene.dump(number).rename(target)


def shorten(core: bytes) -> bytes:
    """Return a container without its last frame, with a seek table that fits: what only the log and the manifest contradict."""
    end = core.rindex(b"\x5e\x2a\x4d\x18")
    count = int.from_bytes(core[-9:-5], "little")
    rows = core[end + 8 : end + 8 + 8 * (count - 1)]
    stored = sum(int.from_bytes(rows[at : at + 4], "little") for at in range(0, len(rows), 8))
    table = b"\x5e\x2a\x4d\x18" + (len(rows) + 9).to_bytes(4, "little") + rows + (count - 1).to_bytes(4, "little")
    return core[:stored] + table + b"\0\xb1\xea\x92\x8f"


def orphan(scene: Scene) -> None:
    """Publish a dump under an id that no log knows."""
    shutil.copytree(scene.dump(2), scene.dump(2).with_name(scene.dumps[2][:-1] + ("0" if scene.dumps[2][-1] != "0" else "1")))


DAMAGE: Final[dict[str, tuple[Callable[[Scene], object], str]]] = {
    "a bit of a core": (lambda scene: flip(scene.dump(0) / "core.zst", 5000), "seek table|root"),
    "a bit of a seek table": (lambda scene: flip(scene.dump(0) / "core.zst", -12), "seek table"),
    "a core's last frame": (lambda scene: rewrite(scene.dump(0) / "core.zst", shorten), "root, size, frames"),
    "a bit of a report": (lambda scene: flip(scene.dump(0) / "report.json", 3), "report_sha256"),
    "a bit of a manifest": (lambda scene: flip(scene.dump(0) / "manifest.jws", 2000), "manifest|Invalid|Error"),
    "a bit of a receipt": (lambda scene: flip(scene.dump(0) / "receipt", 60), "hashes|Error|receipt"),
    "a bit of a log": (lambda scene: flip(scene.log / "entries.jsonl", 30), "root that was signed|Error"),
    "a bit of a checkpoint": (lambda scene: flip(scene.log / "checkpoint", -20), "Invalid|signature|Error"),
    "a bit of the revocation lists": (
        lambda scene: [flip(path, 100) for path in (scene.store / "crls").iterdir()], "lists are not there"
    ),
    "the revocation lists": (lambda scene: shutil.rmtree(scene.store / "crls"), "lists are not there"),
    "a bit of the log key's statement": (lambda scene: flip(scene.store / "log-key.jws", -5), "Invalid|Error"),
    "the log's last entry": (
        lambda scene: rewrite(scene.log / "entries.jsonl", lambda log: b"".join(log.splitlines(True)[:-1])), "has 3 entries"
    ),
    "a bit of the receiver-wide log": (
        lambda scene: flip(scene.log.with_name("receiver") / "entries.jsonl", 30), "root that was signed|Error"
    ),
    "the receiver-wide log": (lambda scene: shutil.rmtree(scene.log.with_name("receiver")), "does not name"),
    "a host, whole": (
        lambda scene: (shutil.rmtree(scene.log), shutil.rmtree(scene.store / "hosts" / WEB)), "has 0 entries, and had"
    ),
    "the manifest": (lambda scene: (scene.dump(0) / "manifest.jws").unlink(), "without its manifest"),
    "the receipt": (lambda scene: (scene.dump(0) / "receipt").unlink(), "holds"),
    "a dump": (forget, "not there|not published"),
    "a log": (lambda scene: shutil.rmtree(scene.log), "checkpoint|log"),
    "two cores that were swapped": (lambda scene: swap(scene, "core.zst"), "otherwise of root"),
    "two dumps that were swapped": (
        lambda scene: swap(scene, "core.zst", "report.json", "manifest.jws", "receipt"), "of another|otherwise"
    ),
    "two receipts that were swapped": (lambda scene: swap(scene, "receipt"), "proves another entry"),
    "a dump that no log knows": (orphan, "log does not say so"),
    "a dump that was not published": (lambda scene: unpublish(scene, 0), "never published"),
    "a stray file beside a dump's": (lambda scene: (scene.dump(0) / "core").touch(), "holds"),
    "a temporary in the store": (lambda scene: (scene.dump(0) / ".receipt.new").touch(), "left behind|holds"),
    "a temporary of a log": (lambda scene: (scene.log / ".checkpoint.new").touch(), "left behind"),
    "a dump that came in without its report": (
        lambda scene: (scene.store / "incoming" / WEB / "x").mkdir(parents=True), "has no report"
    ),
    "a dump that waits in the spool": (lambda scene: spooled(scene, scene.dumps[0]), "still in the spool"),
    "a temporary in the spool": (
        lambda scene: (scene.spool / "dumps" / f".{scene.dumps[0]}.new").mkdir(), "still in the spool"
    ),
    "a line in the receipts": (
        lambda scene: rewrite(scene.spool / "receipts.jsonl", lambda log: b"nothing\n" + log), "a line that is none"
    ),
    "a receipt kept for another dump": (
        lambda scene: rewrite(
            scene.spool / "receipts.jsonl", lambda log: log.replace(scene.dumps[0].encode(), scene.dumps[2].encode(), 1)
        ), "is another dump's"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(scene: Scene, damage: str) -> None:
    """Each is planted in a sound store, and named."""
    plant, words = DAMAGE[damage]
    plant(scene)
    found = scene.problems()
    assert found
    assert any(any(word in problem for word in words.split("|")) for problem in found), found


def test_a_store_put_back_from_an_old_copy_contradicts_a_receipt_that_was_kept(fleet: Fleet, sound: Scene, scene: Scene) -> None:
    """The store by itself is sound: only the receipt knows of more."""
    (dump,) = fill_store(fleet, scene.store, [("web-1", b"a later one")])
    receipt = {"dump": str(dump), "host": WEB, "receipt": (scene.store / "hosts" / WEB / str(dump) / "receipt").read_text()}
    assert check(scene.store, scene.root, receipts=[receipt]) == []
    shutil.rmtree(scene.store)
    shutil.copytree(sound.store, scene.store, ignore=shutil.ignore_patterns("control.sock"))
    assert check(scene.store, scene.root) == []
    (problem,) = check(scene.store, scene.root, receipts=[receipt])
    assert "a receipt for 5 entries, and the log has 4" in problem


@pytest.mark.parametrize("number", [0, 1])
def test_a_dump_called_what_it_is_not_is_found(scene: Scene, number: int) -> None:
    """A complete one of which more was sent; a cut one that holds what was never sent."""
    longer = scene.truths[number].plain or b""
    scene.truths[number] = truth(scene.dumps[number], longer + b"more" if number == 0 else longer[:-1] + b"?")
    found = scene.problems()
    assert len(found) == 1
    assert ("called complete, and not what was sent" if number == 0 else "holds what was not sent") in found[0]


def test_a_spool_that_holds_what_was_not_sent_is_found(fleet: Fleet, scene: Scene, tmp_path: Path) -> None:
    """What waits is held against what was sent, too."""
    create_spool(str(tmp_path / "other"), bytes(16))
    dump = DumpId.parse(scene.dumps[2])
    send_bytes(SMALL, papers_of(fleet.host), [Address(f"127.0.0.1:{GONE}")], spool=open_spool(str(tmp_path / "other")), dump=dump)
    assert check(scene.store, scene.root, spools=[tmp_path / "other"], truths=[truth(dump, SMALL)]) == []
    truths = [truth(dump, b"another core")]
    assert any(
        "holds what was not sent" in one for one in check(scene.store, scene.root, spools=[tmp_path / "other"], truths=truths)
    )

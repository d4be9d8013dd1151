"""The documents keep their promises: commands that exist, links that lead somewhere, tests that are there.

The formats' own documents are held against the code by tests/wire and tests/store, the policy in pki/ by tests/pki.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import click
import pytest

from securecore.cli.main import securecore
from tests.e2e.test_tamper_matrix import CASES
from tests.e2e.test_tamper_matrix import COMMANDS as TAMPER_COMMANDS
from tests.test_architecture import EVERYBODYS, MAY_IMPORT

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("pki/**/*.md")])
"""Every document; caches and virtual environments have some too, and they are not ours."""
COMING_FROM: Final = ROOT / "docs/coming-from.md"
GUIDES: Final = [ROOT / "README.md", ROOT / "docs/operations.md", COMING_FROM]
"""What people copy commands from."""
PROSE: Final = [*GUIDES, *ROOT.glob("[CS]*.md"), ROOT / "docs/terminology.md", ROOT / "docs/dependencies.md"]

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT: Final = re.compile(r"(?:[$#] )?(?:(?:sudo|runuser -u securecore --) )?(?=securecore )")
_PROSE_COMMAND: Final = re.compile(r"`securecore ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)")


def name_of(path: Path) -> str:
    """Return a document's path as a person writes it; the ids of parametrised tests."""
    return str(path.relative_to(ROOT))


@cache
def text_of(path: Path) -> str:
    """Return a document."""
    return path.read_text("utf-8")


def prose_of(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", text_of(path))


def arguments_in(line: str) -> list[str] | None:
    """Return the arguments of a line that runs securecore, None of another line; what a pipe or `&&` leads to is left out."""
    prompt = _PROMPT.match(line)
    if prompt is None:
        return None
    command = re.split(r" (?:\||&&|>) |\s{3,}", line[prompt.end() :])[0]
    return shlex.split(command)[1:]


def commands_in(path: Path) -> list[list[str]]:
    """Return the arguments of every securecore command in a document's fenced blocks; blocks marked ``text`` are output."""
    blocks = [body.replace("\\\n", " ") for language, body in _FENCE.findall(text_of(path)) if language != "text"]
    found = [arguments_in(line.strip()) for block in blocks for line in block.splitlines()]
    return [arguments for arguments in found if arguments is not None]


def parse(arguments: list[str]) -> None:
    """Parse a command line to its end without running it; raises click.ClickException when a command or an option is not there."""
    command: click.Command = securecore
    context: click.Context | None = None
    rest = list(arguments)
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name)
        _name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
    command.make_context(command.name, rest, parent=context, resilient_parsing=False).close()


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[click.Command]]]:
    """Yield each command that does something: its words, and the command with the groups that it is in, the outermost first."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((words, [command, *chain]) for words, chain in every_command(command, (*path, name)))
        else:
            yield (*path, name), [command]


COMMANDS: Final = dict(every_command(securecore))


@pytest.mark.parametrize("document", GUIDES, ids=name_of)
def test_commands_in_blocks_exist_with_their_options(document: Path) -> None:
    """Each command line parses: the command, each option, each argument's form."""
    found = commands_in(document)
    assert len(found) > 5
    for arguments in found:
        try:
            parse(arguments)
        except click.ClickException as error:
            pytest.fail(f"securecore {shlex.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize("document", PROSE, ids=name_of)
def test_commands_in_sentences_exist(document: Path) -> None:
    """`securecore WORDS`: the first words are a command or a group."""
    known = {words[:length] for words in COMMANDS for length in range(1, len(words) + 1)}
    for mention in _PROSE_COMMAND.findall(prose_of(document)):
        words = tuple(mention.split())
        assert any(words[:length] in known for length in range(1, len(words) + 1)), f"securecore {mention}"
        if len(words) > 1 and isinstance(securecore.get_command(click.Context(securecore), words[0]), click.Group):
            assert words[:2] in known, f"securecore {mention}"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    """A first sentence of its own; examples of its own or of its group; and each option says what it is for."""
    *_groups, command = chain = COMMANDS[words]
    assert (command.help or "").strip()
    assert any("Examples:" in (one.epilog or "") for one in chain)
    silent = [option.opts[-1] for option in command.params if isinstance(option, click.Option) and not option.help]
    assert silent == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_in_help_parse(words: tuple[str, ...]) -> None:
    """What --help shows is not refused by the command that shows it; lines with an ellipsis are left out."""
    for one in COMMANDS[words]:
        for line in (one.epilog or "").splitlines():
            arguments = arguments_in(line.strip())
            if arguments is not None and "..." not in arguments:
                parse(arguments)


def targets_in(document: Path) -> list[str]:
    """Return the targets of a document's links and pictures; what stands in code is none."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose_of(document)))


@cache
def anchors_in(document: Path) -> set[str]:
    """Return the anchors that the headings of a document make: lower case, spaces to hyphens, other signs left out."""
    headings = re.findall(r"^#+ +(.*)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file or folder, and its anchor a heading there."""
    for target in targets_in(document):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        place, _, anchor = target.partition("#")
        path = document.parent / place if place else document
        assert path.exists(), target
        assert not anchor or anchor in anchors_in(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_in_documents_exist(document: Path) -> None:
    """`docs/...`, `pki/...`, `scripts/...` and `tests/...` in code marks are files or folders of this repository."""
    for mention in re.findall(r"`((?:docs|pki|scripts|tests)/[\w./-]+)", prose_of(document)):
        assert (ROOT / mention.rstrip(".")).exists(), mention


@cache
def functions_in(path: Path) -> frozenset[str]:
    """Return the names of a module's functions."""
    return frozenset(node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef))


def missing_tests(text: str) -> list[str]:
    """Return the tests that a text names, as `tests/FILE.py::FUNCTION`, and that do not exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    return [f"{path}::{function}" for path, function in named if function not in functions_in(ROOT / path)]


def test_every_test_named_in_security_exists() -> None:
    """Each `tests/FILE.py::FUNCTION`, and each numbered promise names at least one."""
    text = text_of(ROOT / "SECURITY.md")
    missing = missing_tests(text)
    section = text.partition("## What therefore cannot happen")[2].partition("\n## ")[0]
    promises = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]

    assert missing == []
    assert len(promises) > 10
    assert [promise.splitlines()[0] for promise in promises if "::test_" not in promise] == []


def test_the_table_of_changes_to_a_store_is_that_of_the_test() -> None:
    """SECURITY says of each change which command finds it, and by which words, as tests/e2e/test_tamper_matrix.py shows it."""
    table = text_of(ROOT / "SECURITY.md").partition("| What was done | ")[2].partition("\n\n")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]

    assert [cell.strip(" `|") for cell in head] == list(TAMPER_COMMANDS)
    assert rows == [
        [what, *(f"`{case.found[command]}`" if command in case.found else "–" for command in TAMPER_COMMANDS)]
        for what, case in CASES.items()
    ]


def test_every_rule_for_crash_handlers_has_its_test_or_its_reason() -> None:
    """R1 to R27, in order, each once: with tests that fail when it does not hold, or with why it cannot apply."""
    section = text_of(ROOT / "SECURITY.md").partition("## Rules for crash handlers")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| R")]
    rules = {row[0]: row for row in rows[1:]}

    assert rows[0][0] == "Rule"
    assert [row[0] for row in rows[1:]] == [f"R{number}" for number in range(1, 28)]
    assert [rule for rule, row in rules.items() if len(row) != 4 or not all(row)] == []
    assert [rule for rule, row in rules.items() if not re.search(r"::test_|^Cannot apply: .", row[3])] == []


def test_every_rule_that_the_code_names_is_in_the_table() -> None:
    """Comments and docstrings name rules by number; there are no others than those of the table."""
    sources = [*ROOT.glob("securecore/**/*.py"), *ROOT.glob("tests/**/*.py")]
    named = {int(number) for path in sources for number in re.findall(r"\bR(\d{1,2})\b(?!=)", path.read_text("utf-8"))}

    assert named <= set(range(1, 28))


HOMES: Final = [r"/home/\w+", r"/Users/\w+", r"[A-Z]:\\Users", r"\.pyenv/versions/\w"]
if ROOT.parts[1:2] not in [("opt",), ("srv",), ("usr",), ("var",)]:  # where a document may rightly say that things are
    HOMES.append(re.escape(f"{ROOT}/"))


def places_in(path: Path, patterns: list[str]) -> list[str]:
    """Return what a file names of these places."""
    return [f"{name_of(path)}: {hit}" for hit in re.findall("|".join(patterns), text_of(path))]


def test_no_document_names_a_developers_machine() -> None:
    """No home directory, no checkout, no interpreter of whoever wrote it."""
    pictures = sorted(ROOT.glob("docs/*.svg"))
    assert [hit for path in [*DOCUMENTS, *pictures] for hit in places_in(path, [*HOMES, r"site-packages/\w"])] == []


HOMES_OF_NOBODY: Final = {
    "tests/cli/test_setup_receiver.py: /home/me",  # a path that set-up refuses
    "tests/e2e/test_local_seed_defects.py: /home/Coredump",  # where gzCoredump removed everything
}
"""Home directories that tests speak of and do not look into."""


def test_no_test_and_no_script_needs_a_developers_machine() -> None:
    """Nor do tests and scripts name one: they make what they need."""
    code = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/**/*.c"), *ROOT.glob("scripts/*"), *ROOT.glob("scripts/*/*")]
    others = [path for path in code if path.is_file() and path != Path(__file__)]

    assert len(others) > 100
    assert {hit for path in others for hit in places_in(path, HOMES)} == HOMES_OF_NOBODY


def cells_of(text: str) -> list[list[str]]:
    """Return the cells of every row of a text's tables, without their heads."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)]
    return [row for row, below in zip(rows, [*rows[1:], [""]], strict=True) if "---" not in f"{row}{below}"]


SEED_FEATURES: Final = {
    "core_send and core_recv": [
        "`send_core RECEIVER`", "standard input", "IPv4 and IPv6", "constant memory", "`recv_core IP`", "`-v`", "`core_dump`",
        "port 64740", "must be root", "`ulimit -c unlimited`", "`core_pattern`, never", "`1_buggy.c`", "`checksec`", "`_dbg_asan`",
        "`clean`", "sendfile",
    ],
    "gzCoredump": [
        "`-c` in", "`-p path`", "`-a argument`", "`Core_YYYYMMDD_HHMMSS[_arg].gz`", "rotation", "`-d -f in.gz -o out`", "`-c` wins",
        "`-h`", "gzip", "zlib", "encryption", "`.uuid`", "watchdog", "constant memory", "elfreader", "filelist", "`go test`",
        "`go install`",
    ],
}  # fmt: skip
"""What the tools that came before can do: every option, file and target that their documents name, by a mark of its row."""


UNTESTED: Final = {
    "core_send and core_recv": ["`_dbg_asan`", "`clean`", "sendfile"],
    "gzCoredump": ["watchdog"],
}
"""What has no counterpart, so that there is nothing to test but what somebody decided: in place of a test, the row says so."""


@pytest.mark.parametrize("seed", SEED_FEATURES)
def test_every_feature_of_what_came_before_has_an_answer(seed: str) -> None:
    """No gap: each feature has a row, each row an answer in words, and a test that exists or the words that there is none."""
    section = text_of(COMING_FROM).partition(f"\n## {seed}\n")[2].partition("\n## ")[0]
    rows = cells_of(section.partition("\n### What goes wrong there")[0])

    assert missing_tests(section) == []
    assert [mark for mark in SEED_FEATURES[seed] if not any(mark in row[0] for row in rows)] == []
    decided = [row for row in rows if row[2:] == ["no test: a decision"]]
    assert [mark for row, mark in zip(decided, UNTESTED[seed], strict=True) if mark not in row[0]] == []
    assert [row[0] for row in rows if len(row) != 3 or not row[1] or ("::test_" not in row[2] and row not in decided)] == []


SEED_DEFECTS: Final = {
    "core_send and core_recv": ("tests/e2e/test_network_seed_defects.py", 9),
    "gzCoredump": ("tests/e2e/test_local_seed_defects.py", 14),
}
"""Where the defects of each are tests, and how many there are."""


@pytest.mark.parametrize("seed", SEED_DEFECTS)
def test_every_defect_of_what_came_before_has_its_test(seed: str) -> None:
    """The rows are numbered without a gap, each names a test, and every test of the module stands in the row of its number."""
    section = text_of(COMING_FROM).partition(f"\n## {seed}\n")[2].partition("\n## ")[0]
    rows = cells_of(section.partition("\n### What goes wrong there")[2].partition("\n### ")[0])
    module, count = SEED_DEFECTS[seed]
    numbered = {int(row[0].partition(".")[0]): row for row in rows}
    tests = [name for name in functions_in(ROOT / module) if name.startswith("test_")]

    assert list(numbered) == list(range(1, count + 1))
    assert [row[0] for row in rows if len(row) != 3 or not row[1] or "::test_" not in row[2]] == []
    assert [name for name in tests if f"{module}::{name}`" not in numbered[int(name.split("_")[1])][2]] == []


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/*.svg")), ids=name_of)
def test_a_picture_stands_alone(picture: Path) -> None:
    """Well-formed, with a title and a description for those who cannot see it; no script, nothing loaded from elsewhere."""
    tree = ElementTree.parse(picture)  # noqa: S314  # our own file
    tags = [str(element.tag).rpartition("}")[2] for element in tree.iter()]
    assert {"title", "desc"} <= set(tags)
    assert {"script", "image", "use", "foreignObject"} & set(tags) == set()
    assert re.search(r"(?:href|url)\s*[=(]\s*[\"']?(?!#)", text_of(picture)) is None


def test_the_table_of_rooms_is_that_of_the_architecture() -> None:
    """CONTRIBUTING says who may import whom as tests/test_architecture.py enforces it."""
    table = text_of(ROOT / "CONTRIBUTING.md").partition("| Room | imports rooms |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    stated = {row[0].strip("`"): (set(re.findall(r"`(\w+)`", row[1])), set(re.findall(r"^\w+", row[2]))) for row in rows}
    rooms = {name: rule for name, rule in MAY_IMPORT.items() if name not in EVERYBODYS}
    del stated["sender/evidence.py"], stated["cli/overview/page.py"]
    stated["cli"] = (set(rooms) - {"cli"}, stated["cli"][1])
    assert stated == {
        name: (set(rule.rooms), {"pyelftools" if library == "elftools" else library for library in rule.libraries})
        for name, rule in rooms.items()
    }

"""Whether a program is the one that a core is of: yes or no, and why."""

from typing import NamedTuple

from securecore.elfid import ProgramIds


class Crashed(NamedTuple):
    """What is known of the program that crashed, by who says so; each is None where it is not known."""

    core_build_id: str | None = None
    """In the core itself: the kernel dumps the first page of what was mapped, and the build-id with it."""
    report_build_id: str | None = None
    """Read by the sender from the file that the process ran."""
    report_uuid: str | None = None
    """The same; a ``.uuid`` section is not loaded, so no core has it."""

    @property
    def build_id(self) -> str | None:
        """The core's own word before the report's."""
        return self.core_build_id or self.report_build_id


class Verdict(NamedTuple):
    """An answer and its reason; ``is_match`` is None where nothing can be compared."""

    is_match: bool | None
    why: str
    notes: tuple[str, ...] = ()
    """What does not change the answer and is worth a look."""


def compare(crashed: Crashed, program: ProgramIds) -> Verdict:
    """Return whether *program* is the one that *crashed*.

    Build-ids decide where both sides have one: they are the linker's digest of the program, while a ``.uuid`` is what somebody has
    stamped on it. Where one side has no build-id, the ``.uuid`` sections decide.
    """
    notes = []
    if None not in (crashed.core_build_id, crashed.report_build_id) and crashed.core_build_id != crashed.report_build_id:
        notes.append(f"the report gives build-id {crashed.report_build_id}, the core itself {crashed.core_build_id}")
    same_build = _are_same(crashed.build_id, program.build_id)
    same_uuid = _are_same(crashed.report_uuid, program.uuid)
    if same_build is not None:
        if same_uuid is not None and same_uuid != same_build:
            notes.append(f"the .uuid sections {'are the same' if same_uuid else 'differ'}; build-ids go before them")
        if same_build:
            return Verdict(True, f"both have build-id {program.build_id}", tuple(notes))
        return Verdict(False, f"build-ids differ: {crashed.build_id} crashed, the program is {program.build_id}", tuple(notes))
    if same_uuid:
        return Verdict(True, f"both have .uuid {program.uuid}", tuple(notes))
    if same_uuid is False:
        return Verdict(False, f".uuid sections differ: {crashed.report_uuid} crashed, the program is {program.uuid}", tuple(notes))
    return Verdict(None, _what_is_missing(crashed, program), tuple(notes))


def _are_same(one: str | None, other: str | None) -> bool | None:
    return None if one is None or other is None else one.lower() == other.lower()


def _what_is_missing(crashed: Crashed, program: ProgramIds) -> str:
    if program.build_id is None and program.uuid is None:
        return "the program has neither a build-id nor a .uuid section"
    if crashed.build_id is None and crashed.report_uuid is None:
        return "neither the core nor its report names the program that crashed"
    return "one side has only a build-id, the other only a .uuid section"

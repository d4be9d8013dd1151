"""How a dump stands, in the one set of words that every command says it in (docs/terminology.md, States).

``complete``, or ``incomplete`` with every reason that is known. What is said is what the dump's papers say; `verify` checks them.
"""

from typing import Final, NamedTuple

from securecore.cli import terminal
from securecore.dump.manifest import COMPLETE, Manifest

INCOMPLETE: Final = "incomplete"

COMING_IN: Final = "still coming in"
"""Its sender is at it, or its link is gone for less time than it takes to give a dump up: only the receiver could tell."""

UNPUBLISHED: Final = "not published yet"
"""Its commit is under way, or was interrupted: the receiver finishes it, unless its files were damaged meanwhile."""

GIVEN_UP: Final = "link lost"
"""Its sender did not come back: the host, its link, or its disk is gone."""

NO_MANIFEST: Final = "no sound manifest"
"""Damage: it had one, else it would be given up or coming in. Whether a signature holds, `show` and `verify` look alone."""

NO_CORE: Final = "core missing"
"""Damage: whatever its papers promise, nothing of it is there."""

OTHER_CORE: Final = "core damaged"
"""Damage: it has another length than the entry says that its receipt proves. Its bytes are for `verify`."""


class State(NamedTuple):
    """What is known of how a dump stands."""

    is_published: bool
    outcome: str | None
    """The manifest's; None where there is none that can be read."""
    is_given_up: bool = False
    lost_frames: int = 0
    """The manifest's: so many at the beginning are placeholders."""
    has_manifest: bool = True
    """Whether anything stands in the manifest's place, sound or not."""
    has_core: bool = True
    """Whether there is a file with at least one byte, which even a core of no bytes has before it has a manifest."""
    core_fits: bool = True
    """Whether it has the length that the receipt's entry says, where there is one."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, by the papers."""
        return self.is_published and self.outcome == COMPLETE and self.has_core and self.core_fits

    @property
    def is_coming_in(self) -> bool:
        """Whether there is no manifest yet."""
        return not self.is_published and self.outcome is None and not self.has_manifest

    @property
    def reasons(self) -> list[str]:
        """Why a dump is incomplete; nothing for one that is complete."""
        if self.is_coming_in:
            return [COMING_IN]
        words = [self._ending()]
        if self.lost_frames:
            words.append(terminal.lost_beginning(self.lost_frames))
        if not self.is_published:
            words.append(UNPUBLISHED)
        if self.outcome is None and not self.is_given_up:
            words.append(NO_MANIFEST)
        if not self.has_core:
            words.append(NO_CORE)
        elif not self.core_fits:
            words.append(OTHER_CORE)
        return [word for word in words if word is not None]

    def label(self, *, share: str | None = None) -> str:
        """Return the state for people, with *share*, how much of the core is there, as its first reason."""
        if self.is_complete:
            return COMPLETE
        return f"{INCOMPLETE} ({', '.join([share, *self.reasons] if share else self.reasons)})"

    def _ending(self) -> str | None:
        """Return how the source or its sender ended, where that is a reason."""
        if self.is_given_up:
            return GIVEN_UP
        return None if self.outcome == COMPLETE else self.outcome


def state_of(
    manifest: Manifest | None,
    *,
    is_published: bool,
    is_given_up: bool = False,
    has_manifest: bool = True,
    has_core: bool = True,
    core_fits: bool = True,
) -> State:
    """Return the state of a dump with this manifest; None where there is none that can be read, or none that holds."""
    outcome, lost = (manifest.outcome, manifest.lost_frames) if manifest is not None else (None, 0)
    return State(is_published, outcome, is_given_up, lost, has_manifest, has_core, core_fits)

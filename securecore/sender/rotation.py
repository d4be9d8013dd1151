"""Which dumps of local mode go, and in which order: the oldest first, each core with its report."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

from securecore.declarations import Final, NamedTuple
from securecore.dump import directory as files
from securecore.sender.allocation import taken_bytes
from securecore.sender.core_names import find_meaning

_SECOND_CHARACTERS: Final = 16
"""Of a stem: its time, which sorts as text (core_names.py)."""


class _Dump(NamedTuple):
    """One that may go."""

    names: list[str]
    taken_bytes: int
    has_core: bool


class OldDumps:
    """The dumps that may go for one new core, as one look at the directory has found them.

    To look again for each of them would hold a crashed process for minutes, where thousands lie there.
    """

    def __init__(self, directory: int, dumps: Iterable[_Dump]) -> None:
        """*dumps* are in the order in which they go."""
        self._fd, self._dumps = directory, deque(dumps)
        self.taken_bytes = sum(dump.taken_bytes for dump in self._dumps)
        """What the disk would have back, could all of them go."""
        self.cores = sum(dump.has_core for dump in self._dumps)
        """How many of them have a core."""

    def __len__(self) -> int:
        return len(self._dumps)

    def remove_next(self) -> list[str]:
        """Remove the next one and return the names that are gone by that: none where others have removed it since the look."""
        dump = self._dumps.popleft()
        self.taken_bytes -= dump.taken_bytes
        self.cores -= dump.has_core
        return _remove(dump.names, self._fd)


class Rotation:
    """The dumps in the directory behind a descriptor; what is not named as core_names.py names is left alone, always."""

    def __init__(self, directory: int) -> None:
        self._fd = directory

    def keep_newest(self, keep: int, own: str) -> list[str]:
        """Remove all but the newest *keep* dumps and return the names that are gone; the stem *own* stays whatever its age.

        A dump is a core, whole or truncated, with its report. Reports without a core are counted by themselves, so that a full disk
        does not push good cores out. What is being written is left alone.
        """
        names, groups = self._dumps()
        gone: list[str] = []
        for group in groups:
            too_many = max(len(group) - keep, 0)
            for stem in list(islice(self._by_age(group - {own}, names), too_many)):
                gone += _remove(names[stem], self._fd)
        return gone

    def look(self, own: str) -> OldDumps:
        """Return the dumps that are not *own* and that nobody is writing: the oldest first, and last reports without a core."""
        names, groups = self._dumps()
        with_core = groups[0]
        stems = [stem for group in groups for stem in self._by_age(group - {own}, names)]
        return OldDumps(self._fd, [_Dump(names[stem], self._taken_bytes(names[stem]), stem in with_core) for stem in stems])

    def _dumps(self) -> tuple[dict[str, list[str]], tuple[set[str], set[str]]]:
        """Return all names by their stems, and of those that nobody is writing the stems with a core and the ones without."""
        names: dict[str, list[str]] = {}
        busy = set()
        for text in files.names_in(self._fd):
            name = find_meaning(text)
            if name is not None and name.is_aside:
                busy.add(name.stem)
            elif name is not None:
                names.setdefault(name.stem, []).append(text)
        stems = set(names) - busy
        lonely = {stem for stem in stems if names[stem] == [f"{stem}.json"]}
        return names, (stems - lonely, lonely)

    def _taken_bytes(self, names: Iterable[str]) -> int:
        """Return how much the disk would have back of these files."""
        total = 0
        for name in names:
            try:
                total += taken_bytes(os.stat(name, dir_fd=self._fd, follow_symlinks=False))
            except OSError:
                continue  # Another handler has removed it between our look and this one.
        return total

    def _by_age(self, stems: Iterable[str], names: dict[str, list[str]]) -> Iterator[str]:
        """Yield the stems, the oldest first: by the time in their names, and within a second by that of their files.

        The files' times are asked for as it comes to them, and only where a second has several: of most dumps nobody needs them,
        and of a quarter of a million that would take half a minute.
        """
        for _, of_a_second in groupby(sorted(stems), _second):
            alike = list(of_a_second)
            if len(alike) > 1:
                alike.sort(key=lambda stem: self._written_at(names[stem]))
            yield from alike

    def _written_at(self, names: Sequence[str]) -> int:
        times = [0]
        for name in names:
            try:
                times.append(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns)
            except OSError:
                continue  # As above.
        return max(times)


def _second(stem: str) -> str:
    return stem[:_SECOND_CHARACTERS]


def _remove(names: Iterable[str], directory: int) -> list[str]:
    """Remove the files of a dump, the core first, so that a kill leaves a report alone; return the names that were there."""
    present = [name for name in names if _exists(name, directory)]
    ordered = sorted(present, key=lambda text: text.endswith(".json"))
    for text in ordered:
        files.remove_file(text, directory)
    return ordered


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True

"""How tests are shared out where several processes run them (``pytest -n 2 --dist loadfile``): whole files, in their order.

So a file's fixtures are made once, as in one process. Files with real crashes all go to one process, for core_pattern is the
machine's. Its lock would keep them apart anyway, but whoever waits for it holds up a whole process, and when the kernel tells of
crashes that it skipped, it counts those of all.

pytest-xdist has groups for this (the mark ``xdist_group``), which are without effect in its version 3.8 where pytest is 9.2. What
is used of it here are a hook and a class that its documentation offers.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler import LoadFileScheduling

CRASHES: Final = "files with real crashes"
_MARKS: Final = re.compile(r"@needs_kernel\b|\bpytestmark = \[.*\bneeds_kernel\b|@pytest\.mark\.real_crash\b")
"""In the source, for who shares tests out knows no more of them than their files and names."""


class FileSharing(LoadFileScheduling):
    """Shares out files; those with real crashes are as one."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._root = config.rootpath

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return CRASHES if has_real_crashes(self._root / file) else file


@cache
def has_real_crashes(path: Path) -> bool:
    """Return whether a test file marks any of its tests as one that needs core_pattern for itself."""
    return _MARKS.search(path.read_text("utf-8")) is not None

"""How long files are that somebody else writes, renames and removes meanwhile."""

from pathlib import Path


def size_of(path: Path) -> int:
    """Return how many bytes a file has, 0 where it is there no more: what was found by its name may have another one by now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

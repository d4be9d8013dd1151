"""The library zstandard without its package: the same classes, and the package where there is no such part."""

import subprocess
import sys
from pathlib import Path

import zstandard

from securecore.dump import zstd


def test_the_classes_are_those_of_the_package() -> None:
    """Loaded once: an error that one of them raises is caught by the other's name."""
    assert zstandard.backend == "cext"
    assert zstd.ZstdCompressor is zstandard.ZstdCompressor
    assert zstd.ZstdDecompressor is zstandard.ZstdDecompressor
    assert zstd.ZstdError is zstandard.ZstdError


def run(program: str, path: Path) -> list[str]:
    """Return the words that a program prints which finds *path* before the library."""
    program = f"import sys\nsys.path.insert(0, {str(path)!r})\n{program}"
    return subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True).stdout.split()


def test_the_package_may_be_loaded_behind_it(tmp_path: Path) -> None:
    """In this order too there is one of each class."""
    program = "from securecore.dump import zstd\nimport zstandard\nprint(zstd.ZstdError is zstandard.ZstdError)"
    assert run(program, tmp_path) == ["True"]


def test_a_library_without_that_part_is_loaded_as_a_package(tmp_path: Path) -> None:
    """As PyPy has it."""
    package = tmp_path / "zstandard"
    package.mkdir()
    classes = ("ZstdCompressor: pass", "ZstdDecompressor: pass", "ZstdError(Exception): pass")
    (package / "__init__.py").write_text("\n".join(f"class {text}" for text in classes))

    assert run("from securecore.dump import zstd\nprint(zstd.ZstdCompressor.__module__)", tmp_path) == ["zstandard"]


def test_a_library_that_is_not_there_is_missed_by_its_name(tmp_path: Path) -> None:
    """As any import would say it."""
    program = (
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        f"sys.path.append({str(Path(zstd.__file__).parents[2])!r})\n"
        "try:\n    from securecore.dump import zstd\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert run(program, tmp_path) == ["zstandard"]

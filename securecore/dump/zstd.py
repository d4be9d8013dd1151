"""zstd, as the library zstandard has it: its C part alone, without the modules that its package loads first.

A crashed process waits while the handler starts, and ``platform`` and ``typing`` take more time than the library itself.
"""

import sys
from _frozen_importlib_external import PathFinder  # what importlib.machinery would give us, which loads importlib and warnings

from securecore.declarations import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

_PACKAGE, _BACKEND = "zstandard", "zstandard.backend_c"


def find_backend() -> "ModuleType | None":
    """Return the library's C part, under its own name among the loaded modules; None where it was built without one.

    Raises ImportError when it is there and cannot be loaded.
    """
    if _BACKEND in sys.modules:
        return sys.modules[_BACKEND]
    package = PathFinder.find_spec(_PACKAGE)
    places = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec(_BACKEND, places) if places is not None else None
    if spec is None or spec.loader is None:
        return None
    module = spec.loader.create_module(spec)
    if module is None:
        return None
    spec.loader.exec_module(module)
    # The package finds it here, should somebody load that later.
    sys.modules[_BACKEND] = module
    return module


if not TYPE_CHECKING:
    _library = find_backend()
    if _library is None:
        import zstandard as _library
    ZstdCompressor, ZstdDecompressor, ZstdError = _library.ZstdCompressor, _library.ZstdDecompressor, _library.ZstdError

__all__ = ["ZstdCompressor", "ZstdDecompressor", "ZstdError"]

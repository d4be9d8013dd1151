"""ssl, without modules that it loads and that nobody here uses.

``ssl`` loads ``base64``, and with it ``re``, to write a certificate as PEM, and ``warnings`` to speak of what is deprecated;
``socket`` loads ``selectors`` to send a file. A crashed process would wait for all of them: for 8 of the 143 million instructions
of a handler's start (callgrind, CPython 3.11). So while ``ssl`` is loaded each has a stand-in, which loads the module itself when
somebody asks for anything in it. What ``ssl`` and ``socket`` do stays what it is.
"""

import sys
from types import ModuleType

from securecore.declarations import Any, Final

LATE: Final = ("base64", "selectors", "warnings")


class _StandIn(ModuleType):
    """Has what the module of its name has, which is loaded when that is asked for."""

    def __getattr__(self, name: str) -> Any:
        from importlib import import_module  # as late as what it is for

        # The import would find this one for as long as it has the name.
        _withdraw(self)
        return getattr(import_module(self.__name__), name)


def load_ssl() -> None:
    """Load ``ssl`` so; who imports one of the late modules afterwards gets the module itself. Only where there is one thread."""
    if "ssl" in sys.modules:
        return
    stand_ins = [_StandIn(name) for name in LATE if name not in sys.modules]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in stand_ins})
    try:
        import ssl  # noqa: F401
    finally:
        for stand_in in stand_ins:
            _withdraw(stand_in)


def _withdraw(stand_in: _StandIn) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]

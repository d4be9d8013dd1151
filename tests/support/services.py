"""Processes as a unit with a user of its own has them: that user, with no other group, no capability, and none to be had."""

import sys
from typing import Final

SERVICE_USER: Final = 991

# What is needed is loaded before, as that user may not look into a checkout or its Python.
_PROGRAM: Final = """\
import _strptime, ctypes, encodings.idna, os, pkgutil, sys
from importlib import import_module
import securecore.cli.authority, securecore.pki, securecore.receiver.listeners, securecore.receiver.log_writer
from securecore.cli.main import main
for package in (securecore.cli.authority, securecore.pki):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
import securecore.cli.pki
os.setgroups([])
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
main(sys.argv[2:])
"""


def as_service(*arguments: str) -> list[str]:
    """Return the command that runs ``securecore pki ...`` so; only root can start it."""
    return [sys.executable, "-I", "-c", _PROGRAM, str(SERVICE_USER), *arguments]

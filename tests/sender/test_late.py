"""ssl as the crash handler loads it: lighter, and the same."""

import subprocess
import sys
from typing import Final

import pytest

from securecore.cli.machine.interpreter import find_interpreter
from tests.support.certificates import Fleet

LOAD: Final = "from securecore.sender.late import LATE, load_ssl\nload_ssl()\nimport ssl, socket, sys\n"
SAME: Final = f"{LOAD}if {{*LATE, 're'}} & {{*sys.modules}}: raise SystemExit('nothing is late')\n"


def said(program: str, *arguments: str) -> str:
    """Return what a fresh interpreter, started as a handler's, says to *program*."""
    path = f"import sys; sys.path += {[*find_interpreter().packages]}\n"
    result = subprocess.run([sys.executable, "-IS", "-c", path + program, *arguments], capture_output=True, check=True, text=True)
    return result.stdout


def test_what_is_late_is_not_loaded() -> None:
    """Neither a late module nor what only it needs, and no stand-in is left for others to find."""
    assert said(f"{LOAD}print([name for name in (*LATE, 're') if name in sys.modules])").strip() == "[]"


def test_a_certificate_is_written_and_read_as_ever(fleet: Fleet) -> None:
    """What ssl does with base64, it does still."""
    pem = (fleet.host / "cert.pem").read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n"
    program = f"{SAME}print(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(sys.argv[1])), end='')"

    assert said(program, pem) == pem


def test_a_file_is_sent_as_ever() -> None:
    """What socket does with selectors, it does still."""
    program = """
ours, theirs = socket.socketpair()
with open(ssl.__file__, "rb") as file:
    sent = ours.sendfile(file, 0, 1000)
    file.seek(0)
    print(sent, theirs.recv(1000, socket.MSG_WAITALL) == file.read(1000))
"""
    assert said(SAME + program).split() == ["1000", "True"]


def test_a_deprecation_is_spoken_of_as_ever() -> None:
    """What ssl does with warnings, it does still: also that they can be made errors."""
    program = """
import warnings
warnings.simplefilter("error")
try:
    ssl.SSLContext()
except DeprecationWarning as warning:
    print(type(warning).__name__)
"""
    assert said(SAME + program).split() == ["DeprecationWarning"]


@pytest.mark.parametrize("name", ["base64", "selectors", "warnings"])
def test_others_get_the_module_itself(name: str) -> None:
    """A stand-in is for ssl alone."""
    program = f"import {name} as found\nprint(type(found).__name__, found.__file__ == found.__spec__.origin)"
    assert said(SAME + program).split() == ["module", "True"]


def test_an_ssl_that_takes_a_name_at_once_gets_it() -> None:
    """Another Python's may: then the module is loaded there and then."""
    program = """
import sys
from securecore.sender import late

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "ssl":
            from importlib.machinery import ModuleSpec
            return ModuleSpec(name, Finder)

    def create_module(spec):
        return None

    def exec_module(module):
        exec("from base64 import b64encode", module.__dict__)

sys.meta_path.insert(0, Finder)
late.load_ssl()
import base64, ssl
print(ssl.b64encode(b"abc"), ssl.b64encode is base64.b64encode, type(sys.modules["base64"]).__name__)
"""
    assert said(program).split() == ["b'YWJj'", "True", "module"]


def test_an_ssl_that_is_there_stays() -> None:
    """As in the agent's children; nothing is put in anybody's place."""
    program = "import ssl, base64, sys\nbefore = dict(sys.modules)\nfrom securecore.sender.late import load_ssl\nload_ssl()\n"
    program += "print(all(sys.modules[name] is module for name, module in before.items()))"

    assert said(program).strip() == "True"


def test_an_ssl_that_cannot_be_loaded_leaves_nothing_behind() -> None:
    """The error is the one that it was, and the next import is a clean one."""
    program = """
import sys
from securecore.sender.late import LATE, load_ssl

sys.modules["_ssl"] = None
try:
    load_ssl()
except ImportError as error:
    print("_ssl" in str(error), [name for name in ("ssl", *LATE) if name in sys.modules])
"""
    assert said(program).strip() == "True []"

"""A sender's files: the kernel takes the pattern and the script's first line as they are written."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from securecore import limits
from securecore.errors import ConfigError
from securecore.sender import installation
from securecore.sender.local_mode import LocalMode
from tests.support.kernel import write_script
from tests.support.launchers import as_by_the_kernel

_IMPORT: Final = b"    from securecore.sender.handler import main"


def test_pattern_has_the_specifiers_of_the_handler() -> None:
    """The pattern is a pipe to the handler with numbers only, no text that a crashing process chooses (R27)."""
    pattern = installation.core_pattern(installation.HANDLER)
    assert pattern == "|/usr/libexec/securecore/handler %P %I %u %g %s %t %c %d %F"


def test_longest_pattern_is_taken_and_one_more_is_refused() -> None:
    """127 characters go in, the 128th would be cut by the kernel silently."""
    specifiers = len(installation.core_pattern("")) - 1
    longest = "/" + "x" * (127 - specifiers - 2)
    assert len(installation.core_pattern(longest)) == 127
    with pytest.raises(ConfigError, match="128 characters, the kernel takes 127"):
        installation.core_pattern(longest + "x")


@pytest.mark.parametrize("path", ["/a b/handler", "/a%p/handler", "/a\n/handler", "/ä/handler"])
def test_pattern_refuses_paths_that_the_kernel_takes_apart(path: str) -> None:
    """A space would begin an argument and a percent sign a specifier."""
    with pytest.raises(ConfigError, match="plain characters"):
        installation.core_pattern(path)


def test_script_names_the_interpreter_isolated_and_where_packages_are() -> None:
    """The script is a first line with -I and -S, the path behind the standard library's, an import and a call."""
    first, *lines = installation.handler_script("/opt/sc/bin/python", "/etc/x.json", ("/opt/sc/lib", "/opt/it's")).split(b"\n")
    assert first == b"#!/opt/sc/bin/python -IS"
    assert lines[:5] == [b"import sys", b"", b"sys.path += ['/opt/sc/lib', \"/opt/it's\"]", b"try:", _IMPORT]
    assert lines[-3:] == [b"", b"main('/etc/x.json')", b""]


def test_script_leaves_the_path_to_an_interpreter_that_knows_of_no_packages() -> None:
    """Then it is a first line with -I, an import and a call."""
    first, *lines = installation.handler_script("/opt/sc/bin/python", "/etc/x.json").split(b"\n")
    assert first == b"#!/opt/sc/bin/python -I"
    assert lines[:2] == [b"try:", _IMPORT]
    assert lines[-3:] == [b"", b"main('/etc/x.json')", b""]


_LISTENER = """
import socket
connect = socket.socket.connect
socket.socket.connect = lambda self, address: connect(self, {place!r} if address == "/dev/log" else address)
"""


def test_a_script_whose_package_has_moved_says_so(tmp_path: Path) -> None:
    """Nothing else tells why no crash arrives any more: a traceback goes nowhere where the kernel starts the handler."""
    place = str(tmp_path / "log")
    text = installation.handler_script(sys.executable, "/etc/x.json", (str(tmp_path / "gone"),)).decode()
    write_script(tmp_path / "handler", text.replace("import sys\n", f"import sys\n{_LISTENER.format(place=place)}", 1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(place)
        answer = subprocess.run([*as_by_the_kernel(), str(tmp_path / "handler")], stdin=subprocess.DEVNULL, check=False, timeout=60)
        log.setblocking(False)
        line = log.recv(1000).decode("ascii")
    assert answer.returncode == ConfigError.exit_code
    assert re.fullmatch(
        r"<27>securecore\[\d+\]: failed error=\"the handler cannot be loaded: No module named 'securecore';"
        r" run `securecore setup sender` again\" code=3", line,
    )  # fmt: skip


@pytest.mark.parametrize("interpreter", ["/with space/python", "/with\nline/python", "/" + "x" * 250 + "/python"])
def test_script_refuses_what_a_first_line_cannot_hold(interpreter: str) -> None:
    """Spaces end the interpreter's name, and the kernel cuts the line at 255 bytes (execve(2))."""
    with pytest.raises(ConfigError):
        installation.handler_script(interpreter)


@pytest.mark.slow
def test_units_are_what_systemd_understands(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with the service and its timer."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    service, timer = tmp_path / "securecore-flush.service", tmp_path / "securecore-flush.timer"
    service.write_bytes(installation.flush_service("/bin/true"))
    timer.write_bytes(installation.flush_timer())
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", service, timer], capture_output=True, check=False, text=True)
    assert [line for line in answer.stderr.splitlines() if "securecore" in line] == []


@pytest.mark.parametrize("interpreter", ["/opt/100%/bin/python", "/opt/$x/bin/python", "/opt/it's/bin/python"])
def test_flush_refuses_a_path_that_systemd_takes_apart(interpreter: str) -> None:
    """The kernel would run such an interpreter, and nothing would deliver what its handler spools."""
    assert installation.handler_script(interpreter).startswith(f"#!{interpreter} ".encode())
    with pytest.raises(ConfigError, match="systemd unit"):
        installation.flush_service(interpreter)


def test_a_flush_stands_behind_a_handler() -> None:
    """Nobody waits for a flush: it has less of the processor and no more of the disk, goes as early, and its memory is bound."""
    lines = installation.flush_service("/bin/true").decode().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)

    assert limits.HANDLER_NICE < int(found["Nice"]) <= limits.MAX_NICE
    assert (found["IOSchedulingClass"], found["IOSchedulingPriority"]) == ("best-effort", "7")
    assert found["OOMScoreAdjust"] == "500"
    assert int(found["MemoryMax"]) == limits.FLUSH_MEMORY_BYTES


def test_local_pattern_has_the_options_before_the_numbers() -> None:
    """All that the handler must know stands there, and it fits the kernel."""
    mode = LocalMode("/var/lib/securecore/cores", "gz", 9, 100)
    pattern = installation.core_pattern(installation.HANDLER, mode)
    options = "--local /var/lib/securecore/cores --format gz --level 9 --keep 100"
    assert pattern == f"|/usr/libexec/securecore/handler {options} %P %I %u %g %s %t %c %d %F"
    assert len(pattern) <= limits.CORE_PATTERN_MAX


@pytest.mark.parametrize("directory", ["/my cores", "/var/%h", "/ä"])
def test_local_pattern_refuses_what_the_kernel_takes_apart(directory: str) -> None:
    """The directory stands in the same line as the handler's path."""
    with pytest.raises(ConfigError, match="plain characters"):
        installation.core_pattern(installation.HANDLER, LocalMode(directory))


def test_local_pattern_that_is_too_long_is_refused() -> None:
    """The kernel would cut off the numbers, and the handler refuse its arguments at each crash."""
    with pytest.raises(ConfigError, match="the kernel takes 127"):
        installation.core_pattern(installation.HANDLER, LocalMode("/var/lib/securecore/" + "x" * 40, "zlib", 9, 1000))

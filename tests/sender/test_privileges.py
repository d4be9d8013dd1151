"""What the handler gives up, and that it cannot get it back."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from securecore.errors import ConfigError
from securecore.sender.privileges import Acting, can_others_import

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")

_TRY = """
import os, sys
from securecore.sender import privileges
privileges.forbid_own_core()
privileges.drop({uid}, {gid})
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(status["Uid"].split(), status["Gid"].split(), os.getgroups(), status["CapEff"], status["CapPrm"], status["NoNewPrivs"])
import ctypes
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
for regain in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        regain()
    except OSError:
        continue
    print("regained")
"""


def run_try(uid: int, gid: int) -> "subprocess.CompletedProcess[str]":
    """Drop to *uid* and *gid* in a process of its own, and try everything to get back."""
    return subprocess.run([sys.executable, "-c", _TRY.format(uid=uid, gid=gid)], capture_output=True, text=True, check=False)


@needs_root
def test_nothing_is_left_and_nothing_comes_back() -> None:
    """R18 and R19: ids, groups and capabilities are gone, no_new_privs is on, the process is not dumpable."""
    lines = run_try(65534, 65533).stdout.splitlines()

    none = "0" * 16
    assert lines == [f"{['65534'] * 4} {['65533'] * 4} [] {none} {none} 1", "0"]


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 65534), (65534, 0)])
def test_root_is_no_user_to_drop_to(uid: int, gid: int) -> None:
    """Settings that name root are refused: there would be nothing dropped."""
    result = run_try(uid, gid)

    assert result.returncode != 0
    assert "the user to become is root" in result.stderr


_ACT = """
import ctypes, os, signal
from securecore.sender import privileges

def tell():
    status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
    print(status["Uid"].split(), status["Gid"].split(), os.getgroups(), status["CapEff"] != "0" * 16, flush=True)
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)

os.setgroups([0, 7])
privileges.forbid_own_core()
try:
    with privileges.Acting({uid}, {gid}):
        tell()
        target = os.getpid()
        if os.fork() == 0:
            os.seteuid(0)
            privileges.drop({uid}, {gid})
            for number in (0, signal.SIGKILL):
                try:
                    os.kill(target, number)
                except PermissionError:
                    print("no", flush=True)
            os._exit(0)
        os.wait()
        raise KeyError
except KeyError:
    tell()
privileges.drop({uid}, {gid})
tell()
"""


@needs_root
def test_who_acts_as_another_user_is_root_again_behind_it_and_can_still_drop() -> None:
    """Meanwhile no capability works, and nobody of that user may reach the process; however the block ends, root is back."""
    script = _ACT.format(uid=65534, gid=65533)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    acting = "['0', '65534', '0', '65534'] ['0', '65533', '0', '65533'] [] False"
    root, dropped = f"{['0'] * 4} {['0'] * 4} [] True", f"{['65534'] * 4} {['65533'] * 4} [] False"
    assert result.stdout.splitlines() == [acting, "0", "no", "no", root, "0", dropped, "0"], result.stderr


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 65534), (65534, 0)])
def test_root_is_no_user_to_act_as(uid: int, gid: int) -> None:
    """As it is none to drop to."""
    with pytest.raises(ConfigError, match="the user to become is root"), Acting(uid, gid):
        pass


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may search, which those of pytest are not; its parents are left as they are."""
    directory = Path(tempfile.mkdtemp(prefix="securecore-public-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_what_others_can_import_is_told_by_every_directory_on_the_way(public: Path) -> None:
    """One directory on the way that others may not search is enough; the last one must be readable too; the absent do not count."""
    inner = public / "a" / "b"
    for directory in (inner.parent, inner):
        directory.mkdir()
        directory.chmod(0o755)

    assert can_others_import([str(inner)])
    assert can_others_import([str(inner), str(public / "absent")])
    (public / "a").chmod(0o750)
    assert not can_others_import([str(inner)])
    (public / "a").chmod(0o711)
    assert can_others_import([str(inner)])
    inner.chmod(0o711)
    assert not can_others_import([str(inner)])

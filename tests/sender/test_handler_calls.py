"""What a handler asks of the kernel, in order, as strace sees it: which paths it opens, when it meets the network."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from securecore.receiver.server import Receiver
from tests.support.certificates import Fleet
from tests.support.kernel import Installed, kernel_arguments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up, and may trace it"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, a judge that is not ours"),
]

TRACED: Final = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,rename,renameat,renameat2,unlink,unlinkat,"
    "chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,umask,chdir,fchdir,chroot,setns,unshare,ptrace,process_vm_readv,execve,"
    "connect,setgroups,setresgid,setresuid"
)
READ: Final = {"comm", "cmdline", "cgroup", "status", "stat"}
"""All that a handler opens of a crashed process, in /proc/PID and in the directory of the thread that crashed; its namespaces are
told by links that are read and not followed. Its program is opened by a child."""

_CALL: Final = re.compile(r"^(\w+)\((.*)\) += (.*)$")
_UNFINISHED: Final = re.compile(r"^(.*) <unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")


class Call(NamedTuple):
    """One system call: arguments as strace writes them, with the path behind each descriptor."""

    name: str
    arguments: str
    result: str


class Traced(NamedTuple):
    """A handler's calls, and the process that it was told had crashed: its pid, and a directory that all its paths lead into."""

    calls: list[Call]
    child: list[Call]
    """Those of the child that looks at the program."""
    pid: int
    place: Path

    def first(self, pattern: str) -> int:
        """Return the number of the first call that *pattern* is found in."""
        return next(number for number, call in enumerate(self.calls) if re.search(pattern, f"{call.name}({call.arguments})"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the crashed process has its program, its directories and its files."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
def victim(place: Path) -> Iterator[int]:
    """A process that names as many paths as it can: program, working directory, arguments, variables, an open file."""
    program = place / "program"
    shutil.copyfile("/bin/sleep", program)
    program.chmod(0o755)
    (place / "config").write_text("precious")
    named = {name: f"{place}/{name}" for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "PYTHONPATH", "LD_LIBRARY_PATH")}
    with (place / "config").open() as config:
        process = subprocess.Popen([str(program), "600"], cwd=place, env=named, stdin=config)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def traced(victim: int, place: Path, fleet: Fleet, receiver: Receiver, tmp_path: Path) -> Traced:
    """A handler that has delivered a core, traced from its first call to its last."""
    installed, log = Installed(tmp_path, fleet.host, receiver.addresses), tmp_path / "trace"
    arguments = [str(victim), str(victim), *kernel_arguments()[2:]]
    tracer = ["strace", "-f", "-y", "-qq", "-s", "4096", "-o", str(log), "-e", f"trace={TRACED}", "-e", "signal=none"]
    subprocess.run([*tracer, str(installed.handler), *arguments], input=b"core", env={}, cwd="/", check=True, timeout=60)
    assert len(installed.receipts()) == 1
    calls = parse_trace(log.read_text("utf-8", "backslashreplace").splitlines())
    (child,) = {tracee for tracee, call in calls if f"/proc/{victim}" in call.arguments and '"exe"' in call.arguments}
    own, others = ([call for tracee, call in calls if (tracee == child) is is_child] for is_child in (False, True))
    return Traced(own, others, victim, place)


def parse_trace(lines: list[str]) -> list[tuple[str, Call]]:
    """Return process or thread and call of each line, in the order in which calls began: those of others may come in between."""
    begun: dict[str, int] = {}
    whole: list[tuple[str, str]] = []
    for line in lines:
        tracee, text = line.split(maxsplit=1)
        resumed = _RESUMED.match(text)
        if resumed is not None and tracee in begun:
            at = begun.pop(tracee)
            whole[at] = tracee, whole[at][1] + resumed[1]
            continue
        unfinished = _UNFINISHED.match(text)
        if unfinished is not None:
            begun[tracee] = len(whole)
        whole.append((tracee, unfinished[1] if unfinished is not None else text))
    return [(tracee, Call(*match.groups())) for tracee, text in whole if (match := _CALL.match(text)) is not None]


def test_nothing_that_the_process_names_is_opened(traced: Traced) -> None:
    """R6 and R16: only a few files in /proc/PID are read; its root, directory, variables, memory and files are left alone."""
    process = re.compile(rf"/proc/{traced.pid}(?:/task/{traced.pid})?(?:<[^>]*>)?>?(?:, \"|/)?([\w/]*)")
    touched = {name for call in traced.calls for name in process.findall(call.arguments) if name}

    assert touched == READ | {f"task/{traced.pid}"}
    assert [call for call in traced.calls if str(traced.place) in call.arguments] == []
    assert [call for call in traced.calls if call.name in ("chdir", "fchdir", "chroot", "setns", "unshare", "ptrace")] == []
    assert [call.name for call in traced.calls if call.name == "execve"] == ["execve"]


def test_the_child_opens_the_program_alone_and_gives_up_what_it_was(traced: Traced) -> None:
    """Of the process it opens exe, the file that the kernel holds; then groups, group and user go, and it does nothing else."""
    names = [call.name for call in traced.child]
    (opened,) = [call for call in traced.child if call.name == "openat" and f"/proc/{traced.pid}" in call.arguments]

    assert opened.result.endswith(f"<{traced.place}/program>")
    assert [call for call in traced.child if str(traced.place) in call.arguments] == []
    assert [name for name in names if name.startswith("set")] == ["setgroups", "setresgid", "setresuid"]
    assert names.index("openat") < names.index("setgroups")
    assert set(names) == {"openat", "setgroups", "setresgid", "setresuid"}


def test_the_network_is_met_after_everything_was_given_up(traced: Traced) -> None:
    """R18: groups, group, user, in this order, and only then a connection."""
    given_up = (r"^setgroups\(0", r"^setresgid\((\d+), \1, \1\)", r"^setresuid\((\d+), \1, \1\)")
    order = [traced.first(pattern) for pattern in (*given_up, r"^connect\(.*AF_INET")]

    assert order == sorted(order)


def test_nothing_is_made_before_the_umask_or_given_away(traced: Traced) -> None:
    """R8 and R9: umask 077 comes before the first file, which replaces none and follows no link; nothing changes owner or mode."""
    making = [call for call in traced.calls if "O_CREAT" in call.arguments or call.name in ("mkdir", "mkdirat")]
    flags = [set(re.findall(r"\w+", call.arguments)) for call in making if call.name == "openat"]

    assert len(flags) > 0
    assert traced.first(r"^umask\(077\)") < traced.calls.index(making[0])
    assert [one for one in flags if not {"O_EXCL", "O_NOFOLLOW"} <= one] == []
    assert [call for call in traced.calls if re.match(r"[fl]?chown|f?chmod|mknod|symlink|creat", call.name)] == []

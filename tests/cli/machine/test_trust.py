"""Who can change what root runs: every component of a path, links included (R26)."""

import os
from pathlib import Path

import pytest

from securecore.cli.machine import trust
from securecore.cli.machine.interpreter import Interpreter, find_interpreter
from securecore.cli.machine.root import Root
from securecore.errors import ConfigError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with a program in /opt/sc/bin, reached through a link as well."""
    made = tmp_path / "root"
    (made / "opt/sc/bin").mkdir(parents=True)
    (made / "opt/sc/bin/python").write_text("")
    (made / "usr").mkdir()
    (made / "usr/python").symlink_to("/opt/sc/bin/python")
    (made / "usr/relative").symlink_to("../opt/sc")
    for path in (made, *made.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    return made


@pytest.mark.parametrize("path", ["/opt/sc/bin/python", "/usr/python", "/usr/relative/bin/python", "/opt/sc/not/yet/there"])
def test_path_of_root_alone_is_trusted(tree: Path, path: str) -> None:
    """What only root can change is trusted, through absolute and relative links, and where nothing stands yet."""
    with Root(tree) as root:
        assert trust.check_trusted(path, root, "handler") == []


@pytest.mark.parametrize("loose", ["", "opt", "opt/sc", "opt/sc/bin", "opt/sc/bin/python"])
@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("path", ["/opt/sc/bin/python", "/usr/python", "/usr/relative/bin/python"])
def test_writable_component_is_refused(tree: Path, loose: str, mode: int, path: str) -> None:
    """One component that group or others may write is enough, also behind a link."""
    (tree / loose).chmod(mode)
    with Root(tree) as root, pytest.raises(ConfigError, match="can be written by others than root"):
        trust.check_trusted(path, root, "handler")


def test_component_of_another_user_is_refused(tree: Path) -> None:
    """Whoever owns a directory can make it writable."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(tree / "opt/sc", 990, 990)
    with Root(tree) as root, pytest.raises(ConfigError, match="belongs to uid 990"):
        trust.check_trusted("/usr/python", root, "handler")


def test_sticky_directory_is_a_warning_but_a_sticky_file_is_none(tree: Path) -> None:
    """Mode 1777 protects what root has made in a directory; on a file it means nothing."""
    (tree / "opt").chmod(0o1777)
    with Root(tree) as root:
        assert len(trust.check_trusted("/opt/sc/bin/python", root, "handler")) == 1
        (tree / "opt/sc/bin/python").chmod(0o1777)
        with pytest.raises(ConfigError):
            trust.check_trusted("/opt/sc/bin/python", root, "handler")


def test_endless_links_are_refused(tree: Path) -> None:
    """Two links that lead to each other end."""
    (tree / "a").symlink_to("/b")
    (tree / "b").symlink_to("/a")
    with Root(tree) as root, pytest.raises(ConfigError, match="too many symbolic links"):
        trust.check_trusted("/a/python", root, "handler")


def test_interpreter_with_a_writable_package_is_refused(tree: Path) -> None:
    """What the interpreter loads is as good as the interpreter: its directories, and what lies directly in them."""
    interpreter = Interpreter("/usr/python", "/opt/sc/lib/site-packages/securecore", ("/opt/sc/lib/site-packages",))
    (tree / "opt/sc/lib/site-packages/securecore").mkdir(parents=True)
    (tree / "opt/sc/lib/site-packages/zstandard").mkdir()
    for path in ("opt/sc/lib", "opt/sc/lib/site-packages", "opt/sc/lib/site-packages/securecore"):
        (tree / path).chmod(0o755)
    (tree / "opt/sc/lib/site-packages/zstandard").chmod(0o777)
    with Root(tree) as root, pytest.raises(ConfigError, match=r"package: .*zstandard can be written"):
        interpreter.check(root)
    (tree / "opt/sc/lib/site-packages/zstandard").chmod(0o755)
    with Root(tree) as root:
        assert interpreter.check(root) == []


def test_interpreter_outside_of_the_root_is_a_warning(tree: Path) -> None:
    """An image may get its Python later."""
    with Root(tree) as root:
        (warning,) = Interpreter("/opt/none/python", "/opt/none", ()).check(root)
    assert "is not in" in warning


def test_our_interpreter_loads_the_handler() -> None:
    """The interpreter is asked as the kernel would start it, and tells where our package is."""
    found = find_interpreter()
    assert Path(found.package, "sender/handler.py").is_file()
    assert os.path.isabs(found.executable)


def test_what_only_root_reads_is_not_reachable(tmp_path: Path) -> None:
    """A path is reachable when everybody may walk it and read what it leads to."""
    file = tmp_path / "private/file"
    file.parent.mkdir(mode=0o700)
    file.write_text("")
    assert not trust.is_reachable(str(file))
    assert not trust.is_reachable(str(tmp_path / "nothing"))
    assert trust.is_reachable("/etc")

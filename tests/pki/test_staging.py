"""Directories and files that appear whole or not at all."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from securecore.errors import PkiError, StorageError
from securecore.pki.staging import check_free, replace, stage, stage_file, write_new


class Stop(Exception):
    """What a test stops a run with."""


def test_published_directory_has_its_files_and_modes_whatever_the_umask(tmp_path: Path) -> None:
    """Modes are set at creation; umask 000 makes nothing looser, 077 nothing tighter."""
    for umask in (0o000, 0o077):
        old = os.umask(umask)
        try:
            final = tmp_path / f"made-{umask}"
            with stage(final) as staged:
                staged.make_directory("sub")
                staged.write("sub/key.pem", b"k", 0o600)
                staged.write("cert.pem", b"c", 0o644)
                staged.publish()
        finally:
            os.umask(old)
        modes = {str(path.relative_to(final)): path.stat().st_mode & 0o777 for path in [final, *final.rglob("*")]}
        assert modes == {".": 0o700, "sub": 0o700, "sub/key.pem": 0o600, "cert.pem": 0o644}


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """Whatever stops the making, neither the directory nor its temporary remains."""
    def fail() -> None:
        with stage(tmp_path / "identity") as staged:
            staged.make_directory("sub")
            staged.write("sub/key.pem", b"k", 0o600)
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    """A run that was killed leaves its temporary directory, which the next run for the same place clears away."""
    leftover = tmp_path / ".identity.securecore-partial"
    (leftover / "sub").mkdir(parents=True)
    (leftover / "sub" / "key.pem").write_bytes(b"old")
    with stage(tmp_path / "identity") as staged:
        staged.write("key.pem", b"new", 0o600)
        staged.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
    assert [path.name for path in (tmp_path / "identity").iterdir()] == ["key.pem"]


def test_running_run_is_left_alone(tmp_path: Path) -> None:
    """While another run holds its temporary directory, a second one stops."""
    partial = tmp_path / ".identity.securecore-partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(PkiError, match="another run is making"), stage(tmp_path / "identity"):
        pass
    assert partial.is_dir()
    os.close(descriptor)


def test_what_others_make_is_never_taken_for_a_leftover(tmp_path: Path) -> None:
    """Runs that begin at the same moments, again and again: each makes a whole directory or is told that another is at it."""
    together, words = threading.Barrier(4), []

    def make() -> None:
        for number in range(40):
            together.wait()
            try:
                with stage(tmp_path / f"identity-{number}") as staged:
                    staged.write("key.pem", b"key", 0o600)
                    staged.write("request.pem", b"request", 0o644)
                    staged.publish()
                words.append("made")
            except PkiError as error:
                words.append("another" if "another run is making" in error.message else "taken")
            except StorageError as error:
                words.append(error.message)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(words) == 160
    assert set(words) <= {"made", "another", "taken"}
    made = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert words.count("made") == len(made)
    assert all(sorted(file.name for file in path.iterdir()) == ["key.pem", "request.pem"] for path in made)


def test_link_in_the_temporary_place_is_not_followed(tmp_path: Path) -> None:
    """Neither cleaning nor writing goes through a link that somebody put there."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"precious")
    (tmp_path / ".identity.securecore-partial").symlink_to(victim)
    with pytest.raises((PkiError, StorageError)), stage(tmp_path / "identity"):
        pass
    assert (victim / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["file", "directory", "dangling-link"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    """A file, a directory, even an empty one, and a link that leads nowhere are all in the way."""
    final = tmp_path / "identity"
    if kind == "file":
        final.write_bytes(b"")
    elif kind == "directory":
        final.mkdir()
    else:
        final.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PkiError, match="exists already"), stage(final):
        pass
    with pytest.raises(PkiError, match="exists already"):
        check_free(final)


def test_place_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Who takes the name while we work keeps it."""
    final = tmp_path / "identity"

    def lose_the_race() -> None:
        with stage(final) as staged:
            staged.write("key.pem", b"k", 0o600)
            final.mkdir()
            (final / "theirs").write_bytes(b"t")
            staged.publish()

    with pytest.raises(PkiError, match="exists already"):
        lose_the_race()
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
    assert [path.name for path in final.iterdir()] == ["theirs"]


def test_new_file_replaces_nothing(tmp_path: Path) -> None:
    """Exclusive creation, links not followed."""
    write_new(tmp_path / "a", b"1", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for name in ("a", "link"):
        with pytest.raises(StorageError, match=name):
            write_new(tmp_path / name, b"2", 0o600)
    assert not (tmp_path / "b").exists()


def test_replaced_file_keeps_mode_and_owner(tmp_path: Path) -> None:
    """A reader that was given its right on purpose keeps it."""
    path = tmp_path / "crl.pem"
    replace(path, b"1", 0o644)
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4711, 4712)
    before = path.stat()
    replace(path, b"2", 0o644)
    after = path.stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    assert path.read_bytes() == b"2"
    assert [one.name for one in tmp_path.iterdir()] == ["crl.pem"]


def test_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    """A parent that is a file, for instance."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"), stage(tmp_path / "file" / "identity"):
        pass


def test_what_leads_to_a_staged_place_is_writable_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask: others could put their own directory in the place of ours. What was there already stays as it is."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o777)
    before = os.umask(0)
    try:
        with stage(tmp_path / "there" / "a" / "b" / "identity") as staged:
            staged.publish()
        with stage_file(tmp_path / "there" / "c" / "reply", b"x", 0o644) as reply:
            reply.publish()
    finally:
        os.umask(before)
    modes = {name: (tmp_path / "there" / name).stat().st_mode & 0o777 for name in ("", "a", "a/b", "a/b/identity", "c")}
    assert modes == {"": 0o777, "a": 0o755, "a/b": 0o755, "a/b/identity": 0o700, "c": 0o755}

"""The store's file system becomes read-only while dumps come in: senders keep them, and the store goes on once it is repaired."""

import os
import subprocess
from pathlib import Path

import pytest

from securecore import limits
from securecore.errors import BusyError, StorageError, UnreachableError
from tests.support.certificates import Fleet
from tests.support.checker import check
from tests.support.file_systems import breakable_disk
from tests.support.kernel import wait_until
from tests.support.local_files import noise, small_disk
from tests.support.processes import SECURECORE, receiving
from tests.support.senders import ROOT, sending

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount file systems")]

MIB = limits.MIB


def test_store_that_becomes_read_only_in_dumps_keeps_every_receipt_and_gets_the_rest_after_its_repair(
    fleet: Fleet, tmp_path: Path
) -> None:
    """One dump has its receipt, one is acknowledged in part, one only begun, one crashes afterwards: handlers end with "busy".

    The device fails as a real one does, so the receiver must be ended and the file system checked before it can go on.
    """
    root = (fleet.host / "ca.pem").read_bytes()
    with breakable_disk(tmp_path / "disk") as disk:
        store = disk.path / "store"
        with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, *receiver.addresses) as web:
            assert web.crash(noise(2 * MIB, 1)).end() == 0
            begun = [web.crash(noise(size * MIB, size)) for size in (11, 3)]
            wait_until(lambda: web.held_bytes(store) >= 11 * MIB or None)
            disk.break_down()
            codes = [crash.end() for crash in [*begun, web.crash(noise(MIB, 4))]]
            flushed = web.flush(*receiver.addresses)
            meanwhile = check(store, root, spools=[web.spool], truths=web.truths(store))
            receiver.popen.terminate()
            said = receiver.rest()
        disk.repair()
        healed = check(store, root, spools=[web.spool], truths=web.truths(store))
        with receiving(fleet.receiver, store) as receiver:
            assert web.flush(*receiver.addresses).returncode == 0
            web.send_to(*receiver.addresses)
            assert web.crash(noise(MIB, 5)).end() == 0
            truths = web.truths(store)
        assert (meanwhile, healed) == ([], [])
        assert check(store, root, spools=[web.spool], truths=truths, is_settled=True) == []
    assert codes == [BusyError.exit_code] * 3
    assert flushed.returncode == BusyError.exit_code
    assert "Traceback" not in said


def test_receiver_does_not_start_on_a_read_only_store_and_leaves_it_as_it_is(fleet: Fleet, tmp_path: Path) -> None:
    """It ends with "storage" and one line; the senders wait; made writable again, all is delivered."""
    root = (fleet.host / "ca.pem").read_bytes()
    with small_disk(tmp_path / "small", "32m") as disk:
        store = disk / "store"
        with receiving(fleet.receiver, store) as receiver, sending(tmp_path / "web", fleet.host, *receiver.addresses) as web:
            assert web.crash(noise(MIB, 1)).end() == 0
            receiver.popen.terminate()
            receiver.rest()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        command = [*SECURECORE, "receive", "--listen", "127.0.0.1:0", "--identity", str(fleet.receiver), "--store", str(store)]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert web.crash(noise(MIB, 2)).end() == UnreachableError.exit_code
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with receiving(fleet.receiver, store) as receiver:
            assert web.flush(*receiver.addresses).returncode == 0
            truths = web.truths(store)
        assert check(store, root, spools=[web.spool], truths=truths, is_settled=True) == []
    assert refused.returncode == StorageError.exit_code, refused
    assert "read-only file system" in refused.stderr
    assert "Traceback" not in refused.stderr

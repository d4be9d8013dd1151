"""Where several processes run the tests: what has to stay together does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.test_documents import ROOT

pytest.importorskip("xdist")

FILE: Final = """
import json, os
import pytest
{marks}
@pytest.mark.parametrize("number", range(20))
def test_noted(request, number):
    with open(request.config.rootpath / "ran", "a") as ran:
        print(json.dumps([request.path.name, os.getpid()]), file=ran)
"""
KINDS: Final = {
    "plain": "",
    "crash": "@pytest.mark.real_crash",
    "all crash": "needs_kernel = pytest.mark.skipif(False, reason='')\npytestmark = [needs_kernel]",
}
INI: Final = "[pytest]\nmarkers =\n    real_crash\n"


@pytest.mark.slow
def test_a_file_stays_in_one_process_and_so_do_all_files_with_real_crashes(tmp_path: Path) -> None:
    """Every test runs once, both processes have work, and whoever borrows core_pattern need not wait for another one."""
    (tmp_path / "pytest.ini").write_text(INI)
    for number in range(4):
        for kind, marks in KINDS.items():
            (tmp_path / f"test_{kind.replace(' ', '_')}_{number}.py").write_text(FILE.format(marks=marks))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    command += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", str(tmp_path)]
    ran_under = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=ran_under, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    ran = [json.loads(line) for line in (tmp_path / "ran").read_text().splitlines()]
    plain = {(file, process) for file, process in ran if "plain" in file}

    assert len(ran) == 3 * 4 * 20
    assert len(plain) == 4
    assert len({process for file, process in ran if "plain" not in file}) == 1
    assert len({process for _, process in ran}) == 2

"""Whatever ends a run ends all its processes, soon and with the right exit code."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lic.failing import CASES, LIMIT

from bench.lic.data.batches import Workers

ROOT = Path(__file__).parents[2]
INTERRUPTED = 130

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def ends(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("failing")
    script = Path(__file__).with_name("failing.py")
    done = subprocess.run(
        [sys.executable, script, data, folder, *CASES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for case in CASES:
        found[case]["said"] = (folder / case / "said.0").read_text()
    return found


CODES = {
    "no memory": 1,
    "full disk": 1,
    "a worker killed": 1,
    "SIGTERM": INTERRUPTED,
    "SIGTERM twice": -15,
    "Ctrl-C": INTERRUPTED,
    "Ctrl-C twice": INTERRUPTED,
    "killed": -9,
    "no memory in one of two": 1,
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_workers_ends_and_leaves_no_process(
    case: str, ends: dict[str, dict[str, Any]]
) -> None:
    end = ends[case]
    assert end["codes"][-1] == CODES[case], end
    assert all(end["codes"])  # of the other process SIGTERM's, if that came first
    assert end["seconds"] < LIMIT
    assert end["left"] == 0


def test_a_full_disk_is_told_in_one_line(ends: dict[str, dict[str, Any]]) -> None:
    *_, last = ends["full disk"]["said"].splitlines()
    assert "checkpoint.pt: No space left on device; free some space" in last
    assert "Traceback" not in ends["full disk"]["said"]


def deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def test_processes_of_a_loader_that_could_not_be_made_end_too() -> None:
    process, workers = (
        multiprocessing.get_context("fork").Process(target=deaf, daemon=True),
        Workers(),
    )

    def start() -> None:
        process.start()
        raise OSError("too many open files")

    try:
        with pytest.raises(OSError, match="too many"):
            workers.started_by(start)
        workers.end()
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()

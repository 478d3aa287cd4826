"""The demo is killed at random moments and resumed: it ends in the bits of a run left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.lic.training import checkpoint

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SOAP_FAST_KILLS", "5"))


@pytest.mark.skipif(os.name == "nt", reason="forks, and kills by SIGKILL: not on Windows")
def test_a_killed_demo_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """SOAP_FAST_KILLS=100 takes that many, at moments that nobody chose, as `make soak` does."""
    seed = 0 if KILLS == 5 else random.SystemRandom().randrange(2**32)
    command = [sys.executable, Path(__file__).with_name("killing.py"), tmp_path, str(KILLS)]
    paths = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(seed)], cwd=ROOT, env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, (seed, done.stderr)
    counts = json.loads(done.stdout)
    print(counts, "seed", seed)
    assert counts["kills"] == KILLS, seed
    assert counts["without_a_checkpoint"] < KILLS, seed  # or nothing would have been resumed
    assert counts["equal"] == counts["runs"] > 0, (seed, counts)


def test_a_checkpoint_is_on_the_disk_before_its_name_is_and_its_name_before_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that dies, not only its process, must leave this checkpoint or the last one."""
    happened = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        here = os.path.samestat(os.fstat(handle), tmp_path.stat())
        happened.append("folder" if here else f"{os.fstat(handle).st_size} bytes")
        sync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        happened.append("replace")
        sizes.append(source.stat().st_size)
        replace(source, target)

    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.write(tmp_path / "checkpoint.pt", {"step": torch.tensor(1)})
    assert happened == [f"{sizes[0]} bytes", "replace", "folder"]
    assert sizes[0] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

"""A rank that dies in the middle of a step: the others end with torch's error, none hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from shared import built
from streams import set_gradients

TIMEOUT = 5.0  # seconds, of the group


def of_rank(rank: int, store: str, how: str) -> str:
    """Steps until rank 1 ends, or stops, in its share of the first refresh."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT),
    )
    params, optimizer = built(dist.group.WORLD, backend="eager")
    if rank == 1:
        optimizer._backend.refresh_op = {"dies": lambda *_: os._exit(9), "hangs": hangs}[how]
    for call in range(8):
        set_gradients(params, call)
        started = time.monotonic()
        try:
            optimizer.step()
        except RuntimeError as error:
            return json.dumps([call, type(error).__name__, time.monotonic() - started])
    return "it went on"


def hangs(*_) -> None:
    time.sleep(6 * TIMEOUT)
    os._exit(9)


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_the_others_end_with_torchs_error(how, tmp_path):
    store = str(tmp_path / "store")
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), store, how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        said, errors = ranks[0].communicate(timeout=60)
        call, kind, seconds = json.loads(said.splitlines()[-1] if said else f'["{errors}", 0, 0]')
        assert call == 3
        assert kind in ("RuntimeError", "DistBackendError", "DistNetworkError")
        assert seconds < 3 * TIMEOUT
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


if __name__ == "__main__":
    print(of_rank(int(sys.argv[1]), *sys.argv[2:]))

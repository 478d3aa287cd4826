"""A rank that dies in the middle of a step: the others end with torch's error, none hangs."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import torch.distributed as dist
from rank_scripts import join_others, two_scripts
from shared import built
from streams import set_gradients

TIMEOUT = 5.0  # seconds, of the group


def of_rank(rank: int, store: str, how: str) -> str:
    """Steps until rank 1 ends, or stops, in its share of the first refresh."""
    join_others(rank, store, TIMEOUT)
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
    with two_scripts(__file__, str(tmp_path / "store"), how) as ranks:
        said, errors = ranks[0].communicate(timeout=60)
        call, kind, seconds = json.loads(said.splitlines()[-1] if said else f'["{errors}", 0, 0]')
        assert call == 3
        assert kind in ("RuntimeError", "DistBackendError", "DistNetworkError")
        assert seconds < 3 * TIMEOUT


if __name__ == "__main__":
    print(of_rank(int(sys.argv[1]), *sys.argv[2:]))

"""A run that ends while results travel: what is sent still comes, and what is lost is owed."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
from rank_scripts import join_others, two_scripts
from shared import built, end_of, steps, take
from streams import assert_same_bits, set_gradients

from soap_fast.distributed.messages import Sent

TIMEOUT = 5.0  # seconds, of the group


def of_rank(rank: int, store: str, how: str, file: str) -> None:
    """Four steps, of which the last starts a refresh; rank 0 then saves, and takes another."""
    join_others(rank, store, TIMEOUT)
    params, optimizer = built(dist.group.WORLD, overlap=True, backend="native")
    for call in range(4):
        set_gradients(params, call)
        if how == "dies" and (rank, call) == (1, 3):
            Sent.start = lambda *_: os._exit(9)
        optimizer.step()
    if how == "ends":
        dist.destroy_process_group()
    if rank == 0:
        torch.save(end_of(params, optimizer), file)
        set_gradients(params, 4)
        try:
            optimizer.step()
        except (RuntimeError, ValueError) as error:
            print(type(error).__name__)


def after(tmp_path, how: str):
    """What rank 0 has said and saved."""
    file = str(tmp_path / "saved")
    with two_scripts(__file__, str(tmp_path / "store"), how, file) as ranks:
        said, errors = ranks[0].communicate(timeout=60)
    assert os.path.exists(file), errors
    return said.strip(), torch.load(file, weights_only=True)


@pytest.mark.usefixtures("one_thread")
def test_a_group_that_is_destroyed_has_sent_everything(tmp_path):
    said, saved = after(tmp_path, "ends")
    assert_same_bits(saved, steps(None, range(4), backend="native"))
    assert said == ""


@pytest.mark.usefixtures("one_thread")
def test_a_message_that_is_lost_leaves_its_refresh_owed(tmp_path):
    said, (values, saved) = after(tmp_path, "dies")
    assert said in ("RuntimeError", "DistBackendError", "DistNetworkError")
    assert "owed" in saved["param_groups"][0]
    params, optimizer = built(None, backend="native")
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    take(params, optimizer, range(4, 8))
    assert_same_bits(end_of(params, optimizer), steps(None, range(8), backend="native"))


if __name__ == "__main__":
    of_rank(int(sys.argv[1]), *sys.argv[2:])

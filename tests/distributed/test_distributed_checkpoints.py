"""A state saved by some number of ranks goes on, bit for bit, with any other number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from shared import OPTIONS, built, end_of, steps
from streams import assert_same_bits, set_gradients, through_a_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from soap_fast import SOAP

COUNTS = (1, 2, 4)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def saved_after(group, calls):
    params, optimizer = built(group)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    return [p.detach().clone() for p in params], through_a_file(optimizer.state_dict())


def gone_on(group, values, saved, calls):
    params, optimizer = built(group)
    for param, value in zip(params, values, strict=True):
        param.data.copy_(value)
    optimizer.load_state_dict(saved)
    for call in calls:
        set_gradients(params, call)
        optimizer.step()
    return end_of(params, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("before", COUNTS)
@pytest.mark.parametrize("after", COUNTS)
def test_saved_by_some_and_resumed_by_others(ranks, before, after):
    expected = steps(None, range(10))
    values, saved = ranks(before, saved_after, range(5))[-1]
    for found in ranks(after, gone_on, values, saved, range(5, 10)):
        assert_same_bits(found, expected)


class Model(torch.nn.Module):
    """Two layers, and one that no forward reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 7)
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


def trained(group, calls):
    model = Model()
    optimizer = SOAP(model.parameters(), **OPTIONS, sharding="refresh", process_group=group)
    train(model, optimizer, calls)
    return model, optimizer


def train(model, optimizer, calls) -> None:
    for call in calls:
        optimizer.zero_grad()
        batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(call))
        model(batch).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def saving(group, folder):
    model, optimizer = trained(group, range(5))
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    content = {"model": model.state_dict(), "optimizer": flat}
    dcp.save(content, checkpoint_id=folder, process_group=group)
    train(model, optimizer, range(5, 10))
    return end_of(list(model.parameters()), optimizer)


def loading(group, folder):
    """Into an optimizer that has taken no step, whose state torch makes begin with zeros."""
    model, optimizer = trained(group, ())
    before = [p.detach().clone() for p in model.parameters()]
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    assert_same_bits([p.detach() for p in model.parameters()], before)
    stored = set(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)
    wanted = {key: value for key, value in flat.items() if f"optimizer.{key}" in stored}
    content = {"model": model.state_dict(), "optimizer": wanted}
    dcp.load(content, checkpoint_id=folder, process_group=group)
    model.load_state_dict(content["model"])
    set_optimizer_state_dict(model, optimizer, content["optimizer"], options=FLAT)
    train(model, optimizer, range(5, 10))
    return end_of(list(model.parameters()), optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("before", COUNTS)
def test_files_of_torch_distributed_checkpoint(ranks, before, tmp_path: Path):
    folder = str(tmp_path / "saved")
    expected = ranks(before, saving, folder)
    for after in COUNTS:
        for found in ranks(after, loading, folder):
            assert_same_bits(found, expected[0])

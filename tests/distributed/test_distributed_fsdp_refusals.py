"""Spread parameters that cannot be gathered are refused by name, before anything is sent."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from shared import heard
from spread_models import HSDP, backward, mesh_of, optimizer_of, spread, train, values
from streams import assert_same_bits
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from soap_fast import SOAP, explain


def placed(group, placements, kind=""):
    mesh = mesh_of(group, kind)
    if "Partial" in str(placements):
        return DTensor.from_local(torch.ones(6, 4), mesh, placements)
    return distribute_tensor(torch.ones(6, 4), mesh, placements)


def refused(group, placements, kind=""):
    tensor = torch.nn.Parameter(placed(group, placements, kind))
    return heard(lambda: SOAP([("odd", tensor)], sharding="state", process_group=group))


@pytest.mark.parametrize(
    ("placements", "kind"),
    [
        ([Shard(1)], ""),
        ([Partial()], ""),
        ([Shard(0), Shard(0)], HSDP),
        ([Replicate(), Shard(1)], HSDP),
    ],
    ids=str,
)
def test_placements(ranks, placements, kind):
    for said in ranks(4, refused, placements, kind):
        assert said.startswith(
            f"ValueError: parameter 'odd' is a DTensor with placements {tuple(placements)}"
        )
        assert "Shard(dim=0) over one dimension" in said


def strided(group):
    """FSDP2 over tensor parallelism: rows in strides."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layer = torch.nn.Linear(4, 8, bias=False)
    layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight, mesh["tp"], [Shard(0)]))
    fully_shard(layer, mesh=mesh["dp"])
    with pytest.raises(ValueError, match=r"parameter 'weight' is a DTensor with placements") as say:
        SOAP(layer.named_parameters(), sharding="state", process_group=group)
    return str(say.value)


def test_rows_in_strides(ranks):
    assert all("StridedShard" in said for said in ranks(4, strided))


def other_shardings(group):
    model = spread(group)
    both = {}, {"sharding": "refresh", "process_group": group}
    return [heard(partial(SOAP, model.named_parameters(), **options)) for options in both]


def test_other_shardings_name_the_one_to_take(ranks):
    for both in ranks(2, other_shardings):
        for said in both:
            assert said.startswith("ValueError: parameter 'convolution.weight' is a DTensor")
            assert "take sharding='state'" in said


def of_another_mesh(group):
    mesh = DeviceMesh("cpu", [0, 1])
    if group.rank() > 1:
        return "ranks [0, 1], the process group has ranks [0, 1, 2, 3]"
    tensor = torch.nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)]))
    return heard(lambda: SOAP([tensor], sharding="state", process_group=group))


def test_a_mesh_of_other_processes(ranks):
    for said in ranks(4, of_another_mesh):
        assert "ranks [0, 1], the process group has ranks [0, 1, 2, 3]" in said


def gradients(group):
    """One is spread otherwise than its parameter."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    before = values(model)
    backward(model, 0, group.rank())
    weight = model.narrow.weight
    weight.grad = weight.grad.redistribute(placements=[Replicate()])
    said = heard(optimizer.step)
    assert_same_bits(values(model), before)
    return said


def test_gradients_of_other_placements(ranks):
    for said in ranks(2, gradients):
        assert said.startswith(
            "ValueError: parameter 'narrow.weight' is a DTensor [3, 9] with placements"
        )
        assert "redistribute the gradient" in said


def of_another_dtype(group):
    """On one rank, whose bytes would be taken for those of twice as many entries."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(2), group.rank())
    before = values(model)
    optimizer.zero_grad()
    backward(model, 2, group.rank())
    if group.rank() == 1:
        grad = model.wide.weight.grad
        grad.data = grad.double()
    said = heard(optimizer.step)
    assert_same_bits(values(model), before)
    return said


def test_a_gradient_of_another_dtype_on_one_rank(ranks):
    for said in ranks(2, of_another_dtype):
        assert said.startswith("RuntimeError: rank 1 has gradients of other parameters than rank 0")
        assert "or of other dtypes" in said


def converted(group):
    """After the optimizer was built: owners keep whole tensors of the first dtype."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(2), group.rank())
    optimizer.zero_grad()
    model.bfloat16()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    return heard(optimizer.step)


def test_a_model_converted_later(ranks):
    for said in ranks(2, converted):
        assert said.startswith("ValueError: ")
        assert "torch.bfloat16" in said
        assert "build the optimizer after the model is converted" in said


def into_a_group(group):
    """Whether they join in a group of their own, or are put into one that is there."""
    model = spread(group)
    optimizer = optimizer_of(model, group)
    train(model, optimizer, range(2), group.rank())
    twin = "its state_dict into an optimizer of sharding='none'"
    with pytest.raises(RuntimeError, match=twin):
        copy.deepcopy(optimizer)
    odd = torch.nn.Parameter(placed(group, [Shard(1)]))
    with pytest.raises(ValueError, match="parameter 'odd' is a DTensor with placements"):
        optimizer.add_param_group({"params": [("odd", odd)]})
    optimizer.param_groups[0]["params"].append(odd)
    optimizer.param_groups[0]["param_names"].append("odd")
    before = values(model)
    with pytest.raises(ValueError, match="parameter 'odd' is a DTensor with placements"):
        optimizer.step()
    assert_same_bits(values(model), before)


def test_parameters_that_come_later(ranks):
    ranks(2, into_a_group)


def explained(group):
    return str(explain(optimizer_of(spread(group), group), ranks=2))


def test_explain_tells_of_whole_tensors(ranks):
    for said in ranks(2, explained):
        assert "6x2x3x3" in said
        assert "Steps of 2 ranks, sharding='state'" in said

"""permute against its twin: second moments follow their factors."""

from __future__ import annotations

import pytest
import torch
from carried import SHAPES, launch, table
from kernel_cases import DEVICE
from launched import LaunchedAlone

from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops import permute
from soap_fast.backends.triton.ops.settle import permuted_plane
from soap_fast.triton_kernels.columns import PERMUTE, PERMUTE_AXIS, SCALARS


def waiting(one: LaunchedAlone, index: int) -> torch.Tensor:
    """exp_avg_sq of a tensor where `settle` finds it."""
    member, memory = one.members[index], one.engine.memory
    address = permuted_plane(member)
    plane = memory.a if address == member.a else memory.b
    first = (address - plane.data_ptr()) // 4
    return plane[first : first + member.layout.elements].cpu()


def test_permute(moved):
    generator = torch.Generator().manual_seed(1)
    members, states = moved.members, [call.state for call in moved.calls]
    orders = [
        [
            None if size is None or mode == 1 else torch.randperm(size, generator=generator)
            for mode, size in enumerate(layout.plan.factors)
        ]
        for layout in moved.layouts
    ]
    on_device = [[None if o is None else o.to(DEVICE) for o in one] for one in orders]
    addresses = [
        {mode: order.data_ptr() for mode, order in enumerate(one) if order is not None}
        for one in on_device
    ]
    before = [state["exp_avg_sq"].cpu().clone() for state in states]
    work, axes = permute.permute_work(members, addresses, TUNING["permute"].constants["ELEMENTS"])
    launch(moved, "permute", work, PERMUTE, table(axes, PERMUTE_AXIS))
    for index, (state, layout) in enumerate(zip(states, moved.layouts, strict=True)):
        assert torch.equal(state["exp_avg_sq"].cpu(), before[index]), SHAPES[index]
        if index < len(SHAPES) - 1:
            expected = permute.permute(before[index], orders[index], layout)
            assert torch.equal(waiting(moved, index), expected), SHAPES[index]
        else:
            assert waiting(moved, index).isnan().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "shape",
    [(7,), (130, 5), (5, 131), (1, 67), (9, 7, 11), (40, 3, 3, 3), (3, 2, 5, 2), (2, 3, 4, 70)],
    ids=str,
)
def test_tiles_of_every_width(shape):
    """Of 128 entries: one row of 128 columns, 4 of 32, or 32 of 4; not all of them are full."""
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.zeros(shape, device=DEVICE))
    param.grad = torch.ones_like(param)
    options = {"merge_dims": False, "precondition_1d": True, "max_precond_dim": 50}
    one = LaunchedAlone([{"params": [param], **options}], "ieee")
    (layout,), memory = one.layouts, one.engine.memory
    memory.carried.view(-1, len(SCALARS))[:, SCALARS["taken"]] = 1
    state = one.calls[0].state["exp_avg_sq"]
    state.copy_(torch.rand(state.shape, generator=generator))
    for turned in ((), (0,), (1,), (0, 1), (1, 2), (0, 1, 2, 3)):
        orders = [
            torch.randperm(size, generator=generator) if mode in turned and size > 1 else None
            for mode, size in enumerate(layout.plan.modes)
        ]
        there = {m: order.to(DEVICE) for m, order in enumerate(orders) if order is not None}
        addresses = {mode: order.data_ptr() for mode, order in there.items()}
        work, axes = permute.permute_work(one.members, [addresses], 128)
        tables = (torch.cat(work.tiles).to(DEVICE), table(work.tasks, PERMUTE))
        arguments = (*tables, table(axes, PERMUTE_AXIS), memory.carried, work.count)
        one.engine.launcher(Launch("permute", arguments, {"ELEMENTS": 128}, work.count))
        wanted = permute.permute(state.cpu(), orders, layout)
        assert torch.equal(waiting(one, 0), wanted), turned

"""permute against its twin, and settle behind it: second moments follow their factors."""

from __future__ import annotations

import torch
from carried import SHAPES, launch, table
from kernel_cases import DEVICE

from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops import permute, settle
from soap_fast.triton_kernels.columns import PERMUTE, PERMUTE_AXIS, SETTLE


def test_permute_and_settle(moved):
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
    work, axes = permute.permute_work(members, addresses, TUNING["permute"].constants["ROWS"])
    launch(moved, "permute", work, PERMUTE, table(axes, PERMUTE_AXIS))
    rows = TUNING["settle"].constants["ROWS"]
    launch(moved, "settle", settle.settle_permuted_work(members, rows), SETTLE)
    for index, (state, layout) in enumerate(zip(states, moved.layouts, strict=True)):
        expected = before[index]
        if index < len(SHAPES) - 1:
            expected = layout.state_view(permute.permute(before[index], orders[index], layout))
        assert torch.equal(state["exp_avg_sq"].cpu(), expected), SHAPES[index]

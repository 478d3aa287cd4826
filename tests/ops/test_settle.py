"""settle against its twin: first moments come back from planes."""

from __future__ import annotations

import torch
from carried import SHAPES, launch

from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops import settle
from soap_fast.triton_kernels.columns import SETTLE


def test_settle_from_a_padded_plane(moved):
    for plane in (moved.engine.memory.a, moved.engine.memory.b):
        plane.copy_(torch.arange(plane.numel(), dtype=torch.float32))
    for call in moved.calls:
        squares = call.state["exp_avg_sq"]  # some zeros: exp_avg is 0 there
        squares.copy_(torch.arange(squares.numel()).view_as(squares) % 3)
    before = [call.state["exp_avg"].cpu().clone() for call in moved.calls]
    rows = TUNING["settle"].constants["ROWS"]
    launch(moved, "settle", settle.settle_rotated_work(moved.members, rows), SETTLE)
    memory = moved.memory()
    for index, (call, layout) in enumerate(zip(moved.calls, moved.layouts, strict=True)):
        which = "a" if len(layout.levels) % 2 == 0 else "b"
        plane = moved.plane(memory, index, which, 2 * len(layout.levels))
        expected = settle.settle(plane, layout, call.state["exp_avg_sq"].cpu()).float()
        if index == len(SHAPES) - 1:
            expected = before[index]
        assert torch.equal(call.state["exp_avg"].cpu(), expected), SHAPES[index]

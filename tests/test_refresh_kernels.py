"""The kernels of a refresh, each alone against its twin: count, permute, settle."""

from __future__ import annotations

import pytest
import torch
from launched import LaunchedAlone

from soap_fast.backends.triton.backend import interpreted
from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops import count, permute, settle
from soap_fast.step.refresh import FAILED, KEPT, LEFT_OUT, REFRESHED
from soap_fast.triton_kernels.columns import (
    COUNT,
    COUNT_MODE,
    PERMUTE,
    PERMUTE_AXIS,
    SCALARS,
    SETTLE,
)

pytestmark = pytest.mark.skipif(
    not interpreted() and not torch.cuda.is_available(), reason="interprets kernels on the CPU"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = ((6, 4, 3, 3), (5, 1, 7), (2, 9, 1, 7), (30, 41), (3, 3), (5, 6, 7, 3), (70, 3, 2, 5, 2))


@pytest.fixture
def alone():
    """An engine of tensors whose moments are random; the last tensor's are not carried."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(DEVICE)) for s in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(DEVICE)
    engine = LaunchedAlone([{"params": params, "max_precond_dim": 50}], "ieee")
    carried = engine.engine.memory.carried.view(-1, len(SCALARS))
    carried[: len(SHAPES) - 1, SCALARS["taken"]] = 1
    return engine


def table(rows, columns):
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(columns)).to(DEVICE)


def launch(alone, op, work, columns, *late):
    tiles = torch.cat(work.tiles).to(DEVICE)
    arguments = (tiles, table(work.tasks, columns), *late, alone.engine.memory.carried, work.count)
    alone.engine.launcher(Launch(op, arguments, TUNING[op].constants, work.count))


def test_permute_and_settle(alone):
    generator = torch.Generator().manual_seed(1)
    members, states = alone.members, [call.state for call in alone.calls]
    orders = [
        [
            None if size is None or mode == 1 else torch.randperm(size, generator=generator)
            for mode, size in enumerate(layout.plan.factors)
        ]
        for layout in alone.layouts
    ]
    on_device = [[None if o is None else o.to(DEVICE) for o in one] for one in orders]
    addresses = [
        {mode: order.data_ptr() for mode, order in enumerate(one) if order is not None}
        for one in on_device
    ]
    before = [state["exp_avg_sq"].cpu().clone() for state in states]
    work, axes = permute.permute_work(members, addresses, TUNING["permute"].constants["ROWS"])
    launch(alone, "permute", work, PERMUTE, table(axes, PERMUTE_AXIS))
    rows = TUNING["settle"].constants["ROWS"]
    launch(alone, "settle", settle.settle_permuted_work(members, rows), SETTLE)
    for index, (state, layout) in enumerate(zip(states, alone.layouts, strict=True)):
        expected = before[index]
        if index < len(SHAPES) - 1:
            expected = layout.state_view(permute.permute(before[index], orders[index], layout))
        assert torch.equal(state["exp_avg_sq"].cpu(), expected), SHAPES[index]


def test_settle_from_a_padded_plane(alone):
    for plane in (alone.engine.memory.a, alone.engine.memory.b):
        plane.copy_(torch.arange(plane.numel(), dtype=torch.float32))
    for call in alone.calls:
        squares = call.state["exp_avg_sq"]  # some zeros: exp_avg is 0 there
        squares.copy_(torch.arange(squares.numel()).view_as(squares) % 3)
    before = [call.state["exp_avg"].cpu().clone() for call in alone.calls]
    rows = TUNING["settle"].constants["ROWS"]
    launch(alone, "settle", settle.settle_rotated_work(alone.members, rows), SETTLE)
    memory = alone.memory()
    for index, (call, layout) in enumerate(zip(alone.calls, alone.layouts, strict=True)):
        which = "a" if len(layout.levels) % 2 == 0 else "b"
        plane = alone.plane(memory, index, which, 2 * len(layout.levels))
        expected = settle.settle(plane, layout, call.state["exp_avg_sq"].cpu()).float()
        if index == len(SHAPES) - 1:
            expected = before[index]
        assert torch.equal(call.state["exp_avg"].cpu(), expected), SHAPES[index]


def test_count(alone):
    states = [call.state for call in alone.calls]
    due = [[0, 2], [], [1], [0, 1], [0, 1], [2], [4]]
    kinds = [REFRESHED, KEPT, FAILED, REFRESHED, LEFT_OUT, LEFT_OUT, LEFT_OUT, KEPT, REFRESHED]
    outcomes = torch.tensor(kinds, device=DEVICE)
    shares = torch.arange(len(kinds), dtype=torch.float32, device=DEVICE)
    modes = [mode for one in due for mode in one]
    rows = count.mode_rows(
        (mode, outcomes.data_ptr() + 8 * place, shares.data_ptr() + 4 * place)
        for place, mode in enumerate(modes)
    )
    counters = [(s["refreshes"].data_ptr(), s["off_diagonal"].data_ptr()) for s in states]
    tasks = table(count.count_rows(counters, [len(one) for one in due]), COUNT)
    before = [(s["refreshes"].cpu().clone(), s["off_diagonal"].cpu().clone()) for s in states]
    carried = alone.engine.memory.carried
    constants = {"LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}
    arguments = (tasks, table(rows, COUNT_MODE), carried, len(states))
    alone.engine.launcher(Launch("count", arguments, constants, len(states)))
    first = 0
    for index, (state, one) in enumerate(zip(states, due, strict=True)):
        part = slice(first, first + len(one))
        first += len(one)
        expected = count.count(*before[index], one, outcomes[part].cpu(), shares[part].cpu())
        assert torch.equal(state["refreshes"].cpu(), expected[0])
        assert torch.equal(state["off_diagonal"].cpu().nan_to_num(), expected[1].nan_to_num())
        taken = carried.view(-1, len(SCALARS))[index, SCALARS["taken"]]
        assert bool(taken) == expected[2]

"""count against its twin: what became of the factors of each tensor."""

from __future__ import annotations

import torch
from carried import table
from kernel_cases import DEVICE

from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.ops import count
from soap_fast.step.refresh import FAILED, KEPT, LEFT_OUT, REFRESHED
from soap_fast.triton_kernels.columns import COUNT, COUNT_MODE, SCALARS


def test_count(moved):
    states = [call.state for call in moved.calls]
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
    carried = moved.engine.memory.carried
    constants = {"LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}
    arguments = (tasks, table(rows, COUNT_MODE), carried, len(states))
    moved.engine.launcher(Launch("count", arguments, constants, len(states)))
    first = 0
    for index, (state, one) in enumerate(zip(states, due, strict=True)):
        part = slice(first, first + len(one))
        first += len(one)
        expected = count.count(*before[index], one, outcomes[part].cpu(), shares[part].cpu())
        assert torch.equal(state["refreshes"].cpu(), expected[0])
        assert torch.equal(state["off_diagonal"].cpu().nan_to_num(), expected[1].nan_to_num())
        taken = carried.view(-1, len(SCALARS))[index, SCALARS["taken"]]
        assert bool(taken) == expected[2]

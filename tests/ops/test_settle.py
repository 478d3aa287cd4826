"""settle against its twin: the last product of a carry, and both moments in their places."""

from __future__ import annotations

import pytest
import torch
from carried import SHAPES
from kernel_cases import DEVICE

from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops import settle
from soap_fast.step.layout import padded


def integers(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Small ones, whose products and sums are exact in any order and precision."""
    return torch.randint(-3, 4, like.shape, generator=generator).float()


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_settle(moved, precision):
    generator = torch.Generator().manual_seed(2)
    own, states = moved.engine.memory, [call.state for call in moved.calls]
    for piece in (own.a, own.b, own.operands.memory):
        piece.copy_(integers(piece, generator))
    start = own.operands.memory.data_ptr()
    for one in own.operands.derived:  # operands are padded by zeros
        first = (one.address - start) // 4
        entries = own.operands.memory[first : first + one.rows * one.length]
        entries.view(one.rows, one.length)[:, one.group.size :] = 0
    before = [{key: s[key].cpu().clone() for key in ("exp_avg", "exp_avg_sq")} for s in states]
    memory = moved.memory()
    rows = 32  # a tensor without products has several tiles
    work = settle.settle_work(moved.members, rows)
    constants = {**TUNING["settle"].constants, "PRECISION": precision, "ROWS": rows}
    arguments = (torch.cat(work.tiles).to(DEVICE), own.carried, work.count)
    moved.engine.launcher(Launch("settle", arguments, constants, work.count))
    for index, (state, layout) in enumerate(zip(states, moved.layouts, strict=True)):
        levels = layout.levels
        last = max(len(levels) - 1, 0)
        plane = moved.plane(memory, index, "ab"[last % 2], last)
        matrix = None
        if levels:
            matrix = moved.basis(memory, index, levels[-1].group, back=False)
        which = "a" if levels and len(levels) % 2 == 0 else "b"
        v = moved.plane(memory, index, which, len(levels))
        found = settle.settle(plane, matrix, layout, v)
        expected = {"exp_avg": layout.state_view(found.flatten()),
                    "exp_avg_sq": layout.state_view(v.flatten())}  # fmt: skip
        for key, value in expected.items():
            value = before[index][key] if index == len(SHAPES) - 1 else value.float()
            assert torch.equal(state[key].cpu(), value), (SHAPES[index], key)


def test_moments_wait_where_nothing_is_read_any_more(moved):
    """exp_avg_sq in its new order lies in the plane that the last product does not read."""
    for member in moved.members:
        levels = len(member.layout.levels)
        source = member.a if levels % 2 == 1 or levels == 0 else member.b
        there = settle.permuted_plane(member)
        assert there in (member.a, member.b)
        assert there != source
        room = member.layout.memory[0 if there == member.a else 1]
        assert room >= padded(member.layout.elements)

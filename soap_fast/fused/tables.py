"""Tasks and tiles of `adam` and `derive`, with what they cost. Pure but for the addresses.

Addresses are integers that the engine hands in; a plan without a device takes zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from soap_fast.fused.columns import ADAM, DERIVE
from soap_fast.fused.operands import Operand
from soap_fast.fused.work import Member, Work

FLOAT = 4  # bytes


def adam_work(members: Sequence[Member], rows: int) -> Work:
    """Tensors that no product rotates."""
    work = Work()
    for member in members:
        layout = member.layout
        if layout.levels:
            continue
        starts = torch.arange(0, layout.elements, rows, dtype=torch.int32)
        tiles = torch.empty((len(starts), 2), dtype=torch.int32)
        tiles[:, 0], tiles[:, 1] = len(work.tasks), starts
        work.add(
            ADAM,
            tiles,
            tensor=member.index,
            plane=member.a,
            inner=layout.inner,
            pitch=layout.pitch,
            elements=layout.elements,
            exp_avg=member.exp_avg,
            exp_avg_sq=member.exp_avg_sq,
        )
        work.bytes += 6 * FLOAT * layout.numel
    return work


def derive_work(operands: Iterable[Operand], block: int) -> Work:
    """Operands of products from bases, in tiles `block` wide."""
    work = Work()
    for operand in operands:
        size = operand.group.size
        values: dict[str, int] = {}
        inner = size
        for place, (address, d) in enumerate(operand.parts):
            inner //= d
            values |= {
                f"basis{place}": address,
                f"basis_size{place}": d,
                f"basis_inner{place}": inner,
            }
        starts = [
            (len(work.tasks), row, column)
            for row in range(0, operand.rows, block)
            for column in range(0, operand.length, block)
        ]
        work.add(
            DERIVE,
            torch.tensor(starts, dtype=torch.int32),
            out=operand.address,
            rows=operand.rows,
            row_stride=operand.length,
            columns=operand.length,
            size=size,
            transposed=int(operand.transposed),
            **values,
        )
        entries = operand.rows * operand.length + sum(d * d for _, d in operand.parts)
        work.bytes += FLOAT * entries
    return work

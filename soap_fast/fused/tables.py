"""Tasks and tiles of every launch of a step, with what they cost. Pure but for the addresses.

Addresses are integers that the engine hands in; a plan without a device takes zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from soap_fast.fused.columns import ADAM, DERIVE, GRAM, ROTATE
from soap_fast.fused.layout import GramTask, Layout, padded
from soap_fast.fused.operands import Operand
from soap_fast.fused.tiles import (
    ACROSS,
    ADAM_HEIGHTS,
    GRAM_CLASSES,
    ROW_WIDTHS,
    rotate_area,
    rotate_tiles,
    triangle,
)
from soap_fast.fused.work import Member, Work

FLOAT = 4  # bytes
UNIT = 256  # partial Gram tiles lie at multiples of this many elements


def rotate_work(members: Sequence[Member], place: int, deepest: int, *, back: bool) -> Work:
    """Products number `place` of `deepest`; tensors with fewer products have theirs last."""
    work = Work()
    for member in members:
        layout, levels = member.layout, member.layout.levels
        number = place - (deepest - len(levels))
        if number < 0:
            continue
        level = levels[number]
        # A rotation leaves its result in the plane where the rotation back begins.
        passed = number + (len(levels) if back else 0)
        source, out = (member.a, member.b) if passed % 2 == 0 else (member.b, member.a)
        matrix = (member.backward if back else member.forward)[level.group]
        rows_pitch = padded(level.group.size)
        a, b = (matrix, source) if level.basis_first else (source, matrix)
        last = number == len(levels) - 1 and not back
        heights = ADAM_HEIGHTS if last else ROW_WIDTHS
        work.add(
            ROTATE,
            rotate_tiles(len(work.tasks), level.m, level.n, heights),
            tensor=member.index,
            a=a,
            b=b,
            out=out,
            lda=rows_pitch,
            ldb=rows_pitch,
            m=level.m,
            n=level.n,
            k=level.k,
            inner=level.inner,
            pitch=level.pitch,
            block=level.block,
            block_stride=level.block_stride,
            row_stride=level.row_stride,
            exp_avg=member.exp_avg,
            exp_avg_sq=member.exp_avg_sq,
            state_block_stride=level.state_block_stride,
            state_row_stride=level.state_row_stride,
            first_tile=work.count,
        )
        work.needed += 2 * layout.numel * level.group.size
        work.executed += 2 * rotate_area(level.m, level.n, heights) * -(-level.k // 32) * 32
        work.bytes += FLOAT * (2 * layout.numel + level.group.size**2)
        work.bytes += 4 * FLOAT * layout.numel if last else 0
    return work


def adam_work(members: Sequence[Member], rows: int) -> Work:
    """Tensors that no product rotates."""
    work = Work()
    for member in members:
        layout = member.layout
        if layout.levels:
            continue
        elements = layout.fold * layout.positions
        starts = torch.arange(0, elements, rows, dtype=torch.int32)
        tiles = torch.empty((len(starts), 2), dtype=torch.int32)
        tiles[:, 0], tiles[:, 1] = len(work.tasks), starts
        work.add(
            ADAM,
            tiles,
            tensor=member.index,
            plane=member.a,
            inner=layout.inner,
            pitch=layout.pitch,
            positions=elements,
            exp_avg=member.exp_avg,
            exp_avg_sq=member.exp_avg_sq,
            first_tile=work.count,
        )
        work.bytes += 6 * FLOAT * layout.numel
    return work


def parts_of(gram: GramTask, chunk: int, most: int) -> tuple[int, list[int]]:
    """Chunks of a run, and the bounds of the parts in chunks."""
    per_run = -(-gram.length // chunk)
    chunks = per_run * gram.runs
    parts = max(1, round(chunks / most))
    return per_run, [chunks * part // parts for part in range(parts + 1)]


def gram_parts(layouts: Sequence[Layout], chunk: int, most: int) -> int:
    """Elements of the partial tiles between `gram` and `gram_reduce`."""
    elements = 0
    for gram in (gram for layout in layouts for gram in layout.grams):
        parts = len(parts_of(gram, chunk, most)[1]) - 1
        if parts > 1:
            elements += parts * sum(h * w for _, _, h, w in triangle(gram.group.size))
    return elements


def gram_work(members: Sequence[Member], chunk: int, most: int) -> tuple[Work, Work]:
    """Gram matrices of the modes that products rotate: what `gram` and what `gram_reduce` does.

    Args:
        chunk: terms of one product of tiles.
        most: chunks that one tile sums, about.
    """
    work, reduce, units = Work(), Work(), 0
    for member in members:
        for gram in member.layout.grams:
            per_run, bounds = parts_of(gram, chunk, most)
            parts = len(bounds) - 1
            rows, reduced, area = [], [], 0
            for m0, n0, height, width in triangle(gram.group.size):
                kind = GRAM_CLASSES[height, width] + (ACROSS if gram.contiguous else 0)
                area += height * width
                if parts > 1:
                    reduced.append((len(reduce.tasks), kind, m0, n0, units, parts))
                for part in range(parts):
                    unit = units if parts > 1 else -1
                    rows.append((len(work.tasks), kind, m0, n0, *bounds[part : part + 2], unit))
                    units += height * width // UNIT if parts > 1 else 0
            values = _gram_values(member, gram, per_run)
            work.add(GRAM, torch.tensor(rows, dtype=torch.int32), **values)
            work.needed += gram.flops
            work.executed += 2 * area * bounds[-1] * chunk
            factor_bytes = FLOAT * gram.group.size**2 * 3 // 2  # half read, all of it written
            if parts > 1:
                reduce.add(GRAM, torch.tensor(reduced, dtype=torch.int32), **values)
                work.bytes += FLOAT * area * parts
                reduce.bytes += FLOAT * area * parts + factor_bytes
            else:
                work.bytes += factor_bytes
        if member.layout.grams:
            work.bytes += FLOAT * member.layout.fold * member.layout.positions
    return work, reduce


def _gram_values(member: Member, gram: GramTask, per_run: int) -> dict[str, int]:
    return {
        "tensor": member.index,
        "x": member.a,
        "size": gram.group.size,
        "row_stride": gram.row_stride,
        "chunks_per_run": per_run,
        "run_stride": gram.run_stride,
        "length": gram.length,
        "factor": member.factors[gram.group.modes[0]],
    }


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

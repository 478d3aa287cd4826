"""`gram` and `gram_reduce`: factors of the modes that products rotate, tile by tile. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from soap_fast.backends.triton.ops.plane import (
    without_padding,
)
from soap_fast.backends.triton.ops.tiles import FLOAT, triangle
from soap_fast.backends.triton.ops.work import Member, Work, table_row
from soap_fast.step.layout import GramTask, Layout
from soap_fast.step.plan import Group
from soap_fast.triton_kernels.columns import (
    GRAM,
    GRAM_ROWS,
    GRAM_WIDTHS,
)


def gram_work(members: Sequence[Member], chunk: int, most: int) -> tuple[Work, Work]:
    """Gram matrices of the modes that products rotate: what `gram` and what `gram_reduce` does.

    Args:
        chunk: terms of one product of tiles.
        most: chunks that one tile sums, about.
    """
    work, reduce, elements = Work(), Work(), 0
    for member in members:
        for gram in member.layout.grams:
            bounds = parts_of(gram, chunk, most)
            parts = len(bounds) - 1
            area = GRAM_ROWS * sum(width for _, _, width in triangle(gram.group.size))
            starts = table_row(
                GRAM, tensor=member.index, a=member.a, b=member.a, part=elements,
                factor=member.factors[gram.group.modes[0]],
            )  # fmt: skip
            records = _records(gram, tuple(bounds), chunk) + torch.tensor(starts)
            work.add_records(records)
            work.needed += gram.flops
            work.executed += 2 * area * bounds[-1] * chunk
            factor_bytes = FLOAT * gram.group.size**2 * 3 // 2  # half read, all of it written
            if parts > 1:
                elements += parts * area
                reduce.add_records(records[::parts])
                work.bytes += FLOAT * area * parts
                reduce.bytes += FLOAT * area * parts + factor_bytes
            else:
                work.bytes += factor_bytes
        if member.layout.grams:
            work.bytes += FLOAT * member.layout.fold * member.layout.positions
    return work, reduce


def gram_parts(grams: Sequence[GramTask], chunk: int, most: int) -> int:
    """Elements of the partial tiles between `gram` and `gram_reduce`."""
    elements = 0
    for gram in grams:
        parts = len(parts_of(gram, chunk, most)) - 1
        if parts > 1:
            elements += parts * GRAM_ROWS * sum(w for _, _, w in triangle(gram.group.size))
    return elements


def parts_of(gram: GramTask, chunk: int, most: int) -> list[int]:
    """The bounds of the parts of a sum, in chunks."""
    chunks = -(-gram.length // chunk) * gram.runs
    parts = max(1, round(chunks / most))
    return [chunks * part // parts for part in range(parts + 1)]


@lru_cache(maxsize=256)
def _records(
    gram: GramTask, bounds: tuple[int, ...], chunk: int
) -> torch.Tensor:  # [tiles * parts, GRAM]
    """Of one matrix, the parts of a tile behind one another, for all tensors of a shape.

    As if planes, factor and parts began at 0.
    """
    tiles = torch.tensor(triangle(gram.group.size))
    parts, ends = len(bounds) - 1, torch.tensor(bounds)
    m0, n0, width = tiles.repeat_interleave(parts, dim=0).unbind(1)
    first, behind = (x.repeat(len(tiles)) for x in (ends[:-1], ends[1:]))
    if gram.contiguous:
        start, before = first * chunk, first * chunk * gram.row_stride
        between = 1
    else:
        per_run = -(-gram.length // chunk)
        start, before = first % per_run * chunk, first // per_run * gram.run_stride
        between = gram.row_stride
    records = torch.zeros((len(m0), len(GRAM)), dtype=torch.int64)
    kinds = {w: kind + gram.contiguous * len(GRAM_WIDTHS) for kind, w in enumerate(GRAM_WIDTHS)}
    part = GRAM_ROWS * width
    fields: dict[str, torch.Tensor | int] = {
        "kind": torch.tensor([kinds[int(w)] for w in width]),
        "m0": m0,
        "n0": n0,
        "a": FLOAT * (before + m0 * between),
        "b": FLOAT * (before + n0 * between),
        "size": gram.group.size,
        "row_stride": gram.row_stride,
        "run_stride": gram.run_stride,
        "length": gram.length,
        "start": start,
        "chunks": behind - first,
        "part": part.cumsum(0) - part,
        "parts": parts,
    }
    for name, value in fields.items():
        records[:, GRAM[name]] = value
    return records


def gram(
    plane: torch.Tensor, factor: torch.Tensor, beta_s: float, layout: Layout, group: Group
) -> torch.Tensor:  # [d, d]
    """K = beta_s K + (1 - beta_s) x xᵀ, x the plane unfolded along a mode that products rotate.

    A rotation along the fold changes nothing in x xᵀ: the plane that `gather` leaves will do.

    Args:
        plane: [F, P].
        factor: [d, d], K.
    """
    axis = len(layout.axes) - len(layout.products) + layout.products.index(group)
    x = without_padding(plane, layout.inner).view(layout.fold, *layout.axes)
    x = x.movedim(1 + axis, 0).reshape(group.size, -1)  # [d, numel / d]
    return beta_s * factor + (1 - beta_s) * (x @ x.T)

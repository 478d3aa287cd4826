"""`rotate`: one product of a rotation, in records of its tiles. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

import torch

from soap_fast.backends.triton.ops.plane import (
    with_padding,
    without_padding,
)
from soap_fast.backends.triton.ops.tiles import FLOAT, cover
from soap_fast.backends.triton.ops.work import Member, Work, table_row
from soap_fast.step.layout import Layout, Level, padded
from soap_fast.triton_kernels.columns import (
    ROTATE,
    ROTATE_CLASSES,
)

HEIGHTS = (128, 64)
WIDTHS, SINGLE_WIDTHS = (64, 32, 16), (64, 16)
# A kernel divides numbers below LARGE + TALLEST by sizes up to LARGE: a product with 2^32 / size,
# rounded up, errs by less than their product / 2^32 of a unit there, so the quotient is exact.
LARGE, TALLEST = 1 << 15, 128


def rotate_work(members: Sequence[Member], place: int, deepest: int, *, back: bool) -> Work:
    """Products number `place` of `deepest`; tensors with fewer products have theirs last."""
    work = Work()
    for member in members:
        levels = member.layout.levels
        number = place - (deepest - len(levels))
        if number < 0:
            continue
        # A rotation leaves its result in the plane where the rotation back begins.
        passed = number + (len(levels) if back else 0)
        source, out = (member.a, member.b) if passed % 2 == 0 else (member.b, member.a)
        last = number == len(levels) - 1 and not back
        matrix = (member.backward if back else member.forward)[levels[number].group]
        add_product(work, member, levels[number], (source, matrix, out))
        work.bytes += 4 * FLOAT * member.layout.numel if last else 0
    return work


def add_product(
    work: Work,
    member: Member,
    level: Level,
    addresses: tuple[int, int, int],
) -> None:
    """Tiles of one product.

    Args:
        addresses: of the plane that is read, of the matrix, and of the plane that is written.
    """
    source, matrix, out = addresses
    records, executed = _records(level)
    starts = table_row(
        ROTATE, tensor=member.index, a=source, b=matrix, out=out,
        exp_avg=member.exp_avg, exp_avg_sq=member.exp_avg_sq,
    )  # fmt: skip
    work.add_records(records + torch.tensor(starts))
    work.executed += executed
    numel, size = member.layout.numel, level.group.size
    work.needed += 2 * numel * size
    work.bytes += FLOAT * (2 * numel + size**2)


@lru_cache(maxsize=256)
def _records(level: Level) -> tuple[torch.Tensor, int]:
    """Of a product whose tensors begin at address 0, for all tensors of a shape: [tiles, ROTATE].

    And what the tiles execute, in floating point operations.
    """
    found, executed = [], 0
    for kind, row, mode in _tiles(level):
        records = torch.zeros((len(row), len(ROTATE)), dtype=torch.int64)
        placed = (_by_positions if level.basis_first else _by_rows)(level, row, mode)
        entry = FLOAT * placed.pop("entry")
        fields = {
            "kind": torch.tensor(kind),
            "k": torch.tensor(level.k),
            "a": FLOAT * level.k * placed.pop("row"),
            "b": FLOAT * level.k * mode,
            "out": entry,
            "exp_avg": entry,
            "exp_avg_sq": entry,
            "modes": level.group.size - mode,
            **placed,
        }
        for name, value in fields.items():
            records[:, ROTATE[name]] = value
        found.append(records)
        height, width, _ = ROTATE_CLASSES[kind]
        executed += 2 * len(records) * height * width * -(-level.k // 32) * 32
    return torch.cat(found), executed


def _tiles(level: Level) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """By class: its number, first rows and first modes of its tiles, which share rows in turns."""
    along = level.basis_first
    rows = level.n if along else level.m
    modes = cover(level.m, WIDTHS) if along else cover(level.n, SINGLE_WIDTHS)
    for width in sorted({width for _, width in modes}, reverse=True):
        starts = torch.tensor([start for start, w in modes if w == width])
        lower = HEIGHTS if (HEIGHTS[0], width, along) in ROTATE_CLASSES else HEIGHTS[-1:]
        bands = cover(rows, lower)
        for height in lower:
            first = torch.tensor([start for start, h in bands if h == height])
            if len(first):
                row, mode = torch.meshgrid(first, starts, indexing="ij")
                yield ROTATE_CLASSES.index((height, width, along)), row.flatten(), mode.flatten()


def _by_positions(level: Level, first: torch.Tensor, mode: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of tiles whose rows are positions of a plane, from the first of which each begins."""
    run, within = first // level.pitch, first % level.pitch
    row = run * level.inner + within
    block, in_block = first // level.block, first % level.block
    block_place, block_size, block_inverse = _divisor(in_block, level.block)
    run_place, run_pitch, run_inverse = _divisor(within, level.pitch)
    return {
        "row": row,
        "rows": level.n // level.pitch * level.inner - row,
        "stored": level.n - first,
        "step": torch.full_like(first, level.row_stride),
        "entry": block * level.block_stride + in_block + mode * level.row_stride,
        "block_place": block_place,
        "block": block_size,
        "block_inverse": block_inverse,
        "block_jump": torch.full_like(first, level.block_stride - level.block),
        "run_place": run_place,
        "run_pitch": run_pitch,
        "run_inverse": run_inverse,
        "run_inner": run_pitch - (level.pitch - level.inner),
    }


def _by_rows(level: Level, row: torch.Tensor, mode: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of tiles whose rows are rows of a plane that has one mode."""
    return {
        "row": row,
        "rows": level.m - row,
        "stored": padded(level.n) - mode,
        "step": torch.full_like(row, level.row_stride),
        "entry": row * level.row_stride + mode,
    }


def _divisor(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By what a kernel divides `place` and the numbers up to `TALLEST` after it.

    Sizes above `LARGE`: what precedes the end is left out, or all of it where no end is near.

    Returns:
        place, size, 2^32 / size rounded up.
    """
    if size > LARGE:
        place, size = (place - (size - LARGE)).clamp(min=0), LARGE
    return place, torch.full_like(place, size), torch.full_like(place, -(-(1 << 32) // size))


def rotate(
    plane: torch.Tensor, matrix: torch.Tensor, layout: Layout, number: int
) -> torch.Tensor:  # [F, P']
    """out[j, ..] = sum_k M[j, k] x[.., k]: the contiguous mode leaves as the slowest of products.

    Args:
        plane: [F, P] after `number` products.
        matrix: [d, d], M: the transposed basis on the way there, the basis on the way back.
    """
    sizes = [group.size for group in layout.products]
    sizes = sizes[len(sizes) - number :] + sizes[: len(sizes) - number]
    batch = layout.fold * prod(group.size for group in layout.plain)
    x = without_padding(plane, sizes[-1]).view(batch, *sizes)
    out = (x @ matrix.T).movedim(-1, 1)  # [batch, d, ..]
    return with_padding(out.reshape(-1, out.shape[-1])).view(layout.fold, -1)

"""rotate against its twin; and its tiles, placed as the kernel places them, fill a plane once."""

from __future__ import annotations

import pytest
import torch
from compared import check_adam, close, stepped
from launched import LaunchedAlone
from tf32 import product_error

from soap_fast.backends.triton.ops import rotate
from soap_fast.backends.triton.ops.rotate import rotate_work
from soap_fast.backends.triton.ops.work import Member
from soap_fast.options import PlanOptions
from soap_fast.step.layout import layout_of
from soap_fast.step.plan import plan_tensor
from soap_fast.triton_kernels.columns import ROTATE, ROTATE_CLASSES

OPTIONS = PlanOptions(1000, False, False, "channels_first")
SHAPES = [
    (96, 160, 3, 3),  # blocks that tiles reach over
    (67, 18, 3, 3),  # padded runs
    (5, 7, 9, 11),  # three products, runs within blocks
    (9, 70),  # one product, along its modes
    (33, 333),  # runs above 256
    (34, 35, 33),  # blocks above 256, padded
]


def quotient(place, size, inverse):
    """As `umulhi` does; and it is exact."""
    found = place * inverse >> 32
    assert torch.equal(found, place // size)
    return found


def placed(record: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Of a tile's entries: row of a, row of b, place in out, and whether they hold an element."""
    height, width, along = ROTATE_CLASSES[record["kind"]]
    i, j = torch.arange(height), torch.arange(width)
    row, real = i, i < record["rows"]
    if along:
        place = record["run_place"] + i
        run = quotient(place, record["run_pitch"], record["run_inverse"])
        real = place - run * record["run_pitch"] < record["run_inner"]
        row = i - run * (record["run_pitch"] - record["run_inner"])
        block = quotient(record["block_place"] + i, record["block"], record["block_inverse"])
        entry = (i + block * record["block_jump"])[:, None] + j * record["step"]
        inside = (i < record["stored"])[:, None] & (j < record["modes"])
        filled = inside & real[:, None]
    else:
        entry = i[:, None] * record["step"] + j
        inside = real[:, None] & (j < record["stored"])
        filled = inside & (j < record["modes"])
    return row[:, None].expand_as(entry), j.expand_as(entry), entry, inside, filled


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("large", [256, rotate.LARGE])
def test_tiles_fill_the_plane_once(shape, back, large, monkeypatch):
    monkeypatch.setattr(rotate, "LARGE", large)  # what tensors of millions reach
    layout = layout_of(plan_tensor(shape, OPTIONS))
    a, b, basis = 1 << 40, 1 << 41, 1 << 42
    nowhere = dict.fromkeys(layout.products, basis)
    member = Member(7, layout, a, b, b, b, nowhere, nowhere, {}, 0)
    for number, level in enumerate(layout.levels):
        work = rotate_work([member], number, len(layout.levels), back=back)
        passed = number + back * len(layout.levels)
        source, out = (a, b) if passed % 2 == 0 else (b, a)
        rows = level.n // level.pitch * level.inner if level.basis_first else level.m
        modes = level.group.size
        batch = rows * modes
        size = level.n // level.pitch * level.pitch * modes if level.basis_first else rows * level.n
        seen = torch.zeros(size, dtype=torch.int64)
        elements = torch.full((size,), -1)  # row of a times modes plus row of b
        for values in torch.cat(work.tiles).tolist():
            record = {name: values[place] for name, place in ROTATE.items()}
            row, mode, entry, inside, filled = placed(record)
            first = (record["a"] - source) // (4 * level.k)
            first_mode = (record["b"] - basis) // (4 * level.k)
            entry = entry + (record["out"] - out) // 4
            assert record["tensor"] == 7
            seen.index_add_(0, entry[inside], torch.ones_like(entry[inside]))
            elements[entry[filled]] = ((first + row) * modes + first_mode + mode)[filled]
        assert (seen == 1).all()
        assert torch.equal(elements[elements >= 0].sort().values, torch.arange(batch))
        assert torch.equal(elements, expected(level, rows, modes, size))


def expected(level, rows: int, modes: int, size: int) -> torch.Tensor:
    """By the definition of `Level`, of each place in out the element that lies there."""
    found = torch.full((size,), -1)
    row = torch.arange(rows)
    if not level.basis_first:
        entry = row[:, None] * level.row_stride + torch.arange(modes)
        found[entry] = row[:, None] * modes + torch.arange(modes)
        return found
    position = row // level.inner * level.pitch + row % level.inner
    column = position // level.block * level.block_stride + position % level.block
    mode = torch.arange(modes)
    found[column[:, None] + mode * level.row_stride] = row[:, None] * modes + mode
    return found


def place_of_level(alone: LaunchedAlone, index: int, number: int) -> int:
    """Tensors with fewer products than others have theirs in the last launches."""
    return alone.deepest - len(alone.layouts[index].levels) + number


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_rotate(alone, back):
    for index in stepped(alone):
        layout = alone.layouts[index]
        count = len(layout.products)
        for number, group in enumerate(reversed(layout.products)):
            place = place_of_level(alone, index, number) + (alone.deepest if back else 0)
            before, after = alone.seen[f"rotate {place}"]
            source, out = ("a", "b") if (number + back * count) % 2 == 0 else ("b", "a")
            plane = alone.plane(before, index, source, number)
            matrix = alone.basis(before, index, group, back=back)
            wanted = rotate.rotate(plane, matrix, layout, number)
            bound = rotate.rotate(plane.abs(), matrix.abs(), layout, number)
            bound = product_error(alone.engine.precision, group.size) * bound
            found = alone.plane(after, index, out, number + 1)
            if number == count - 1 and not back:
                check_adam(alone, index, before, after, wanted, bound, found)
            else:
                close(found, wanted, bound, (index, place))

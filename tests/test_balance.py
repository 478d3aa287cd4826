"""Tiles of products are dealt so that programs end together; nothing else of a launch changes."""

from __future__ import annotations

import pytest
import torch

from bench import shapes
from bench.recorded import record
from soap_fast.backends.triton.launch.balance import COSTS, dealt
from soap_fast.triton_kernels.columns import GRAM, GRAM_WIDTHS, ROTATE, ROTATE_CLASSES

PROGRAMS = 12


def tiles_of(op: str, count: int) -> torch.Tensor:
    """Records of random classes and lengths, numbered by their tensors."""
    generator = torch.Generator().manual_seed(0)
    table = GRAM if op == "gram" else ROTATE
    kinds = {"gram": 2 * len(GRAM_WIDTHS), "settle": len(ROTATE_CLASSES) + 1}
    length, most = ("chunks", 150) if op == "gram" else ("k", 2560)
    records = torch.zeros((count, len(table)), dtype=torch.int64)
    records[:, table["tensor"]] = torch.arange(count)
    kind = torch.randint(kinds.get(op, len(ROTATE_CLASSES)), (count,), generator=generator)
    records[:, table["kind"]] = kind
    records[:, table[length]] = torch.randint(1, most, (count,), generator=generator)
    return records


def loads(op: str, tiles: torch.Tensor) -> torch.Tensor:
    """What each program has to do."""
    program = torch.arange(len(tiles)) % PROGRAMS
    return torch.zeros(PROGRAMS).index_add(0, program, COSTS[op](tiles).float())


@pytest.mark.parametrize("op", COSTS)
def test_programs_have_equal_loads(op):
    tiles = tiles_of(op, 20 * PROGRAMS + 5)
    found = dealt(op, tiles, PROGRAMS)
    assert torch.equal(found.unique(dim=0), tiles.unique(dim=0))
    # What one turn leaves apart the next, of smaller tiles, takes from it.
    one = loads(op, found)
    assert one.max() - one.min() <= COSTS[op](tiles).max()
    assert one.max() - one.min() < loads(op, tiles).max() - loads(op, tiles).min()


def test_equal_tiles_stay_as_they_lie_within_a_turn():
    """Neighbours read the same rows."""
    tiles = tiles_of("rotate", PROGRAMS)
    tiles[:, ROTATE["kind"]] = tiles[:, ROTATE["k"]] = 1
    assert torch.equal(dealt("rotate", tiles, 5)[:5], tiles[:5])
    assert torch.equal(dealt("rotate", tiles, PROGRAMS), tiles)
    assert torch.equal(dealt("adam", tiles, 5), tiles)


def test_a_step_deals_what_no_sum_is_numbered_by():
    engine = record(shapes.load("elic")).engine
    for place, names in (("gram", ["gram"]), ("rotate", ["rotate 0", "rotate 1"])):
        for launch, name in zip(engine.launches[place], names, strict=True):
            tiles, planned = launch.arguments[0], torch.cat(engine.works[name].tiles)
            programs = engine.launcher.programs(launch)
            alone = launch.constants.get("ADAM", False)
            wanted = planned if alone else dealt(launch.op, planned, programs)
            assert torch.equal(tiles, wanted), name
            assert torch.equal(tiles, planned) == alone, name

"""`settle`: moments carried over to new bases. exp_avg by the products that precede it, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.backends.triton.ops.rotate import add_product, rotate
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout, padded
from soap_fast.triton_kernels.columns import ROTATE, ROTATE_CLASSES

MOVED = len(ROTATE_CLASSES)  # the class of tiles without a product


def is_gathered(layout: Layout) -> bool:
    """Whether exp_avg goes through a plane ahead of all products, and not from where it lies.

    It does where it is folded, where nothing of it may be written while it is read, and where its
    rows are padded: nobody answers for what stands there.
    """
    return layout.fold > 1 or len(layout.levels) < 2 or layout.inner != layout.pitch


def permuted_plane(member: Member) -> int:
    """Where exp_avg_sq waits in its new order: the plane that the last product does not read.

    A tensor that is folded alone has its exp_avg in the first plane; one that nothing rotates has
    no second one, and is never due.
    """
    layout = member.layout
    if layout.levels:
        return member.a if len(layout.levels) % 2 == 0 else member.b
    return member.b if layout.folded else member.a


def carrying_work(members: Sequence[Member], place: int, deepest: int) -> Work:
    """Products number `place` of `deepest` but the last; as in `rotate_work`."""
    work = Work()
    for member in members:
        levels = member.layout.levels
        number = place - (deepest - len(levels))
        if number >= 0:
            out = member.b if number % 2 == 0 else member.a
            addresses = (_source(member, number), member.forward[levels[number].group], out)
            add_product(work, member, levels[number], addresses)
    return work


def settle_work(members: Sequence[Member], rows: int) -> Work:
    """The last product of each tensor, or its exp_avg as it lies in its plane.

    Args:
        rows: elements of a tile without a product.
    """
    work = Work()
    for member in members:
        layout = member.layout
        if layout.levels:
            last = len(layout.levels) - 1
            matrix = member.forward[layout.levels[last].group]
            addresses = (_source(member, last), matrix, permuted_plane(member))
            add_product(work, member, layout.levels[last], addresses)
        else:
            _add_moved(work, member, rows)
            work.bytes += 2 * FLOAT * layout.numel
        work.bytes += 2 * FLOAT * layout.numel
    return work


def _source(member: Member, number: int) -> int:
    """What a product reads."""
    if number == 0 and not is_gathered(member.layout):
        return member.exp_avg
    return member.a if number % 2 == 0 else member.b


def _add_moved(work: Work, member: Member, rows: int) -> None:
    elements = member.layout.elements
    first = torch.arange(0, elements, rows)
    records = torch.zeros((len(first), len(ROTATE)), dtype=torch.int64)
    fields = {
        "tensor": torch.tensor(member.index),
        "kind": torch.tensor(MOVED),
        "a": member.a + FLOAT * first,
        "out": permuted_plane(member) + FLOAT * first,
        "exp_avg": member.exp_avg + FLOAT * first,
        "exp_avg_sq": member.exp_avg_sq + FLOAT * first,
        "rows": padded(elements) - first,
    }
    for name, value in fields.items():
        records[:, ROTATE[name]] = value
    work.add_records(records)


def settle(
    plane: torch.Tensor,
    matrix: torch.Tensor | None,
    layout: Layout,
    exp_avg_sq: torch.Tensor,
) -> torch.Tensor:  # [F, P]
    """exp_avg, as a plane, from the one that its last product reads; 0 where exp_avg_sq is.

    Args:
        plane: [F, P] after all products but the last.
        matrix: [d, d], of the last product; None without any.
        exp_avg_sq: [F, P], in its new order.
    """
    if matrix is not None:
        plane = rotate(plane, matrix, layout, len(layout.levels) - 1)
    return plane.masked_fill(exp_avg_sq == 0, 0)

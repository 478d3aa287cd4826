"""`derive`: what products read of the bases, transposed, joined, with rows for 16-byte loads.

All of it is derived and never saved; `derive` computes it again after the bases have changed. While
a refresh carries exp_avg over, the carrying matrices stand where the transposed bases do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch.nn.functional import pad

from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Work
from soap_fast.step.layout import Layout, padded
from soap_fast.step.plan import Group
from soap_fast.triton_kernels.columns import (
    DERIVE,
)

Part = tuple[int, int]  # address and size of a matrix [d, d]


@dataclass(frozen=True)
class Operand:
    """A matrix that is derived: the Kronecker product of some modes' matrices.

    Attributes:
        index: of the tensor.
        group: the modes.
        parts: their bases.
        transposed: for rotations; as it is for rotations back.
        rows, length: of the padded matrix.
        address: where it lies.
    """

    index: int
    group: Group
    parts: tuple[Part, ...]
    transposed: bool
    rows: int
    length: int
    address: int

    def of(self, matrices: Mapping[int, int]) -> Operand:
        """The same of other matrices by mode, the identity where there is none."""
        sizes = zip(self.group.modes, self.parts, strict=True)
        parts = tuple((matrices.get(mode, 0), d) for mode, (_, d) in sizes)
        return replace(self, parts=parts)


class Operands:
    """The operands of all tensors, in one piece of memory.

    Attributes:
        forward: per tensor and group, the address of the transposed basis; of a pair that is folded
            those of both modes, one behind the other.
        backward: of the basis; its own memory where that will do.
        derived: those that are derived.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        bases: Sequence[Sequence[torch.Tensor | None]],
        room: Callable[[int], torch.Tensor],
    ) -> None:
        """
        Args:
            room: memory for so many elements.
        """
        self.forward: list[dict[Group, int]] = [{} for _ in layouts]
        self.backward: list[dict[Group, int]] = [{} for _ in layouts]
        wanted: list[Operand] = []
        total = 0
        for index, (layout, found) in enumerate(zip(layouts, bases, strict=True)):
            for groups in layout.operands:
                bases_of = [[_basis(found, mode) for mode in group.modes] for group in groups]
                for transposed in (True, False):
                    own = bases_of[0][0]
                    as_it_is = not transposed and _lies_as_wanted(layout, groups)
                    if as_it_is and own.data_ptr() % 16 == 0:
                        self.backward[index][groups[0]] = own.data_ptr()
                        continue
                    for group, members in zip(groups, bases_of, strict=True):
                        parts = tuple((q.data_ptr(), q.shape[0]) for q in members)
                        shape = _shape(layout, group)
                        wanted.append(Operand(index, group, parts, transposed, *shape, total))
                        total += FLOAT * padded(prod(shape))
        self.memory = room(total // FLOAT)
        start = self.memory.data_ptr()
        self.derived = [replace(one, address=start + one.address) for one in wanted]
        for operand in self.derived:
            addresses = self.forward if operand.transposed else self.backward
            addresses[operand.index][operand.group] = operand.address
        for index, layout in enumerate(layouts):
            if layout.folded and layout.pair:
                for by_group in (self.forward[index], self.backward[index]):
                    by_group[layout.folded] = by_group[layout.operands[0][0]]


def _shape(layout: Layout, group: Group) -> tuple[int, int]:
    """Rows and length of a group's operand."""
    if group is layout.folded:
        return layout.fold_block, layout.fold_block
    return group.size, padded(group.size)


def _lies_as_wanted(layout: Layout, groups: Sequence[Group]) -> bool:
    """Whether the basis itself, at 16 bytes, lies as its operand would."""
    group, *others = groups
    fits = _shape(layout, group) == (group.size, group.size) and len(group.modes) == 1
    return fits and not others


def derived_elements(layout: Layout) -> int:
    """Of all operands of a tensor that are derived, its bases lying at multiples of 16 bytes."""
    total = 0
    for groups in layout.operands:
        both = 1 if _lies_as_wanted(layout, groups) else 2
        total += both * sum(padded(prod(_shape(layout, group))) for group in groups)
    return total


def _basis(bases: Sequence[torch.Tensor | None], mode: int) -> torch.Tensor:
    basis = bases[mode]
    assert basis is not None, "a rotated mode has a basis"
    return basis


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


def derive(
    bases: Sequence[torch.Tensor], transposed: bool, rows: int, columns: int
) -> torch.Tensor:  # [rows, columns]
    """Q = Q_1 x Q_2 x ..  (Kronecker), or Qᵀ, with zeros below and to the right.

    Args:
        bases: [d_i, d_i] each, of the modes of one group in their order.
    """
    joint = bases[0]
    for basis in bases[1:]:
        joint = torch.kron(joint, basis)
    if transposed:
        joint = joint.T
    return pad(joint, (0, columns - joint.shape[1], 0, rows - joint.shape[0]))

"""What products read of the bases: transposed, joined, with rows that 16-byte loads can read.

All of it is derived and never saved; `derive` computes it again after the bases have changed. While
a refresh carries exp_avg over, the carrying matrices stand where the transposed bases do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from soap_fast.fused.layout import Layout, padded
from soap_fast.plan import Group

Part = tuple[int, int]  # address and size of a matrix [d, d]
FLOAT = 4  # bytes


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
        return Operand(
            self.index, self.group, parts, self.transposed, self.rows, self.length, self.address
        )


class Operands:
    """The operands of all tensors, in one piece of memory.

    Attributes:
        forward: per tensor and group, the address of the transposed basis.
        backward: of the basis; its own memory where that will do.
        derived: those that are derived.
    """

    def __init__(
        self, layouts: Sequence[Layout], bases: Sequence[Sequence[torch.Tensor | None]]
    ) -> None:
        self.forward: list[dict[Group, int]] = [{} for _ in layouts]
        self.backward: list[dict[Group, int]] = [{} for _ in layouts]
        wanted: list[Operand] = []
        total, device = 0, torch.device("cpu")
        for index, (layout, found) in enumerate(zip(layouts, bases, strict=True)):
            folded = (layout.folded,) if layout.folded else ()
            for group in (*folded, *layout.products):
                members = [_basis(found, mode) for mode in group.modes]
                device = members[0].device
                parts = tuple((q.data_ptr(), q.shape[0]) for q in members)
                rows, length = group.size, padded(group.size)
                if group is layout.folded:
                    rows = length = layout.fold_block
                size = FLOAT * padded(rows * length)
                wanted.append(Operand(index, group, parts, True, rows, length, total))
                total += size
                if len(parts) == 1 and rows == length == group.size and parts[0][0] % 16 == 0:
                    self.backward[index][group] = parts[0][0]
                else:
                    wanted.append(Operand(index, group, parts, False, rows, length, total))
                    total += size
        self.memory = torch.empty(total // FLOAT, dtype=torch.float32, device=device)
        start = self.memory.data_ptr()
        self.derived = [
            Operand(o.index, o.group, o.parts, o.transposed, o.rows, o.length, start + o.address)
            for o in wanted
        ]
        for operand in self.derived:
            addresses = self.forward if operand.transposed else self.backward
            addresses[operand.index][operand.group] = operand.address


def _basis(bases: Sequence[torch.Tensor | None], mode: int) -> torch.Tensor:
    basis = bases[mode]
    assert basis is not None, "a rotated mode has a basis"
    return basis
